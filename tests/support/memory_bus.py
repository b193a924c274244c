"""JetStream in memory, for the processes of `seeded_loop`: streams, the consumer, the ledger.

It does what nats-server 2.15 was seen to do, the unpleasant parts too: a message goes out again
when `ack_wait` is over, a stale ack removes it, a stale nak has it handed out again at once, a
stale `+WPI` keeps it. What passes between a process and the server takes a step of its own each
way; `Weather` says how often something is late or lost on it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from random import Random
from typing import Any, NamedTuple

import msgspec
from support.seeded_loop import Process, Scheduler

from agent_actors.contract import (
    COMPLETED_SUBJECT,
    FAILED_SUBJECT,
    MSG_ID_HEADER,
    TASK_STREAM,
    ArtifactRef,
    TaskEvent,
    encode,
    peek_task_id,
    task_key,
)
from agent_actors.errors import ArtifactLost, FencedOut, PublishFailed
from agent_actors.ledger import Source, TaskRecord
from agent_actors.ports import Backlog, Delivery, HandSize, Message, Stored

CONSUMER = "default"
REQUEST_TIMEOUT_S = 1.0
PULL_EXPIRES_S = 30.0
SILENCE_S = 3.0
REBIND_PAUSE_S = 0.25
ENDING_S = 2.0
LONGEST_STALE_S = 8.0
HOUR_NS = 3_600 * 1_000_000_000

RESULTS = frozenset({COMPLETED_SUBJECT, FAILED_SUBJECT})

NONE_YET = Stored(record=None, revision=0)

_record = msgspec.json.Decoder(TaskRecord)


class Event(NamedTuple):
    """One thing that happened, for the story and for those who judge it."""

    at_s: float
    who: str
    what: str
    about: dict[str, Any]


class Weather:
    """How often messages between processes are late or lost: probabilities, none by default."""

    def __init__(self, random: Random, **odds: float) -> None:
        self._random = random
        self.slow = 0.0
        self.lost_requests = 0.0
        self.lost_answers = 0.0
        self.late_requests = 0.0
        self.lagging_reads = 0.0
        self.lost_sends = 0.0
        self.stale_sends = 0.0
        self.lost_deliveries = 0.0
        self.lost_pulls = 0.0
        self.lost_calls = 0.0
        self.lost_last_words = 0.0
        for name, value in odds.items():
            setattr(self, name, value)

    def clear_up(self) -> None:
        self.__init__(self._random)

    def happens(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance

    def delay_s(self) -> float:
        """Return how long a message is under way; less than half of what a request may take."""
        if self.happens(self.slow):
            return self._random.random() * 0.45 * REQUEST_TIMEOUT_S
        return 0.0

    def staleness_s(self) -> float:
        if self.happens(self.stale_sends):
            return self._random.random() * LONGEST_STALE_S
        return self.delay_s()

    def up_to(self, longest_s: float) -> float:
        return self._random.random() * longest_s


class Queued(NamedTuple):
    """A task's message in its stream."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    task_id: str


class Pull:
    """Somebody asks for deliveries."""

    def __init__(self, source: "MemorySource", count: int) -> None:
        self.source = source
        self.epoch = source.epoch
        self.count = count


