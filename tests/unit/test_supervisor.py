"""A pool's supervisor without Ray and NATS: pulling, handing out, and what dies with an actor."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from support.fakes import MemoryLedger, Queue, Wire, delivery, noon
from support.until import until

from agent_actors import supervisor as supervisor_module
from agent_actors.config import Config, PoolConfig
from agent_actors.contract import DrainReply, DrainRequest, encode
from agent_actors.errors import ActorLost, AgentActorsError, InvalidTask, StreamMissing
from agent_actors.leases import Lease, Leases
from agent_actors.ledger import Claim, TaskRecord
from agent_actors.pool import Endpoint, SupervisorParts
from agent_actors.ports import ActorReport, Backlog, Delivery, Stored
from agent_actors.reading import read
from agent_actors.supervisor import Supervisor

MAX_PAYLOAD_BYTES = 1024 * 1024


class Source:
    """A consumer: counts what is asked for; the test delivers."""

    trouble = ""

    def __init__(self, receive: Callable[[Delivery], None]) -> None:
        self._receive = receive
        self.outstanding = 0
        self.most = 0
        self.asked = asyncio.Event()
        self.withdrawn = asyncio.Event()
        self.closed = False

    async def pull(self, count: int) -> None:
        self.outstanding += count
        self.most = max(self.most, self.outstanding)
        self.asked.set()

    def withdraw(self) -> None:
        self.outstanding = 0
        self.withdrawn.set()

    def deliver(self, *deliveries: Delivery) -> None:
        for each in deliveries:
            self.outstanding -= 1
            self._receive(each)

    async def backlog(self) -> Backlog:
        return Backlog(pending=7, unacked=1)

    async def close(self) -> None:
        self.closed = True


class Actor:
    """An actor's handle: holds what it is given until the test settles it or kills it."""

    def __init__(self, slots: int, free_bytes: int) -> None:
        self.slots = slots
        self.free_bytes = free_bytes
        self.life = 1
        self.version = 0
        self.held: list[Delivery] = []
        self.got: asyncio.Queue[list[Delivery]] = asyncio.Queue()
        self.news: asyncio.Queue[list[str] | ActorLost] = asyncio.Queue()
        self.stopped_with: float | None = None
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.model_away = False
        self.alone = False

    def report(self, **news: Any) -> ActorReport:
        self.version += 1
        return ActorReport(
            incarnation=str(self.life),
            pid=1,
            version=self.version,
            slots=self.slots,
            free=self.slots - len(self.held),
            free_bytes=self.free_bytes,
            model_away=self.model_away,
            alone=self.alone,
            **news,
        )

    async def hello(self, supervisor_id: str) -> ActorReport:
        return self.report(held=list(self.held), sandbox="bwrap")

    async def submit(
        self, supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        self.alone = alone
        self.held.extend(batch)
        self.got.put_nowait(list(batch))
        return self.report()

    async def completions(self, supervisor_id: str) -> ActorReport:
        news = await self.news.get()
        if isinstance(news, ActorLost):
            raise news
        return self.report(finished=news)

    async def kill(self) -> None: ...

    async def stop(self, grace_s: float) -> None:
        self.stopped_with = grace_s
        if grace_s == 0:
            self.may_stop.set()
        await self.may_stop.wait()

    def settle(self, *deliveries: Delivery) -> None:
        self.held = [each for each in self.held if each not in deliveries]
        self.news.put_nowait([each.id for each in deliveries])

    def say_model_is(self, *, away: bool) -> None:
        self.model_away = away
        self.news.put_nowait([])

    def die(self) -> None:
        self.life += 1
        self.held.clear()
        self.alone = False
        self.news.put_nowait(ActorLost("killed"))


class Setting:
    def __init__(
        self, actors: int = 1, slots: int = 2, free_bytes: int = 64 * MAX_PAYLOAD_BYTES
    ) -> None:
        self.actors = {f"dev-{number}": Actor(slots, free_bytes) for number in range(actors)}
        self.wire = Wire()
        self.ledger = MemoryLedger()
        self.opened = asyncio.Event()
        self.crashed = asyncio.Event()
        self.told_cancelled: list[str] = []
        pool = PoolConfig(actors=actors, slots=slots, stop_grace_s=3, ack_wait_s=1.0)
        config = Config(pools={"dev": pool})
        self.drained = asyncio.Event()
        self.supervisor = Supervisor(
            config, "s", self.build, on_crash=self.crashed.set, on_drained=self.drained.set
        )

    async def build(self, _: Config) -> SupervisorParts:
        return SupervisorParts(
            leases=Leases(self.ledger, Queue(), noon),
            store=self.ledger,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            acks=self.wire,
            runtime=self,
            open_source=self.open_source,
            serve_control=self.serve_control,
            tell_cancelled=self.tell_cancelled,
            close=self.wire.close,
        )

    async def tell_cancelled(self, key: str) -> None:
        self.told_cancelled.append(key)

    async def start(self, pool_name: str, agent_id: str) -> Actor:
        return self.actors[agent_id]

    async def open_source(
        self, name: str, receive: Callable[[Delivery], None], idle: Callable[[], None]
    ) -> Source:
        self.source = Source(receive)
        self.opened.set()
        return self.source

    async def serve_control(self, endpoints: Mapping[str, Endpoint]) -> None:
        self.endpoints = endpoints

    async def ask_to_drain(self, **wanted: Any) -> DrainReply | None:
        request = DrainRequest(**{"cluster": "agent-actors", **wanted})
        answer = await self.endpoints["drain"](encode(request))
        return None if answer is None else msgspec.json.decode(answer, type=DrainReply)


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    setting = Setting()
    await setting.supervisor.ready()
    yield setting
    await setting.supervisor.stop(0)
    assert not setting.crashed.is_set()


async def test_it_asks_for_as_many_deliveries_as_there_are_free_slots(setting: Setting):
    await setting.source.asked.wait()
    assert setting.source.outstanding == 2


async def test_no_more_is_asked_for_than_the_actors_have_bytes_for():
    setting = Setting(actors=2, slots=8, free_bytes=3 * MAX_PAYLOAD_BYTES)
    await setting.supervisor.ready()
    await until(lambda: setting.source.outstanding == 6)
    assert setting.source.most == 6
    await setting.supervisor.stop(0)


async def test_a_slot_is_asked_for_again_only_once_it_is_free(setting: Setting):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    one, two = delivery(stream_seq=1), delivery(stream_seq=2)
    setting.source.deliver(one, two)
    batch = await actor.got.get()
    while len(batch) < 2:
        batch += await actor.got.get()
    assert setting.source.outstanding == 0
    setting.source.asked.clear()
    actor.settle(one)
    await setting.source.asked.wait()
    assert setting.source.outstanding == 1
    assert setting.source.most == 2


async def test_what_a_dead_actor_held_is_released_and_handed_out_again_at_once(setting: Setting):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    one = delivery(stream_seq=1)
    setting.source.deliver(one)
    await actor.got.get()
    actor.die()
    await asyncio.wait_for(setting.wire.nakd.wait(), 5)
    assert setting.wire.log == [("nak", 0.0)]
    record = setting.ledger.records["t-1"].record
    assert record is not None
    assert record.state == "waiting"


async def test_a_running_record_of_another_actor_is_neither_released_nor_nakd(setting: Setting):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    setting.source.deliver(delivery(stream_seq=1))
    await actor.got.get()
    other = Leases(setting.ledger, Queue(), noon)
    await other.begin(claim_of_another())
    setting.source.asked.clear()
    actor.die()
    await setting.source.asked.wait()
    assert setting.wire.log == []


def claim_of_another() -> Claim:
    later = delivery(stream_seq=1, num_delivered=2)
    content = read(later, max_payload_bytes=1024 * 1024).content
    return Claim(
        task_id="t-1",
        source=later.source,
        content=content,
        agent_id="elsewhere",
        lease="x",
        now=noon(),
    )


async def begun(setting: Setting, one: Delivery) -> None:
    """Have the delivery handed to the actor, and begun there."""
    setting.source.deliver(one)
    await asyncio.wait_for(setting.actors["dev-0"].got.get(), 5)
    content = read(one, max_payload_bytes=1024 * 1024).content
    claim = Claim(
        task_id="t-1",
        source=one.source,
        content=content,
        agent_id="dev-0",
        lease=one.id,
        now=noon(),
    )
    assert isinstance(await Leases(setting.ledger, Queue(), noon).begin(claim), Lease)


async def died(setting: Setting) -> TaskRecord:
    setting.wire.nakd.clear()
    setting.actors["dev-0"].die()
    await asyncio.wait_for(setting.wire.nakd.wait(), 5)
    record = setting.ledger.records["t-1"].record
    assert record is not None
    return record


async def test_a_task_whose_actor_died_runs_once_more_in_company_then_alone(setting: Setting):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    for number in (1, 3):
        await begun(setting, delivery(num_delivered=number))
        assert not actor.alone
        record = await died(setting)
        assert (record.suspect, record.deaths) == (number > 1, 0)
    await begun(setting, delivery(num_delivered=4))
    assert actor.alone
    record = await died(setting)
    assert (record.suspect, record.deaths) == (True, 1)


async def test_a_task_handed_out_often_that_is_no_suspect_has_company(setting: Setting):
    await setting.source.asked.wait()
    setting.source.deliver(delivery(num_delivered=9))
    await asyncio.wait_for(setting.actors["dev-0"].got.get(), 5)
    assert not setting.actors["dev-0"].alone


async def test_an_actor_whose_submit_failed_once_gets_work_again(setting: Setting):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    submit = actor.submit

    async def failing(
        supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        actor.submit = submit
        raise ActorLost("unavailable for a moment")

    actor.submit = failing
    setting.source.deliver(delivery(stream_seq=1))
    await asyncio.wait_for(setting.wire.nakd.wait(), 5)
    actor.settle()  # its poll ends, with nothing
    setting.source.deliver(delivery(stream_seq=2))
    assert (await asyncio.wait_for(actor.got.get(), 5))[0].source.stream_seq == 2


@pytest.mark.parametrize(
    "error", [StreamMissing("KV_agent_ledger"), AgentActorsError("unreadable")]
)
async def test_trouble_with_giving_back_disturbs_nothing_else(
    setting: Setting, error: AgentActorsError
):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    setting.source.deliver(delivery(stream_seq=1))
    await actor.got.get()
    tried = asyncio.Event()

    async def failing(key: str) -> Stored:
        tried.set()
        raise error

    setting.ledger.read = failing
    setting.source.asked.clear()
    actor.die()
    await asyncio.wait_for(tried.wait(), 5)
    setting.source.deliver(delivery(stream_seq=2))
    assert await asyncio.wait_for(actor.got.get(), 5)
    assert not setting.crashed.is_set()


async def test_what_waits_for_a_slot_is_kept_from_being_handed_out_again(setting: Setting):
    await setting.source.asked.wait()
    setting.source.deliver(*(delivery(stream_seq=number) for number in (1, 2, 3)))
    await asyncio.wait_for(setting.wire.beat.wait(), 5)
    ((_, waiting),) = [entry for entry in setting.wire.log if entry[0] == "in_progress"][-1:]
    assert [each.source.stream_seq for each in waiting] == [3]


async def test_a_pool_whose_model_is_away_pulls_one_probe_at_a_time_and_says_so(setting: Setting):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    actor.say_model_is(away=True)
    await asyncio.wait_for(setting.source.withdrawn.wait(), 5)
    setting.source.asked.clear()
    await asyncio.wait_for(setting.source.asked.wait(), 5)
    assert setting.source.outstanding == 1
    (pool,) = (await setting.supervisor.status()).pools
    assert (pool.state, pool.reason) == ("paused", "model unavailable")


async def test_a_pool_whose_model_is_back_fills_all_its_slots_again(setting: Setting):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    actor.say_model_is(away=True)
    await asyncio.wait_for(setting.source.withdrawn.wait(), 5)
    actor.say_model_is(away=False)
    await until(lambda: setting.source.outstanding == 2, timeout_s=5)
    (pool,) = (await setting.supervisor.status()).pools
    assert (pool.state, pool.reason) == ("running", "")


async def test_status_says_that_the_consumer_is_missing(setting: Setting):
    async def missing() -> Backlog:
        raise StreamMissing("consumer not found")

    setting.source.backlog = missing
    (pool,) = (await setting.supervisor.status()).pools
    assert (pool.state, pool.reason) == ("stalled", "consumer missing: run provision")


async def test_status_tells_what_confines_the_commands_of_an_actor(setting: Setting):
    setting.source.deliver(delivery())  # an answer that does not say it changes nothing
    await setting.actors["dev-0"].got.get()
    (pool,) = (await setting.supervisor.status()).pools
    assert [actor.sandbox for actor in pool.actors] == ["bwrap"]


async def test_status_tells_slots_and_backlog(setting: Setting):
    await setting.source.asked.wait()
    setting.source.deliver(delivery())
    await setting.actors["dev-0"].got.get()
    (pool,) = (await setting.supervisor.status()).pools
    assert (pool.name, pool.state, pool.slots, pool.pending, pool.unacked) == (
        "dev",
        "running",
        2,
        7,
        1,
    )


async def test_stopping_stops_the_actors_with_the_pools_grace():
    setting = Setting(actors=2)
    await setting.supervisor.ready()
    await setting.supervisor.stop()
    assert setting.source.closed
    assert [actor.stopped_with for actor in setting.actors.values()] == [3, 3]
    assert "close" in setting.wire.verbs


async def test_a_stop_told_again_hurries_the_first_one():
    setting = Setting()
    actor = setting.actors["dev-0"]
    actor.may_stop.clear()
    await setting.supervisor.ready()
    slow = asyncio.create_task(setting.supervisor.stop())
    await until(lambda: actor.stopped_with == 3)
    await asyncio.wait_for(setting.supervisor.stop(0), 5)
    assert actor.stopped_with == 0
    await slow
    assert setting.wire.verbs.count("close") == 1


async def test_a_drain_asked_for_over_nats_ends_the_process_once_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(supervisor_module, "LINGER_S", 0.0)
    setting = Setting()
    actor = setting.actors["dev-0"]
    actor.may_stop.clear()
    await setting.supervisor.ready()
    await setting.source.asked.wait()
    setting.source.deliver(delivery())
    await actor.got.get()
    drained = asyncio.create_task(setting.supervisor.drained())
    assert await setting.ask_to_drain(cluster="another") is None
    first = await setting.ask_to_drain(only_ask=True)
    assert first == DrainReply(cluster="agent-actors", draining=False, running=1)
    reply = await setting.ask_to_drain(grace_s=60.0)
    assert reply == DrainReply(cluster="agent-actors", draining=True, running=1)
    await until(lambda: actor.stopped_with == 60)
    (pool,) = (await setting.supervisor.status()).pools
    assert pool.state == "draining"
    assert not drained.done()
    await setting.ask_to_drain(grace_s=0.0)
    await asyncio.wait_for(setting.drained.wait(), 5)
    await drained
    assert setting.source.closed


async def test_a_restarted_supervisor_adopts_what_its_actors_hold():
    setting = Setting()
    held = delivery(stream_seq=1)
    setting.actors["dev-0"].held.append(held)
    await setting.supervisor.ready()
    await setting.source.asked.wait()
    assert setting.source.outstanding == 1
    setting.actors["dev-0"].die()
    await asyncio.wait_for(setting.wire.nakd.wait(), 5)
    await setting.supervisor.stop(0)


async def test_a_bug_in_a_pool_ends_the_process():
    setting = Setting()

    async def broken(_: str) -> ActorReport:
        raise ValueError("a bug")

    setting.actors["dev-0"].hello = broken
    await asyncio.wait_for(setting.crashed.wait(), 5)


async def test_cancel_marks_the_task_and_tells_all_agents(setting: Setting):
    reply = await setting.endpoints["cancel"](b'{"task_id": "j/1"}')
    assert reply == b'{"task_id":"j/1","state":"cancel_requested"}'
    assert setting.ledger.records["j=2F1"].record.cancelled
    assert setting.told_cancelled == ["j=2F1"]


async def test_cancel_of_a_task_that_has_ended_tells_how_and_nobody_else(setting: Setting):
    leases = Leases(setting.ledger, Queue(), noon)
    lease = await leases.begin(claim_of_another())
    assert isinstance(lease, Lease)
    await leases.commit(lease, "completed", b"{}", None)
    reply = await setting.endpoints["cancel"](b'{"task_id": "t-1"}')
    assert reply == b'{"task_id":"t-1","state":"completed"}'
    assert not setting.told_cancelled


async def test_cancel_refuses_what_is_no_task_id(setting: Setting):
    with pytest.raises(InvalidTask):
        await setting.endpoints["cancel"](b'{"task_id": ""}')
    assert not setting.ledger.history
