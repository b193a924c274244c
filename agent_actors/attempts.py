"""The attempts under way in one actor, and the two ways to end one before its time.

The actor drains, and all are given back. Or a task is cancelled: what is heard of that is only
a hint, of which the ledger says whether it is true.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

import structlog

from agent_actors.contract import task_key
from agent_actors.errors import Cancelled, TaskError
from agent_actors.execution import Outcome, StoppedFor
from agent_actors.leases import Lease, Leases

log = structlog.get_logger()

Work = Callable[[StoppedFor], Coroutine[Any, Any, Outcome]]


class Attempt:
    """What a delivery comes to; it is there before the task is begun, so as to miss no cancel."""

    def __init__(self, key: str, known: "set[Attempt]") -> None:
        self.key = key
        self._known = known
        self.lease: Lease | None = None
        self.task: asyncio.Task[Outcome] | None = None
        self.is_said_to_be_cancelled = False
        self.stopped_for: TaskError | None = None
        self.check: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._known.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._known.discard(self)
        if self.check:
            self.check.cancel()


class Attempts:
    """All attempts of one actor."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._known: set[Attempt] = set()
        self._are_given_back = False

    def expected(self, task_id: str) -> Attempt:
        """Return an attempt that hears, within its `with`, what is said about the task."""
        return Attempt(task_key(task_id), self._known)

    async def run(self, attempt: Attempt, lease: Lease, work: Work) -> Outcome | None:
        """Return what the work came to; None when it was told to give the task back."""
        if self._are_given_back:
            return None
        attempt.lease = lease
        attempt.task = asyncio.create_task(work(lambda: attempt.stopped_for))
        if attempt.is_said_to_be_cancelled:
            self._check(attempt)
        try:
            await _ended(attempt.task)
        finally:
            attempt.task.cancel()
        return None if attempt.task.cancelled() else attempt.task.result()

    def give_back(self) -> None:
        """End all attempts, and let no other begin."""
        self._are_given_back = True
        for attempt in self._known:
            if attempt.task:
                attempt.task.cancel()

    def cancel(self, key: str) -> None:
        """End the attempts at this task, if the ledger says that it is cancelled."""
        for attempt in self._known:
            if attempt.key == key:
                attempt.is_said_to_be_cancelled = True
                self._check(attempt)

    def _check(self, attempt: Attempt) -> None:
        """Ask the ledger; anew when more is heard, since the answer on its way may be too old."""
        if attempt.check:
            attempt.check.cancel()
        if attempt.lease and attempt.task:
            ending = self._end_if_cancelled(attempt, attempt.lease, attempt.task)
            attempt.check = asyncio.create_task(ending)
            attempt.check.add_done_callback(_tell_trouble)

    async def _end_if_cancelled(
        self, attempt: Attempt, lease: Lease, task: asyncio.Task[Outcome]
    ) -> None:
        if await self._leases.is_cancelled(lease):
            log.info("task.cancelled", task_id=lease.record.task_id)
            attempt.stopped_for = Cancelled()
            task.cancel()


async def _ended(work: asyncio.Task[Outcome]) -> None:
    """Wait until work has ended in whatever way; `asyncio.wait` takes four times as long for it."""
    end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    work.add_done_callback(lambda _: None if end.done() else end.set_result(None))
    await end


def _tell_trouble(check: asyncio.Task[None]) -> None:
    """Leave the attempt alone when the ledger cannot be read: its next write will tell."""
    if not check.cancelled() and (error := check.exception()):
        log.warning("task.cancel_not_checked", exc_info=error)