class Bus:
    """The server: what it holds, and what it does by itself."""

    def __init__(self, scheduler: Scheduler, weather: Weather, ack_wait_s: float) -> None:
        self.scheduler = scheduler
        self.weather = weather
        self.server = scheduler.process("nats")
        self.story: list[Event] = []
        self.queue: dict[int, Queued] = {}
        self.ledger: dict[str, list[tuple[bytes, int]]] = {}
        self.objects: dict[str, bytes] = {}
        self.sizes: dict[str, HandSize | None] = {}
        self.revision = 0
        self._last_seq = 0
        self._windows: dict[str, dict[str, bytes]] = {"tasks": {}, "results": {}, "letters": {}}
        self._stored = 0
        self._ack_wait_s = ack_wait_s
        self._listeners: list[tuple[Process, Callable[[str], None]]] = []
        self._created = HOUR_NS
        self._pulls: list[Pull] = []
        self._unacked: dict[int, float] = {}
        self._armed: set[int] = set()
        self._postponed: set[int] = set()
        self._again: list[int] = []
        self._counts: dict[int, int] = {}
        self._next_new = 1
        self._sent = 0

    def tell(self, who: str, what: str, **about: Any) -> None:
        self.story.append(Event(self.scheduler.now, who, what, about))

    # The ledger.

    def stored(self, key: str) -> Stored:
        versions = self.ledger.get(key)
        return _as_stored(versions[-1]) if versions else NONE_YET

    def read(self, key: str) -> Stored:
        """Return what the leader holds; one that was elected just now may lag by one write."""
        versions = self.ledger.get(key)
        if versions and self.weather.happens(self.weather.lagging_reads):
            return _as_stored(versions[-2]) if len(versions) > 1 else NONE_YET
        return self.stored(key)

    def write(self, who: str, key: str, record: TaskRecord, revision: int) -> int:
        versions = self.ledger.setdefault(key, [])
        last = versions[-1][1] if versions else 0
        if last != revision:
            self.tell(who, "is refused", key=key, revision=revision, last=last)
            raise FencedOut(f"wrong last sequence: {last}")
        self.revision += 1
        versions.append((encode(record), self.revision))
        self.tell(who, "writes", record=record, revision=self.revision)
        return self.revision

    # Streams of what is announced, and of tasks.

    def publish(self, who: str, message: Message) -> None:
        stream = "results" if message.subject in RESULTS else "letters"
        msg_id = message.headers.get(MSG_ID_HEADER, "")
        window = self._windows[stream]
        self.tell(
            who,
            "announces",
            stream=stream,
            msg_id=msg_id,
            message=message,
            is_copy=msg_id in window,
        )
        if msg_id:
            window[msg_id] = message.payload

    def accept(self, who: str, subject: str, payload: bytes, headers: dict[str, str]) -> int:
        """Store a task's message."""
        self._last_seq += 1
        task_id = peek_task_id(payload) or ""
        self.queue[self._last_seq] = Queued(subject, payload, headers, task_id)
        self.tell(who, "publishes", seq=self._last_seq, task_id=task_id, payload=payload)
        self._hand_out()
        return self._last_seq

    def holds(self, stream_seq: int, task_id: str) -> bool:
        queued = self.queue.get(stream_seq)
        return queued is not None and queued.task_id == task_id

    def record_of(self, delivery: Delivery) -> TaskRecord | None:
        """Return what the ledger holds of the task of a message, as long as that is queued."""
        queued = self.queue.get(delivery.source.stream_seq)
        return self.stored(task_key(queued.task_id)).record if queued else None

    def is_run_by(self, delivery: Delivery) -> bool:
        """Tell whether the ledger says that a task runs from this very delivery."""
        record = self.record_of(delivery)
        return record is not None and (record.state, record.source) == ("running", delivery.source)

    # The consumer.

    @property
    def is_idle(self) -> bool:
        return not self.queue and not self._unacked

    def backlog(self) -> Backlog:
        pending = sum(seq >= self._next_new for seq in self.queue)
        return Backlog(pending=pending, unacked=len(self._unacked))

    def purge_a_copy(self) -> None:
        """Have an operator purge a message that is queued twice."""
        for seq, queued in self.queue.items():
            twins = [each for each in self.queue.values() if each.payload == queued.payload]
            if queued.task_id and len(twins) > 1:
                self.tell("operator", "purges", seq=seq, task_id=queued.task_id)
                del self.queue[seq]
                self._unacked.pop(seq, None)
                if seq in self._again:
                    self._again.remove(seq)
                return

    def make_consumer_anew(self) -> None:
        """Have an operator delete the consumer and make it again: it counts from 1 once more."""
        self._created += HOUR_NS
        self._unacked.clear()
        self._again.clear()
        self._counts.clear()
        self._next_new = 1
        for pull in self._pulls:
            pull.source.bind_soon(pull.epoch)
        self._pulls.clear()
        self.tell("operator", "makes the consumer anew")

    @property
    def created(self) -> int:
        return self._created

    def on_pull(self, pull: Pull) -> None:
        if pull.epoch == pull.source.epoch and not pull.source.is_closed:
            self._pulls.append(pull)
            self.server.call_later(PULL_EXPIRES_S, self._expire, pull)
            self._hand_out()

    def forget(self, source: "MemorySource") -> None:
        """Drop what was asked for an inbox that nobody listens to."""
        self._pulls = [each for each in self._pulls if each.source is not source]

    def forget_process(self, process: Process) -> None:
        self._pulls = [each for each in self._pulls if each.source.process is not process]

    def on_ack(self, who: str, delivery: Delivery, verb: str, delay_s: float) -> None:
        """Take an answer to a delivery, of whatever age."""
        seq = delivery.source.stream_seq
        late = seq not in self._unacked
        if verb != "wpi":
            about = {"seq": seq, "count": delivery.source.num_delivered, "id": delivery.id}
            self.tell(who, verb, **about, delay_s=delay_s, late=late)
        if late:
            return
        now = self.scheduler.now
        match verb:
            case "ack" | "term":
                del self._unacked[seq]
                del self.queue[seq]
                if seq in self._again:
                    self._again.remove(seq)
            case "nak" if delay_s > 0:
                self._unacked[seq] = now + delay_s
                self._postponed.add(seq)
                self._armed.discard(seq)
                self._arm(seq)
            case "nak":
                self._hand_out_again(seq)
            case _:
                self._unacked[seq] = now + self._ack_wait_s
                self._postponed.discard(seq)

    def _expire(self, pull: Pull) -> None:
        if pull in self._pulls:
            self._pulls.remove(pull)
            pull.source.process.post(0.0, pull.source.on_expired, pull.epoch, pull.count)

    def _arm(self, seq: int) -> None:
        if seq not in self._armed:
            self._armed.add(seq)
            due = self._unacked[seq]
            self.server.call_at(due, self._on_due, seq, due)

    def _on_due(self, seq: int, due: float) -> None:
        """Hand a message out again unless it was answered, or a sign of life came."""
        self._armed.discard(seq)
        now = self._unacked.get(seq)
        if now is None or seq in self._again:
            return
        if now > self.scheduler.now:
            self._arm(seq)
            return
        if seq not in self._postponed:
            self.tell("nats", "has waited for ack_wait", seq=seq, count=self._counts[seq])
        self._hand_out_again(seq)

    def _hand_out_again(self, seq: int) -> None:
        if seq not in self._again:
            self._again.append(seq)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._pulls and (seq := self._next()):
            pull = self._pulls[0]
            pull.count -= 1
            if not pull.count:
                self._pulls.pop(0)
            self._unacked[seq] = self.scheduler.now + self._ack_wait_s
            self._counts[seq] = self._counts.get(seq, 0) + 1
            self._postponed.discard(seq)
            self._arm(seq)
            delivery = self._delivery(seq)
            self.tell("nats", "hands out", seq=seq, count=self._counts[seq], to=pull.source.process)
            pull.source.under_way += 1
            if self.weather.happens(self.weather.lost_deliveries):
                pull.source.lose(pull.epoch)
            else:
                delay_s = self.weather.delay_s()
                pull.source.process.post(delay_s, pull.source.receive, pull.epoch, delivery)

    def _next(self) -> int:
        if self._again:
            return self._again.pop(0)
        while self._next_new <= self._last_seq:
            self._next_new += 1
            if self._next_new - 1 in self.queue:
                return self._next_new - 1
        return 0

    def _delivery(self, seq: int) -> Delivery:
        self._sent += 1
        queued, count = self.queue[seq], self._counts[seq]
        return Delivery(
            subject=queued.subject,
            reply=f"$JS.ACK.{TASK_STREAM}.{CONSUMER}.{count}.{seq}.{self._sent}.{self._created}.0",
            payload=queued.payload,
            headers=queued.headers,
            stream=TASK_STREAM,
            source=Source(
                stream_seq=seq,
                consumer=CONSUMER,
                consumer_created=self._created,
                num_delivered=count,
            ),
        )

    # What is heard by whoever listens.

    def hear_cancelled(self, process: Process, listener: Callable[[str], None]) -> None:
        self._listeners.append((process, listener))

    def tell_cancelled(self, key: str) -> None:
        for process, listener in self._listeners:
            if not self.weather.happens(self.weather.lost_sends):
                process.post(self.weather.staleness_s(), listener, key)


