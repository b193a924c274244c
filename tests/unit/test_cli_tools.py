"""How the work of an agent with tools reads: live, and in its result."""

import io

import click
import pytest
from rich.console import Console
from support.fakes import NOON

from agent_actors.cli.live import Lines, Screen, line_of
from agent_actors.cli.plain import call_line, one_line, plain, seconds
from agent_actors.cli.results import line_of as result_line
from agent_actors.cli.results import show_result
from agent_actors.contract import AgentResult, ArtifactRef, Operation, Proposal, TaskEvent, Usage

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31mred\u202eevil\r\x00"


def event(kind: str, **detail) -> TaskEvent:
    return TaskEvent(
        task_id="t-1", kind=kind, time=NOON, agent_id="default-0", attempt=2, detail=detail
    )


# Text of others.


def test_what_would_steer_a_terminal_is_shown_as_a_mark():
    shown = plain(HOSTILE)
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert shown.startswith("�]0;owned��[2J�31mred�evil")


@pytest.mark.parametrize("text", ["tabs\tand\nlines", "Grüße, 世界", "👩‍💻", ""])
def test_what_can_be_seen_stays_as_it_is(text: str):
    assert plain(text) == text


def test_no_duration_fills_the_terminal():
    assert seconds(12_345) == "12.3 s"
    assert len(seconds(1e308)) < 20


def test_a_role_and_an_id_of_others_steer_no_terminal():
    hostile = AgentResult(
        task_id=f"id{HOSTILE}",
        agent_id="a",
        role=f"DEV{HOSTILE}",
        status="failed",
        success=False,
        duration_ms=1.0,
        timestamp=NOON,
    )
    coloured = click.unstyle(result_line(hostile))
    assert coloured.isprintable()


def test_a_kind_of_event_that_a_newer_service_has_is_no_error():
    screen = Screen(Console(file=io.StringIO()))
    screen.show(event("levitated"))


def test_lines_of_another_system_and_odd_spaces_are_lines_and_spaces():
    assert plain("a\r\nb\u00a0c\u2028d") == "a\nb c d"


def test_a_line_is_one_line_and_cut_short():
    assert one_line("a\n\n b\x1b[0m", 10) == "a b�[0m"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"


def test_a_call_reads_with_its_parameters_on_one_line():
    line = call_line("files", "write_file", {"path": "a.py", "content": "x\n" * 1_000, "n": 1})
    assert line.startswith('files.write_file path="a.py" content="x\\nx\\n')
    assert line.endswith("… n=1")
    assert len(line) <= 160


# Live.

CALL = event("tool_call", tool="files", operation="read_file", params={"path": "a.py"})
DONE = event(
    "tool_result",
    tool="files",
    operation="read_file",
    success=True,
    duration_ms=1.25,
    summary="3 lines",
)
FAILED = event(
    "tool_result",
    tool="tests",
    operation="pytest",
    success=False,
    duration_ms=2_300,
    error=f"1 failed {HOSTILE}",
)


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (CALL, '→ files.read_file path="a.py"'),
        (DONE, "✓ files.read_file 3 lines (1 ms)"),
        (FAILED, "✗ tests.pytest 1 failed �]0;owned��[2J�31mred�evil � (2.3 s)"),
        (event("retry", error="503"), "waiting for another attempt: 503"),
        (event("retry"), "waiting for another attempt: no answer"),
        (event("token", text="hello"), ""),
        (event("started"), ""),
        (event("finished"), ""),
        (event("tool_call", params="odd"), "→ ."),
        (event("tool_result", duration_ms="odd"), "✗ ."),
    ],
)
def test_an_event_reads_on_one_line(told: TaskEvent, line: str):
    assert line_of(told) == line


def test_not_on_a_terminal_calls_and_results_are_lines_and_words_are_not(
    capsys: pytest.CaptureFixture[str],
):
    for told in (event("started"), event("token", text="I"), CALL, DONE, event("finished")):
        Lines().show(told)
    assert capsys.readouterr() == (
        "",
        '→ files.read_file path="a.py"\n✓ files.read_file 3 lines (1 ms)\n',
    )


