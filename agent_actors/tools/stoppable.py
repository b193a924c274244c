"""Work in a thread that can be given up: it ends soon then, and so does the program it runs."""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from subprocess import Popen
from threading import Lock
from typing import Generic, TypeVar

from agent_actors.tools.threads import Threads

START_WITHIN_S = 60.0
STOP_WITHIN_S = 1.0

T = TypeVar("T")


class GivenUp(Exception):
    """Nobody waits for this work any more."""


class Stop:
    """Tells a thread that its work was given up."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_set = False
        self._program: Popen[bytes] | None = None

    def set(self) -> None:
        """Give the work up; kill the program that it waits for."""
        with self._lock:
            self._is_set = True
            if self._program:
                self._program.kill()

    def check(self) -> None:
        """Raise GivenUp once it was."""
        if self._is_set:
            raise GivenUp

    @contextmanager
    def kills(self, program: Popen[bytes]) -> Generator[None]:
        """Have the program killed when the work is given up. Raises GivenUp then."""
        with self._lock:
            self._program = program
            if self._is_set:
                program.kill()
        try:
            yield
        finally:
            with self._lock:
                self._program = None
        self.check()


class Work(Generic[T]):
    """A function that runs in a thread, and looks at its `Stop` now and then."""

    def __init__(self, threads: Threads, function: Callable[[Stop], T]) -> None:
        self._function = function
        self._stop = Stop()
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._running: Future[T] = threads.start(self._run)

    async def result(self, timeout_s: float | None = None) -> T:
        """Return what the function returns; the time counts from when it has got its thread.

        Raises TimeoutError. Then, and when cancelled, the work is given up, and in most cases
        has ended when this returns.
        """
        result = asyncio.wrap_future(self._running)
        try:
            await self._beginning()
            await asyncio.wait([result], timeout=timeout_s)
            if not result.done():
                raise TimeoutError(f"it took longer than {timeout_s:g} s")
            return result.result()
        finally:
            await self._end(result)

    @property
    def has_ended(self) -> bool:
        """Whether the thread is done with the work."""
        return self._running.done()

    def when_ended(self, act: Callable[[], None]) -> None:
        """Call this once the thread is done with the work, at once if it is."""
        self._running.add_done_callback(lambda _: act())

    def _run(self) -> T:
        self._stop.check()
        self._loop.call_soon_threadsafe(self._begun.set)
        return self._function(self._stop)

    async def _beginning(self) -> None:
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await self._begun.wait()
        except TimeoutError:
            raise TimeoutError(f"no thread was free for it within {START_WITHIN_S:g} s") from None

    async def _end(self, result: asyncio.Future[T]) -> None:
        if not result.done():
            self._stop.set()
            if not self._running.cancel():
                await asyncio.wait([result], timeout=STOP_WITHIN_S)
        if not result.cancel() and not result.cancelled():
            result.exception()  # else asyncio complains that nobody has asked for it