class MemoryConnection:
    """One process's way to the bus: every port that NATS stands behind."""

    def __init__(self, bus: Bus, process: Process) -> None:
        self.bus = bus
        self.process = process
        self._outbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    async def read(self, key: str) -> Stored:
        return await self.ask(self.bus.read, key)

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        return await self.ask(self.bus.write, self.process.name, key, record, revision)

    async def publish(self, message: Message) -> None:
        await self.ask(self.bus.publish, self.process.name, message)

    async def holds(self, stream_seq: int, task_id: str) -> bool:
        return await self.ask(self.bus.holds, stream_seq, task_id)

    async def ack(self, delivery: Delivery) -> None:
        self._answer(delivery, "ack")

    async def nak(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        if self.bus.is_run_by(delivery):
            self.bus.tell(self.process.name, "gives away", seq=delivery.source.stream_seq)
        self._answer(delivery, "nak", delay_s)

    async def term(self, delivery: Delivery) -> None:
        self._answer(delivery, "term")

    async def in_progress(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._answer(delivery, "wpi")

    async def emit(self, event: TaskEvent) -> None:
        """Nobody listens."""

    async def put(self, name: str, data: bytes) -> ArtifactRef:
        await self.ask(self.bus.objects.__setitem__, name, data)
        return ArtifactRef(object=name, size=len(data), sha256=sha256(data).hexdigest())

    async def get(self, ref: ArtifactRef) -> bytes:
        data = await self.ask(self.bus.objects.get, ref.object)
        if data is None:
            raise ArtifactLost(ref.object)
        return data

    async def delete(self, ref: ArtifactRef) -> None:
        await self.ask(self.bus.objects.pop, ref.object, None)

    async def backlog(self) -> Backlog:
        return await self.ask(self.bus.backlog)

    async def close(self) -> None: ...

    @property
    def sizes(self) -> "MemorySizes":
        return MemorySizes(self)

    async def ask(self, act: Callable[..., Any], *args: Any) -> Any:
        """Have the server act, and return what it answers; either may be lost on the way."""
        weather = self.bus.weather
        future = self.process.create_future()
        if weather.happens(weather.lost_requests):
            self._fail(future)
        elif weather.happens(weather.late_requests):
            self._fail(future, REQUEST_TIMEOUT_S)
            delay_s = REQUEST_TIMEOUT_S + weather.up_to(LONGEST_STALE_S)
            self.bus.server.post(delay_s, self._serve, None, act, args)
        else:
            self._send(weather.delay_s(), self._serve, future, act, args)
        return await future

    def _serve(
        self, future: asyncio.Future[Any] | None, act: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        weather = self.bus.weather
        if not self.process.is_alive and weather.happens(weather.lost_last_words):
            return
        error, answer = None, None
        try:
            answer = act(*args)
        except FencedOut as refused:
            error = refused
        if future is None:
            return
        if weather.happens(weather.lost_answers):
            self._fail(future, weather.up_to(REQUEST_TIMEOUT_S))
        else:
            self.process.post(weather.delay_s(), _settle, future, answer, error)

    def _fail(self, future: asyncio.Future[Any], after_s: float = 0.0) -> None:
        self.process.post(after_s, _settle, future, None, PublishFailed("no answer"))

    def _answer(self, delivery: Delivery, verb: str, delay_s: float = 0.0) -> None:
        weather = self.bus.weather
        if not weather.happens(weather.lost_sends):
            self._send(weather.staleness_s(), self._on_answer, delivery, verb, delay_s)

    def _send(self, delay_s: float, take: Callable[..., None], *args: Any) -> None:
        """Send to the server; what is not delayed comes in the order of its sending."""
        if delay_s:
            self.bus.server.post(delay_s, take, *args)
        else:
            self._outbox.append((take, args))
            self.bus.server.post(0.0, self._deliver_next)

    def _deliver_next(self) -> None:
        take, args = self._outbox.popleft()
        take(*args)

    def _on_answer(self, delivery: Delivery, verb: str, delay_s: float) -> None:
        weather = self.bus.weather
        if self.process.is_alive or not weather.happens(weather.lost_last_words):
            self.bus.on_ack(self.process.name, delivery, verb, delay_s)


class MemorySizes:
    """The sizes of pools that somebody has set: a `SizeStore`."""

    def __init__(self, connection: MemoryConnection) -> None:
        self._ask = connection.ask
        self._sizes = connection.bus.sizes

    async def read(self, pool_name: str) -> HandSize | None:
        return await self._ask(self._sizes.get, pool_name)

    async def write(self, pool_name: str, size: HandSize | None) -> None:
        await self._ask(self._sizes.__setitem__, pool_name, size)


class MemorySource:
    """A pool's consumer as a supervisor's process has it; each `epoch` is an inbox of its own."""

    trouble = ""

    def __init__(
        self,
        connection: MemoryConnection,
        on_delivery: Callable[[Delivery], None],
        on_idle: Callable[[], None],
    ) -> None:
        self.process = connection.process
        self.outstanding = 0
        self.under_way = 0
        self.epoch = 0
        self.is_closed = False
        self._connection = connection
        self._bus = connection.bus
        self._on_delivery = on_delivery
        self._on_idle = on_idle
        self._ended = False

    async def pull(self, count: int) -> None:
        if self.is_closed:
            return
        weather = self._bus.weather
        self.outstanding += count
        if weather.happens(weather.lost_pulls):
            self.process.call_later(SILENCE_S, self.bind, self.epoch)
        else:
            self._bus.server.post(weather.delay_s(), self._bus.on_pull, Pull(self, count))

    def withdraw(self) -> None:
        if self.outstanding:
            self.process.call_later(REBIND_PAUSE_S, self.bind, self.epoch)

    async def backlog(self) -> Backlog:
        return await self._connection.backlog()

    async def close(self) -> None:
        self.is_closed = True
        self._bus.forget(self)
        until = self.process.time() + ENDING_S
        while self.under_way and self.process.time() < until:  # noqa: ASYNC110 - in the time of the model
            await asyncio.sleep(ENDING_S / 20)
        self._ended = True

    def bind_soon(self, epoch: int) -> None:
        self.process.post(REBIND_PAUSE_S, self.bind, epoch)

    def bind(self, epoch: int) -> None:
        """Take a new inbox; what is under way to the old one still comes."""
        if epoch == self.epoch and not self.is_closed:
            self.epoch += 1
            self._bus.forget(self)
            self.outstanding = 0
            self._on_idle()

    def on_expired(self, epoch: int, unfilled: int) -> None:
        if epoch == self.epoch:
            self.outstanding = max(0, self.outstanding - unfilled)
            self._on_idle()

    def receive(self, epoch: int, delivery: Delivery) -> None:
        self.under_way -= 1
        if epoch == self.epoch:
            self.outstanding = max(0, self.outstanding - 1)
        if not self._ended:
            self._on_delivery(delivery)

    def lose(self, epoch: int) -> None:
        """Miss a delivery; the silence about what was asked for has it bound again."""
        self.under_way -= 1
        self.process.post(SILENCE_S, self.bind, epoch)


def _as_stored(version: tuple[bytes, int]) -> Stored:
    return Stored(record=_record.decode(version[0]), revision=version[1])


def _settle(future: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(answer)


def as_lines(story: Iterable[Event]) -> Iterator[str]:
    """Tell a story, a line for each event; what differs each time is left out."""
    for event in story:
        about = " ".join(f"{name}={_told(value)}" for name, value in event.about.items())
        yield f"{event.at_s:9.3f}  {event.who:16} {event.what:12} {about}"


def _told(value: Any) -> str:
    match value:
        case TaskRecord():
            marks = [name for name in ("cancelled", "lost", "suspect") if getattr(value, name)]
            return (
                f"<{value.task_id} {value.state}, from {value.source.stream_seq} handed out "
                f"{value.source.num_delivered} times, attempt {value.attempt} in {value.agent_id}, "
                f"{value.failures} failures, {value.postponed} waits, {value.deaths} deaths, "
                f"{len(value.turns)}+{len(value.recent_turns)} turns {' '.join(marks)}>"
            )
        case Message():
            return f"<{value.subject} {value.headers.get(MSG_ID_HEADER, 'without an id')}>"
        case Process():
            return value.name
        case _:
            return repr(value)
