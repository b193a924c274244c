"""Pulling tasks from a real JetStream: demand, rebinding, acks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace
from nats.errors import Error
from structlog.testing import capture_logs
from support.nats import NatsServer, running_nats
from support.until import until

from agent_actors.adapters.jetstream import tasks
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue, PullConsumer
from agent_actors.config import Config, NatsConfig, PoolConfig, StreamsConfig
from agent_actors.contract import TASK_STREAM
from agent_actors.errors import (
    PermissionDenied,
    PublishFailed,
    ServiceUnreachable,
    StreamMissing,
)
from agent_actors.ports import Delivery

pytestmark = pytest.mark.nats


class Received:
    """What came, and a way to wait for it; `idle` is set when less is asked for again."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delivery] = asyncio.Queue()
        self.idle = asyncio.Event()

    def __call__(self, delivery: Delivery) -> None:
        self.queue.put_nowait(delivery)

    async def next(self) -> Delivery:
        return await asyncio.wait_for(self.queue.get(), 20)

    async def nothing_more(self, link: Connection) -> bool:
        """Tell that nothing is on its way any more, by a round trip after it."""
        await link.nc.flush()
        return self.queue.empty()


@pytest.fixture
def config(nats_server: NatsServer) -> Config:
    return Config(
        nats=NatsConfig(url=nats_server.url),
        streams=StreamsConfig(replicas=nats_server.replicas),
        pools={"default": PoolConfig(ack_wait_s=2)},
    )


@pytest.fixture
async def link(config: Config) -> AsyncIterator[Connection]:
    link = await connect(config.nats, name="test")
    await provision(link, config)
    yield link
    await link.close()


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
async def consumer(link: Connection, received: Received) -> AsyncIterator[PullConsumer]:
    consumer = await PullConsumer.open(link, "default", received, received.idle.set)
    yield consumer
    await consumer.close()


async def publish(link: Connection, *bodies: str) -> None:
    for body in bodies:
        await link.publish_stored("agent.tasks.dev", body.encode(), {"x-team": "blue"})


async def test_no_more_comes_than_was_asked_for(
    link: Connection, consumer: PullConsumer, received: Received
):
    await publish(link, "one", "two", "three")
    await consumer.pull(2)
    assert [(await received.next()).payload for _ in range(2)] == [b"one", b"two"]
    assert consumer.outstanding == 0
    assert await received.nothing_more(link)


async def test_what_is_asked_for_comes_at_once_and_alone(
    link: Connection, consumer: PullConsumer, received: Received
):
    await consumer.pull(10)
    await publish(link, "one")
    first = await received.next()
    assert (first.payload, first.headers["x-team"]) == (b"one", "blue")
    assert first.source.num_delivered == 1
    assert first.source.consumer_created > 0
    assert consumer.outstanding == 9


