"""What is read from the output of test programs, and what may be asked of them."""

from pathlib import Path

import pytest
from support.bare_sandbox import BareWorkspace

from agent_actors.config_tools import ToolsConfig
from agent_actors.errors import ToolError, ToolRefused
from agent_actors.tools.commands import TEST_TOOLS
from agent_actors.tools.outcomes import (
    Counts,
    any_counts,
    cargo_counts,
    go_report,
    javascript_counts,
    pytest_counts,
)
from agent_actors.tools.programs import head_and_tail, text_of
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Command, Finished

TOOLS = {tool.name: tool for tool in TEST_TOOLS}


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("=== 1 failed, 2 passed in 0.12s ===", Counts(passed=2, failed=1)),
        ("3 passed, 1 warning in 0.1s", Counts(passed=3)),
        ("1 passed, 1 skipped, 1 xfailed, 1 xpassed, 2 errors in 61.00s (0:01:01)", None),
        ("=== no tests ran in 0.01s ===", Counts()),
        ("=== 5 deselected in 0.61s ===", Counts()),
    ],
)
def test_pytest_tells_in_its_last_line(line: str, counts: Counts | None):
    text = f"1 passed in 0.1s\nprinted by a test\n{line}\n"
    assert pytest_counts(text) == (counts or Counts(passed=2, errors=2, skipped=2))


def test_pytest_without_a_last_line_tells_nothing():
    assert pytest_counts("ERROR: usage: 3 passed") is None


def test_cargo_has_a_line_for_each_of_its_programs():
    text = (
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished\n"
        "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished\n"
    )
    assert cargo_counts(text) == Counts(passed=4, failed=2, skipped=1)
    assert cargo_counts("error[E0425]: cannot find value") is None


@pytest.mark.parametrize(
    "text",
    [
        "# tests 4\n# pass 2\n# fail 1\n# cancelled 0\n# skipped 1\n# todo 0\n",
        "\u2139 tests 4\n\u2139 pass 2\n\u2139 fail 1\n\u2139 cancelled 0\n\u2139 skipped 1\n",
        "Test Suites: 1 failed, 1 total\nTests:       1 failed, 1 skipped, 2 passed, 4 total\n",
        " Test Files  1 failed (1)\n      Tests  1 failed | 2 passed | 1 skipped (4)\n",
        "  2 passing (5ms)\n  1 pending\n  1 failing\n",
    ],
    ids=["node, as TAP", "node", "jest", "vitest", "mocha"],
)
def test_the_runners_of_javascript_tell_in_their_ways(text: str):
    assert javascript_counts(text) == Counts(passed=2, failed=1, skipped=1)
    assert any_counts(text) == Counts(passed=2, failed=1, skipped=1)


GO = """\
{"Action":"start","Package":"x"}
{"Action":"run","Package":"x","Test":"TestA"}
{"Action":"output","Package":"x","Test":"TestA","Output":"=== RUN   TestA\\n"}
{"Action":"pass","Package":"x","Test":"TestA","Elapsed":0.01}
{"Action":"output","Package":"x","Test":"TestB","Output":"    x_test.go:9: one is not two\\n"}
{"Action":"fail","Package":"x","Test":"TestB","Elapsed":0}
{"Action":"skip","Package":"x","Test":"TestC","Elapsed":0}
{"Action":"output","Package":"x","Output":"FAIL\\n"}
{"Action":"fail","Package":"x","Elapsed":0.1}
# x [build output]
"""


def test_of_go_only_what_failed_is_shown():
    text, counts = go_report(GO)
    assert counts == Counts(passed=1, failed=1, skipped=1)
    assert text == "    x_test.go:9: one is not two\nFAIL\n# x [build output]\n"


def test_a_long_output_keeps_its_head_and_its_tail():
    text = "".join(f"{number}\n" for number in range(1_000))
    cut = head_and_tail(text, 300)
    assert cut.startswith("0\n1\n")
    assert cut.endswith("998\n999\n")
    assert f"[… {len(text) - 300} characters left out …]" in cut
    assert head_and_tail("short", 300) == "short"


