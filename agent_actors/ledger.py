"""The ledger's records and how they change: pure, and the heart of "exactly one result".

JetStream hands a message out again whenever it likes, and honours stale acks; so a record for
each task, changed only by compare-and-set, decides whose result counts. `leases.py` writes
these records; this module says what may be written over what.
"""

from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent_actors.contract import AgentResult, ArtifactRef, CancelReply, CancelState, TaskStatus

State = Literal["running", "waiting", "completed", "failed"]


class Source(Struct, frozen=True, kw_only=True):
    """Which message, and which handing-out of it, an attempt comes from.

    `consumer_created` is the consumer's time of creation in nanoseconds since 1970: one made
    anew counts its deliveries from 1 again.
    """

    stream_seq: int
    consumer: str
    consumer_created: int
    num_delivered: int

    def is_same_message(self, other: "Source") -> bool:
        """Tell whether both are of one message; a stream made anew has new consumers too."""
        return (self.stream_seq, self.consumer_created) == (
            other.stream_seq,
            other.consumer_created,
        )

    def is_later_than(self, other: "Source") -> bool:
        """Tell whether this handing-out of a message came after that one of the same message.

        Two consumers never serve one subject at a time, so another consumer's is later, and any
        is later than none: a message that a replay has queued and that nobody was handed yet.
        """
        if self.consumer != other.consumer:
            return bool(self.consumer)
        return (self.consumer_created, self.num_delivered) > (
            other.consumer_created,
            other.num_delivered,
        )


# The source of a record whose message is not known: a replay has not queued it yet, or the task
# was cancelled before it came.
UNQUEUED = Source(stream_seq=0, consumer="", consumer_created=0, num_delivered=0)


class DeadLetterReason(Struct, frozen=True, kw_only=True):
    """Why a dead letter is due beside the result."""

    reason: str
    error: str


class TaskRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One task in the ledger.

    `attempt` counts the runs begun, `failures` those of them that count against the pool's
    `max_attempts`, `postponed` the times that the model was away. `lease` names the attempt
    that may commit; `content` is the hash of what was asked. `result` is the result's JSON.
    `turns` and `recent_turns` are what attempts have kept of their work; `journal` reads them.
    `cancelled` asks whoever has the task, or is handed it, to end it. `lost` tells that an actor
    died while it ran there, and a `suspect` is what that happened to again, or with nothing
    else there; `deaths` counts the latter.
    """

    task_id: str
    state: State
    source: Source
    content: str
    updated: datetime
    attempt: int = 0
    failures: int = 0
    postponed: int = 0
    generation: int = 0
    agent_id: str = ""
    lease: str = ""
    result: msgspec.Raw = msgspec.Raw()
    dead_letter: DeadLetterReason | None = None
    turns: list[ArtifactRef] = []
    recent_turns: list[bytes] = []
    cancelled: bool = False
    lost: bool = False
    suspect: bool = False
    deaths: int = 0

    @property
    def is_suspect(self) -> bool:
        """It may have killed its actors, and would run again when it is handed out."""
        return self.suspect and not self.cancelled and not self.is_terminal

    @property
    def is_awaited(self) -> bool:
        """No task yet: its id was cancelled before it came, and any content may have it."""
        unseen = self.source == UNQUEUED and self.generation == 0
        return unseen and self.cancelled and self.state == "waiting"

    @property
    def is_terminal(self) -> bool:
        """Completed or failed, for good."""
        return self.state in {"completed", "failed"}

    @property
    def is_replayed(self) -> bool:
        """Opened again by a replay, and its message not begun yet."""
        return self.state == "waiting" and self.generation > 0 and not self.source.consumer

    @property
    def is_unqueued(self) -> bool:
        """Opened again by a replay that has not told yet where its message is queued."""
        return self.is_replayed and not self.source.stream_seq


class Claim(Struct, frozen=True, kw_only=True):
    """A delivery that asks to run: what it carries, who would run it, and when.

    `generation` is that of the replay which queued the message, 0 for what a user has.
    """

    task_id: str
    source: Source
    content: str
    agent_id: str
    lease: str
    now: datetime
    generation: int = 0


class Run(Struct, frozen=True):
    """Write this record; when the write wins, run the task."""

    record: TaskRecord


class Announce(Struct, frozen=True):
    """The task has ended: announce again what is stored, and ack."""

    record: TaskRecord


class AckCopy(Struct, frozen=True):
    """Another message with this task is alive and will answer: ack this copy, run nothing."""


class Stale(Struct, frozen=True):
    """A later delivery of this message has the task: no ack, no nak."""


class Conflict(Struct, frozen=True):
    """The id belongs to a task with other content: this message is a dead letter."""


class AskQueue(Struct, frozen=True):
    """Whether the message `stream_seq` is still queued decides; ask, then call again."""

    stream_seq: int


class Release(Struct, frozen=True):
    """Write this record; when the write wins, nak the delivery."""

    record: TaskRecord


class Nak(Struct, frozen=True):
    """Have the delivery handed out again: whoever gets it reads in the ledger what is left."""


Verdict = Run | Announce | AckCopy | Stale | Conflict | AskQueue


def begin(found: TaskRecord | None, claim: Claim, *, rival_queued: bool | None = None) -> Verdict:
    """Decide what a delivery may do, given the record found (design section 5).

    `rival_queued` answers an `AskQueue`: whether the other message is still in the stream.
    """
    if found is None or found.is_awaited:
        return Run(_running(claim, found))
    if found.is_replayed and claim.generation == found.generation:
        return Run(_running(claim, found))
    if found.content != claim.content and not claim.source.is_same_message(found.source):
        return Conflict()
    if found.is_terminal:
        return Announce(found)
    if found.source.stream_seq == claim.source.stream_seq:
        is_later = claim.source.is_later_than(found.source)
        return Run(_running(claim, found)) if is_later else Stale()
    if found.is_unqueued:
        # An ack of this message may be on its way since the last generation ended: it cannot
        # carry the task. It stays until the replay's own message is known.
        return Stale()
    if rival_queued is None:
        return AskQueue(found.source.stream_seq)
    return AckCopy() if rival_queued else Run(_running(claim, found))


def keep(
    record: TaskRecord, turns: list[ArtifactRef], recent_turns: list[bytes], now: datetime
) -> TaskRecord:
    """Return the record with what its attempt has kept of its work by now."""
    return replace(record, turns=turns, recent_turns=recent_turns, updated=now)


def commit(
    record: TaskRecord, state: State, result: bytes, now: datetime, due: DeadLetterReason | None
) -> TaskRecord:
    """Return the terminal record: the result, and whether a dead letter goes with it."""
    return replace(
        record,
        state=state,
        result=msgspec.Raw(result),
        dead_letter=due,
        updated=now,
        turns=[],
        recent_turns=[],
    )


def release(
    record: TaskRecord, now: datetime, *, failed: bool = False, postponed: bool = False
) -> TaskRecord:
    """Return the record of a task given back without a verdict; its lease is void.

    What was kept of the work stays, for the next attempt.
    """
    return replace(
        record,
        state="waiting",
        lease="",
        failures=record.failures + failed,
        postponed=record.postponed + postponed,
        updated=now,
    )


def give_back(
    found: TaskRecord | None, claim: Claim, *, alone: bool = False
) -> Release | Nak | Stale:
    """Decide what becomes of a delivery whose actor, `claim.agent_id`, died with it.

    A record of another message says nothing about this one: nobody runs this one. Only a task
    that was running there may have done it; `alone` tells that nothing else was.
    """
    if found is None or found.is_awaited:
        return Release(never_begun(claim, found))
    if found.source.stream_seq != claim.source.stream_seq:
        return Nak()
    if found.source.is_later_than(claim.source):
        return Stale()
    if found.is_terminal:
        return Nak()
    if claim.source.is_later_than(found.source):
        return Release(replace(release(found, claim.now), source=claim.source))
    if found.state == "waiting":
        return Nak()
    if found.agent_id != claim.agent_id:
        return Stale()
    suspect = found.suspect or found.lost or alone
    lost = replace(found, lost=True, suspect=suspect, deaths=found.deaths + alone)
    return Release(release(lost, claim.now))


def never_begun(claim: Claim, found: TaskRecord | None = None) -> TaskRecord:
    """Return the record of a delivery given back before anybody began it."""
    return release(replace(_running(claim, found), attempt=0), claim.now)


def cancel(found: TaskRecord | None, task_id: str, now: datetime) -> TaskRecord:
    """Return the record with the mark, or as it is when the task has ended.

    The mark changes nothing else: so whoever has the task knows its own write under it.
    """
    if found is None:
        return TaskRecord(
            task_id=task_id,
            state="waiting",
            source=UNQUEUED,
            content="",
            updated=now,
            cancelled=True,
        )
    return found if found.is_terminal else replace(found, cancelled=True)


def was_written(record: TaskRecord, found: TaskRecord | None) -> bool:
    """Tell whether `found` is this very record; it may have been marked since."""
    return found is not None and replace(found, cancelled=record.cancelled) == record


def was_marked(record: TaskRecord, found: TaskRecord | None) -> bool:
    """Tell whether the task of this running record still has its lease, and a mark since."""
    return (
        found is not None
        and (found.state, found.lease) == (record.state, record.lease)
        and was_cancelled_since(record, found)
    )


def was_cancelled_since(before: TaskRecord | None, found: TaskRecord | None) -> bool:
    """Tell whether a mark has come between the two."""
    return found is not None and found.cancelled and not (before and before.cancelled)


def is_to_be_given_back_anew(
    before: TaskRecord | None, found: TaskRecord | None, claim: Claim
) -> bool:
    """Tell whether what came between says nothing about who has the message.

    That is a mark, or the record of another message with the same task.
    """
    is_of_another = found is not None and found.source.stream_seq != claim.source.stream_seq
    return is_of_another or was_cancelled_since(before, found)


def cancel_reply(record: TaskRecord) -> CancelReply:
    """Return what a cancel has come to, given the record that it has left."""
    state: CancelState
    match record.state:
        case "completed" | "failed" as ended:
            state = "cancelled" if record.cancelled else ended
        case _:
            state = "cancel_requested"
    return CancelReply(task_id=record.task_id, state=state)


class Plea(Struct, frozen=True, kw_only=True):
    """A dead letter that asks for its task to be run again.

    `generation` is the one that the letter ended; `stream_seq` was its message's in the queue,
    `content` is the hash of what it asks.
    """

    task_id: str
    generation: int
    stream_seq: int
    content: str
    now: datetime


class Reopen(Struct, frozen=True):
    """Have this record written, if it is not, and then the message queued."""

    record: TaskRecord


class Superseded(Struct, frozen=True):
    """A replay has queued the task before: this letter has done its work."""

    record: TaskRecord


class Occupied(Struct, frozen=True):
    """The task is not where the letter left it: under way, or ended without a dead letter."""

    record: TaskRecord


def replay(found: TaskRecord | None, plea: Plea) -> Reopen | Superseded | Occupied | Conflict:
    """Decide what a replay may do, given the record found.

    It may be asked again after a crash at any point: a generation is opened once, and as long
    as nobody knows where its message is queued, it is queued again.
    """
    if found is None or found.is_awaited:
        return Reopen(_reopened(plea))
    if found.content != plea.content and found.source.stream_seq != plea.stream_seq:
        return Conflict()
    if found.generation > plea.generation:
        is_next = found.generation == plea.generation + 1
        return Reopen(found) if is_next and found.is_unqueued else Superseded(found)
    if found.dead_letter is None:
        return Occupied(found)
    return Reopen(_reopened(plea))


def queue(record: TaskRecord, stream_seq: int, now: datetime) -> TaskRecord:
    """Return the record of a replayed task whose message is known to be queued."""
    return replace(record, source=replace(record.source, stream_seq=stream_seq), updated=now)


def status_of(task_id: str, record: TaskRecord | None) -> TaskStatus:
    """Return where a task stands, for those who ask."""
    if record is None or record.is_awaited:
        return TaskStatus(task_id=task_id, state="unknown", cancel_requested=record is not None)
    return TaskStatus(
        task_id=task_id,
        state=record.state,
        attempt=record.attempt,
        agent_id=record.agent_id,
        result=msgspec.json.decode(record.result, type=AgentResult) if record.is_terminal else None,
        cancel_requested=record.cancelled,
    )


def _reopened(plea: Plea) -> TaskRecord:
    """Return the record of the next generation, with nothing of the last one on it."""
    return TaskRecord(
        task_id=plea.task_id,
        state="waiting",
        source=UNQUEUED,
        content=plea.content,
        updated=plea.now,
        generation=plea.generation + 1,
    )


def _running(claim: Claim, found: TaskRecord | None = None) -> TaskRecord:
    return TaskRecord(
        task_id=claim.task_id,
        state="running",
        source=claim.source,
        content=claim.content,
        updated=claim.now,
        attempt=(found.attempt if found else 0) + 1,
        failures=found.failures if found else 0,
        postponed=found.postponed if found else 0,
        generation=max(found.generation if found else 0, claim.generation),
        agent_id=claim.agent_id,
        lease=claim.lease,
        turns=found.turns if found else [],
        recent_turns=found.recent_turns if found else [],
        cancelled=found.cancelled if found else False,
        lost=found.lost if found else False,
        suspect=found.suspect if found else False,
        deaths=found.deaths if found else 0,
    )
