"""The ledger's bucket in a real JetStream: who may write over what, and what is read back."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.nats import NatsServer

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.config import Config, NatsConfig, StreamsConfig
from agent_actors.contract import utc_now
from agent_actors.errors import FencedOut
from agent_actors.ledger import UNQUEUED, TaskRecord

pytestmark = pytest.mark.nats

KEY = "task-1"


@pytest.fixture
async def link(nats_server: NatsServer) -> AsyncIterator[Connection]:
    config = Config(
        nats=NatsConfig(url=nats_server.url), streams=StreamsConfig(replicas=nats_server.replicas)
    )
    link = await connect(config.nats, name="test")
    await provision(link, config)
    yield link
    await link.close()


def record(lease: str) -> TaskRecord:
    return TaskRecord(
        task_id=KEY, state="running", source=UNQUEUED, content="", updated=utc_now(), lease=lease
    )


async def test_a_record_is_read_back_with_its_revision(link: Connection):
    ledger = JetStreamLedger(link)
    nothing = await ledger.read(KEY)
    assert (nothing.record, nothing.revision) == (None, 0)
    written = record("mine")
    revision = await ledger.write(KEY, written, 0)
    stored = await ledger.read(KEY)
    assert (stored.record, stored.revision) == (written, revision)


async def test_of_many_who_write_over_the_same_revision_one_wins(link: Connection):
    ledger = JetStreamLedger(link)
    revision = 0
    for _ in range(3):
        leases = [f"lease-{number}" for number in range(10)]
        writes = (ledger.write(KEY, record(lease), revision) for lease in leases)
        answers = await asyncio.gather(*writes, return_exceptions=True)
        (won,) = (number for number, answer in enumerate(answers) if isinstance(answer, int))
        assert all(isinstance(a, FencedOut) for n, a in enumerate(answers) if n != won)
        stored = await ledger.read(KEY)
        assert stored.record
        assert (stored.record.lease, stored.revision) == (leases[won], answers[won])
        revision = stored.revision
