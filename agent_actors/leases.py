"""Leases on tasks: `ledger` decides what may be written, this module gets it written.

A write whose answer was lost is neither done nor undone. So it is repeated as the very same
compare-and-set, until the leader says that it won, or that the record has moved on; then the
record itself tells whose write it was.
"""

from functools import partial
from typing import NamedTuple

from msgspec import Struct

from agent_actors import ledger
from agent_actors.contract import ArtifactRef, task_key
from agent_actors.errors import AgentActorsError, FencedOut, PublishFailed
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


class Written(NamedTuple):
    """A record as it stands, and its revision."""

    record: TaskRecord
    revision: int


# Pauses that add up to some ten seconds.
LAG_READS = 10

Begun = Lease | Announce | AckCopy | Stale | Conflict


class CancelledMeanwhile(AgentActorsError):
    """The task was cancelled while it ran: end it as such, under `lease`."""

    def __init__(self, lease: Lease) -> None:
        super().__init__()
        self.lease = lease


class Leases:
    """Begins, commits and releases tasks in the ledger. Waits for NATS as long as it is away.

    A cancel changes the record under whoever has the task, and nothing but the mark; so what
    is written over it next is written anew on top of it, or ends the task as cancelled.
    """

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
                        mine = await self._swap(key, record, stored.revision)
                    except FencedOut:
                        stored = await self._read_past(key, stored.revision)
                        rival_queued = None
                    else:
                        return Lease(key, mine.record, mine.revision)
                case verdict:
                    return verdict

    async def keep(
        self, lease: Lease, turns: list[ArtifactRef], recent_turns: list[bytes]
    ) -> Lease:
        """Store what the attempt has kept of its work; return the lease that counts from now on.

        Its record tells whether the task is cancelled by now. Raises FencedOut.
        """
        record = ledger.keep(lease.record, turns, recent_turns, self._clock())
        try:
            return await self._replace(lease, record)
        except CancelledMeanwhile as cancelled:
            return await self.keep(cancelled.lease, turns, recent_turns)

    async def commit(
        self, lease: Lease, state: State, result: bytes, due: DeadLetterReason | None
    ) -> TaskRecord:
        """Write the terminal record: the one commit point. Raises FencedOut, CancelledMeanwhile."""
        record = ledger.commit(lease.record, state, result, self._clock(), due)
        return (await self._replace(lease, record)).record

    async def release(
        self, lease: Lease, *, failed: bool = False, postponed: bool = False
    ) -> TaskRecord:
        """Give the task back without a verdict; only success may nak.

        Raises FencedOut, CancelledMeanwhile.
        """
        record = ledger.release(lease.record, self._clock(), failed=failed, postponed=postponed)
        return (await self._replace(lease, record)).record

    async def give_back(self, claim: Claim, *, alone: bool = False) -> bool:
        """Release what a dead actor, `claim.agent_id`, held; tell whether it is to be nak'd.

        What ran there, and in another one that died, is a suspect from now on. `alone` tells
        that nothing else ran there, so that the death counts.
        """
        key = task_key(claim.task_id)
        stored = await until_answered(lambda: self._store.read(key))
        while True:
            match ledger.give_back(stored.record, claim, alone=alone):
                case Nak():
                    return True
                case Stale():
                    return False
                case Release(record):
                    try:
                        await self._swap(key, record, stored.revision)
                    except FencedOut:
                        before = stored.record
                        stored = await self._read_past(key, stored.revision)
                        if not ledger.is_to_be_given_back_anew(before, stored.record, claim):
                            return False
                    else:
                        return True

    async def is_suspect(self, task_id: str) -> bool:
        """Tell whether the task was running in two actors that died, and would run again."""
        stored = await until_answered(lambda: self._store.read(task_key(task_id)))
        return stored.record is not None and stored.record.is_suspect

    async def is_cancelled(self, lease: Lease) -> bool:
        """Tell whether the task is cancelled that this lease is for."""
        stored = await until_answered(lambda: self._store.read(lease.key))
        return ledger.was_marked(lease.record, stored.record)

    async def cancel(self, task_id: str) -> TaskRecord:
        """Mark the task, unless it has ended, and return its record as it stands then.

        Raises PublishFailed when NATS does not answer: whether it is marked then is not known,
        and asking again does no harm.
        """
        key = task_key(task_id)
        pause_s = FIRST_PAUSE_S / 10
        while True:
            stored = await self._store.read(key)
            marked = ledger.cancel(stored.record, task_id, self._clock())
            if marked == stored.record:
                return marked
            try:
                await self._store.write(key, marked, stored.revision)
            except FencedOut:
                pause_s = await pause(pause_s)
            else:
                return marked

    async def _expected(self, key: str, claim: Claim) -> Stored:
        """Guess that a first delivery has no record: the write finds out if it has."""
        if claim.source.num_delivered == 1:
            return Stored(record=None, revision=0)
        return await until_answered(lambda: self._store.read(key))

    async def _replace(self, lease: Lease, record: TaskRecord) -> Lease:
        """Write over the lease's record. Raises FencedOut, CancelledMeanwhile."""
        try:
            stored = await self._swap(lease.key, record, lease.revision)
        except FencedOut:
            stored = await self._read_past(lease.key, lease.revision)
            if stored.record and ledger.was_marked(lease.record, stored.record):
                marked = Lease(lease.key, stored.record, stored.revision)
                raise CancelledMeanwhile(marked) from None
            raise
        return Lease(lease.key, stored.record, stored.revision)

    async def _swap(self, key: str, record: TaskRecord, revision: int) -> "Written":
        """Compare and set, until it is known whether it happened. Raises FencedOut.

        What is returned may have been marked since.
        """
        unsure = False
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return Written(record, await self._store.write(key, record, revision))
            except PublishFailed:
                unsure = True
                pause_s = await pause(pause_s)
            except FencedOut:
                if not unsure:
                    raise
                stored = await self._read_past(key, revision)
                if not stored.record or not ledger.was_written(record, stored.record):
                    raise
                return Written(stored.record, stored.revision)

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
