"""The way to a server that is a web address: the SDK's transport, with bounds on what it reads."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

from agent_actors.adapters.mcp.configured import ServerSetup
from agent_actors.adapters.mcp.lines import MAX_MESSAGE_BYTES

CONNECT_S = 10.0
# A stream of events may be silent for long; that the server lives is asked by pings.
SILENCE_S = 300.0
EVENT_STREAM = "text/event-stream"


class UnusableAnswer(httpx2.StreamError):
    """A server's answer is too big, or in a form that could become so."""


@asynccontextmanager
async def http_transport(
    setup: ServerSetup, on_refusal: Callable[[str], None]
) -> AsyncGenerator[Any]:  # the SDK keeps the type of its streams private
    """Speak with the server at `setup.url`; `on_refusal` is told of answers with an error status.

    The SDK keeps a status to itself, and `401` says more than "an error response".
    """

    async def look_at(response: httpx2.Response) -> None:
        # Not of a GET, which asks for a stream of events that servers need not have.
        if response.request.method == "POST" and response.is_error:
            on_refusal(f"HTTP {response.status_code} {response.reason_phrase}".strip())
        if response.headers.get("content-encoding", "identity") != "identity":
            raise UnusableAnswer("the answer is compressed, which was not asked for")
        if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
            response.stream = _Bounded(response.stream)

    async with (
        httpx2.AsyncClient(
            headers={"accept-encoding": "identity", **setup.headers},
            timeout=httpx2.Timeout(CONNECT_S, read=setup.timeout_s + SILENCE_S),
            event_hooks={"response": [look_at]},
        ) as client,
        streamable_http_client(
            setup.url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES
        ) as streams,
    ):
        yield streams


class _Bounded(httpx2.AsyncByteStream):
    """A body that is given up on beyond `MAX_MESSAGE_BYTES`."""

    def __init__(self, stream: object) -> None:
        assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101 - of an AsyncClient
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > MAX_MESSAGE_BYTES:
                raise UnusableAnswer(f"the answer has more than {MAX_MESSAGE_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