def test_what_steers_a_terminal_is_written_out():
    assert text_of(b"a\x1b[31mb\r\n\tc\x07\x9b\xff") == "a\\x1b[31mb\n\tc\\x07\ufffd\ufffd"
    assert text_of("\x9b".encode()) == "\\x9b"


class Scripted:
    """A sandbox in which every command comes to the same."""

    name = "none"

    def __init__(self, finished: Finished | ToolError) -> None:
        self.commands: list[Command] = []
        self._finished = finished

    async def run(self, command: Command) -> Finished:
        self.commands.append(command)
        if isinstance(self._finished, ToolError):
            raise self._finished
        return self._finished


def finished(output: str, exit_code: int = 0, stopped: str = "") -> Finished:
    return Finished(exit_code=exit_code, output=output.encode(), duration_s=1.25, stopped=stopped)


def surroundings(folder: Path, sandbox: Scripted | None) -> Surroundings:
    return Surroundings(
        workspace=BareWorkspace(folder),
        settings=ToolsConfig(),
        web=None,
        sandbox=sandbox,
        no_sandbox="install bubblewrap",
    )


async def run(
    tool: str, folder: Path, result: Finished | ToolError, /, **arguments: object
) -> tuple[dict, str, Command]:
    sandbox = Scripted(result)
    output = await TOOLS[tool].call(surroundings(folder, sandbox), arguments)
    assert output.text.startswith(output.summary)
    return output.artifacts["tests"][0], output.text, sandbox.commands[0]


@pytest.mark.parametrize(
    ("tool", "output", "exit_code", "outcome"),
    [
        ("pytest", "2 passed in 0.1s\n", 0, "passed"),
        ("pytest", "1 failed, 2 passed in 0.1s\n", 1, "failed"),
        ("pytest", "=== 1 error in 0.1s ===\n", 2, "error"),
        ("pytest", "no tests ran in 0.1s\n", 5, "error"),
        ("pytest", "usage", 4, "error"),
        ("pytest", "quiet", 1, "failed"),
        ("go_test", GO, 1, "failed"),
        ("go_test", "x.go:1: syntax error", 1, "error"),
        ("cargo_test", "error: could not compile", 101, "error"),
        ("npm_test", "sh: jest: not found", 127, "error"),
        ("npm_test", "something of its own", 1, "failed"),
        ("make_test", "something of its own", 2, "failed"),
        ("make_test", "something of its own", 0, "passed"),
    ],
)
async def test_the_outcome_of_a_run(
    tmp_path: Path, tool: str, output: str, exit_code: int, outcome: str
):
    artifact, text, _ = await run(tool, tmp_path, finished(output, exit_code))
    assert artifact["outcome"] == outcome
    assert artifact["exit_code"] == exit_code
    assert artifact["duration_s"] == 1.25
    assert f"exit code {exit_code}" in text


async def test_an_artifact_has_every_count(tmp_path: Path):
    artifact, text, _ = await run(
        "pytest", tmp_path, finished("1 failed, 2 passed, 3 skipped, 4 errors in 1s", 1)
    )
    assert artifact == {
        "tool": "pytest",
        "outcome": "failed",
        "exit_code": 1,
        "duration_s": 1.25,
        "passed": 2,
        "failed": 1,
        "errors": 4,
        "skipped": 3,
    }
    assert text.startswith("pytest: failed (exit code 1): 2 passed, 1 failed, 4 errors, 3 skipped")


async def test_a_run_that_was_stopped_says_so(tmp_path: Path):
    artifact, text, _ = await run("make_test", tmp_path, finished("…", -9, "timeout"))
    assert artifact["outcome"] == "timeout"
    assert "stopped in 1.25 s, at its time limit" in text
    artifact, text, _ = await run("make_test", tmp_path, finished("…", -9, "output"))
    assert artifact["outcome"] == "error"
    assert "it wrote too much" in text


