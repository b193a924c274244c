"""A delivery from beginning to end, so that its task gets exactly one terminal result.

Read `SettleDelivery.__call__`, then `_work`: commit, announce and ack stand there one after
the other, and a crash between any two of them is mended by the next delivery.
"""

import asyncio
import math
import random
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import msgspec
import structlog
from msgspec.structs import replace
from structlog.contextvars import bind_contextvars

from agent_actors.announcement import announcements, dead_letter, result_message
from agent_actors.attempts import Attempt, Attempts
from agent_actors.config import PoolConfig
from agent_actors.contract import (
    MSG_ID_HEADER,
    PAYLOAD_MARGIN_BYTES,
    AgentResult,
    AgentTask,
    ArtifactRef,
    EventKind,
    ResultStatus,
    TaskEvent,
    encode,
    generation_in,
    role_token,
)
from agent_actors.disposition import Drained, Finish, GiveBack, Retry, dispose, refusal
from agent_actors.errors import Cancelled, FencedOut, TaskError, TaskIdConflict
from agent_actors.execution import ExecuteAgentTask, Outcome
from agent_actors.journal import LeaseJournal
from agent_actors.leases import CancelledMeanwhile, Lease, Leases
from agent_actors.ledger import (
    AckCopy,
    Announce,
    Claim,
    Conflict,
    DeadLetterReason,
    Stale,
    TaskRecord,
)
from agent_actors.oversize import fit_dead_letter, fit_event, fit_result
from agent_actors.patience import until_answered
from agent_actors.ports import (
    Acknowledger,
    AgentConfig,
    ArtifactStore,
    Clock,
    Delivery,
    EventSink,
    ExecutionRequest,
    Message,
    ResultPublisher,
)
from agent_actors.reading import BrokenTask, ValidTask, read

log = structlog.get_logger()

ClearAway = Callable[[str, ResultStatus], Awaitable[None]]

# How long to remove what a task left behind, less than an actor is given to stop.
CLEAR_AWAY_S = 20.0

LEASE_BYTES = 16

Settled = Literal[
    "completed",
    "failed",
    "retried",
    "released",
    "fenced",
    "announced",
    "copy",
    "stale",
    "conflict",
    "buried",
]


async def nothing_to_clear(task_id: str, status: ResultStatus) -> None:
    """Leave all as it is."""


