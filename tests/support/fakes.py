"""Small scripted stand-ins for the ports, for tests/unit only."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256

import msgspec

from agent_actors.contract import ArtifactRef, Proposal, TaskEvent
from agent_actors.errors import ArtifactLost, FencedOut, PublishFailed
from agent_actors.ledger import Source, TaskRecord
from agent_actors.ports import AttemptRecord, Delivery, ExecutionRequest, Message, Stored

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def noon() -> datetime:
    return NOON


def delivery(
    payload: bytes = b'{"task_id": "t-1", "task_description": "do it"}',
    *,
    subject: str = "agent.tasks.dev",
    stream_seq: int = 1,
    num_delivered: int = 1,
    headers: dict[str, str] | None = None,
) -> Delivery:
    return Delivery(
        subject=subject,
        reply=f"$JS.ACK.AGENT_TASKS.default.{num_delivered}.{stream_seq}.1.1.0",
        payload=payload,
        headers=headers or {},
        stream="AGENT_TASKS",
        source=Source(
            stream_seq=stream_seq,
            consumer="default",
            consumer_created=1,
            num_delivered=num_delivered,
        ),
    )


class MemoryLedger:
    """A bucket with compare-and-set; `script` answers the next writes, then it behaves.

    `lost` stores the record and gives no answer, `dropped` neither, `fenced` lets another
    record win first.
    """

    def __init__(self, *script: str) -> None:
        self.records: dict[str, Stored] = {}
        self.history: list[TaskRecord] = []
        self.script = deque(script)
        self.rival: TaskRecord | None = None

    async def read(self, key: str) -> Stored:
        return self.records.get(key, Stored(record=None, revision=0))

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        step = self.script.popleft() if self.script else "stored"
        if step == "dropped":
            raise PublishFailed("no answer")
        if step == "fenced":
            assert self.rival is not None
            self._put(key, self.rival)
        now = self.records.get(key, Stored(record=None, revision=0))
        if now.revision != revision:
            raise FencedOut("wrong last sequence")
        stored = self._put(key, record)
        if step == "lost":
            raise PublishFailed("no answer")
        return stored.revision

    def _put(self, key: str, record: TaskRecord) -> Stored:
        record = msgspec.json.decode(msgspec.json.encode(record), type=TaskRecord)
        revision = len(self.history) + 1
        self.history.append(record)
        self.records[key] = Stored(record=record, revision=revision)
        return self.records[key]


class Queue:
    """The stream of tasks: holds these sequences."""

    def __init__(self, *held: int) -> None:
        self.held = set(held)

    async def holds(self, stream_seq: int, task_id: str) -> bool:
        return stream_seq in self.held


class Wire:
    """Publisher, acks, events and artifacts in one, with everything in the order of its coming."""

    def __init__(self, *script: str) -> None:
        self.log: list[tuple[str, object]] = []
        self.events: list[TaskEvent] = []
        self._script = deque(script)
        self.objects: dict[str, bytes] = {}
        self.beat = asyncio.Event()
        self.nakd = asyncio.Event()

    @property
    def published(self) -> list[Message]:
        return [what for verb, what in self.log if verb == "publish" and isinstance(what, Message)]

    @property
    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.log if verb != "event"]

    async def publish(self, message: Message) -> None:
        if self._script and self._script.popleft() == "dropped":
            raise PublishFailed("no answer")
        self.log.append(("publish", message))

    async def close(self) -> None:
        self.log.append(("close", None))

    async def ack(self, delivery: Delivery) -> None:
        self.log.append(("ack", delivery))

    async def nak(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        self.log.append(("nak", delay_s))
        self.nakd.set()

    async def term(self, delivery: Delivery) -> None:
        self.log.append(("term", delivery))

    async def in_progress(self, deliveries: Sequence[Delivery]) -> None:
        self.log.append(("in_progress", list(deliveries)))
        self.beat.set()

    async def emit(self, event: TaskEvent) -> None:
        self.events.append(event)
        self.log.append(("event", event.kind))

    async def put(self, name: str, data: bytes) -> ArtifactRef:
        self.objects[name] = data
        return ArtifactRef(object=name, size=len(data), sha256=sha256(data).hexdigest())

    async def get(self, ref: ArtifactRef) -> bytes:
        data = self.objects.get(ref.object, b"")
        if sha256(data).hexdigest() != ref.sha256:
            raise ArtifactLost(ref.object)
        return data

    async def delete(self, ref: ArtifactRef) -> None:
        self.objects.pop(ref.object, None)


class Scripted:
    """A strategy that answers, or raises, what it was told; `waits` blocks it until set."""

    def __init__(
        self,
        *script: str | Exception,
        waits: asyncio.Event | None = None,
        during: Callable[[], None] | None = None,
    ) -> None:
        self._script = deque(script)
        self._waits = waits
        self._during = during
        self.requests: list[ExecutionRequest] = []
        self.started = asyncio.Event()

    async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
        self.requests.append(request)
        self.started.set()
        if self._waits:
            await self._waits.wait()
        if self._during:
            self._during()
        step = self._script.popleft() if self._script else "an answer"
        if isinstance(step, Exception):
            raise step
        record.proposal = Proposal(
            content=step,
            author_id=request.agent.agent_id,
            author_role=str(request.agent.role),
            model="scripted",
            temperature=request.agent.temperature,
        )