class Paper:
    """A terminal of its own, and what the screen has put there."""

    def __init__(self) -> None:
        self.console = Console(file=io.StringIO(), force_terminal=True, width=100)
        self.screen = Screen(self.console)

    def show(self, *events: TaskEvent) -> None:
        for told in events:
            self.screen.show(told)

    @property
    def kept(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()

    @property
    def live(self) -> str:
        with self.console.capture() as captured:
            self.console.print(self.screen.picture())
        return captured.get()


def test_a_terminal_sees_the_words_as_they_come_and_where_the_task_stands():
    paper = Paper()
    assert "waiting for an agent" in paper.live
    paper.show(event("started"), event("token", text="I will "), event("token", text="look."))
    assert "I will look." in paper.live
    assert "running on default-0, attempt 2" in paper.live
    assert paper.kept == ""


def test_words_that_a_call_follows_stay_on_the_terminal_above_its_result():
    paper = Paper()
    paper.show(event("token", text=f"I will look.{HOSTILE}"), CALL)
    assert 'files.read_file path="a.py"' in paper.live
    paper.show(DONE)
    places = [paper.kept.index(words) for words in ("I will look.", "→ files.read", "✓ files.read")]
    assert places == sorted(places)
    assert "\x1b]0" not in paper.kept
    assert "I will look." not in paper.live


def test_an_answer_that_begins_anew_voids_the_words_before():
    paper = Paper()
    paper.show(event("token", text="wrong"), event("token", text=""), event("token", text="right"))
    assert "wrong" not in paper.live
    assert "right" in paper.live


def test_no_line_is_longer_than_the_terminal_is_wide():
    paper = Paper()
    wide = event("tool_call", tool="files", operation="x", params={str(n): n for n in range(99)})
    paper.show(wide)
    assert len(paper.kept.splitlines()) == 1
    assert len(paper.live.strip().splitlines()) == 1


def test_only_the_last_lines_of_many_words_are_live():
    paper = Paper()
    paper.show(*(event("token", text=f"line {number}\n") for number in range(100)))
    assert "line 99" in paper.live
    assert "line 50" not in paper.live


@pytest.mark.parametrize("end", [event("finished"), event("retry", error="503")])
def test_words_without_a_call_after_them_are_left_to_the_result(end: TaskEvent):
    paper = Paper()
    paper.show(event("token", text="the answer"), end)
    assert "the answer" not in paper.live + paper.kept


# The result.


def result(**more) -> AgentResult:
    return AgentResult(
        task_id="t-1",
        agent_id="default-0",
        role="DEV",
        status="completed",
        success=True,
        duration_ms=1_234.0,
        timestamp=NOON,
        enable_tools=True,
        usage=Usage(total_tokens=99),
        **more,
    )


def test_a_result_with_tools_shows_what_was_done(capsys: pytest.CaptureFixture[str]):
    proposal = Proposal(
        content=f"Done.{HOSTILE}", author_id="a", author_role="DEV", model="m", temperature=0.7
    )
    operations = [
        Operation(
            tool="files",
            operation="write_file",
            params={"path": "a.py"},
            success=True,
            duration_ms=1.5,
            summary="3 lines",
        ),
        Operation(tool="tests", operation="pytest", duration_ms=2_300, error=HOSTILE),
    ]
    artifacts = {
        "files_changed": [{"path": "a.py", "change": "added", "added": 3, "deleted": 0}],
        "diff": "--- /dev/null\n+++ b/a.py\n+x\n",
        "commits": [{"commit": "0123456789abcdef", "message": "Add a\n\nMore", "branch": "main"}],
        "tests": [{"tool": "pytest", "outcome": "passed", "passed": 3, "failed": 0}],
        "odd": [{"a": 1, "b": "x"}, "y"],
        "log": f"said {HOSTILE}",
        "none": [],
    }
    show_result(result(proposal=proposal, operations=operations, artifacts=artifacts))
    said = capsys.readouterr().out
    assert "\x1b]" not in said
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert '✓ files.write_file path="a.py" 2 ms 3 lines' in rows
    assert any(row.startswith("✗ tests.pytest 2.3 s �]0;owned") for row in rows)
    assert "added a.py (+3 -0)" in rows
    assert "0123456789ab Add a More" in rows
    assert "pytest passed: 3 passed, 0 failed" in rows
    assert 'a=1 b="x"' in rows
    assert "diff: 3 lines; `agent-actors status t-1 --diff` prints it" in rows
    assert "none" not in said


def test_what_lies_in_the_object_store_is_named(capsys: pytest.CaptureFixture[str]):
    ref = ArtifactRef(object="t-1/l/diff", size=5_000_000, sha256="00")
    show_result(result(artifacts={"diff": ref, "operations": ref}))
    said = capsys.readouterr().out
    assert "diff: 5000000 bytes; `agent-actors status t-1 --diff` prints it" in said
    assert "operations: 5000000 bytes in the object store, as t-1/l/diff" in said


def test_of_many_operations_the_last_are_shown(capsys: pytest.CaptureFixture[str]):
    many = [Operation(tool="files", operation=f"op{number}") for number in range(200)]
    files = [{"path": f"f{number}"} for number in range(200)]
    show_result(result(operations=many, artifacts={"files_changed": files}))
    said = capsys.readouterr().out
    assert "op199" in said
    assert "op100" not in said
    assert "(the last 50 of 200; --json has them all)" in said
    assert "… 150 more; --json has them all" in said
