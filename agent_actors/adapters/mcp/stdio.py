"""The way to a server that is a program: it is started, and spoken to over its input and output.

The SDK has such a transport too; this one bounds what it reads, gives the program no variable
that is not meant for it, sees its stderr into the log, and leaves no process behind.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from types import TracebackType

import anyio
import structlog
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import PARSE_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter

from agent_actors.adapters.mcp.configured import ServerSetup
from agent_actors.adapters.mcp.guard import GRACE_S, guarded
from agent_actors.adapters.mcp.lines import MAX_MESSAGE_BYTES, LongLine, next_line

TOO_LONG = f"a message of more than {MAX_MESSAGE_BYTES} bytes"
MAX_LINE_CHARS = 1_000
CHUNK_BYTES = 16 * 1024
# How long a server may take to end after its input has, and then after SIGTERM to its guard.
EOF_S = 2.0
SIGTERM_S = 2 * GRACE_S + 1.0
# An exit code, and the last words on stderr, come about when the output ends.
LAST_WORDS_S = 1.0

Incoming = SessionMessage | Exception
Streams = tuple[MemoryObjectReceiveStream[Incoming], MemoryObjectSendStream[SessionMessage]]

log = structlog.get_logger()


class StdioTransport:
    """One run of the program, for as long as the context is entered: the SDK's `Transport`.

    `on_end` is called with the reason when it ends by itself.
    """

    def __init__(self, setup: ServerSetup, on_end: Callable[[str], None]) -> None:
        self._setup = setup
        self._on_end = on_end
        self._last_words = ""

    async def __aenter__(self) -> Streams:
        """Start the program. Raises OSError when that cannot be done."""
        self._process = await asyncio.create_subprocess_exec(
            *guarded(*self._setup.argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._setup.env,
            cwd=self._setup.cwd,
            start_new_session=True,
            limit=MAX_MESSAGE_BYTES,
        )
        self._to_session, incoming = anyio.create_memory_object_stream[Incoming]()
        outgoing, self._from_session = anyio.create_memory_object_stream[SessionMessage]()
        self._listening = asyncio.create_task(self._listen())
        reading, writing = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        self._tasks = (self._listening, reading, writing)
        self._streams = (self._to_session, incoming, outgoing, self._from_session)
        return incoming, outgoing

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the program: close its input, then SIGTERM, then SIGKILL. Takes 7 s at most."""
        ending = asyncio.create_task(self._end())
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while not ending.done():
                try:
                    await asyncio.shield(ending)
                except asyncio.CancelledError as error:
                    cancelled = error  # once nothing of the program is left
        if cancelled:
            raise cancelled

    async def _end(self) -> None:
        for stream in self._streams:
            stream.close()
        await self._stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _read(self) -> None:
        """Bring what the server says to the session, until its output ends."""
        output = self._process.stdout
        assert output is not None  # noqa: S101 - it was asked for
        reason = ""
        try:
            while not reason and (line := await next_line(output)):
                if message := self._message(line):
                    await self._to_session.send(message)
                elif isinstance(line, LongLine):
                    reason = f"it sent {TOO_LONG}"
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the session is gone first, and nobody asks why
        self._on_end(reason or await self._how_it_ended())
        self._to_session.close()

    def _message(self, line: bytes | LongLine) -> SessionMessage | None:
        """Return the message of a line; servers print other things too, which are logged."""
        if isinstance(line, LongLine):
            return None if line.answers is None else _refusal(line.answers)
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError:
            self._log("mcp.stray_output", line.decode(errors="replace"))
            return None

    async def _how_it_ended(self) -> str:
        """Return the exit code, and what was said last."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                code = await self._process.wait()
                await asyncio.wait([self._listening])
                words = f": {self._last_words}" if self._last_words else ""
                return f"its process ended with exit code {code}{words}"
        return "it closed its output"

    async def _write(self) -> None:
        """Bring what the session says to the server."""
        into = self._process.stdin
        assert into is not None  # noqa: S101 - it was asked for
        try:
            async for message in self._from_session:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                into.write(text.encode() + b"\n")
                await into.drain()
        except ConnectionError:
            self._on_end("it closed its input")
            self._to_session.close()

    async def _listen(self) -> None:
        """See what the server says on stderr into the log, a piece of a line at a time."""
        errors = self._process.stderr
        assert errors is not None  # noqa: S101 - it was asked for
        rest = ""
        while chunk := await errors.read(CHUNK_BYTES):
            *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
            for line in lines:
                self._heard(line)
            rest = rest[:CHUNK_BYTES]
        self._heard(rest)

    def _heard(self, line: str) -> None:
        if text := line.strip():
            self._last_words = self._log("mcp.stderr", text)

    def _log(self, event: str, line: str) -> str:
        text = self._setup.fit_for_log(line.strip()[:CHUNK_BYTES])[:MAX_LINE_CHARS]
        log.debug(event, server=self._setup.name, line=text)
        return text

    async def _stop(self) -> None:
        into = self._process.stdin
        assert into is not None  # noqa: S101 - it was asked for
        into.close()
        if not await self._gone_within(EOF_S):
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            if not await self._gone_within(SIGTERM_S):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                await self._gone_within(SIGTERM_S)

    async def _gone_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True


def _refusal(request_id: int) -> SessionMessage:
    """Answer in the server's place, so that one call fails and the session lives."""
    error = ErrorData(
        code=PARSE_ERROR, message=f"the server answered with {TOO_LONG}: ask for less"
    )
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=request_id, error=error))
