"""Dead letters on a real NATS: found, read, replayed and removed, whatever breaks in between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from support.fakes import Scripted
from support.nats import NatsServer, StartNats
from support.until import until

from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.publishing import NATSEvents, NATSResultPublisher
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue, PullConsumer
from agent_actors.client import AgentClient
from agent_actors.config import Config, NatsConfig, PoolConfig, Secret, StreamsConfig
from agent_actors.contract import (
    RESPONSE_STREAM,
    TASK_STREAM,
    AgentResult,
    DeadLetter,
    Replay,
    task_key,
    utc_now,
)
from agent_actors.errors import (
    DeadLetterMissing,
    DeadLetterRefused,
    PermissionDenied,
    PublishFailed,
    ResultTimeout,
)
from agent_actors.execution import PROPOSAL, ExecuteAgentTask
from agent_actors.leases import Leases
from agent_actors.ledger import TaskRecord
from agent_actors.ports import Delivery, Message
from agent_actors.settlement import SettleDelivery

pytestmark = pytest.mark.nats

TASK = b'{"task_id": "t-1", "task_description": "do it"}'
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
POOL = PoolConfig(ack_wait_s=2, max_attempts=1)


class Crash(Exception):
    """A process ends here."""


class Pool:
    """A pool with one actor of one slot, on a real NATS, and a client beside it.

    `strategy` fails until it is told otherwise, so that tasks end as dead letters.
    """

    def __init__(self, link: Connection, client: AgentClient) -> None:
        self.link = link
        self.client = client
        self.ledger = JetStreamLedger(link)
        self.publisher = NATSResultPublisher(connection=link)
        self.answers = Scripted(*[ValueError("a bug")] * 100)
        self.deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        self.acks = JetStreamAcks(link)
        self.consumer: PullConsumer | None = None

    async def submit(self, payload: bytes = TASK, **headers: str) -> None:
        await self.link.publish_stored("agent.tasks.dev", payload, headers)

    async def next_delivery(self) -> Delivery:
        assert self.consumer
        if not self.consumer.outstanding:
            await self.consumer.pull(1)
        return await asyncio.wait_for(self.deliveries.get(), 20)

    async def settle_next(self) -> str:
        return await self.settlement()(await self.next_delivery())

    def settlement(self) -> SettleDelivery:
        return SettleDelivery(
            agent_id="default-0",
            pool_name="default",
            pool=POOL,
            max_payload_bytes=self.link.nc.max_payload,
            execute=ExecuteAgentTask({PROPOSAL: self.answers}, utc_now),
            leases=Leases(self.ledger, JetStreamTaskQueue(self.link), utc_now),
            publisher=self.publisher,
            acks=self.acks,
            artifacts=JetStreamArtifacts(self.link),
            events=NATSEvents(self.link),
            clock=utc_now,
        )

    async def letters(self, **which) -> list[DeadLetter]:
        return [letter async for letter in self.client.dead_letters(**which)]

    async def dead_letter(self, payload: bytes = TASK, **headers: str) -> DeadLetter:
        """Have a task fail, and return its letter."""
        await self.submit(payload, **headers)
        await self.settle_next()
        return (await self.letters())[-1]

    async def record(self, task_id: str = "t-1") -> TaskRecord:
        record = (await self.ledger.read(task_key(task_id))).record
        assert record
        return record

    async def count(self, stream: str) -> int:
        return (await self.link.api(f"STREAM.INFO.{stream}"))["state"]["messages"]

    async def queue_is_empty(self) -> bool:
        return not await self.count(TASK_STREAM)

    async def results(self) -> list[tuple[str, AgentResult]]:
        """Return what was announced: the `Nats-Msg-Id` and the result of each."""
        found = []
        for number in range(1, await self.count(RESPONSE_STREAM) + 1):
            message = await self.link.js.get_msg(RESPONSE_STREAM, number)
            assert message.headers
            assert message.data
            result = msgspec.json.decode(message.data, type=AgentResult)
            found.append((message.headers["Nats-Msg-Id"], result))
        return found


@asynccontextmanager
async def running_pool(server: NatsServer, nats: NatsConfig, client: NatsConfig):
    config = Config(
        nats=nats, streams=StreamsConfig(replicas=server.replicas), pools={"default": POOL}
    )
    link = await connect(nats, name="pool")
    await provision(link, config)
    async with AgentClient.connect(client) as user:
        pool = Pool(link, user)
        pool.consumer = await PullConsumer.open(
            link, "default", pool.deliveries.put_nowait, lambda: None
        )
        yield pool
        await pool.consumer.close()
    await link.close()


@pytest.fixture
async def pool(nats_server: NatsServer) -> AsyncIterator[Pool]:
    config = NatsConfig(url=nats_server.url)
    async with running_pool(nats_server, config, config) as pool:
        yield pool


# Looking.


async def test_a_letter_tells_why_and_has_the_message_as_it_came(pool: Pool):
    letter = await pool.dead_letter(**{"X-Team": "trees", "traceparent": TRACE})
    assert letter == DeadLetter(
        stream_seq=1,
        time=letter.time,
        role="DEV",
        reason="StrategyCrashed",
        error="ValueError: a bug",
        attempts=1,
        generation=0,
        task_id="t-1",
        subject="agent.tasks.dev",
        source="AGENT_TASKS:1",
        headers={"X-Team": "trees", "traceparent": TRACE},
        size=len(TASK),
        payload=TASK,
    )
    assert abs(utc_now() - letter.time) < timedelta(minutes=1)
    assert await pool.client.dead_letter(1) == letter


async def test_letters_are_chosen_by_role_reason_task_and_age(pool: Pool):
    await pool.dead_letter()
    await pool.link.publish_stored("agent.tasks.qa", b"{no task")
    await pool.settle_next()

    async def numbers(**which) -> list[int]:
        return [letter.stream_seq for letter in await pool.letters(**which)]

    assert await numbers() == [1, 2]
    assert await numbers(role="qa") == [2]
    assert await numbers(reason="strategycrashed") == [1]
    assert await numbers(task_id="t-1") == [1]
    assert await numbers(older_than_s=3_600) == []
    assert await numbers(newer_than_s=3_600) == [1, 2]
    assert await numbers(newer_than_s=3_600, role="DEV", reason="InvalidTask") == []


async def test_letters_that_come_while_one_looks_are_left_for_the_next_look(pool: Pool):
    await pool.dead_letter()
    seen = 0
    async for _ in pool.client.dead_letters():
        seen += 1
        await pool.link.publish_stored("agent.deadletter.dev", b"x")
    assert seen == 1


async def test_a_letter_that_somebody_else_wrote_is_shown_too(pool: Pool):
    headers = {"Agent-Actors-Attempts": "many", "Agent-Actors-Object": "x"}
    await pool.link.publish_stored("agent.deadletter.dev", b"", headers)
    (letter,) = await pool.letters()
    assert (letter.attempts, letter.task_id, letter.reason) == (0, "", "")
    with pytest.raises(DeadLetterMissing, match="no dead letter 7"):
        await pool.client.dead_letter(7)


async def test_a_letter_that_fills_a_message_is_read_whole(pool: Pool):
    big = b"{" + b"x" * (pool.link.nc.max_payload - 2_000)
    letter = await pool.dead_letter(big)
    assert letter.payload == big


# Replaying.


async def test_a_replayed_task_runs_anew_and_has_one_result_more(pool: Pool):
    letter = await pool.dead_letter(**{"X-Team": "trees", "traceparent": TRACE})
    replay = await pool.client.replay(letter)
    assert replay == Replay(stream_seq=1, task_id="t-1", generation=1, state="waiting")
    assert not await pool.letters()
    pool.answers = Scripted("an answer")
    delivery = await pool.next_delivery()
    assert (delivery.subject, delivery.payload) == ("agent.tasks.dev", TASK)
    assert delivery.headers["X-Team"] == "trees"
    assert delivery.headers["traceparent"] == TRACE
    assert await pool.settlement()(delivery) == "completed"
    assert [(msg_id, each.status) for msg_id, each in await pool.results()] == [
        ("t-1", "failed"),
        ("t-1#1", "completed"),
    ]
    record = await pool.record()
    assert (record.generation, record.attempt, record.failures) == (1, 1, 0)
    await until(pool.queue_is_empty)


async def test_whoever_asks_for_the_result_waits_for_the_new_one(pool: Pool):
    await pool.client.replay(await pool.dead_letter())
    with pytest.raises(
        ResultTimeout, match=r"t-1 has no result after 0\.2 s: it waits for an agen"
    ):
        await pool.client.result("t-1", timeout_s=0.2)
    pool.answers = Scripted("an answer")
    assert await pool.settle_next() == "completed"
    assert (await pool.client.result("t-1", timeout_s=10)).success


async def test_a_task_may_be_replayed_again_and_again(pool: Pool):
    letter = await pool.dead_letter()
    for generation in (1, 2):
        assert (await pool.client.replay(letter)).generation == generation
        assert await pool.settle_next() == "failed"
        (letter,) = await pool.letters()
        assert (letter.generation, letter.attempts) == (generation, 1)
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1", "t-1#2"]


@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "running"])
async def test_a_letter_whose_task_was_replayed_already_says_so(pool: Pool, *, begun: bool):
    letter = await pool.dead_letter()
    await pool.client.replay(letter)
    await put_back(pool, letter)
    waits = asyncio.Event()
    pool.answers = Scripted("an answer", waits=waits)
    working = asyncio.create_task(pool.settle_next()) if begun else None
    if working:
        await pool.answers.started.wait()
    (again,) = await pool.letters()
    assert await pool.client.replay(again) == Replay(
        stream_seq=again.stream_seq,
        task_id="t-1",
        generation=1,
        state="running" if begun else "waiting",
        already=True,
    )
    assert not await pool.letters()
    assert await pool.count(TASK_STREAM) == 1
    waits.set()
    assert await (working or pool.settle_next()) == "completed"


async def put_back(pool: Pool, letter: DeadLetter) -> None:
    """Have a letter there again, as after a crash before it was removed."""
    headers = {
        "Agent-Actors-Reason": letter.reason,
        "Agent-Actors-Task-Id": letter.task_id,
        "Agent-Actors-Generation": str(letter.generation),
        "Agent-Actors-Source": letter.source,
        "Agent-Actors-Subject": letter.subject,
    }
    await pool.link.publish_stored("agent.deadletter.dev", letter.payload, headers)


async def test_two_who_replay_one_letter_at_once_make_one_result(pool: Pool):
    letter = await pool.dead_letter()
    replays = await asyncio.gather(
        *(pool.client.replay(letter) for _ in range(5)), return_exceptions=True
    )
    assert all(isinstance(each, Replay | DeadLetterMissing) for each in replays), replays
    pool.answers = Scripted("an answer")
    assert await pool.settle_next() == "completed"
    await until(pool.queue_is_empty)
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1"]


# What cannot succeed.


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"{no json", "dead letter 1: it has no usable task id"),
        (b'{"task_id": "t-2", "task_description": ""}', "t-2: it still is no task .task_descr"),
    ],
)
async def test_what_is_no_task_is_not_replayed(pool: Pool, payload: bytes, said: str):
    letter = await pool.dead_letter(payload)
    with pytest.raises(DeadLetterRefused, match=said):
        await pool.client.replay(letter)
    assert await pool.letters() == [letter]
    assert await pool.queue_is_empty()


async def test_another_task_of_the_same_id_is_not_replayed(pool: Pool):
    await pool.dead_letter()
    letter = await pool.dead_letter(TASK.replace(b"do it", b"do something else"))
    assert letter.reason == "TaskIdConflict"
    with pytest.raises(DeadLetterRefused, match="belongs to a task with other content"):
        await pool.client.replay(letter)
    assert len(await pool.letters()) == 2


async def test_a_letter_of_an_id_that_was_used_anew_is_not_replayed(pool: Pool):
    letter = await pool.dead_letter()
    await forget(pool)
    pool.answers = Scripted("an answer")
    await pool.submit()
    await pool.submit(TASK.replace(b"t-1", b"t-2"))
    assert [await pool.settle_next() for _ in range(2)] == ["completed", "completed"]
    with pytest.raises(DeadLetterRefused, match="t-1: the task is completed by now"):
        await pool.client.replay(letter)
    await forget(pool)
    await pool.submit(TASK.replace(b"do it", b"do something else"))
    await pool.settle_next()
    with pytest.raises(DeadLetterRefused, match="belongs by now to a task with other content"):
        await pool.client.replay(letter)
    assert await pool.letters() == [letter]


async def test_a_task_whose_record_has_expired_is_replayed(pool: Pool):
    letter = await pool.dead_letter()
    await forget(pool)
    assert (await pool.client.replay(letter)).generation == 1
    assert await pool.settle_next() == "failed"
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1"]


async def forget(pool: Pool) -> None:
    await pool.link.api("STREAM.PURGE.KV_agent_ledger")


async def test_a_task_past_its_deadline_is_not_replayed(pool: Pool):
    past = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    task = {"task_id": "t-1", "task_description": "x", "constraints": {"deadline": past}}
    headers = {"Agent-Actors-Task-Id": "t-1", "Agent-Actors-Subject": "agent.tasks.dev"}
    await pool.link.publish_stored("agent.deadletter.dev", msgspec.json.encode(task), headers)
    with pytest.raises(DeadLetterRefused, match="t-1: its deadline, 2026-01-01T00:00:00"):
        await pool.client.replay(1)


# Stopped between the steps.

STEPS = ["open", "publish", "note", "remove"]


class Operator:
    """Somebody who replays, over a connection that breaks at one step."""

    def __init__(self, client: AgentClient) -> None:
        self._link = client._connection
        self._real = self._link.publish_stored, self._link.api
        self._written = 0
        self.client = client

    def crash(self, step: str, *, before: bool) -> None:
        """Have the step not happen, or happen and nobody hear of it."""

        async def reached(name: str, call: Callable, *args):
            if name != step:
                return await call(*args)
            if not before:
                await call(*args)
            raise Crash

        async def publish_stored(subject: str, *args):
            is_record = subject.startswith("$KV.")
            self._written += is_record
            name = STEPS[2 if self._written > 1 else 0] if is_record else "publish"
            return await reached(name, self._real[0], subject, *args)

        async def api(request: str, *args):
            is_removal = request.startswith("STREAM.MSG.DELETE")
            return await reached("remove" if is_removal else "", self._real[1], request, *args)

        self._link.publish_stored, self._link.api = publish_stored, api

    def recover(self) -> None:
        self._link.publish_stored, self._link.api = self._real


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "ended meanwhile"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_replay_stopped_anywhere_and_repeated_makes_one_result(
    pool: Pool, step: str, *, before: bool, begun: bool
):
    letter = await pool.dead_letter()
    operator = Operator(pool.client)
    operator.crash(step, before=before)
    with pytest.raises(Crash):
        await pool.client.replay(letter)
    operator.recover()
    pool.answers = Scripted("an answer")
    is_queued = await pool.count(TASK_STREAM) == 1
    assert is_queued or await pool.letters() == [letter]
    if begun and is_queued:
        assert await pool.settle_next() == "completed"
    with suppress(DeadLetterMissing):
        await pool.client.replay(letter)
    if not (begun and is_queued):
        assert await pool.settle_next() == "completed"
    await until(pool.queue_is_empty)
    assert not await pool.letters()
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1"]
    assert (await pool.record()).state == "completed"


async def test_a_copy_queued_after_the_duplicate_window_makes_no_second_result(pool: Pool):
    letter = await pool.dead_letter()
    await until(pool.queue_is_empty)  # else what failed could count as the second below
    operator = Operator(pool.client)
    operator.crash("note", before=True)
    with pytest.raises(Crash):
        await pool.client.replay(letter)
    operator.recover()
    await shorten_duplicate_window(pool.link)

    async def queued_twice() -> bool:
        await pool.submit(**{"Nats-Msg-Id": "t-1#1"})
        return await pool.count(TASK_STREAM) == 2

    await until(queued_twice)
    pool.answers = Scripted("an answer")
    assert [await pool.settle_next() for _ in range(2)] == ["completed", "announced"]
    assert (await pool.client.replay(letter)).already
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1"]


async def shorten_duplicate_window(link: Connection) -> None:
    config = (await link.api(f"STREAM.INFO.{TASK_STREAM}"))["config"]
    shortest = {"duplicate_window": 100_000_000}
    await link.api(f"STREAM.UPDATE.{TASK_STREAM}", msgspec.json.encode(config | shortest))


async def test_a_late_ack_of_the_last_generation_does_not_take_the_next_one_along(pool: Pool):
    """The message that failed is still in the queue when its letter is replayed."""
    await pool.submit()
    late = await pool.next_delivery()
    settlement = pool.settlement()
    held = HeldAcks(pool.link)
    settlement._acks = held
    working = asyncio.create_task(settlement(late))
    await held.reached.wait()
    (letter,) = await pool.letters()
    await pool.client.replay(letter)
    pool.answers = Scripted("an answer")
    assert await pool.settle_next() == "completed"
    held.go_on.set()
    assert await working == "failed"
    await until(pool.queue_is_empty)
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1"]


class HeldAcks(JetStreamAcks):
    """Acks that wait until they are let go."""

    def __init__(self, link: Connection) -> None:
        super().__init__(link)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def ack(self, delivery: Delivery) -> None:
        self.reached.set()
        await self.go_on.wait()
        await super().ack(delivery)


async def test_while_a_replay_is_half_done_the_old_message_neither_runs_nor_goes(pool: Pool):
    await pool.submit()
    settlement = pool.settlement()
    settlement._acks = LostAcks(pool.link)
    await settlement(await pool.next_delivery())
    (letter,) = await pool.letters()
    operator = Operator(pool.client)
    operator.crash("publish", before=True)
    with pytest.raises(Crash):
        await pool.client.replay(letter)
    operator.recover()
    assert await pool.settle_next() == "stale"
    assert await pool.count(TASK_STREAM) == 1
    with pytest.raises(DeadLetterRefused, match="replay was begun and not finished"):
        await pool.client.discard(letter)
    await pool.client.replay(letter)
    pool.answers = Scripted("an answer")
    settled = [await pool.settle_next() for _ in range(2)]
    assert sorted(settled) in (["announced", "completed"], ["completed", "copy"])
    await until(pool.queue_is_empty)
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1"]


class LostAcks(JetStreamAcks):
    """Acks that never arrive."""

    async def ack(self, delivery: Delivery) -> None:
        """Lose it."""


async def test_a_replay_whose_message_was_purged_is_not_taken_for_done(pool: Pool):
    letter = await pool.dead_letter()
    operator = Operator(pool.client)
    operator.crash("note", before=True)
    with pytest.raises(Crash):
        await pool.client.replay(letter)
    operator.recover()
    await pool.link.api(f"STREAM.PURGE.{TASK_STREAM}")
    with pytest.raises(PublishFailed, match="t-1: its message, number 2 in AGENT_TASKS, was purg"):
        await pool.client.replay(letter)
    assert await pool.letters() == [letter]


async def test_a_task_submitted_again_after_its_replay_was_purged_runs(pool: Pool):
    letter = await pool.dead_letter()
    await pool.client.replay(letter)
    await pool.link.api(f"STREAM.PURGE.{TASK_STREAM}")
    await pool.submit()
    assert await pool.settle_next() == "failed"
    assert [msg_id for msg_id, _ in await pool.results()] == ["t-1", "t-1#1"]


# A crash between the result and the dead letter.


async def test_a_crash_between_result_and_dead_letter_loses_neither(pool: Pool):
    class Dying(NATSResultPublisher):
        async def publish(self, message: Message) -> None:
            if message.subject.startswith("agent.deadletter."):
                raise Crash
            await super().publish(message)

    await pool.submit()
    whole, pool.publisher = pool.publisher, Dying(connection=pool.link)
    with pytest.raises(Crash):
        await pool.settle_next()
    assert not await pool.letters()
    assert len(await pool.results()) == 1
    pool.publisher = whole
    assert await pool.settle_next() == "announced"
    (letter,) = await pool.letters()
    assert (letter.reason, letter.payload) == ("StrategyCrashed", TASK)
    assert len(await pool.results()) == 1
    await until(pool.queue_is_empty)


# Discarding.


async def test_a_discarded_letter_is_gone_with_its_object(pool: Pool):
    big = b"{" + b"x" * (pool.link.nc.max_payload - 100)
    letter = await pool.dead_letter(big)
    assert letter.object
    assert letter.size == len(big)
    assert await pool.client.artifact(letter.object) == big
    await pool.client.discard(letter)
    assert not await pool.letters()
    assert await pool.count("OBJ_agent_artifacts") == 0
    with pytest.raises(DeadLetterMissing):
        await pool.client.discard(letter)


async def test_the_task_of_a_discarded_letter_keeps_its_result(pool: Pool):
    letter = await pool.dead_letter()
    await pool.client.discard(letter.stream_seq)
    assert (await pool.client.status("t-1")).state == "failed"


async def test_an_object_that_is_no_dead_letters_stays(pool: Pool):
    ref = await JetStreamArtifacts(pool.link).put("t-1/proposal.content", b"big")
    headers = {
        "Agent-Actors-Object": ref.object,
        "Agent-Actors-Object-Size": str(ref.size),
        "Agent-Actors-Object-SHA256": ref.sha256,
    }
    await pool.link.publish_stored("agent.deadletter.dev", b"", headers)
    await pool.client.discard(1)
    assert await pool.client.artifact(ref) == b"big"


# With as few rights as possible.

USERS = """
authorization { users: [
  {user: admin, password: a}
  {user: reader, password: r, permissions: {
    publish: {allow: ["$JS.API.STREAM.MSG.GET.AGENT_DEADLETTER"]}
    subscribe: {allow: ["_INBOX_x.>"]}
  }}
  {user: worker, password: w, permissions: {
    publish: {allow: [
      "$JS.API.STREAM.MSG.GET.AGENT_DEADLETTER", "$JS.API.STREAM.MSG.DELETE.AGENT_DEADLETTER",
      "$JS.API.STREAM.MSG.GET.KV_agent_ledger", "$KV.agent_ledger.>", "agent.tasks.*"
    ]}
    subscribe: {allow: ["_INBOX_x.>"]}
  }}
]}
"""


@asynccontextmanager
async def pool_of(start_nats: StartNats, name: str):
    server = await start_nats(USERS)
    admin = NatsConfig(url=server.url, user="admin", password=Secret("a"))
    user = NatsConfig(url=server.url, user=name, password=Secret(name[0]), inbox_prefix="_INBOX_x")
    async with running_pool(server, admin, user) as pool:
        yield pool


async def test_whoever_may_only_read_letters_is_told_what_he_may_not(start_nats: StartNats):
    async with pool_of(start_nats, "reader") as pool:
        letter = await pool.dead_letter()
        with pytest.raises(PermissionDenied, match="KV_agent_ledger"):
            await pool.client.replay(letter)
        with pytest.raises(PermissionDenied, match="KV_agent_ledger"):
            await pool.client.discard(letter)
        assert await pool.letters() == [letter]


async def test_the_rights_that_are_said_to_be_enough_are(start_nats: StartNats):
    async with pool_of(start_nats, "worker") as pool:
        await pool.client.replay(await pool.dead_letter())
        assert await pool.settle_next() == "failed"
        await pool.client.discard((await pool.letters())[0])
        assert not await pool.letters()
