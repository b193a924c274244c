"""Watching one life of an actor: it is lost when its process ends, or says nothing any more.

An actor answers `completions` several times within `hang_timeout_s`, with or without news. One
that does not, hangs: its event loop is stuck, or its process is frozen. It is killed, so that
another takes its place.
"""

import asyncio
from types import TracebackType
from typing import Any, Self

from agent_actors.errors import ActorLost
from agent_actors.ports import ActorHandle, ActorReport
from agent_actors.processes import WatchedProcess

# How often a silent actor is looked for before it counts as hung. When this process slept itself,
# that is one look, however long it was; the next one finds what the actor has said meanwhile.
LOOKS_BEFORE_HUNG = 10


class WatchedActor:
    """An actor from its greeting until it is lost; leaving the block ends the watching.

    `said` is what the actor told of its process (`ActorReport.process`).
    """

    def __init__(self, handle: ActorHandle, said: str, hang_timeout_s: float) -> None:
        self._handle = handle
        self._process = WatchedProcess.find(said)
        self._hang_timeout_s = hang_timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process:
            self._process.close()

    async def completions(self, supervisor_id: str) -> ActorReport:
        """Return the actor's news. Raises ActorLost, having killed the actor if it hangs."""
        answer = asyncio.ensure_future(self._handle.completions(supervisor_id))
        ended = (self._process.ended,) if self._process else ()
        try:
            while not await self._is_overdue(answer, *ended):
                if answer.done():
                    return answer.result()
                if self._process and self._process.ended.done():
                    raise ActorLost("its process has ended")
        finally:
            answer.cancel()
        await self._kill()
        raise ActorLost(f"no answer within {self._hang_timeout_s:g} s: it hung, and is killed")

    async def _is_overdue(self, *awaited: asyncio.Future[Any]) -> bool:
        """Wait for any of these; tell whether none came, whenever it was looked for."""
        pause_s = self._hang_timeout_s / LOOKS_BEFORE_HUNG
        for _ in range(LOOKS_BEFORE_HUNG):
            done, _ = await asyncio.wait(
                awaited, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return False
        return True

    async def _kill(self) -> None:
        if self._process:
            self._process.kill()
        else:
            await self._handle.kill()
