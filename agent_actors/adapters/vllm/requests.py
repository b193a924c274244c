"""What a chat request looks like on the wire. Pure.

The Structs of `ports` are the body already; here is what of them a vLLM would stumble over.
"""

from typing import Any

import msgspec
from msgspec import Struct

from agent_actors.ports import ChatMessage, ChatRequest, ToolCall

NO_ARGUMENTS = "{}"

encode = msgspec.json.Encoder().encode


class _StreamOptions(Struct, frozen=True):
    include_usage: bool


class _StreamedRequest(ChatRequest, frozen=True, kw_only=True, omit_defaults=True):
    # No defaults: these would be omitted.
    stream: bool
    stream_options: _StreamOptions


def encode_request(request: ChatRequest, *, stream: bool = False) -> bytes:
    """Return the body for a request; with `stream` the answer is to come in events."""
    request = _sendable(request)
    if not stream:
        return encode(request)
    fields = msgspec.structs.asdict(request)
    return encode(
        _StreamedRequest(**fields, stream=True, stream_options=_StreamOptions(include_usage=True))
    )


def _sendable(request: ChatRequest) -> ChatRequest:
    changes: dict[str, Any] = {}
    if not request.tools and (request.tools != () or request.tool_choice is not None):
        # An empty list of tools, and a choice among none, are refused.
        changes |= {"tools": (), "tool_choice": None}
    if any(message.tool_calls for message in request.messages):
        changes["messages"] = [_repeatable(message) for message in request.messages]
    return msgspec.structs.replace(request, **changes) if changes else request


def _repeatable(message: ChatMessage) -> ChatMessage:
    """Return the message with an object for all arguments that are none.

    vLLM before 0.26 refuses, with this call in the history, every request that follows; later
    ones put the same empty object in its place (vllm-project/vllm#48922).
    """
    if all(_is_object(call.function.arguments) for call in message.tool_calls):
        return message
    calls = [
        call if _is_object(call.function.arguments) else _without_arguments(call)
        for call in message.tool_calls
    ]
    return msgspec.structs.replace(message, tool_calls=calls)


def _without_arguments(call: ToolCall) -> ToolCall:
    function = msgspec.structs.replace(call.function, arguments=NO_ARGUMENTS)
    return msgspec.structs.replace(call, function=function)


_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _is_object(arguments: str) -> bool:
    try:
        _objects.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True
