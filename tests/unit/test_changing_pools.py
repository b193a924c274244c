"""Pools whose actors come and go, without Ray and NATS: sizes, settings, supervisors in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from support.fakes import delivery
from support.scripted_pool import Setting
from support.until import until

from agent_actors import crew as crew_module
from agent_actors import pool as pool_module
from agent_actors import supervisor as supervisor_module
from agent_actors.contract import PoolStatus, ScaleReply, ScaleRequest, encode
from agent_actors.errors import PublishFailed, RequestRefused
from agent_actors.ports import Backlog, HandSize


@asynccontextmanager
async def running(*args: Any, **settings: Any) -> AsyncIterator[Setting]:
    setting = Setting(*args, **settings)
    await setting.supervisor.ready()
    yield setting
    await setting.supervisor.stop(0)
    assert not setting.crashed.is_set()


async def pool_of(setting: Setting) -> PoolStatus:
    (pool,) = (await setting.supervisor.status()).pools
    return pool


async def scale(setting: Setting, actors: int | None, **more: str) -> ScaleReply | None:
    request = ScaleRequest(**{"cluster": "agent-actors", "pool": "dev", "actors": actors, **more})
    answer = await setting.endpoints["scale"](encode(request))
    return None if answer is None else msgspec.json.decode(answer, type=ScaleReply)


async def until_there(setting: Setting, *agent_ids: str) -> None:
    await until(lambda: setting.there == set(agent_ids), timeout_s=5)


async def test_a_pool_grows_and_shrinks_as_it_is_told():
    async with running(1) as setting:
        reply = await scale(setting, 3)
        assert reply is not None
        assert (reply.before, reply.wanted, reply.sized_by) == (1, 3, "hand")
        await until_there(setting, "dev-0", "dev-1", "dev-2")
        await until(lambda: setting.source.outstanding == 6, timeout_s=5)
        assert setting.kept == HandSize(actors=3, configured="1")
        await scale(setting, 1)
        await until_there(setting, "dev-0")

        async def settled() -> bool:
            pool = await pool_of(setting)
            return (pool.wanted, pool.running, pool.draining) == (1, 1, 0)

        await until(settled, timeout_s=5)
        await scale(setting, None)
        assert setting.kept is None


async def test_an_actor_that_is_too_many_gets_nothing_more_and_finishes_what_it_has():
    async with running(2, slots=1) as setting:
        await setting.source.asked.wait()
        setting.source.deliver(delivery(stream_seq=1))
        await until(lambda: any(actor.held for actor in setting.actors.values()))
        busy, idle = sorted(setting.actors.values(), key=lambda each: -len(each.held))
        idle.may_stop.clear()
        await scale(setting, 1)
        await until(lambda: idle.stopped_with is not None, timeout_s=5)
        assert busy.stopped_with is None
        assert idle.stopped_with >= setting.config.pools["dev"].task_timeout_s
        pool = await pool_of(setting)
        assert (pool.running, pool.draining) == (1, 1)
        # What was asked for it comes all the same, and waits for the one that stays.
        await until(setting.source.withdrawn.is_set, timeout_s=5)
        setting.source.deliver(delivery(stream_seq=2))
        busy.settle(*busy.held)
        await until(lambda: [each.source.stream_seq for each in busy.held] == [2], timeout_s=5)
        assert not idle.held
        idle.may_stop.set()
        await until(lambda: len(setting.there) == 1, timeout_s=5)


async def test_what_waits_in_a_pool_that_is_emptied_is_given_back():
    async with running(1, slots=1) as setting:
        await setting.source.asked.wait()
        setting.source.deliver(delivery(stream_seq=1), delivery(stream_seq=2))
        await until(lambda: bool(setting.actors["dev-0"].held))
        await scale(setting, 0)
        await asyncio.wait_for(setting.wire.nakd.wait(), 5)
        await until(lambda: not setting.there, timeout_s=5)
        assert (await pool_of(setting)).state == "off"


async def test_an_unknown_pool_is_refused_and_another_cluster_is_not_meant():
    async with running(1) as setting:
        with pytest.raises(RequestRefused, match="there is no pool 'qa'; there is dev"):
            await scale(setting, 2, pool="qa")
        assert await scale(setting, 2, cluster="other") is None


async def test_a_size_that_cannot_be_kept_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    async with running(1) as setting:

        async def no_answer(pool_name: str, size: HandSize | None) -> None:
            raise PublishFailed("no answer")

        monkeypatch.setattr(setting, "write", no_answer)
        with pytest.raises(PublishFailed):
            await scale(setting, 3)
        assert (await pool_of(setting)).wanted == 1


async def test_a_restarted_supervisor_has_the_size_that_was_set_by_hand():
    async with running(1, kept=HandSize(actors=2, configured="1")) as setting:
        await until_there(setting, "dev-0", "dev-1")


async def test_actors_of_earlier_settings_are_replaced_once_others_work():
    async with running(2, existing=["dev-0", "dev-1"]) as setting:

        async def replaced() -> bool:
            return [actor.outdated for actor in (await pool_of(setting)).actors] == [False, False]

        await until(replaced, timeout_s=5)
        assert "dev-0" not in setting.there


async def test_an_actor_of_earlier_settings_works_until_another_one_does():
    setting = Setting(1, existing=["dev-0"])
    setting.has_room.clear()
    await setting.supervisor.ready()
    await setting.source.asked.wait()
    setting.source.deliver(delivery(stream_seq=1))
    await asyncio.wait_for(setting.actors["dev-0"].got.get(), 5)
    pool = await pool_of(setting)
    assert [(each.state, each.outdated) for each in pool.actors] == [
        ("running", True),
        ("starting", False),
    ]
    setting.has_room.set()
    await until_there(setting, "dev-1")
    await setting.supervisor.stop(0)


async def test_consumers_are_told_of_pools_whose_actors_are_not_all_of_these_settings(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(supervisor_module, "ARRANGE_EVERY_S", 0.01)
    setting = Setting(1, existing=["dev-0"])
    setting.has_room.clear()
    setting.arrangements += [{"dev": "not yet"}] * 1_000
    await setting.supervisor.ready()
    await until(lambda: setting.rolling == {"dev"}, timeout_s=5)
    setting.has_room.set()
    await until(lambda: setting.rolling == set(), timeout_s=5)
    await setting.supervisor.stop(0)


async def test_an_actor_that_was_stopping_under_the_last_supervisor_gets_nothing_more():
    setting = Setting(1, existing=["dev-0"])
    setting.actors["dev-0"].stopping = True
    setting.actors["dev-0"].may_stop.clear()
    await setting.supervisor.ready()
    await until(lambda: setting.actors["dev-0"].stopped_with is not None, timeout_s=5)
    setting.actors["dev-0"].may_stop.set()
    await until_there(setting, "dev-1")
    await setting.supervisor.stop(0)


async def test_actors_of_pools_that_are_gone_finish_and_end():
    setting = Setting(1, existing=["former-0"])
    setting.actors["former-0"].may_stop.clear()
    await setting.supervisor.ready()
    await until(lambda: setting.actors["former-0"].stopped_with is not None, timeout_s=5)
    assert setting.there == {"former-0", "dev-0"}
    setting.actors["former-0"].may_stop.set()
    await until_there(setting, "dev-0")
    await setting.supervisor.stop(0)


async def test_a_supervisor_that_hands_over_leaves_its_actors_at_work(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(supervisor_module, "LINGER_S", 0.0)
    setting = Setting(1, slots=1)
    await setting.supervisor.ready()
    await setting.source.asked.wait()
    setting.source.deliver(delivery(stream_seq=1), delivery(stream_seq=2))
    await until(lambda: bool(setting.actors["dev-0"].held))
    await setting.supervisor.hand_over()
    assert setting.source.closed
    assert setting.wire.verbs == ["nak", "close"]
    assert [each.source.stream_seq for each in setting.actors["dev-0"].held] == [1]
    assert setting.actors["dev-0"].stopped_with is None
    await asyncio.wait_for(setting.ended.wait(), 5)
    assert setting.endings == ["superseded"]
    assert await setting.supervisor.ended() == "superseded"
    # Whoever stops it now, or drains it, is too late: the actors are another's.
    assert not await setting.supervisor.stop(0)
    assert await setting.ask_to_drain() is None
    assert await scale(setting, 2) is None
    assert setting.actors["dev-0"].stopped_with is None
    assert setting.endings == ["superseded"]


async def test_a_supervisor_that_was_stopped_ends_whoever_asked_for_it_is_there_or_not(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(supervisor_module, "LINGER_S", 0.0)
    setting = Setting(1)
    await setting.supervisor.ready()
    assert not await setting.supervisor.is_leaving()
    assert await setting.supervisor.stop(0)
    assert await setting.supervisor.is_leaving()
    await asyncio.wait_for(setting.ended.wait(), 5)
    assert setting.endings == ["drained"]


async def test_a_supervisor_gives_up_only_while_another_one_still_has_the_pools():
    setting = Setting(1, existing=["dev-0"])
    assert await setting.supervisor.give_up()
    assert not setting.took_over.is_set()
    setting = Setting(1, existing=["dev-0"])
    setting.may_take_over.clear()
    await asyncio.wait_for(setting.took_over.wait(), 5)
    assert not await setting.supervisor.give_up()
    setting.may_take_over.set()
    await setting.supervisor.ready()
    assert await setting.supervisor.stop(0)


async def test_a_supervisor_that_is_stopped_while_it_takes_over_drains_what_it_gets():
    setting = Setting(1, existing=["dev-0"])
    setting.may_take_over.clear()
    await asyncio.wait_for(setting.took_over.wait(), 5)
    stopping = asyncio.create_task(setting.supervisor.stop(7))
    hurried = asyncio.create_task(setting.supervisor.stop(1))
    setting.may_take_over.set()
    assert await stopping
    assert await hurried
    assert setting.actors["dev-0"].stopped_with == 1


async def test_an_actor_without_a_place_is_told_with_what_it_asks_for(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(crew_module, "ROOM_PATIENCE_S", 0.0)
    async with running(1) as setting:
        setting.has_room.clear()
        await scale(setting, 2)
        await until(lambda: "dev-1" in setting.there, timeout_s=5)
        pool = await pool_of(setting)
        assert (pool.state, pool.running, pool.starting) == ("running", 1, 1)
        assert pool.reason == "no room for dev-1: each asks for CPU 0.1"
        setting.source.deliver(delivery())
        await asyncio.wait_for(setting.actors["dev-0"].got.get(), 5)


async def test_an_actor_that_cannot_be_built_is_told_with_the_reason():
    async with running(1) as setting:
        await scale(setting, 2)
        await until(lambda: "dev-1" in setting.there, timeout_s=5)
        assert (await pool_of(setting)).reason == ""
        setting.actors["dev-0"].trouble = "no sandbox"
        setting.actors["dev-0"].greets.clear()
        setting.actors["dev-0"].die()

        async def told() -> bool:
            return "1 of its actors: no sandbox" in (await pool_of(setting)).reason

        await until(told, timeout_s=5)


async def test_a_pool_whose_subjects_are_on_their_way_says_so():
    setting = Setting(1)
    setting.arrangements.append({"dev": "waits until pool qa has answered what it has"})
    await setting.supervisor.ready()
    pool = await pool_of(setting)
    assert pool.reason == "waits until pool qa has answered what it has"
    await until(lambda: not setting.arrangements, timeout_s=5)
    await setting.supervisor.stop(0)


async def test_tasks_that_no_pool_serves_are_told():
    setting = Setting(1, subjects=("agent.tasks.dev",))
    setting.counts = {"agent.tasks.dev": 3, "agent.tasks.qa": 2}
    await setting.supervisor.ready()

    async def told() -> bool:
        return (await setting.supervisor.status()).unserved == {"agent.tasks.qa": 2}

    await until(told, timeout_s=5)
    await setting.supervisor.stop(0)


async def test_a_pool_follows_its_load_to_none_and_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "LOOK_EVERY_S", 0.01)
    actors = {"min": 0, "max": 3, "target_utilization": 1.0, "scale_down_delay_s": 0.1}
    setting = Setting(actors, slots=2)
    setting.backlog = Backlog(pending=5, unacked=0)
    await setting.supervisor.ready()
    await until(lambda: len(setting.there) == 3, timeout_s=5)
    assert (await pool_of(setting)).sized_by == "load"
    setting.backlog = Backlog(pending=0, unacked=0)
    await until(lambda: not setting.there, timeout_s=5)
    assert (await pool_of(setting)).state == "idle"
    setting.backlog = Backlog(pending=1, unacked=0)
    await until(lambda: len(setting.there) == 1, timeout_s=5)
    await setting.supervisor.stop(0)


async def test_a_pool_that_shrinks_does_not_grow_again_for_the_slots_that_it_gives_up(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pool_module, "LOOK_EVERY_S", 0.01)
    actors = {"min": 0, "max": 3, "target_utilization": 1.0, "scale_down_delay_s": 0.1}
    setting = Setting(actors, slots=4)
    setting.backlog = Backlog(pending=12, unacked=0)
    await setting.supervisor.ready()
    await until(lambda: len(setting.there) == 3, timeout_s=5)
    for actor in setting.actors.values():
        actor.may_stop.clear()
    setting.source.deliver(*(delivery(stream_seq=seq) for seq in (1, 2, 3)))
    await until(lambda: all(actor.held for actor in setting.actors.values()), timeout_s=5)
    setting.backlog = Backlog(pending=0, unacked=3)
    by_now = setting.actors.values()
    await until(lambda: sum(actor.stopped_with is not None for actor in by_now) == 2, timeout_s=5)
    for actor in by_now:
        actor.settle()  # nothing: it only tells how it stands
    await until(lambda: all(actor.news.empty() for actor in by_now), timeout_s=5)
    pool = await pool_of(setting)
    assert (pool.wanted, pool.draining, pool.slots_used) == (1, 2, 3)
    await asyncio.wait_for(setting.supervisor.stop(0), 5)
    assert len(setting.actors) == 3


async def test_the_running_configuration_is_told_without_secrets():
    async with running(1) as setting:
        reply = msgspec.json.decode(await setting.endpoints["config"](b"") or b"")
        assert reply["cluster"] == "agent-actors"
        assert reply["config"]["pools"]["dev"]["actors"] == 1
        await setting.supervisor.note_trouble("nats.url: restart the service")
        assert (await setting.supervisor.status()).trouble == "nats.url: restart the service"
