"""One HTTP answer as it arrives, and what a failure on the way means."""

import asyncio
from contextlib import suppress

import aiohttp

from agent_actors.adapters.vllm.endpoints import Endpoint
from agent_actors.adapters.vllm.replies import AttemptFailed, too_long
from agent_actors.config import VllmConfig
from agent_actors.errors import ModelReplyInvalid, ModelUnavailable

# A server ends the body right behind the last event; a connection that is left earlier is closed.
END_OF_BODY_S = 0.1

# What aiohttp raises below HTTP, and in it. Its errors hold the request's headers, the key among
# them: never chain them.
FAILURES = (aiohttp.ClientError, TimeoutError)


class Body:
    """The body of an answer. Failures on the way become AttemptFailed."""

    def __init__(
        self, endpoint: Endpoint, response: aiohttp.ClientResponse, limits: VllmConfig
    ) -> None:
        self._endpoint = endpoint
        self._content = response.content
        self._limits = limits
        self._size = 0

    async def whole(self) -> bytes:
        """Return all of it, or the first `max_response_bytes` and a little more."""
        chunks: list[bytes] = []
        try:
            while chunk := await self._content.readany():
                chunks.append(chunk)
                self._size += len(chunk)
                if self._size > self._limits.max_response_bytes:
                    break
        except FAILURES as error:
            raise connection_failure(self._endpoint, error, self._limits) from None
        return b"".join(chunks)

    async def more(self, until: float | None = None) -> bytes | None:
        """Return what comes next, nothing at the end; None when that is not there by `until`.

        `until` is in the loop's time. Raises AttemptFailed beyond `max_response_bytes` too: a
        streamed token takes some 250 bytes.
        """
        waiting = asyncio.timeout_at(until)
        try:
            async with waiting:
                chunk = await self._content.readany()
        except FAILURES as error:
            if waiting.expired():
                return None  # had something failed in this very moment, it would again
            raise connection_failure(self._endpoint, error, self._limits) from None
        self._size += len(chunk)
        if self._size > self._limits.max_response_bytes:
            raise too_long(self._endpoint, self._limits.max_response_bytes)
        return chunk

    async def end(self) -> None:
        """Wait a moment for the end, so that the connection can serve another request."""
        with suppress(*FAILURES):
            async with asyncio.timeout(END_OF_BODY_S):
                await self._content.readany()


def connection_failure(endpoint: Endpoint, error: Exception, limits: VllmConfig) -> AttemptFailed:
    """Return what a failure below HTTP, or of HTTP itself, means."""
    name = endpoint.name
    match error:
        case aiohttp.ConnectionTimeoutError():
            return _away(
                f"{name}: no connection within {limits.connect_timeout_s:g} s "
                "(vllm.connect_timeout_s)"
            )
        # The two long ones are not retried here: the task's time is better spent waiting in
        # the queue than on a server that hangs.
        case aiohttp.SocketTimeoutError():
            return _away(
                f"{name}: sent no byte for {limits.first_byte_timeout_s:g} s "
                "(vllm.first_byte_timeout_s)",
                retry=False,
            )
        case TimeoutError():
            return _away(
                f"{name}: no whole answer within {limits.total_timeout_s:g} s "
                "(vllm.total_timeout_s)",
                retry=False,
            )
        case aiohttp.ClientConnectorError():
            return _away(f"{name}: no connection: {error}")
        case aiohttp.ClientPayloadError():
            return _away(f"{name}: the answer was cut off: {error}")
        case aiohttp.ClientResponseError():
            said = endpoint.redacted(" ".join(error.message.split()))
            return AttemptFailed(ModelReplyInvalid(f"{name}: answered no HTTP: {said}"))
        case _:
            return _away(f"{name}: the connection was lost before the answer: {error}")


def _away(text: str, *, retry: bool = True) -> AttemptFailed:
    return AttemptFailed(ModelUnavailable(text), retry=retry, unhealthy=True)
