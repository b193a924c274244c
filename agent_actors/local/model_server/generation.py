"""What the model says, as the tokens it comes in: what is there when, and how it ends.

Calls are part of the text, in the markup of the hermes format, as a model produces them: so one
that `max_tokens` cuts off is seen as raw text, as with vLLM.
"""

from collections.abc import Iterator
from uuid import uuid4

from msgspec import UNSET, Struct

from agent_actors.local.model_server.tokens import pieces
from agent_actors.local.model_server.wire import (
    AnswerMessage,
    CallDelta,
    CallDeltaFunction,
    CalledFunction,
    ChatRequest,
    Delta,
    NamedTool,
    ToolCall,
)

END = ""  # the token that ends a sequence, or completes a stop string, has no text to tell


class Reply(Struct, frozen=True, kw_only=True):
    """What is to be said: a text, or calls. Arguments are JSON, or what a test wants instead."""

    content: str = ""
    calls: tuple[CalledFunction, ...] = ()


class Generation(Struct, frozen=True, kw_only=True):
    """One choice of an answer, token by token.

    `tokens` are what the model would sample; `call_deltas` says which of them a stream tells, as
    part of a call or as words before one. `content` is the text beside whole calls.
    """

    tokens: tuple[str, ...]
    finish_reason: str
    stop_reason: str | None = None
    content: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_deltas: dict[int, Delta] = {}

    def aborted(self, count: int) -> "Generation":
        """Return what is left when only `count` tokens were made."""
        if count >= len(self.tokens):
            return self
        return Generation(
            tokens=self.tokens[:count], finish_reason="abort", call_deltas=self.call_deltas
        )

    def message(self) -> AnswerMessage:
        """Return the message of an answer that is not a stream; cut calls are raw text."""
        if self.calls:
            return AnswerMessage(content=self.content, tool_calls=list(self.calls))
        return AnswerMessage(content="".join(self.tokens))

    def delta(self, index: int) -> Delta | None:
        """Return what a stream tells with that token; None when it tells nothing."""
        if self.call_deltas:
            return self.call_deltas.get(index)
        text = self.tokens[index]
        return Delta(content=text) if text else None


def generate(reply: Reply, chat: ChatRequest, max_tokens: int) -> Generation:
    """Turn a reply into tokens, at most `max_tokens` of them."""
    if reply.calls:
        return _calls(reply, chat, max_tokens)
    text, stop = _stopped(reply.content, chat.stop)
    tokens = [*pieces(text), END]
    if len(tokens) > max_tokens:
        return Generation(tokens=tuple(tokens[:max_tokens]), finish_reason="length")
    return Generation(tokens=tuple(tokens), finish_reason="stop", stop_reason=stop)


def _calls(reply: Reply, chat: ChatRequest, max_tokens: int) -> Generation:
    calls = [
        ToolCall(id=f"chatcmpl-tool-{uuid4().hex[:16]}", type="function", function=function)
        for function in reply.calls
    ]
    named = isinstance(chat.tool_choice, NamedTool)
    content = "" if named or chat.tool_choice == "required" else reply.content or None
    tokens = list(pieces(content or ""))
    deltas = {index: Delta(content=token) for index, token in enumerate(tokens)}
    for index, call in enumerate(calls):
        for token, delta in _call_tokens(index, call):
            if delta is not None:
                deltas[len(tokens)] = delta
            tokens.append(token)
    tokens.append(END)
    if len(tokens) > max_tokens:
        return Generation(
            tokens=tuple(tokens[:max_tokens]), finish_reason="length", call_deltas=deltas
        )
    return Generation(
        tokens=tuple(tokens),
        finish_reason="stop" if named else "tool_calls",
        content=content,
        calls=tuple(calls),
        call_deltas=deltas,
    )


def _call_tokens(index: int, call: ToolCall) -> Iterator[tuple[str, Delta | None]]:
    """Yield the tokens of one call with what a stream tells of each."""
    for token in pieces('<tool_call>\n{"name": "'):
        yield token, None
    opening = CallDeltaFunction(name=call.function.name)
    yield (
        call.function.name,
        _call_delta(CallDelta(id=call.id, type=call.type, index=index, function=opening)),
    )
    for token in pieces('", "arguments": '):
        yield token, None
    for token in pieces(call.function.arguments):
        added = CallDeltaFunction(arguments=token)
        yield token, _call_delta(CallDelta(index=index, function=added))
    for token in pieces("}\n</tool_call>"):
        yield token, None


def _call_delta(call: CallDelta) -> Delta:
    return Delta(role=UNSET, content=None, tool_calls=[call])


def _stopped(text: str, stop: str | list[str] | None) -> tuple[str, str | None]:
    """Return the text up to the stop string that comes first, and that string."""
    stops = [stop] if isinstance(stop, str) else stop or []
    found = [(at, word) for word in stops if word and (at := text.find(word)) >= 0]
    if not found:
        return text, None
    at, word = min(found)
    return text[:at], word
