"""A pool's supervisor without Ray and NATS: pulling, handing out, and what dies with an actor."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from support.fakes import Queue, delivery, noon
from support.scripted_pool import MAX_PAYLOAD_BYTES, Setting
from support.until import until

from agent_actors import supervisor as supervisor_module
from agent_actors.contract import DrainReply
from agent_actors.errors import ActorLost, AgentActorsError, InvalidTask, StreamMissing
from agent_actors.leases import Lease, Leases
from agent_actors.ledger import Claim, TaskRecord
from agent_actors.ports import ActorReport, Backlog, Delivery, Stored
from agent_actors.reading import read


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


async def test_a_pool_that_can_settle_nothing_pulls_one_probe_at_a_time_and_says_why(
    setting: Setting,
):
    actor = setting.actors["dev-0"]
    await setting.source.asked.wait()
    actor.say_trouble("denied", unable=True)
    await asyncio.wait_for(setting.source.withdrawn.wait(), 5)
    setting.source.asked.clear()
    await asyncio.wait_for(setting.source.asked.wait(), 5)
    assert setting.source.outstanding == 1
    (pool,) = (await setting.supervisor.status()).pools
    assert (pool.state, pool.reason) == ("stalled", "denied")
    actor.say_trouble("", unable=False)
    await until(lambda: setting.source.outstanding == 2, timeout_s=5)
    (pool,) = (await setting.supervisor.status()).pools
    assert (pool.state, pool.reason) == ("running", "")


async def test_a_trouble_that_only_waits_is_told_and_stops_no_pulling(setting: Setting):
    await setting.source.asked.wait()
    setting.actors["dev-0"].say_trouble("no answer", unable=False)

    async def reason() -> bool:
        (pool,) = (await setting.supervisor.status()).pools
        return (pool.state, pool.reason) == ("stalled", "no answer")

    await until(reason, timeout_s=5)
    assert (setting.source.outstanding, setting.source.withdrawn.is_set()) == (2, False)


async def test_the_trouble_of_one_actor_of_two_is_told_of_that_one():
    setting = Setting(actors=2)
    await setting.supervisor.ready()
    setting.actors["dev-1"].say_trouble("no answer", unable=True)

    async def told() -> bool:
        (pool,) = (await setting.supervisor.status()).pools
        troubles = [actor.trouble for actor in pool.actors]
        return (pool.state, pool.reason, troubles) == ("running", "", ["", "no answer"])

    await until(told, timeout_s=5)
    assert not setting.source.withdrawn.is_set()
    await setting.supervisor.stop(0)


async def test_status_says_that_the_consumer_is_missing(setting: Setting):
    async def missing() -> Backlog:
        raise StreamMissing("consumer missing: run provision")

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
    ended = asyncio.create_task(setting.supervisor.ended())
    assert await setting.ask_to_drain(cluster="another") is None
    first = await setting.ask_to_drain(only_ask=True)
    assert first == DrainReply(cluster="agent-actors", draining=False, running=1)
    reply = await setting.ask_to_drain(grace_s=60.0)
    assert reply == DrainReply(cluster="agent-actors", draining=True, running=1)
    await until(lambda: actor.stopped_with == 60)
    (pool,) = (await setting.supervisor.status()).pools
    assert pool.state == "draining"
    assert not ended.done()
    await setting.ask_to_drain(grace_s=0.0)
    await asyncio.wait_for(setting.ended.wait(), 5)
    assert await ended == "drained"
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
