"""Whatever JetStream accepted on `agent.tasks.>` is answered and leaves the queue.

Real NATS and real adapters, one settlement after the other in this process: a message that
would be repeated, or would deafen the reader, keeps the good task behind it from its answer.
"""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.fakes import Scripted
from support.nats import NatsServer
from support.raw_nats import hpub, pub, send_raw
from support.until import until

from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.adapters.jetstream.connection import ApiError, Connection, connect
from agent_actors.adapters.jetstream.publishing import NATSEvents, NATSResultPublisher
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue, PullConsumer
from agent_actors.config import Config, NatsConfig, PoolConfig, StreamsConfig
from agent_actors.contract import AgentResult, utc_now
from agent_actors.execution import PROPOSAL, ExecuteAgentTask
from agent_actors.leases import Leases
from agent_actors.ports import Delivery
from agent_actors.settlement import SettleDelivery

pytestmark = pytest.mark.nats

POOL = PoolConfig(ack_wait_s=2)
DEV = b"agent.tasks.dev"
NO_TASK = b"{"
SOON_S = 15


def task(task_id: str) -> bytes:
    return msgspec.json.encode({"task_id": task_id, "task_description": "x"})


def headers(lines: bytes) -> bytes:
    return b"NATS/1.0\r\n" + lines + b"\r\n"


GOOD = task("good")
A_LOT_OF_HEADERS = headers(b"".join(b"%04x:\r\n" % number for number in range(4_090)))

COMPLETED = {
    "a traceparent of 65,300 bytes": hpub(
        DEV, task("hostile"), headers(b"traceparent: " + b"a" * 65_300 + b"\r\n")
    ),
    "a header status that is not UTF-8": hpub(
        DEV, task("hostile"), b"NATS/1.0 \xff\xff\xff\r\n\r\n"
    ),
    "a description that is not UTF-8": hpub(DEV, task("hostile"), b"NATS/1.0 200 \xff\r\n\r\n"),
    "a header block of 3 bytes": hpub(DEV, task("hostile"), b"abc"),
    "headers as of a control message": hpub(DEV, task("hostile"), b"NATS/1.0 409 Gone\r\n\r\n"),
}

DEAD = {
    "4,090 headers": hpub(DEV, NO_TASK, A_LOT_OF_HEADERS),
    "a header name with @": hpub(DEV, NO_TASK, headers(b"x@y: 1\r\n")),
    "a header value with NUL and half a line end": hpub(DEV, NO_TASK, headers(b"x: 1\0\r2\n\r\n")),
    "a traceparent and no task": hpub(DEV, NO_TASK, headers(b"traceparent: 1\r\n")),
    "a subject with a no-break space": pub("agent.tasks.d\u00a0ev".encode(), NO_TASK),
    "a subject of 3,800 bytes": pub(b"agent.tasks." + b"d" * 3_788, NO_TASK),
    "a long subject with a task": pub(b"agent.tasks." + b"d." * 1_800 + b"d", task("hostile")),
    "a subject that is not UTF-8": pub(b"agent.tasks.a.d\xe9v", task("hostile")),
    "a role that is not UTF-8": pub(b"agent.tasks.d\xe9v", NO_TASK),
    "a subject with a form feed": pub(b"agent.tasks.d\x0cev", NO_TASK),
    "a subject with control characters": pub(b"agent.tasks.\x00\x01\x0b\x1b", NO_TASK),
}


class Service:
    """A pool with one actor of one slot, and nothing of Ray."""

    def __init__(self, link: Connection, reader: Connection, settle: SettleDelivery) -> None:
        self._link = link
        self._settle = settle
        self._deliveries: asyncio.Queue[Delivery] = asyncio.Queue()
        self.reader = reader

    async def run(self) -> None:
        async def pull(count: int) -> None:
            while True:
                await wanted.wait()
                wanted.clear()
                await consumer.pull(count - consumer.outstanding)

        wanted = asyncio.Event()
        wanted.set()
        consumer = await PullConsumer.open(
            self.reader, "default", self._deliveries.put_nowait, wanted.set
        )
        pulling = asyncio.create_task(pull(1))
        try:
            while True:
                await self._settle(await self._deliveries.get())
                wanted.set()
        finally:
            pulling.cancel()
            await consumer.close()

    async def results(self) -> list[AgentResult]:
        """Return what has been announced."""
        found = []
        for number in range(1, await self.count("AGENT_RESPONSES") + 1):
            message = await self._link.js.get_msg("AGENT_RESPONSES", number)
            found.append(msgspec.json.decode(message.data, type=AgentResult))
        return found

    async def count(self, stream: str) -> int:
        return (await self._link.api(f"STREAM.INFO.{stream}"))["state"]["messages"]

    async def queue_is_empty(self) -> bool:
        return not await self.count("AGENT_TASKS")


