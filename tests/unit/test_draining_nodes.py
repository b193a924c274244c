"""Nodes that are drained, without Ray: who is on them leaves, the supervisor last."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from support.fakes import delivery
from support.scripted_pool import Setting
from support.until import until

from agent_actors import crew as crew_module

NODES = {"supervisor": "a", "dev-0": "a", "dev-1": "b", "dev-2": "b", "dev-3": "c"}


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    setting = Setting(2, nodes=NODES)
    await setting.supervisor.ready()
    for name in ("dev-0", "dev-1"):
        setting.actors[name].may_stop.clear()
    yield setting
    await setting.supervisor.stop(0)


async def until_left(setting: Setting, node: str, *names: str) -> None:
    async def left() -> bool:
        return await setting.supervisor.drain_node(node, 60) == list(names)

    await until(left, timeout_s=5)


async def test_an_actor_finishes_on_its_node_while_another_starts_elsewhere(setting: Setting):
    assert await setting.supervisor.drain_node("b", 60) == ["dev-1"]
    # The first one to come, dev-2, was put on the closed node all the same, and leaves it too.
    await until(lambda: setting.there == {"dev-0", "dev-1", "dev-3"}, timeout_s=5)
    assert setting.actors["dev-2"].stopped_with == pytest.approx(60, abs=1)
    assert setting.actors["dev-1"].stopped_with == pytest.approx(60, abs=1)
    assert setting.actors["dev-0"].stopped_with is None
    setting.actors["dev-1"].may_stop.set()
    await until_left(setting, "b")
    assert setting.there == {"dev-0", "dev-3"}
    assert not setting.crashed.is_set()


async def test_without_a_time_of_grace_the_longest_task_may_end(setting: Setting):
    await setting.supervisor.drain_node("b")
    longest_s = setting.config.pools["dev"].task_timeout_s
    await until(lambda: setting.actors["dev-1"].stopped_with is not None, timeout_s=5)
    assert setting.actors["dev-1"].stopped_with == pytest.approx(longest_s, abs=1)


async def test_only_a_shorter_time_is_told_again(setting: Setting):
    actor = setting.actors["dev-1"]
    await setting.supervisor.drain_node("b", 60)
    await until(lambda: actor.stopped_with is not None, timeout_s=5)
    told = actor.stopped_with
    for grace_s in (60, 59.9, 600):
        await setting.supervisor.drain_node("b", grace_s)
    await asyncio.sleep(0)
    assert actor.stopped_with == told
    await setting.supervisor.drain_node("b", 5)
    await until(lambda: actor.stopped_with == pytest.approx(5, abs=1), timeout_s=5)


async def test_the_supervisor_leaves_its_node_once_nobody_is_left_on_any_drained_one(
    setting: Setting,
):
    await until_left(setting, "a", "dev-0", "s")
    await until_left(setting, "b", "dev-1")
    setting.actors["dev-0"].may_stop.set()
    await until_left(setting, "a", "s")
    assert not setting.crashed.is_set()
    assert not setting.source.closed
    setting.actors["dev-1"].may_stop.set()
    await until_left(setting, "b")
    await asyncio.wait_for(setting.crashed.wait(), 5)
    assert setting.source.closed
    assert setting.actors["dev-3"].stopped_with is None


async def test_a_supervisor_whose_time_is_over_leaves_those_on_other_nodes(setting: Setting):
    await setting.supervisor.drain_node("b", 60)
    setting.actors["dev-0"].may_stop.set()
    await setting.supervisor.drain_node("a", 0)
    await until(lambda: setting.actors["dev-0"].stopped_with is not None, timeout_s=5)
    await setting.supervisor.drain_node("a", 0)
    await asyncio.wait_for(setting.crashed.wait(), 5)
    assert setting.actors["dev-1"].stopped_with == pytest.approx(60, abs=1)


async def test_a_node_without_any_of_us_is_left_at_once(setting: Setting):
    assert await setting.supervisor.drain_node("elsewhere", 60) == []
    assert setting.there == {"dev-0", "dev-1"}


async def test_a_supervisor_that_is_restarted_knows_of_no_node_as_left_before_its_actors_say_so():
    setting = Setting(1, existing=["dev-0"], nodes=NODES)
    setting.actors["dev-0"].has_place.clear()
    setting.actors["dev-0"].may_stop.clear()
    assert await setting.supervisor.drain_node("c", 60) == ["dev-0"]
    assert await setting.supervisor.drain_node("a", 60) == ["dev-0", "s"]
    setting.actors["dev-0"].has_place.set()
    await until_left(setting, "c")
    await until_left(setting, "a", "dev-0", "s")
    await until(lambda: setting.actors["dev-0"].stopped_with is not None, timeout_s=5)
    await setting.supervisor.stop(0)


async def test_what_waits_is_given_back_when_no_other_actor_finds_room(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(crew_module, "ROOM_PATIENCE_S", 0.0)
    setting.has_room.clear()
    await setting.supervisor.drain_node("a", 60)
    await setting.supervisor.drain_node("b", 60)
    await until(lambda: {"dev-2", "dev-3"} <= setting.there, timeout_s=5)
    setting.source.deliver(delivery())
    await until(lambda: setting.wire.verbs == ["nak"], timeout_s=5)
    assert not setting.actors["dev-0"].held
    assert not setting.actors["dev-1"].held


async def test_a_supervisor_that_is_drained_whole_only_tells_who_is_left(setting: Setting):
    stopping = asyncio.create_task(setting.supervisor.stop(30))
    await until(lambda: setting.actors["dev-1"].stopped_with is not None, timeout_s=5)
    assert await setting.supervisor.drain_node("b", 5) == ["dev-1"]
    await asyncio.sleep(0)
    assert setting.actors["dev-1"].stopped_with == 30
    for actor in setting.actors.values():
        actor.may_stop.set()
    await stopping
    assert not setting.crashed.is_set()
