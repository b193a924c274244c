"""Leases on tasks: `ledger` decides what may be written, this module gets it written.

A write whose answer was lost is neither done nor undone. So it is repeated as the very same
compare-and-set, until the leader says that it won, or that the record has moved on; then the
record itself tells whose write it was.
"""

from functools import partial

from msgspec import Struct

from agent_actors import ledger
from agent_actors.contract import ArtifactRef, task_key
from agent_actors.errors import FencedOut, PublishFailed
from agent_actors.ledger import (
    AckCopy,
    Announce,
    AskQueue,
    Claim,
    Conflict,
    DeadLetterReason,
    Nak,
    Release,
    Run,
    Stale,
    State,
    TaskRecord,
)
from agent_actors.patience import FIRST_PAUSE_S, pause, until_answered
from agent_actors.ports import Clock, LedgerStore, Stored, TaskQueue


class Lease(Struct, frozen=True):
    """The right to end a task, until somebody else writes its record."""

    key: str
    record: TaskRecord
    revision: int


# Pauses that add up to some ten seconds.
LAG_READS = 10

Begun = Lease | Announce | AckCopy | Stale | Conflict


class Leases:
    """Begins, commits and releases tasks in the ledger. Waits for NATS as long as it is away."""

    def __init__(self, store: LedgerStore, queue: TaskQueue, clock: Clock) -> None:
        self._store = store
        self._queue = queue
        self._clock = clock

    async def begin(self, claim: Claim) -> Begun:
        """Return a lease on the task, or why there is none for this delivery."""
        key = task_key(claim.task_id)
        stored = await self._expected(key, claim)
        rival_queued: bool | None = None
        while True:
            match ledger.begin(stored.record, claim, rival_queued=rival_queued):
                case AskQueue(rival):
                    holds = partial(self._queue.holds, rival, claim.task_id)
                    rival_queued = await until_answered(holds)
                case Run(record):
                    try:
                        revision = await self._swap(key, record, stored.revision)
                    except FencedOut:
                        stored = await self._read_past(key, stored.revision)
                        rival_queued = None
                    else:
                        return Lease(key, record, revision)
                case verdict:
                    return verdict

    async def keep(
        self, lease: Lease, turns: list[ArtifactRef], recent_turns: list[bytes]
    ) -> Lease:
        """Store what the attempt has kept of its work; return the lease that counts from now on.

        Raises FencedOut.
        """
        record = ledger.keep(lease.record, turns, recent_turns, self._clock())
        return Lease(lease.key, record, await self._swap(lease.key, record, lease.revision))

    async def commit(
        self, lease: Lease, state: State, result: bytes, due: DeadLetterReason | None
    ) -> TaskRecord:
        """Write the terminal record: the one commit point. Raises FencedOut."""
        record = ledger.commit(lease.record, state, result, self._clock(), due)
        await self._swap(lease.key, record, lease.revision)
        return record

    async def release(
        self, lease: Lease, *, failed: bool = False, postponed: bool = False
    ) -> TaskRecord:
        """Give the task back without a verdict. Raises FencedOut; only success may nak."""
        record = ledger.release(lease.record, self._clock(), failed=failed, postponed=postponed)
        await self._swap(lease.key, record, lease.revision)
        return record

    async def give_back(self, claim: Claim) -> bool:
        """Release what a dead actor, `claim.agent_id`, held; tell whether it is to be nak'd."""
        key = task_key(claim.task_id)
        stored = await until_answered(lambda: self._store.read(key))
        match ledger.give_back(stored.record, claim):
            case Nak():
                return True
            case Stale():
                return False
            case Release(record):
                try:
                    await self._swap(key, record, stored.revision)
                except FencedOut:
                    return False
                return True

    async def _expected(self, key: str, claim: Claim) -> Stored:
        """Guess that a first delivery has no record: the write finds out if it has."""
        if claim.source.num_delivered == 1:
            return Stored(record=None, revision=0)
        return await until_answered(lambda: self._store.read(key))

    async def _swap(self, key: str, record: TaskRecord, revision: int) -> int:
        """Compare and set, until it is known whether it happened. Raises FencedOut."""
        unsure = False
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._store.write(key, record, revision)
            except PublishFailed:
                unsure = True
                pause_s = await pause(pause_s)
            except FencedOut:
                if not unsure:
                    raise
                stored = await self._read_past(key, revision)
                if stored.record != record:
                    raise
                return stored.revision

    async def _read_past(self, key: str, revision: int) -> Stored:
        """Read until the record is newer than `revision`: a leader just elected may lag.

        One that stays older was expired or purged in between; then that is how it is.
        """
        stored = await until_answered(lambda: self._store.read(key))
        pause_s = FIRST_PAUSE_S / 10
        for _ in range(LAG_READS):
            if stored.revision > revision:
                break
            pause_s = await pause(pause_s)
            stored = await until_answered(lambda: self._store.read(key))
        return stored
