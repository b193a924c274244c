"""Replaying a dead letter: its task runs again, in a new generation, with its attempts anew.

Read `ReplayDeadLetter.__call__`: four steps, each of which may be the last one before a crash.
The letter goes last, so whoever replays it again goes on where the crash was.

    open     the ledger's record waits again, with the generation raised; only the message of
             this very generation may run it, which its `Nats-Msg-Id` tells
    publish  the message, with the bytes and headers that it had, to the subject that it had
    note     in the record where it is queued, so that a purge is seen
    remove   the letter

That needs the rights to publish what `deadletters` and reading say, and besides
`$JS.API.STREAM.MSG.GET.KV_agent_ledger`, `$KV.agent_ledger.>` and the task's `agent.tasks.<role>`;
after a crash perhaps `$JS.API.STREAM.MSG.GET.AGENT_TASKS`.
"""

from datetime import datetime

from agent_actors import ledger
from agent_actors.adapters.jetstream.connection import Connection, PubAck
from agent_actors.adapters.jetstream.deadletters import DeadLetters
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.tasks import JetStreamTaskQueue
from agent_actors.contract import (
    MSG_ID_HEADER,
    TASK_STREAM,
    DeadLetter,
    Replay,
    message_id,
    task_key,
)
from agent_actors.errors import DeadLetterRefused, FencedOut, PublishFailed, TaskIdConflict
from agent_actors.leases import LAG_READS
from agent_actors.ledger import UNQUEUED, Conflict, Occupied, Plea, Reopen, Superseded, TaskRecord
from agent_actors.patience import FIRST_PAUSE_S, pause
from agent_actors.ports import Clock, Delivery, Stored
from agent_actors.reading import BrokenTask, ValidTask, read

EXPECTED_STREAM = {"Nats-Expected-Stream": TASK_STREAM}
NOWHERE = -1


