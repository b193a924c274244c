"""Texts cut to what there is room for, always saying how much is missing.

What comes out can be encoded: a file name, say, may hold bytes that are no UTF-8.
"""

from typing import Any

import msgspec

from agent_actors.errors import ToolError
from agent_actors.ports import ToolCall
from agent_actors.tools.toolbox import parameters_of

MAX_PARAMETER_CHARS = 500
MAX_NOTED_CHARS = 2_000


def head_and_tail(text: str, max_chars: int) -> str:
    """Return the text; the middle of a longer one gives way to the number of its characters."""
    if len(text) > max_chars:
        head = (max_chars + 1) // 2
        tail = max_chars - head
        missing = len(text) - max_chars
        text = f"{text[:head]}\n[… {missing} characters left out …]\n{text[len(text) - tail :]}"
    return text.encode(errors="replace").decode()


def head_of(text: str, max_chars: int = MAX_NOTED_CHARS) -> str:
    """Return the text, a longer one with the number of characters that it goes on for."""
    if len(text) > max_chars:
        text = f"{text[:max_chars]}… ({len(text) - max_chars} more characters)"
    return text.encode(errors="replace").decode()


def short_parameters(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call for the record, long values as the head of their text."""
    try:
        parameters = parameters_of(call)
    except ToolError:
        return {"unreadable": head_of(call.function.arguments, MAX_PARAMETER_CHARS)}
    return {key: _short_value(value) for key, value in parameters.items()}


def _short_value(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return head_of(value, MAX_PARAMETER_CHARS)
    text = msgspec.json.encode(value).decode()
    return value if len(text) <= MAX_PARAMETER_CHARS else head_of(text, MAX_PARAMETER_CHARS)
