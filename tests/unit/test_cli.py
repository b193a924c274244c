"""The command line without a service: help, exit codes, what it prints, what it makes of input."""

import json
import signal
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from agent_actors import __version__
from agent_actors.cli import COMMANDS, commands
from agent_actors.cli.foreground import say_ready, until_signalled
from agent_actors.cli.results import line_of, show_result
from agent_actors.cli.submit import submit, task_from
from agent_actors.cli.up import default_data_dir
from agent_actors.config import Config, NatsConfig, VllmConfig
from agent_actors.config_file import load_config
from agent_actors.contract import (
    ActorStatus,
    AgentResult,
    AgentTask,
    PoolStatus,
    Proposal,
    ServiceStatus,
    Usage,
    utc_now,
)
from agent_actors.errors import InvalidTask, ServiceUnreachable


def run(*args: str, **options) -> Result:
    return CliRunner().invoke(commands, args, **options)


# The list of commands.


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str):
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(limit=200) == COMMANDS[name].line


def test_help_lists_every_command_and_the_exit_codes():
    said = run("--help").output
    assert all(f"\n  {name} " in said for name in COMMANDS)
    assert "3 the service cannot be reached" in said


def test_an_unknown_command_is_wrong_usage():
    result = run("sumbit")
    assert result.exit_code == 2
    assert "No such command 'sumbit'" in result.stderr


# Errors.


