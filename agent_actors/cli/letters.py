"""How a dead letter reads for people: what was wrong, and the message as it came.

All of it was written by others, so nothing in it may steer the terminal.
"""

import sys

import click
import msgspec

from agent_actors.cli.plain import one_line, plain
from agent_actors.contract import DeadLetter
from agent_actors.errors import ArtifactLost

HEADINGS = ("Number", "Time", "Role", "Task", "Reason", "Attempts", "Error")
CELL_CHARS = 80
HEX_HEAD_BYTES = 256
HEX_LINE_BYTES = 16


def row_of(letter: DeadLetter) -> tuple[object, ...]:
    """Return the letter as a row under `HEADINGS`."""
    texts = (letter.role, letter.task_id, letter.reason)
    return (
        letter.stream_seq,
        f"{letter.time.astimezone():%Y-%m-%d %H:%M:%S}",
        *(one_line(text, CELL_CHARS) for text in texts),
        letter.attempts,
        one_line(letter.error, CELL_CHARS),
    )


def show_letter(letter: DeadLetter, lost: str) -> None:
    """Print what the letter says; `lost` is why there is no payload, if there is none."""
    click.secho(f"dead letter {letter.stream_seq}", bold=True, nl=False)
    click.echo(plain(f"  ({letter.task_id or 'no usable task id'}, {letter.role})"))
    click.echo(plain(f"{letter.reason}: {letter.error}"))
    facts = {
        "time": f"{letter.time.astimezone():%Y-%m-%d %H:%M:%S}",
        "attempts": letter.attempts,
        "generation": letter.generation,
        "subject": letter.subject,
        "source": letter.source,
    }
    for name, fact in facts.items():
        click.echo(plain(f"{name}: {fact}"))
    if letter.headers:
        click.echo("headers:")
    for name, value in letter.headers.items():
        click.echo(plain(f"  {name}: {value}"))
    click.echo(f"\npayload, {letter.size} bytes:")
    click.echo(plain(lost) if lost else _readable(letter.payload))


def print_payload(letter: DeadLetter, lost: str) -> None:
    """Print the payload byte for byte, but on a terminal only what can be seen of it.

    Raises ArtifactLost.
    """
    if lost:
        raise ArtifactLost(lost)
    if sys.stdout.isatty():
        click.echo(_readable(letter.payload))
    else:
        click.echo(letter.payload, nl=False)


def _readable(payload: bytes) -> str:
    """Return JSON indented, other text as it is, and of anything else the first bytes."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return _hex_head(payload)
    try:
        return plain(msgspec.json.format(text, indent=2))
    except (msgspec.DecodeError, RecursionError):
        return _hex_head(payload) if "\0" in text else plain(text)


def _hex_head(payload: bytes) -> str:
    head = payload[:HEX_HEAD_BYTES]
    lines = [
        _hex_line(start, head[start : start + HEX_LINE_BYTES])
        for start in range(0, len(head), HEX_LINE_BYTES)
    ]
    if len(payload) > len(head):
        lines.append(f"… {len(payload) - len(head)} bytes more; --payload prints them all")
    return "\n".join(lines)


def _hex_line(start: int, part: bytes) -> str:
    seen = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
    return f"{start:08x}  {part.hex(' '):{3 * HEX_LINE_BYTES - 1}}  {seen}"
