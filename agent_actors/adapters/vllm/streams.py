"""An answer that comes in events: bytes to events, events to the reply that they add up to. Pure.

A real vLLM 0.32 was seen to send: the role, then text or parts of calls, then a finish_reason,
then an event with the usage and no choice, then `[DONE]`. The first part of a call has its id and
its function's name, the others more of its arguments.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from agent_actors.adapters.vllm.endpoints import Endpoint
from agent_actors.adapters.vllm.replies import (
    Call,
    Choice,
    Completion,
    Function,
    Message,
    TokenCounts,
    decode,
    error_inside,
    invalid,
    reply_of,
)
from agent_actors.ports import ChatReply

DONE = b"[DONE]"


class EventStream:
    """Takes the bytes of server-sent events in any pieces, and gives the data of whole events.

    Lines end in LF or CRLF. A lone CR, which the standard allows too, no server of this kind
    sends, and JSON has none outside of its escapes. Comments and other fields are passed over.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the start of a line, in pieces: joined once it is whole
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of each event that these bytes complete; none at all end the stream."""
        if chunk:
            first, *others = chunk.split(b"\n")
            self._line.append(first)
            lines: list[bytes] = []
            for other in others:
                lines.append(b"".join(self._line))
                self._line = [other]
        else:
            lines = [b"".join(self._line), b""]  # some leave out the last empty line
            self._line = []
        for line in lines:
            yield from self._take(line.removesuffix(b"\r"))

    def _take(self, line: bytes) -> Iterator[bytes]:
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
        elif not line and self._data:
            data, self._data = b"\n".join(self._data), []
            yield data


class _CallPart(Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None


class _Delta(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_CallPart] | None = None


class _ChunkChoice(Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_ChunkChoice] | None = None
    model: str | None = None
    usage: TokenCounts | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


class _Parts:
    """What has come of one call."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def add(self, part: _CallPart) -> None:
        # Some servers repeat the name in every part, and old ones make up an id for each.
        function = part.function or Function()
        self.id = self.id or part.id or ""
        self.name = self.name or function.name or ""
        self.arguments.append(function.arguments_text())

    def joined(self) -> Call:
        arguments = "".join(self.arguments)
        return Call(id=self.id, function=Function(name=self.name, arguments=arguments))


class StreamedAnswer:
    """The answer as far as it has come; `ended` tells that it is whole."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.ended = False
        self._endpoint = endpoint
        self._events = EventStream()
        self._message = Message()
        self._choice = Choice(message=self._message)
        self._completion = Completion()
        self._texts: list[str] = []
        self._calls: dict[int, _Parts] = {}

    def add(self, chunk: bytes) -> str:
        """Take more of the body, its end when there is none; return the text that it adds.

        Raises AttemptFailed, ModelRefused.
        """
        known = len(self._texts)
        for data in self._events.feed(chunk):
            if data == DONE:
                self.ended = True
                break
            self._take(data)
        if not chunk and not self.ended:
            raise invalid(self._endpoint, "answered a stream that ends without [DONE]")
        return "".join(self._texts[known:])

    def reply(self) -> ChatReply:
        """Return what a server that does not stream would have answered. Raises AttemptFailed."""
        if self._message.content is not None:
            self._message.content = "".join(self._texts)
        self._message.tool_calls = [parts.joined() for parts in self._calls.values()]
        return reply_of(self._endpoint, self._completion)

    def _take(self, data: bytes) -> None:
        chunk = decode(self._endpoint, _chunks, data)
        if chunk.error is not None:
            raise error_inside(self._endpoint, data)
        self._completion.model = chunk.model or self._completion.model
        self._completion.usage = chunk.usage or self._completion.usage
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._add(choice)

    def _add(self, more: _ChunkChoice) -> None:
        self._completion.choices = [self._choice]
        self._choice.finish_reason = more.finish_reason or self._choice.finish_reason
        delta = more.delta or _Delta()
        self._message.reasoning = (
            self._message.reasoning or delta.reasoning or delta.reasoning_content
        )
        if delta.content is not None:
            self._message.content = ""  # not null; `reply` puts the texts here
            self._texts.append(delta.content)
        for part in delta.tool_calls or ():
            self._calls.setdefault(part.index, _Parts()).add(part)
