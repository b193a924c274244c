"""How a result reads for people: as a whole, and on one line."""

import click

from agent_actors.contract import AgentResult

COLOURS = {"completed": "green", "failed": "red"}
ID_WIDTH, ROLE_WIDTH, STATUS_WIDTH = 24, 10, 9
LINE_CHARS = 60
MS_PER_S = 1_000


def show_result(result: AgentResult) -> None:
    """Print the result: what became of the task, and the proposal or the error."""
    facts = [
        f"{result.role} on {result.agent_id}",
        result.model,
        f"attempt {result.attempt}",
        _duration(result),
        f"{result.usage.total_tokens} tokens",
    ]
    click.secho(f"{result.task_id} {result.status}", fg=COLOURS[result.status], bold=True, nl=False)
    click.echo(f"  ({', '.join(fact for fact in facts if fact)})")
    if result.error_type:
        click.echo(f"{result.error_type}: {result.error}")
    if result.proposal and result.proposal.content:
        click.echo(f"\n{result.proposal.content}")
    for name, artifact in result.artifacts.items():
        click.echo(f"{name}: {artifact}")


def line_of(result: AgentResult) -> str:
    """Return the result on one line of columns, its answer or error cut short."""
    said = f"{result.error_type}: {result.error}" if result.error_type else ""
    if not said and result.proposal:
        said = result.proposal.content
    said = " ".join(said.split())
    columns = [
        f"{result.timestamp.astimezone():%H:%M:%S}",
        click.style(f"{result.status:{STATUS_WIDTH}}", fg=COLOURS[result.status]),
        f"{result.role:{ROLE_WIDTH}}",
        f"{result.task_id:{ID_WIDTH}}",
        f"{_duration(result):>8}",
        said if len(said) <= LINE_CHARS else f"{said[: LINE_CHARS - 1]}…",
    ]
    return "  ".join(columns)


def _duration(result: AgentResult) -> str:
    if result.duration_ms < MS_PER_S:
        return f"{result.duration_ms:.0f} ms"
    return f"{result.duration_ms / MS_PER_S:.1f} s"