@pytest.mark.parametrize("args", [("--config", "x.yaml", "status"), ("status", "--config=x.yaml")])
def test_a_wrong_configuration_is_named_and_ends_with_2(args: tuple[str, ...], tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text("nats: {ulr: nats://127.0.0.1}\n")
    result = run(*(arg.replace("x.yaml", str(file)) for arg in args))
    assert result.exit_code == 2
    assert f"{file}:1: nats.ulr" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_configuration_named_last_wins(tmp_path: Path):
    file = tmp_path / "right.yaml"
    file.write_text("vllm: {model: right}\n")
    result = run("--config", "/nowhere.yaml", "config", "show", "--json", "--config", str(file))
    assert json.loads(result.stdout)["vllm"]["model"] == "right"


@pytest.mark.parametrize("args", [("--debug", "status"), ("status", "--debug")])
def test_debug_shows_where_an_error_comes_from(
    args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AGENT_ACTORS_NATS_URL", "nonsense")
    result = run(*args)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "ConfigError" in result.stderr


def test_serve_names_what_it_needs_and_starts_nothing():
    result = run("serve")
    assert result.exit_code == 2
    assert "nats.url (AGENT_ACTORS_NATS_URL) and vllm.urls (AGENT_ACTORS_VLLM_URLS)" in (
        result.stderr
    )


# What needs no service.


def test_version_tells_the_packages_that_matter():
    assert run("version").output.startswith(f"agent-actors {__version__} (Python 3.")
    assert json.loads(run("version", "--json").output).keys() >= {"agent-actors", "ray", "nats-py"}


def test_the_schema_is_json():
    schema = json.loads(run("schema").output)
    assert {"AgentTask", "AgentResult"} <= schema["$defs"].keys()


def test_the_configuration_shown_is_the_one_in_force_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AGENT_ACTORS_NATS_URL", "nats://127.0.0.1:1")
    file = tmp_path / "agents.yaml"
    file.write_text("pools: {small: {actors: 1}}\n")
    again = tmp_path / "again.yaml"
    again.write_text(run("config", "show", "--config", str(file)).output)
    shown = load_config(str(again), {})
    assert shown.nats.url == "nats://127.0.0.1:1"
    assert shown.pools["small"].actors == 1


def test_the_configuration_shown_has_no_secrets(tmp_path: Path):
    file = tmp_path / "agents.yaml"
    file.write_text("nats: {user: me, password: hidden}\nvllm: {api_key: hidden}\n")
    for more in ((), ("--json",)):
        shown = run("config", "show", "--config", str(file), *more).output
        assert "***" in shown
        assert "hidden" not in shown


def test_the_reference_has_every_key_with_its_variable():
    said = run("config", "show", "--reference").output
    assert "nats.url  AGENT_ACTORS_NATS_URL\n" in said
    keys = json.loads(run("config", "show", "--reference", "--json").output)
    assert {"path": "ray.namespace", "variable": "AGENT_ACTORS_RAY_NAMESPACE"}.items() <= next(
        key for key in keys if key["path"] == "ray.namespace"
    ).items()


# What a task is made of.


def task_of(*args: str, stdin: str = "") -> AgentTask:
    """Return the task that `submit` makes of its command line."""
    made: list[AgentTask] = []

    @click.command(params=submit.params)
    def only_read(**options) -> None:
        made.append(task_from(options))

    result = CliRunner().invoke(only_read, args, input=stdin, standalone_mode=False)
    if result.exception:
        raise result.exception
    return made[0]


def test_a_text_is_a_task_for_a_developer_with_an_id_of_its_own():
    first, second = task_of("write it"), task_of("write it")
    assert (first.task_description, first.role, first.enable_tools) == ("write it", "DEV", None)
    assert first.task_id != second.task_id


def test_every_option_goes_into_the_task():
    task = task_of(
        "x", "--role", "qa", "--task-id", "t-1", "--no-tools", "--constraints", '{"timeout": 5}'
    )
    assert task == AgentTask(
        task_id="t-1",
        task_description="x",
        role="QA",
        enable_tools=False,
        constraints={"timeout": 5},
    )


@pytest.mark.parametrize("stdin", [True, False])
def test_a_file_or_stdin_holds_the_description(stdin: bool, tmp_path: Path):  # noqa: FBT001 - pytest passes it by name
    file = tmp_path / "task.txt"
    file.write_text("{curly} words\n")
    task = task_of("--file", "-", stdin=file.read_text()) if stdin else task_of("--file", str(file))
    assert task.task_description == "{curly} words\n"


def test_a_file_beside_the_text_is_what_it_speaks_of():
    task = task_of("Review this:", "--file", "-", stdin="a design")
    assert task.task_description == "Review this:\n\na design"


def test_a_whole_task_leaves_no_room_for_a_text():
    with pytest.raises(click.UsageError, match="no room for TEXT"):
        task_of("more", "--file", "-", stdin='{"task_description": "x"}')


def test_a_file_holds_a_whole_task_and_options_change_it(tmp_path: Path):
    file = tmp_path / "task.json"
    file.write_text(
        '{"task_id": "t-1", "task_description": "x", "role": "QA",'
        ' "constraints": {"timeout": 5, "language": "python"}}'
    )
    assert task_of("--file", str(file)).task_id == "t-1"
    task = task_of("--file", str(file), "--role", "data", "--constraints", '{"timeout": 9}')
    assert task.role == "DATA"
    assert task.constraints == {"timeout": 9, "language": "python"}


@pytest.mark.parametrize(
    ("args", "error", "said"),
    [
        ((), click.UsageError, "as TEXT, with --file, or with both"),
        (("x", "--constraints", "[1]"), click.BadParameter, "is no JSON object"),
        (("x", "--constraints", "{"), click.BadParameter, "is no JSON object"),
        (("x", "--constraints", '{"timeout": "soon"}'), InvalidTask, r"constraints\.timeout"),
        (("x", "--task-id", ""), InvalidTask, "task_id: is empty"),
        ((" ",), InvalidTask, "task_description: is empty"),
        (("x", "--timeout", "0"), click.BadParameter, "0"),
    ],
)
def test_what_cannot_be_a_task_is_refused(args: tuple[str, ...], error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        task_of(*args)


@pytest.mark.parametrize(("content", "said"), [(b"{", "task_description"), (b"\xff", "UTF-8")])
def test_a_file_that_is_not_what_its_name_says_is_refused(
    content: bytes, said: str, tmp_path: Path
):
    file = tmp_path / "task.json"
    file.write_bytes(content)
    with pytest.raises(click.BadParameter, match=said):
        task_of("--file", str(file))


# How results and readiness read.

RESULT = AgentResult(
    task_id="t-1",
    agent_id="default-0",
    role="DEV",
    status="completed",
    success=True,
    duration_ms=1_234.0,
    timestamp=utc_now(),
    proposal=Proposal(
        content="First line\nsecond " + "word " * 30,
        author_id="default-0",
        author_role="DEV",
        model="m",
        temperature=0.7,
    ),
    model="m",
    attempt=2,
    usage=Usage(total_tokens=99),
)


def test_a_result_reads_with_its_facts_and_its_whole_answer(capsys: pytest.CaptureFixture[str]):
    show_result(RESULT)
    said = capsys.readouterr().out
    assert "t-1 completed  (DEV on default-0, m, attempt 2, 1.2 s, 99 tokens)" in said
    assert RESULT.proposal is not None
    assert RESULT.proposal.content in said


def test_a_result_on_one_line_is_cut_short():
    line = line_of(RESULT)
    assert "\n" not in line
    assert line.endswith("…")
    assert "First line second word" in line


def test_the_ready_line_is_one_line_without_passwords(capsys: pytest.CaptureFixture[str]):
    config = Config(
        nats=NatsConfig(url="nats://me:hidden@127.0.0.1:1"),
        vllm=VllmConfig(urls=("http://127.0.0.1:2",)),
    )
    actor = ActorStatus(agent_id="default-0", state="running", slots=1, slots_used=0)
    pool = PoolStatus(name="default", subjects=[], state="running", actors=[actor])
    status = ServiceStatus(version="1", supervisor_id="s", started=utc_now(), pools=[pool])
    say_ready(config, status, out=sys.stdout, as_json=False, simulated=True, logs="/tmp/aa-x")
    assert capsys.readouterr().out == (
        "Ready: NATS nats://***@127.0.0.1:1 | model http://127.0.0.1:2 (simulated) | "
        "pools default (1 actors) | logs /tmp/aa-x\n"
    )
    say_ready(config, status, out=sys.stdout, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "nats_url": "nats://***@127.0.0.1:1",
        "vllm_urls": ["http://127.0.0.1:2"],
        "simulated": False,
        "pools": {"default": 1},
        "logs": "",
    }


# Signals, folders.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_block_in_good_order(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
):
    before = signal.getsignal(number)
    unwound = False
    with until_signalled():
        try:
            signal.raise_signal(number)
            pytest.fail("the signal did nothing")
        finally:
            unwound = True
    assert unwound
    assert capsys.readouterr().err == "Stopped.\n"
    assert signal.getsignal(number) is before


def test_an_error_gets_out_of_a_block_that_signals_end():
    with pytest.raises(ServiceUnreachable), until_signalled():
        raise ServiceUnreachable


def test_data_lies_where_xdg_says():
    assert default_data_dir({"HOME": "/home/me"}) == Path("/home/me/.local/share/agent-actors")
    assert default_data_dir({"HOME": "/home/me", "XDG_DATA_HOME": "/data"}) == Path(
        "/data/agent-actors"
    )