@pytest.fixture
async def service(nats_server: NatsServer) -> AsyncIterator[Service]:
    config = Config(
        nats=NatsConfig(url=nats_server.url),
        streams=StreamsConfig(replicas=nats_server.replicas),
        pools={"default": POOL},
    )
    link, actor, reader = [await connect(config.nats, name=name) for name in ("test", "a", "s")]
    await provision(link, config)
    await until_tasks_are_taken(link)
    service = Service(link, reader, settlement(actor))
    running = asyncio.create_task(service.run())
    yield service
    running.cancel()
    await asyncio.wait([running])
    for connection in (link, actor, reader):
        await connection.close()


async def until_tasks_are_taken(link: Connection) -> None:
    """Return once a plain publish is not lost: in a cluster the server must hear of the stream.

    The stream refuses this one, since it is meant for another.
    """
    with pytest.raises(ApiError):
        await link.publish_stored("agent.tasks.dev", b"", {"Nats-Expected-Stream": "ANOTHER"})


def settlement(connection: Connection) -> SettleDelivery:
    return SettleDelivery(
        agent_id="default-0",
        pool_name="default",
        pool=POOL,
        max_payload_bytes=connection.nc.max_payload,
        execute=ExecuteAgentTask({PROPOSAL: Scripted()}, utc_now),
        leases=Leases(JetStreamLedger(connection), JetStreamTaskQueue(connection), utc_now),
        publisher=NATSResultPublisher(connection=connection),
        acks=JetStreamAcks(connection),
        artifacts=JetStreamArtifacts(connection),
        events=NATSEvents(connection),
        clock=utc_now,
    )


@pytest.mark.parametrize("lines", COMPLETED.values(), ids=COMPLETED)
async def test_a_task_in_odd_clothes_ends_as_any_other(
    lines: bytes, service: Service, nats_server: NatsServer
):
    await answered(lines, service, nats_server)
    assert [result.status for result in await service.results()] == ["completed", "completed"]
    assert await service.count("AGENT_DEADLETTER") == 0


@pytest.mark.parametrize("lines", DEAD.values(), ids=DEAD)
async def test_what_is_no_task_is_a_dead_letter_and_holds_up_no_other(
    lines: bytes, service: Service, nats_server: NatsServer
):
    await answered(lines, service, nats_server)
    hostile, good = await service.results()
    assert (hostile.status, hostile.error_type) == ("failed", "InvalidTask")
    assert (good.task_id, good.status) == ("good", "completed")
    assert await service.count("AGENT_DEADLETTER") == 1


@pytest.mark.parametrize("subject", [b"agent.tasks.*", b"agent.tasks.>", b"agent.tasks.a>"])
async def test_wildcards_in_a_subject_hold_up_nothing(
    subject: bytes, service: Service, nats_server: NatsServer
):
    await answered(pub(subject, NO_TASK), service, nats_server)
    assert (await service.results())[-1].task_id == "good"


async def answered(lines: bytes, service: Service, nats_server: NatsServer) -> None:
    """Send the message and a good one, and return once both have left the queue."""
    await send_raw(nats_server.url, lines + pub(DEV, GOOD))

    async def is_answered() -> bool:
        results = await service.results()
        return "good" in {result.task_id for result in results}

    await until(is_answered, timeout_s=SOON_S)
    await until(service.queue_is_empty, timeout_s=SOON_S)
    assert service.reader.nc.stats["reconnects"] == 0