@pytest.mark.parametrize(
    ("tool", "output", "remedy"),
    [
        ("pytest", "/usr/bin/python3: No module named pytest\n", r"install agent-actors\[pytest\]"),
        ("npm_test", 'npm error Missing script: "test"\n', "no package.json with a test script"),
        ("make_test", "make: *** No rule to make target 'test'.  Stop.\n", "no Makefile"),
        ("cargo_test", "error: could not find `Cargo.toml` in `/x`\n", "no Cargo.toml"),
        ("go_test", "go: go.mod file not found in current directory\n", "no go.mod"),
    ],
)
async def test_a_run_of_nothing_is_an_error_with_its_remedy(
    tmp_path: Path, tool: str, output: str, remedy: str
):
    with pytest.raises(ToolError, match=remedy):
        await run(tool, tmp_path, finished(output, 1))


async def test_a_program_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(ToolError, match="go_test cannot run on this machine: cannot start go"):
        await run("go_test", tmp_path, ToolError("cannot start go: not found"))


async def test_without_a_sandbox_nothing_is_run(tmp_path: Path):
    with pytest.raises(ToolRefused, match="install bubblewrap"):
        await TOOLS["pytest"].call(surroundings(tmp_path, None), {})


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("pytest", {"paths": ["../outside"]}),
        ("pytest", {"paths": ["/etc/passwd"]}),
        ("pytest", {"paths": ["a.py::x\n--co"]}),
        ("pytest", {"max_failures": 0}),
        ("pytest", {"verbosity": 9}),
        ("pytest", {"timeout_s": -1}),
        ("pytest", {"timeout_s": "nan"}),
        ("pytest", {"plugins": ["x"]}),
        ("pytest", {"folder": "../x"}),
        ("pytest", {"folder": "missing"}),
        ("pytest", {"folder": "link"}),
        ("go_test", {"packages": ["../x"]}),
        ("cargo_test", {"package": "--config=x"}),
        ("cargo_test", {"name": "--nocapture"}),
        ("cargo_test", {"name": "a b"}),
        ("make_test", {"target": "-f/etc/x"}),
        ("make_test", {"target": "SHELL=/bin/x"}),
        ("make_test", {"target": "test SHELL=x"}),
        ("make_test", {"target": "install"}),
        ("make_test", {"target": "test\n"}),
        ("npm_test", {"script": "postinstall"}),
    ],
)
async def test_nothing_but_what_its_arguments_say_can_be_asked(
    tmp_path: Path, tool: str, arguments: dict[str, object]
):
    sandbox = Scripted(finished(""))
    around = surroundings(tmp_path, sandbox)
    (tmp_path / "work/link").symlink_to("/etc")
    with pytest.raises(ToolError):
        await TOOLS[tool].call(around, arguments)
    assert sandbox.commands == []


async def test_no_value_stands_where_an_option_could(tmp_path: Path):
    _, _, command = await run(
        "pytest", tmp_path, finished(""), paths=["-x", "@a", "a/t.py::t[1]"], keyword="--co"
    )
    assert command.argv[-5:] == ("-k=--co", "--", "./-x", "./@a", "./a/t.py::t[1]")
    _, _, command = await run(
        "go_test", tmp_path, finished(""), packages=["-exec=x", "./a/..."], run="-exec=x"
    )
    assert command.argv[2:] == ("-json", "-run=-exec=x", "./-exec=x", "./a/...")


async def test_a_run_may_ask_for_less_time_but_not_for_more(tmp_path: Path):
    _, _, command = await run("make_test", tmp_path, finished(""), timeout_s=5)
    assert command.timeout_s == 5
    _, _, command = await run("make_test", tmp_path, finished(""), timeout_s=9_999)
    assert command.timeout_s == ToolsConfig().sandbox.timeout_s


async def test_a_run_starts_in_the_folder_that_is_named(tmp_path: Path):
    (tmp_path / "work/sub").mkdir(parents=True)
    _, _, command = await run("npm_test", tmp_path, finished(""), folder="sub")
    assert command.cwd == tmp_path / "work/sub"
    assert command.folder == tmp_path / "work"


async def test_no_test_tool_counts_as_reading():
    assert [tool.name for tool in TEST_TOOLS if tool.reads] == []
    assert {tool.group for tool in TEST_TOOLS} == {"tests"}
