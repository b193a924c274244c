"""Subjects move between the consumers of pools: nothing is handed out by two of them."""

from collections.abc import Mapping

import msgspec
import pytest
from support.nats import NatsServer
from support.until import until

from agent_actors.adapters.jetstream.arranging import GIVEN_UP, NOTHING, ConsumerArrangement
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.adapters.jetstream.wanted import filter_of
from agent_actors.config import Config, NatsConfig, PoolConfig, StreamsConfig
from agent_actors.contract import TASK_STREAM

pytestmark = pytest.mark.nats

DEV, QA, DATA = "agent.tasks.dev", "agent.tasks.qa", "agent.tasks.data"
SOON_S = 0.3


class Bench:
    """A stream of tasks, and pools by hand."""

    def __init__(self, link: Connection, replicas: int) -> None:
        self.link = link
        self._streams = StreamsConfig(replicas=replicas)

    def arrangement(self, **pools: list[str]) -> ConsumerArrangement:
        return ConsumerArrangement(self.link, self.config(**pools))

    def config(self, **pools: list[str]) -> Config:
        named = {name: PoolConfig(subjects=tuple(subjects)) for name, subjects in pools.items()}
        return Config(streams=self._streams, pools=named)

    async def publish(self, *subjects: str) -> None:
        for subject in subjects:
            await self.link.publish_stored(subject, b"{}")

    async def pull(self, pool: str, count: int = 9) -> list:
        consumer = await self.link.js.pull_subscribe_bind(pool, TASK_STREAM)
        try:
            return await consumer.fetch(count, timeout=SOON_S)
        except TimeoutError:
            return []

    async def info(self, pool: str) -> dict:
        return await self.link.api(f"CONSUMER.INFO.{TASK_STREAM}.{pool}")

    async def subjects(self, pool: str) -> list[str]:
        return filter_of((await self.info(pool))["config"])

    async def consumers(self) -> set[str]:
        listed = await self.link.api(f"CONSUMER.NAMES.{TASK_STREAM}")
        return set(listed["consumers"] or [])


@pytest.fixture
async def bench(nats_server: NatsServer):
    link = await connect(NatsConfig(url=nats_server.url), name="bench")
    bench = Bench(link, nats_server.replicas)
    await provision(link, bench.config(one=[DEV]), consumers=False)
    yield bench
    await link.close()


async def arranged(arrangement: ConsumerArrangement) -> None:
    async def done() -> bool:
        return not await arrangement.step()

    await until(done)


async def test_consumers_are_made_and_left_alone_afterwards(bench: Bench):
    await arranged(bench.arrangement(one=[DEV], two=[QA, DATA]))
    before = await bench.info("two")
    await arranged(bench.arrangement(one=[DEV], two=[QA, DATA]))
    assert (await bench.info("two"))["config"] == before["config"]
    assert sorted(await bench.subjects("two")) == [DATA, QA]


async def test_a_subject_moves_at_once_when_nothing_of_it_is_being_worked_on(bench: Bench):
    await arranged(bench.arrangement(one=[DEV, QA]))
    await bench.publish(DEV, QA)
    await arranged(bench.arrangement(one=[DEV], two=[QA]))
    assert [each.subject for each in await bench.pull("one")] == [DEV]
    assert [each.subject for each in await bench.pull("two")] == [QA]
    assert GIVEN_UP not in (await bench.info("one"))["config"].get("metadata", {})


async def test_a_subject_waits_for_what_its_pool_has_handed_out_while_that_works_on(bench: Bench):
    await arranged(bench.arrangement(one=[DEV, QA]))
    await bench.publish(DEV, QA)
    working = await bench.pull("one")
    assert len(working) == 2
    moving = bench.arrangement(one=[DEV], two=[QA])
    waiting = await moving.step()
    waiting = await moving.step()
    assert waiting == {"two": "waits until pool one has answered what it has (2 unacked)"}
    assert await bench.consumers() == {"one"}

    # The pool works on, at what comes new and at what comes back.
    await bench.publish(DEV, QA)
    (new,) = await bench.pull("one")
    assert new.subject == DEV
    await working[0].ack()
    await working[1].nak()
    (back,) = await bench.pull("one")
    assert (back.subject, back.metadata.num_delivered) == (QA, 2)
    assert await moving.step() != {}

    # What was handed out since then is not waited for.
    await back.ack_sync()
    await arranged(moving)
    (moved,) = await bench.pull("two")
    assert (moved.subject, moved.metadata.num_delivered) == (QA, 1)
    assert await bench.pull("one") == []


