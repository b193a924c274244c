"""How a result reads for people: as a whole, and on one line."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import click
import msgspec

from agent_actors.cli.plain import one_line, parameters_line, plain, seconds
from agent_actors.cli.tables import print_table
from agent_actors.contract import AgentResult, ArtifactRef, Operation

COLOURS = {"completed": "green", "failed": "red"}
ID_WIDTH, ROLE_WIDTH, STATUS_WIDTH = 24, 10, 9
LINE_CHARS = 60
CELL_CHARS = 60
MOST_ROWS = 50

OPERATIONS = ("", "Operation", "Parameters", "Time", "Outcome")
DIFF = "diff"


def show_result(result: AgentResult) -> None:
    """Print the result: what became of the task, what was done, the proposal or the error."""
    facts = [
        f"{result.role} on {result.agent_id}",
        result.model,
        f"attempt {result.attempt}",
        seconds(result.duration_ms),
        f"{result.usage.total_tokens} tokens",
    ]
    said = plain(", ".join(fact for fact in facts if fact))
    click.secho(
        f"{plain(result.task_id)} {result.status}", fg=COLOURS[result.status], bold=True, nl=False
    )
    click.echo(f"  ({said})")
    if result.error_type:
        click.echo(plain(f"{result.error_type}: {result.error}"))
    if result.proposal and result.proposal.content:
        click.echo(f"\n{plain(result.proposal.content)}")
    if result.operations:
        _show_operations(result.operations)
    for name, artifact in result.artifacts.items():
        _show_artifact(result.task_id, name, artifact)


def line_of(result: AgentResult) -> str:
    """Return the result on one line of columns, its answer or error cut short."""
    said = f"{result.error_type}: {result.error}" if result.error_type else ""
    if not said and result.proposal:
        said = result.proposal.content
    columns = [
        f"{result.timestamp.astimezone():%H:%M:%S}",
        click.style(f"{result.status:{STATUS_WIDTH}}", fg=COLOURS[result.status]),
        f"{one_line(result.role):{ROLE_WIDTH}}",
        f"{one_line(result.task_id):{ID_WIDTH}}",
        f"{seconds(result.duration_ms):>8}",
        one_line(said, LINE_CHARS),
    ]
    return "  ".join(columns)


def _show_operations(operations: Sequence[Operation]) -> None:
    click.echo()
    print_table(OPERATIONS, map(_row, operations[-MOST_ROWS:]))
    if len(operations) > MOST_ROWS:
        click.echo(f"(the last {MOST_ROWS} of {len(operations)}; --json has them all)")


def _row(operation: Operation) -> tuple[object, ...]:
    return (
        "✓" if operation.success else "✗",
        one_line(f"{operation.tool}.{operation.operation}", CELL_CHARS),
        one_line(parameters_line(operation.params), CELL_CHARS),
        seconds(operation.duration_ms),
        one_line(operation.summary or operation.error or "", CELL_CHARS),
    )


def _show_artifact(task_id: str, name: str, artifact: Any) -> None:  # noqa: ANN401 - any JSON value
    """Print an artifact in short: a line each of what is a list, and where the diff is."""
    moved = reference(artifact)
    if name == DIFF and artifact:
        size = f"{moved.size} bytes" if moved else f"{len(str(artifact).splitlines())} lines"
        click.echo(f"\ndiff: {size}; `agent-actors status {task_id} --diff` prints it")
    elif moved:
        click.echo(plain(f"\n{name}: {moved.size} bytes in the object store, as {moved.object}"))
    elif isinstance(artifact, list):
        _show_list(name, cast("list[Any]", artifact))
    elif artifact:
        click.echo(f"\n{plain(name)}: {plain(str(artifact))}")


def _show_list(name: str, items: list[Any]) -> None:
    if not items:
        return
    click.echo(f"\n{plain(name)} ({len(items)}):")
    for item in items[:MOST_ROWS]:
        click.echo(f"  {_line_of_item(name, item)}")
    if len(items) > MOST_ROWS:
        click.echo(f"  … {len(items) - MOST_ROWS} more; --json has them all")


def _line_of_item(name: str, item: Any) -> str:  # noqa: ANN401 - any JSON value
    if not isinstance(item, dict):
        return one_line(str(item))
    fields = cast("dict[str, Any]", item)
    words = FORMS[name](fields) if name in FORMS else parameters_line(fields)
    return one_line(words)


def _of_file(file: Mapping[str, Any]) -> str:
    counts = f"+{file.get('added', 0)} -{file.get('deleted', 0)}"
    return f"{file.get('change', '')} {file.get('path', '')} ({counts})"


def _of_commit(commit: Mapping[str, Any]) -> str:
    return f"{str(commit.get('commit', ''))[:12]} {commit.get('message', '')}"


def _of_test_run(run: Mapping[str, Any]) -> str:
    counts = [
        f"{run[name]} {name}" for name in ("passed", "failed", "errors", "skipped") if name in run
    ]
    return f"{run.get('tool', '')} {run.get('outcome', '')}: {', '.join(counts)}"


FORMS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "files_changed": _of_file,
    "commits": _of_commit,
    "tests": _of_test_run,
}


def reference(artifact: Any) -> ArtifactRef | None:  # noqa: ANN401 - any JSON value
    """Return the reference that stands for an artifact in the object store, if it is one."""
    try:
        return msgspec.convert(artifact, ArtifactRef)
    except msgspec.ValidationError:
        return None