class SettleDelivery:
    """Settles deliveries for one agent: reads, begins, attempts, commits, announces, acks."""

    def __init__(  # noqa: PLR0913 - here all ports meet
        self,
        *,
        agent_id: str,
        pool_name: str,
        pool: PoolConfig,
        max_payload_bytes: int,
        execute: ExecuteAgentTask,
        leases: Leases,
        publisher: ResultPublisher,
        acks: Acknowledger,
        artifacts: ArtifactStore,
        events: EventSink,
        clock: Clock,
        clear_away: ClearAway = nothing_to_clear,
    ) -> None:
        self._agent_id = agent_id
        self._pool_name = pool_name
        self._pool = pool
        self._max_payload_bytes = max_payload_bytes
        self._max_result_bytes = max_payload_bytes - PAYLOAD_MARGIN_BYTES
        self._execute = execute
        self._leases = leases
        self._publisher = publisher
        self._acks = acks
        self._artifacts = artifacts
        self._events = events
        self._clock = clock
        self._clear_away = clear_away
        self._attempts = Attempts(leases)
        self._clearing: set[asyncio.Task[None]] = set()
        # Bound once: a lazy logger takes a microsecond for each line, wanted or not.
        self._log = log.bind()

    async def __call__(self, delivery: Delivery) -> Settled:
        """Settle one delivery and say how. Waits for NATS as long as it is away.

        Raises PermissionDenied and StreamMissing, with the message still in the queue.
        """
        reading = read(delivery, max_payload_bytes=self._max_payload_bytes)
        bind_contextvars(
            pool=self._pool_name,
            agent_id=self._agent_id,
            task_id=reading.task_id or f"unknown:{delivery.stream}:{delivery.source.stream_seq}",
        )
        self._log.debug("task.read", num_delivered=delivery.source.num_delivered)
        with self._attempts.expected(reading.task_id) as attempt:
            settled = await self._settle(delivery, reading, attempt)
        self._log.info("task.settled", disposition=settled)
        return settled

    def give_back(self) -> None:
        """End all attempts, those about to begin too; their settlements give the tasks back."""
        self._attempts.give_back()

    def cancel(self, task_key: str) -> None:
        """End what runs of a task that is said to be cancelled, if the ledger says so too."""
        self._attempts.cancel(task_key)

    async def cleared(self) -> None:
        """Return once nothing that settled tasks have left is being removed any more."""
        if self._clearing:
            await asyncio.wait(self._clearing)

    async def _settle(
        self, delivery: Delivery, reading: ValidTask | BrokenTask, attempt: Attempt
    ) -> Settled:
        if isinstance(reading, BrokenTask) and not reading.task_id:
            return await self._bury(delivery, reading)
        match await self._leases.begin(self._claim(delivery, reading)):
            case Lease() as lease:
                try:
                    return await self._work(delivery, reading, lease, attempt)
                except FencedOut:
                    return "fenced"
            case Announce(record):
                await self._announce(record, delivery)
                await self._acks.ack(delivery)
                # Whoever ended the task may have died before it had cleared away.
                self._clear_later(msgspec.json.decode(record.result, type=AgentResult), [])
                return "announced"
            case AckCopy():
                await self._acks.ack(delivery)
                return "copy"
            case Conflict():
                await self._report_conflict(delivery, reading)
                await self._acks.ack(delivery)
                return "conflict"
            case Stale():
                return "stale"

    async def _work(
        self,
        delivery: Delivery,
        reading: ValidTask | BrokenTask,
        lease: Lease,
        attempt: Attempt,
    ) -> Settled:
        """Attempt the task and end it, or give it back. Raises FencedOut."""
        bind_contextvars(attempt=lease.record.attempt)
        self._log.debug("task.begun")
        journal = LeaseJournal(lease, self._leases, self._artifacts)
        outcome = await self._attempt(delivery, reading, lease, journal, attempt)
        lease = await journal.newest()
        while True:
            if lease.record.cancelled:
                so_far = outcome or self._refused(delivery, reading, lease, Cancelled())
                outcome = _cancelled(so_far)
            try:
                return await self._conclude(delivery, reading, lease, outcome)
            except CancelledMeanwhile as cancelled:
                lease = cancelled.lease

    async def _conclude(
        self,
        delivery: Delivery,
        reading: ValidTask | BrokenTask,
        lease: Lease,
        outcome: Outcome | None,
    ) -> Settled:
        """Do with the task what its attempt came to. Raises FencedOut, CancelledMeanwhile."""
        disposition = dispose(
            outcome.failure if outcome else Drained(),
            lease.record,
            self._pool,
            luck=_luck(),
            left_s=self._left_s(reading),
        )
        if outcome is None or isinstance(disposition, GiveBack):
            await self._leases.release(lease)
            await self._acks.nak(delivery)
            return "released"
        self._log.debug("task.attempted", error_type=outcome.result.error_type)
        if isinstance(disposition, Retry):
            return await self._postpone(delivery, lease, outcome, disposition)
        record = await self._commit(lease, outcome, disposition)
        await self._announce(record, delivery)
        await self._acks.ack(delivery)
        self._clear_later(outcome.result, lease.record.turns)
        return outcome.result.status

    async def _attempt(
        self,
        delivery: Delivery,
        reading: ValidTask | BrokenTask,
        lease: Lease,
        journal: LeaseJournal,
        attempt: Attempt,
    ) -> Outcome | None:
        """Return what the attempt came to; None when it was told to give the task back."""
        if isinstance(reading, BrokenTask):
            return self._refused(delivery, reading, lease, reading.problem)
        if failure := refusal(lease.record, self._pool):
            return self._refused(delivery, reading, lease, failure)
        await self._emit("started", lease.record)
        run = partial(
            self._execute.run,
            self._request(reading, lease.record.attempt),
            journal=journal,
            progress=partial(self._tell, lease.record),
        )
        return await self._attempts.run(attempt, lease, lambda why: run(stopped_for=why))

    def _refused(
        self,
        delivery: Delivery,
        reading: ValidTask | BrokenTask,
        lease: Lease,
        failure: TaskError,
    ) -> Outcome:
        """Return the outcome of a task that is not to run."""
        if isinstance(reading, BrokenTask):
            return Outcome(self._broken_result(delivery, reading, lease), failure)
        return self._execute.refuse(self._request(reading, lease.record.attempt), failure)

    def _left_s(self, reading: ValidTask | BrokenTask) -> float:
        """Return the seconds until the task's deadline."""
        deadline = reading.constraints.deadline if isinstance(reading, ValidTask) else None
        return (deadline - self._clock()).total_seconds() if deadline else math.inf

    async def _postpone(
        self, delivery: Delivery, lease: Lease, outcome: Outcome, retry: Retry
    ) -> Settled:
        await self._leases.release(lease, failed=retry.counts, postponed=not retry.counts)
        await self._acks.nak(delivery, retry.delay_s)
        error = outcome.result.error
        self._log.warning("task.postponed", error=error, delay_s=round(retry.delay_s, 3))
        await self._emit("retry", lease.record, error=error, delay_s=retry.delay_s)
        return "retried"

    async def _commit(self, lease: Lease, outcome: Outcome, finish: Finish) -> TaskRecord:
        result = await fit_result(
            outcome.result,
            max_bytes=self._max_result_bytes,
            folder=f"{lease.key}/{lease.record.lease}",
            store=self._artifacts,
        )
        due = _why(outcome) if finish.dead_letter else None
        record = await self._leases.commit(lease, outcome.result.status, result, due)
        self._log.debug("task.committed", status=record.state)
        return record

    async def _announce(self, record: TaskRecord, delivery: Delivery) -> None:
        result, *letters = announcements(record, delivery)
        await self._publish(result)
        for letter in letters:
            await self._publish_dead_letter(letter)
        await self._emit("finished", record, status=record.state)
        self._log.debug("task.announced", status=record.state)

    async def _bury(self, delivery: Delivery, reading: BrokenTask) -> Settled:
        """End a message that has no usable task id, and so no place in the ledger."""
        source = f"{delivery.stream}:{delivery.source.stream_seq}"
        result = self._broken_result(delivery, reading)
        payload = encode(result)
        await self._publish(result_message(payload, f"invalid:{source}", delivery.headers))
        why = DeadLetterReason(reason=reading.problem.error_type, error=str(reading.problem))
        await self._publish_dead_letter(dead_letter(delivery, why, f"invalid:{source}"))
        await self._acks.term(delivery)
        return "buried"

    async def _report_conflict(self, delivery: Delivery, reading: ValidTask | BrokenTask) -> None:
        conflict = TaskIdConflict(
            f"task_id: {reading.task_id!r} belongs to a task with other content, "
            "whose result stands; publish this one under another id"
        )
        self._log.warning("task.conflict", error=str(conflict))
        why = DeadLetterReason(reason=conflict.error_type, error=str(conflict))
        msg_id = f"conflict:{delivery.stream}:{delivery.source.stream_seq}"
        letter = dead_letter(delivery, why, msg_id, task_id=reading.task_id)
        await self._publish_dead_letter(letter)

    async def _publish_dead_letter(self, letter: Message) -> None:
        limit = self._max_payload_bytes
        await self._publish(await fit_dead_letter(letter, max_bytes=limit, store=self._artifacts))

    async def _publish(self, message: Message) -> None:
        await until_answered(lambda: self._publisher.publish(message))

    def _clear_later(self, result: AgentResult, turns: list[ArtifactRef]) -> None:
        """Remove in the background what a task with tools has left, now that it has ended."""
        if result.enable_tools:
            self._start_clearing(self._clear_away(result.task_id, result.status))
        if turns:
            self._start_clearing(self._delete(turns))

    def _start_clearing(self, work: Awaitable[None]) -> None:
        clearing = asyncio.create_task(_in_time(work))
        self._clearing.add(clearing)
        clearing.add_done_callback(self._end_clearing)

    def _end_clearing(self, clearing: asyncio.Task[None]) -> None:
        """Let stay what could not be removed: it will be old some day, and removed for that."""
        self._clearing.discard(clearing)
        if not clearing.cancelled() and (error := clearing.exception()):
            self._log.warning("task.not_cleared", exc_info=error)

    async def _delete(self, objects: list[ArtifactRef]) -> None:
        for ref in objects:
            await self._artifacts.delete(ref)

    async def _tell(self, record: TaskRecord, kind: EventKind, **detail: Any) -> None:  # noqa: ANN401 - any JSON value
        """Tell what a strategy says of its work, cut to what an event may hold."""
        await self._emit(kind, record, **fit_event(detail))

    async def _emit(self, kind: EventKind, record: TaskRecord, **detail: Any) -> None:  # noqa: ANN401 - any JSON value
        await self._events.emit(
            TaskEvent(
                task_id=record.task_id,
                kind=kind,
                time=self._clock(),
                agent_id=self._agent_id,
                attempt=record.attempt,
                detail=detail,
            )
        )

    def _claim(self, delivery: Delivery, reading: ValidTask | BrokenTask) -> Claim:
        return Claim(
            task_id=reading.task_id,
            source=delivery.source,
            content=reading.content,
            agent_id=self._agent_id,
            lease=secrets.token_hex(LEASE_BYTES),
            now=self._clock(),
            generation=generation_in(delivery.headers.get(MSG_ID_HEADER, ""), reading.task_id),
        )

    def _request(self, reading: ValidTask, attempt: int) -> ExecutionRequest:
        limit_s = self._pool.task_timeout_s
        return ExecutionRequest(
            task=reading.task,
            constraints=reading.constraints,
            agent=agent_for(reading.task, self._pool, self._agent_id),
            timeout_s=min(reading.constraints.timeout or limit_s, limit_s),
            attempt=attempt,
        )

    def _broken_result(
        self, delivery: Delivery, reading: BrokenTask, lease: Lease | None = None
    ) -> AgentResult:
        return AgentResult(
            task_id=reading.task_id or f"unknown:{delivery.stream}:{delivery.source.stream_seq}",
            agent_id=self._agent_id,
            role=role_token(delivery.subject).upper(),
            status="failed",
            success=False,
            duration_ms=0.0,
            timestamp=self._clock(),
            error=str(reading.problem),
            error_type=reading.problem.error_type,
            attempt=lease.record.attempt if lease else 0,
        )