async def test_a_move_goes_on_where_another_supervisor_has_left_it(bench: Bench):
    await arranged(bench.arrangement(one=[DEV, QA]))
    await bench.publish(QA)
    (working,) = await bench.pull("one")
    await bench.arrangement(one=[DEV], two=[QA]).step()
    successor = bench.arrangement(one=[DEV], two=[QA])
    assert list(await successor.step()) == ["two"]
    await working.ack_sync()
    await arranged(successor)
    assert await bench.subjects("two") == [QA]


async def test_two_pools_swap_their_subjects(bench: Bench):
    await arranged(bench.arrangement(one=[DEV], two=[QA]))
    await bench.publish(DEV, QA)
    (dev,), (qa,) = await bench.pull("one"), await bench.pull("two")
    swapping = bench.arrangement(one=[QA], two=[DEV])
    assert sorted(await swapping.step()) == ["one", "two"]
    for name in ("one", "two"):
        assert await bench.subjects(name) == [NOTHING + name]
    await dev.ack_sync()
    await qa.ack_sync()
    await arranged(swapping)
    assert [await bench.subjects(name) for name in ("one", "two")] == [[QA], [DEV]]


async def test_a_pool_that_takes_all_subjects_gets_them_from_pools_that_are_gone(bench: Bench):
    await arranged(bench.arrangement(one=[DEV], two=[QA]))
    await bench.publish(DEV)
    heir = bench.arrangement(all=["agent.tasks.>"])
    said = await heir.step(["one"])
    assert said == {"all": "waits for the actors of the former pool one to finish"}
    await arranged(heir)
    assert await bench.consumers() == {"all"}
    assert len(await bench.pull("all")) == 1


async def test_ack_wait_is_raised_at_once_and_lowered_only_when_all_actors_know(bench: Bench):
    async def ack_wait_s() -> float:
        return (await bench.info("one"))["config"]["ack_wait"] / 1e9

    def lasting(seconds: float) -> ConsumerArrangement:
        pool = PoolConfig(subjects=(DEV,), ack_wait_s=seconds)
        return ConsumerArrangement(bench.link, Config(pools={"one": pool}))

    await arranged(lasting(30))
    await lasting(60).step((), ["one"])
    assert await ack_wait_s() == 60
    lower = lasting(6)
    assert list(await lower.step((), ["one"])) == ["one"]
    assert await ack_wait_s() == 60
    await arranged(lower)
    assert await ack_wait_s() == 6


async def test_a_consumer_of_others_is_left_alone(bench: Bench):
    await arranged(bench.arrangement(one=[DEV]))
    await arranged(bench.arrangement(two=[QA]))
    assert await bench.consumers() == {"one", "two"}


async def test_what_an_operator_has_set_beyond_our_settings_stays(bench: Bench):
    await arranged(bench.arrangement(one=[DEV, QA]))
    config = (await bench.info("one"))["config"]
    config["metadata"] = {**config.get("metadata", {}), "team": "blue"}
    body = {"stream_name": TASK_STREAM, "config": config, "action": "update"}
    await bench.link.api(f"CONSUMER.CREATE.{TASK_STREAM}.one", msgspec.json.encode(body))
    await arranged(bench.arrangement(one=[DEV], two=[QA]))
    metadata = (await bench.info("one"))["config"]["metadata"]
    assert metadata["team"] == "blue"
    assert GIVEN_UP not in metadata


async def test_a_user_who_may_not_make_consumers_leaves_them_to_others(start_nats):
    users = """
    authorization { users: [
      { user: all, password: x }
      { user: few, password: x, permissions: { publish: { deny: "$JS.API.CONSUMER.LIST.>" } } }
    ] }
    """
    server = await start_nats(users)
    config = NatsConfig(url=server.url, user="few")
    link = await connect(msgspec.structs.replace(config, password=_secret()), name="few")
    said: Mapping[str, str] = await ConsumerArrangement(link, Config()).step()
    await link.close()
    assert said == {}


def _secret():
    from agent_actors.config_types import Secret

    return Secret("x")