class ReplayDeadLetter:
    """Replays letters, one at a call. A call that fails may be repeated, and goes on."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._letters = DeadLetters(connection)
        self._ledger = JetStreamLedger(connection)
        self._queue = JetStreamTaskQueue(connection)
        self._clock = clock

    async def __call__(self, letter: DeadLetter) -> Replay:
        """Have the letter's task run again, unless that was done before.

        Raises DeadLetterRefused when it could not succeed; PublishFailed, PermissionDenied and
        StreamMissing with the letter still there.
        """
        payload = await self._letters.payload(letter)
        plea = self._plea(letter, payload)
        key = task_key(plea.task_id)
        opened = await self._open(key, plea)
        if isinstance(opened, Superseded):
            await self._letters.remove(letter)
            return _told(letter, opened.record, already=True)
        ack = await self._publish(letter, payload, opened.record)
        await self._note(key, opened.record, ack)
        await self._letters.remove(letter)
        return _told(letter, opened.record)

    async def is_half_done(self, letter: DeadLetter) -> bool:
        """Tell whether a replay of this letter has opened its task and may not have queued it."""
        if not letter.task_id or letter.reason == TaskIdConflict.error_type:
            return False
        record = (await self._ledger.read(task_key(letter.task_id))).record
        if record is None or not record.is_unqueued:
            return False
        return record.generation == letter.generation + 1

    def _plea(self, letter: DeadLetter, payload: bytes) -> Plea:
        """Read the letter as the service will read its message. Raises DeadLetterRefused."""
        now = self._clock()
        if letter.reason == TaskIdConflict.error_type:
            raise _refused(letter, letter.error or letter.reason)
        if not letter.task_id:
            raise _refused(letter, "it has no usable task id; publish a task made right")
        message = Delivery(
            subject=letter.subject,
            reply="",
            payload=payload,
            headers={},
            stream=TASK_STREAM,
            source=UNQUEUED,
        )
        reading = read(message, max_payload_bytes=self._connection.nc.max_payload)
        if hopeless := _hopeless(letter, reading, now):
            raise _refused(letter, hopeless)
        return Plea(
            task_id=letter.task_id,
            generation=letter.generation,
            stream_seq=_queued_at(letter),
            content=reading.content,
            now=now,
        )

    async def _open(self, key: str, plea: Plea) -> Reopen | Superseded:
        """Have the record wait for the next generation's message. Raises DeadLetterRefused."""
        pause_s = FIRST_PAUSE_S / 10
        while True:
            stored = await self._ledger.read(key)
            match ledger.replay(stored.record, plea):
                case Conflict():
                    raise DeadLetterRefused(
                        f"{plea.task_id}: the id belongs by now to a task with other content; "
                        "publish this one under another id"
                    )
                case Occupied(record):
                    raise DeadLetterRefused(
                        f"{plea.task_id}: the task is {record.state} by now, and not for this "
                        f"letter (generation {record.generation}, attempt {record.attempt})"
                    )
                case Reopen(record) as reopen if record != stored.record:
                    if await self._written(key, record, stored):
                        return reopen
                case verdict:
                    return verdict
            # Somebody else has written the record: another replay, a cancellation.
            pause_s = await pause(pause_s)

    async def _publish(self, letter: DeadLetter, payload: bytes, record: TaskRecord) -> PubAck:
        """Queue the message; JetStream drops the copy that a repetition makes, for a while."""
        msg_id = message_id(record.task_id, record.generation)
        headers = letter.headers | EXPECTED_STREAM | {MSG_ID_HEADER: msg_id}
        return await self._connection.publish_stored(letter.subject, payload, headers)

    async def _note(self, key: str, opened: TaskRecord, ack: PubAck) -> None:
        """Write down where the message is queued, unless an agent has begun it by now.

        Raises PublishFailed when JetStream has dropped it as the copy of one that is gone.
        """
        pause_s = FIRST_PAUSE_S / 10
        while True:
            stored = await self._read_since(key, opened)
            record = stored.record
            if record is None or record.generation > opened.generation or not record.is_unqueued:
                return
            if ack.duplicate and not await self._queue.holds(ack.seq, record.task_id):
                raise PublishFailed(
                    f"{record.task_id}: its message, number {ack.seq} in {TASK_STREAM}, was "
                    "purged; replay it again once the stream's duplicate window is over"
                )
            if await self._written(key, ledger.queue(record, ack.seq, self._clock()), stored):
                return
            pause_s = await pause(pause_s)

    async def _read_since(self, key: str, opened: TaskRecord) -> Stored:
        """Read what is not older than the record opened: a leader just elected may lag.

        One that stays older was deleted or restored in between; then that is how it is.
        """
        stored = await self._ledger.read(key)
        pause_s = FIRST_PAUSE_S / 10
        for _ in range(LAG_READS):
            if stored.record and stored.record.generation >= opened.generation:
                break
            pause_s = await pause(pause_s)
            stored = await self._ledger.read(key)
        return stored

    async def _written(self, key: str, record: TaskRecord, over: Stored) -> bool:
        try:
            await self._ledger.write(key, record, over.revision)
        except FencedOut:
            return False
        return True


def _hopeless(letter: DeadLetter, reading: ValidTask | BrokenTask, now: datetime) -> str:
    """Say why the task could not succeed, if that is known beforehand."""
    if isinstance(reading, BrokenTask):
        return f"it still is no task ({reading.problem}); publish a task made right"
    if reading.task_id != letter.task_id:
        return f"its message is of the task {reading.task_id}"
    deadline = reading.constraints.deadline
    if deadline is not None and deadline <= now:
        return f"its deadline, {deadline.isoformat()}, has passed"
    return ""


def _refused(letter: DeadLetter, reason: str) -> DeadLetterRefused:
    name = letter.task_id or f"dead letter {letter.stream_seq}"
    return DeadLetterRefused(f"{name}: {reason}")


def _queued_at(letter: DeadLetter) -> int:
    """Return where the letter's message was queued, as its header tells."""
    stream, _, number = letter.source.partition(":")
    is_ours = stream == TASK_STREAM and number.isascii() and number.isdecimal()
    return int(number) if is_ours and len(number) < 19 else NOWHERE


def _told(letter: DeadLetter, record: TaskRecord, *, already: bool = False) -> Replay:
    return Replay(
        stream_seq=letter.stream_seq,
        task_id=record.task_id,
        generation=record.generation,
        state=record.state,
        already=already,
    )