def agent_for(task: AgentTask, pool: PoolConfig, agent_id: str) -> AgentConfig:
    """Return who works on a task: the pool's settings, with the task's own within their bounds."""
    role = pool.roles.get(task.role)
    return AgentConfig(
        agent_id=agent_id,
        role=task.role,
        model=task.model or pool.model,
        enable_tools=pool.enable_tools if task.enable_tools is None else task.enable_tools,
        temperature=pool.temperature if task.temperature is None else task.temperature,
        max_tokens=min(task.max_tokens or pool.max_tokens, pool.max_tokens),
        timeout_s=pool.task_timeout_s,
        prompt=role.prompt if role else "",
    )


def _cancelled(outcome: Outcome) -> Outcome:
    """Return the outcome of a task that was cancelled: what was done so far, as a failure."""
    failure = Cancelled()
    result = replace(
        outcome.result,
        status="failed",
        success=False,
        error=str(failure),
        error_type=failure.error_type,
    )
    return Outcome(result, failure)


def _why(outcome: Outcome) -> DeadLetterReason:
    return DeadLetterReason(
        reason=outcome.result.error_type or "", error=outcome.result.error or ""
    )


async def _in_time(work: Awaitable[None]) -> None:
    async with asyncio.timeout(CLEAR_AWAY_S):
        await work


def _luck() -> float:
    return random.random()  # noqa: S311 - jitter, no secret