async def test_a_request_that_expires_is_told_and_not_made_again(
    link: Connection,
    consumer: PullConsumer,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(tasks, "EXPIRES_S", 2)
    await publish(link, "one")
    await consumer.pull(3)
    await JetStreamAcks(link).ack(await received.next())
    await asyncio.wait_for(received.idle.wait(), 10)
    assert consumer.outstanding == 0
    await publish(link, "two")
    assert await received.nothing_more(link)
    await consumer.pull(1)
    assert (await received.next()).payload == b"two"


async def test_a_consumer_that_was_made_anew_is_bound_again(
    link: Connection, config: Config, consumer: PullConsumer, received: Received
):
    await publish(link, "one")
    await consumer.pull(2)
    first = await received.next()
    await link.js.delete_consumer(TASK_STREAM, "default")
    await until(lambda: consumer.trouble == "consumer missing: run provision")
    await provision(link, config)
    await asyncio.wait_for(received.idle.wait(), 20)
    assert (consumer.trouble, consumer.outstanding) == ("", 0)
    await consumer.pull(1)
    again = await received.next()
    assert again.payload == b"one"
    assert again.source.num_delivered == 1
    assert again.source.is_later_than(first.source)


async def test_a_consumer_that_was_made_anew_while_nothing_was_asked_of_it_is_bound_again(
    link: Connection, config: Config, consumer: PullConsumer, received: Received
):
    await publish(link, "one")
    await consumer.pull(1)
    first = await received.next()
    await link.js.delete_consumer(TASK_STREAM, "default")
    await provision(link, config)
    await asyncio.wait_for(received.idle.wait(), 20)
    await consumer.pull(1)
    assert (await received.next()).source.is_later_than(first.source)


async def test_pulling_goes_on_after_the_server_came_back(
    link: Connection, consumer: PullConsumer, received: Received, nats_server: NatsServer
):
    await consumer.pull(2)
    await nats_server.restart()
    await asyncio.wait_for(received.idle.wait(), 20)
    assert consumer.outstanding == 0
    await consumer.pull(1)
    await publish(link, "one")
    assert (await received.next()).payload == b"one"


@pytest.mark.parametrize(
    "error",
    [
        PermissionDenied("denied"),
        ServiceUnreachable("away"),
        PublishFailed("no answer"),
        Error("nats: something"),
        ConnectionResetError("reset"),
    ],
)
async def test_whatever_keeps_a_consumer_from_being_bound_is_told_and_tried_again(
    link: Connection,
    consumer: PullConsumer,
    received: Received,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
):
    monkeypatch.setattr(tasks, "IDLE_HEARTBEAT_S", 0.1)

    async def fails(request: str) -> dict:
        raise error

    with monkeypatch.context() as for_now:
        for_now.setattr(link, "api", fails)
        consumer._broken.set()
        await until(lambda: consumer.trouble == str(error))
    await asyncio.wait_for(received.idle.wait(), 20)
    assert consumer.trouble == ""
    await publish(link, "one")
    await consumer.pull(1)
    assert (await received.next()).payload == b"one"


async def test_a_bug_in_the_watch_ends_what_lives_by_the_connection(
    config: Config, link: Connection, received: Received
):
    closed = asyncio.Event()
    other = await connect(config.nats, name="test", on_closed=closed.set)

    def bug() -> None:
        raise LookupError("a bug")

    consumer = await PullConsumer.open(other, "default", received, bug)
    with capture_logs() as logs:
        consumer._broken.set()
        await asyncio.wait_for(closed.wait(), 20)
    assert [log["event"] for log in logs if log["log_level"] == "error"] == [
        "consumer.crashed",
        "nats.user_crashed",
    ]
    await consumer.close()
    await other.close()


async def test_nothing_is_lost_or_late_when_the_consumer_is_bound_again_and_again(
    tmp_path: Path, received: Received, monkeypatch: pytest.MonkeyPatch
):
    """Messages at full speed, a rebinding for every 50 of them, and an `ack_wait` of a minute.

    Always one server of the wheel: in a cluster another server may still be sending to an inbox
    that has just been given up, and `ack_wait` brings that back.
    """
    monkeypatch.setattr(tasks, "REBIND_PAUSE_S", 0.0)
    count, came = 1_000, set()

    def take(delivery: Delivery) -> None:
        came.add(delivery.source.stream_seq)
        received(delivery)
        if len(came) % 50 == 0:
            consumer._broken.set()

    def ask_again() -> None:
        pulls.append(asyncio.create_task(consumer.pull(count - len(came))))

    async with running_nats(tmp_path / "one", kind="wheel") as server:
        config = Config(
            nats=NatsConfig(url=server.url), pools={"default": PoolConfig(ack_wait_s=60)}
        )
        link = await connect(config.nats, name="test")
        await provision(link, config)
        consumer = await PullConsumer.open(link, "default", take, ask_again)
        pulls = [asyncio.create_task(consumer.pull(count))]
        for _ in range(count // 50):
            await asyncio.gather(*(publish(link, "x") for _ in range(50)))
        deliveries = [await received.next() for _ in range(count)]
        assert {each.source.stream_seq for each in deliveries} == set(range(1, count + 1))
        assert len(pulls) > 3
        await consumer.close()
        await link.close()


async def test_a_missing_consumer_is_said_so(link: Connection, received: Received):
    with pytest.raises(StreamMissing, match="provision"):
        await PullConsumer.open(link, "nobody", received, received.idle.set)


async def test_the_backlog_counts_what_waits_and_what_is_not_acked(
    link: Connection, consumer: PullConsumer, received: Received
):
    await publish(link, "one", "two", "three")
    await consumer.pull(1)
    await received.next()
    backlog = await consumer.backlog()
    assert (backlog.pending, backlog.unacked) == (2, 1)


async def test_what_was_under_way_when_a_consumer_closed_comes_to_the_next(
    link: Connection, received: Received
):
    await publish(link, "one", "two")
    first = await PullConsumer.open(link, "default", received, received.idle.set)
    await first.pull(5)
    await first.close()
    while not received.queue.empty():
        await JetStreamAcks(link).nak(received.queue.get_nowait())
    second = await PullConsumer.open(link, "default", received, received.idle.set)
    await second.pull(2)
    assert {(await received.next()).payload for _ in range(2)} == {b"one", b"two"}
    await second.close()


async def test_a_closed_consumer_asks_for_nothing(
    link: Connection, consumer: PullConsumer, received: Received
):
    await publish(link, "one")
    await consumer.close()
    await consumer.pull(1)
    assert await received.nothing_more(link)
    assert consumer.outstanding == 0
    assert (await consumer.backlog()).pending == 1


async def test_a_consumer_can_be_closed_at_any_step_of_being_bound_again(
    link: Connection, received: Received
):
    for steps in range(12):
        consumer = await PullConsumer.open(link, "default", received, received.idle.set)
        consumer._broken.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await consumer.close()
        assert consumer._watch.done()
    assert list(link.nc._subs) == [1]  # the one for replies


async def test_closing_does_not_wait_for_a_server_that_does_not_answer(
    link: Connection, consumer: PullConsumer, nats_server: NatsServer
):
    await nats_server.pause()
    try:
        async with asyncio.timeout(5):
            await consumer.close()
    finally:
        await nats_server.resume()
    assert list(link.nc._subs) == [1]  # the one for replies


@pytest.mark.parametrize("verb", ["ack", "term"])
async def test_an_acked_message_leaves_the_queue(
    verb: str, link: Connection, consumer: PullConsumer, received: Received
):
    await publish(link, '{"task_id": "one"}')
    await consumer.pull(1)
    delivery = await received.next()
    queue, stream_seq = JetStreamTaskQueue(link), delivery.source.stream_seq
    assert await queue.holds(stream_seq, "one")
    assert not await queue.holds(stream_seq, "another task under this number")
    answer: Callable = getattr(JetStreamAcks(link), verb)
    await answer(delivery)

    async def gone() -> bool:
        return not await queue.holds(stream_seq, "one")

    await until(gone)


async def test_a_nakd_message_comes_again_at_once_or_after_its_delay(
    config: Config, link: Connection, consumer: PullConsumer, received: Received
):
    """With an `ack_wait` of a minute, so that nothing else brings it back."""
    await provision(link, replace(config, pools={"default": PoolConfig(ack_wait_s=60)}))
    await publish(link, "one")
    await consumer.pull(1)
    acks = JetStreamAcks(link)
    await acks.nak(await received.next())
    await consumer.pull(1)
    second = await received.next()
    assert second.source.num_delivered == 2
    loop = asyncio.get_running_loop()
    before = loop.time()
    await acks.nak(second, 0.5)
    await consumer.pull(1)
    assert (await received.next()).source.num_delivered == 3
    assert loop.time() - before >= 0.5


async def test_a_sign_of_life_keeps_a_message_from_coming_again(
    link: Connection, consumer: PullConsumer, received: Received
):
    """Two messages, `ack_wait` 2 s: only the one that nobody speaks for comes again."""
    await publish(link, "kept", "left")
    await consumer.pull(2)
    kept, left = await received.next(), await received.next()
    acks = JetStreamAcks(link)

    async def beat() -> None:
        while True:
            await acks.in_progress([kept])
            await asyncio.sleep(0.5)

    beating = asyncio.create_task(beat())
    await consumer.pull(2)
    again = await received.next()
    beating.cancel()
    assert again.payload == left.payload
    assert await received.nothing_more(link)
