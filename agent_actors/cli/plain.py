"""Text that others wrote, a model or a tool, as it may be shown on a terminal.

What would steer the terminal (escape sequences), or turn words around (bidirectional
controls), is shown as a mark in its place.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

MARK = "\ufffd"
# Line breaks and tabs; what joins letters in some scripts, and emoji.
HARMLESS = frozenset("\n\t\u200c\u200d")

VALUE_CHARS = 60
LINE_CHARS = 160
LONGEST_MS = 1e12


def plain(text: str) -> str:
    """Return the text with nothing in it but what can be seen, line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(map(_shown, text.replace("\r\n", "\n")))


def one_line(text: str, chars: int = LINE_CHARS) -> str:
    """Return the text on one line, cut short."""
    line = " ".join(plain(text[: 4 * chars]).split())
    return line if len(line) <= chars else f"{line[: chars - 1]}…"


def call_line(tool: str, operation: str, params: Mapping[str, Any]) -> str:
    """Return a tool call on one line: `files.read_file path="a.py"`."""
    return one_line(" ".join([f"{tool}.{operation}", parameters_line(params)]))


def parameters_line(params: Mapping[str, Any]) -> str:
    """Return the parameters of a tool call on one line, long values cut short."""
    values = ((name, msgspec.json.encode(value).decode()) for name, value in params.items())
    return one_line(" ".join(f"{name}={one_line(value, VALUE_CHARS)}" for name, value in values))


def seconds(duration_ms: float) -> str:
    """Return how long something took, for people."""
    if duration_ms < 1_000:
        return f"{duration_ms:.0f} ms"
    return f"{min(duration_ms, LONGEST_MS) / 1_000:.1f} s"


def _shown(char: str) -> str:
    if char.isprintable() or char in HARMLESS:
        return char
    return " " if char.isspace() else MARK
