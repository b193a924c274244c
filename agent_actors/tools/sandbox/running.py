"""Run a command through the launcher: its output, its time, and its end whatever happens to us."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import structlog
import uvloop
from msgspec import Struct

from agent_actors.errors import ToolError
from agent_actors.tools.sandbox.command import Finished

if TYPE_CHECKING:
    from agent_actors.tools.sandbox.launcher.spec import Spec

log = structlog.get_logger()

TIMEOUT = "timeout"
OUTPUT = "output"

ABOVE_LAUNCHER = Path(__file__).parent
LAUNCHER = ABOVE_LAUNCHER / "launcher"

_START = "import sys; sys.path.append(sys.argv[1]); from launcher.main import main; main()"
_MAX_STATUS_BYTES = 16_384
_END_PATIENCE_S = 10.0
_REST_PATIENCE_S = 1.0


class _Status(Struct, frozen=True, kw_only=True):
    """What the launcher says at last; see its `main`."""

    exit_code: int | None = None
    error: str = ""


def launcher() -> list[str]:
    """Return the command line of the launcher; nothing planted for Python reaches it."""
    return [sys.executable, "-I", "-S", "-c", _START, str(ABOVE_LAUNCHER)]


async def launch(
    argv: Sequence[str], spec: "Spec", *, timeout_s: float, max_output_bytes: int
) -> Finished:
    """Run `argv`, which is or becomes the launcher, and have it run the spec's command.

    Whether this returns or raises, no process of the command is left. Raises ToolError when the
    command cannot be started.
    """
    told = _encoded(spec)
    settled = asyncio.Event()
    output = _Stream(max_output_bytes, on_full=settled.set)
    status = _Stream(_MAX_STATUS_BYTES, on_end=settled.set)
    timed_out = False
    started = time.perf_counter()
    process, control = await _start(argv, output, status, owner=spec["uid"])
    try:
        control.write(told)
        async with asyncio.timeout(timeout_s):
            await settled.wait()
    except TimeoutError:
        timed_out = True
    finally:
        if not control.is_closing():
            control.abort()  # the launcher reads its end, and ends the command
        await _end(process, output, status)
    stopped = TIMEOUT if timed_out else OUTPUT if output.overflowed else ""
    return Finished(
        exit_code=_exit_code(bytes(status.data), spec["argv"][0], stopped=stopped),
        output=bytes(output.data),
        duration_s=time.perf_counter() - started,
        stopped=stopped,
    )


def _encoded(spec: "Spec") -> bytes:
    try:
        return msgspec.json.encode(spec) + b"\n"
    except UnicodeEncodeError as error:
        raise ToolError(f"cannot start {spec['argv'][0]!r}: {error.object!r} is no UTF-8") from None


class _Stream(asyncio.Protocol):
    """Keeps what comes through a pipe, up to a limit; what comes after that is dropped."""

    def __init__(
        self,
        max_bytes: int,
        *,
        on_full: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.data = bytearray()
        self.ended = asyncio.Event()
        self.overflowed = False
        self._max_bytes = max_bytes
        self._on_full = on_full
        self._on_end = on_end
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def close(self) -> None:
        """Read no more."""
        if self._transport:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        room = self._max_bytes - len(self.data)
        self.data += data[:room]
        if len(data) > room:
            self.overflowed = True
            self._on_full()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.ended.set()
        self._on_end()


async def _start(
    argv: Sequence[str], output: _Stream, status: _Stream, *, owner: int | None
) -> tuple[asyncio.subprocess.Process, asyncio.WriteTransport]:
    """Start the launcher without our environment, on pipes that only it and we hold.

    They are our own since those of asyncio are sockets under uvloop, and keep `wait` waiting.
    """
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as unless_started, contextlib.ExitStack() as handed_over:
        (stdin, control_end), (output_end, stdout), (status_end, stderr) = (
            os.pipe() for _ in range(3)
        )
        for end in (stdin, stdout, stderr):
            handed_over.callback(os.close, end)
        if owner is not None:
            os.fchown(stdout, owner, owner)  # or it could not be opened again, as /dev/stdout
        control, _ = await loop.connect_write_pipe(
            asyncio.BaseProtocol, pipe_file(control_end, "wb", loop)
        )
        unless_started.callback(control.abort)
        for end, stream in ((output_end, output), (status_end, status)):
            unless_started.callback(stream.close)
            await loop.connect_read_pipe(lambda stream=stream: stream, pipe_file(end, "rb", loop))
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={},
            cwd="/",
            start_new_session=True,
        )
        unless_started.pop_all()
        return process, control


def pipe_file(descriptor: int, mode: str, loop: asyncio.AbstractEventLoop) -> IO[bytes]:
    """Return an end of a pipe for the loop, which closes it, and so that it does so once.

    uvloop closes the descriptor, and then the file too. By then another thread may have been
    given the same number: its file would be closed, or this loop's own next connection.
    """
    return os.fdopen(descriptor, mode, 0, closefd=not isinstance(loop, uvloop.Loop))


async def _end(process: asyncio.subprocess.Process, output: _Stream, status: _Stream) -> None:
    """Return when the launcher is gone, and with it all of the command."""
    try:
        async with asyncio.timeout(_END_PATIENCE_S):
            await status.ended.wait()
            await process.wait()
        async with asyncio.timeout(_REST_PATIENCE_S):
            await output.ended.wait()
    except TimeoutError:
        log.warning("sandbox.launcher_stuck", pid=process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    finally:
        output.close()
        status.close()


def _exit_code(said: bytes, program: str, *, stopped: str) -> int:
    """Return the exit code of what the launcher said. Raises ToolError when it is none.

    What is no JSON are the words of a launcher, or of bubblewrap, that failed.
    """
    words = said.decode(errors="replace").strip()
    try:
        lines = [msgspec.json.decode(line, type=_Status) for line in words.splitlines()]
    except msgspec.DecodeError:
        lines = [_Status(error=words)]
    failed = next((line.error for line in lines if line.error), "")
    if failed:
        raise ToolError(f"cannot start {program}: {failed}")
    if lines and lines[-1].exit_code is not None:
        return lines[-1].exit_code
    if stopped:
        return -signal.SIGKILL
    raise ToolError(f"{program} was ended, and what kept it, by somebody else: out of memory?")
