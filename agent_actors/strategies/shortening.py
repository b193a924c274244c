"""Texts cut to what there is room for, always saying how much is missing.

What comes out can be encoded: a file name, say, may hold bytes that are no UTF-8.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec
from msgspec.structs import replace

from agent_actors.errors import ToolError
from agent_actors.ports import ToolCall
from agent_actors.tools.toolbox import parameters_of

MAX_PARAMETER_CHARS = 500
MAX_PARAMETERS = 32
MAX_KEY_CHARS = 100
MAX_UNMARKED_CHARS = 200
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
    """Return the arguments of a call for the record: so many, long ones as the head of theirs."""
    try:
        parameters = parameters_of(call)
    except ToolError:
        return {"unreadable": head_of(call.function.arguments, MAX_PARAMETER_CHARS)}
    return _short(parameters, MAX_PARAMETER_CHARS, head_of)


def without_long_arguments(call: ToolCall) -> ToolCall:
    """Return a call whose arguments are an object, with marks where long ones were."""
    short = _short(parameters_of(call), MAX_UNMARKED_CHARS, _marked)
    arguments = msgspec.json.encode(short).decode()
    return replace(call, function=replace(call.function, arguments=arguments))


def _short(
    parameters: dict[str, Any], max_chars: int, cut: Callable[[str, int], str]
) -> dict[str, Any]:
    short: dict[str, Any] = {}
    for key, value in islice(parameters.items(), MAX_PARAMETERS):
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        is_cut = isinstance(value, str) or len(text) > max_chars
        short[head_of(key, MAX_KEY_CHARS)] = cut(text, max_chars) if is_cut else value
    if len(parameters) > MAX_PARAMETERS:
        short["…"] = f"{len(parameters) - MAX_PARAMETERS} more parameters"
    return short


def _marked(text: str, max_chars: int) -> str:
    return f"[dropped: {len(text)} characters]" if len(text) > max_chars else text
