"""AgentActor without Ray: slots, news, heartbeat, stopping."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from support.fakes import Wire, delivery
from support.until import until

from agent_actors import patience
from agent_actors.actor import ActorParts, ActorSettings, AgentActor
from agent_actors.asking import Asker, current_asker
from agent_actors.config import Config, PoolConfig
from agent_actors.contract import EndpointStatus
from agent_actors.errors import PermissionDenied, ServiceUnreachable, StreamMissing
from agent_actors.ports import Delivery

ROOM_BYTES = 1_000


class Room:
    """A model with room for so many requests."""

    def __init__(self) -> None:
        self.room = 100
        self.changed: Callable[[], None]

    def watch_room(self, listener: Callable[[], None]) -> None:
        self.changed = listener

    def endpoints(self) -> list[EndpointStatus]:
        return [EndpointStatus(url="http://model", limit=self.room, in_flight=0)]


class Work:
    """Settlements that end when told to."""

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.askers: dict[str, Asker] = {}
        self.failures: dict[str, Exception] = {}
        self.clear = asyncio.Event()
        self.clear.set()

    async def __call__(self, delivery: Delivery) -> object:
        self.gates[delivery.id] = asyncio.Event()
        self.askers[delivery.id] = current_asker()
        await self.gates[delivery.id].wait()
        if delivery.id in self.failures:
            raise self.failures[delivery.id]
        return "completed"

    async def end(self, delivery: Delivery) -> None:
        await until(lambda: delivery.id in self.gates)
        self.gates[delivery.id].set()

    def give_back(self) -> None:
        for gate in self.gates.values():
            gate.set()

    async def cleared(self) -> None:
        await self.clear.wait()


class Setting:
    def __init__(self) -> None:
        self.work = Work()
        self.wire = Wire()
        self.closed = asyncio.Event()
        self.build_troubles: list[Exception] = []
        self.trouble = ""
        self.model = Room()
        self.pool = PoolConfig(
            slots=2, max_in_flight_bytes=ROOM_BYTES, ack_wait_s=1.0, hang_timeout_s=1.0
        )
        config = Config(pools={"dev": self.pool})
        settings = ActorSettings(agent_id="dev-0", pool_name="dev", config=config)
        self.actor = AgentActor(settings, self.build)

    async def build(self, _: ActorSettings) -> ActorParts:
        if self.build_troubles:
            raise self.build_troubles.pop()

        async def close() -> None:
            self.closed.set()

        def watch_model(listener: Callable[[bool], None]) -> None:
            away = False
            listener(away)
            self.say_away = listener

        return ActorParts(
            settle=self.work,
            acks=self.wire,
            close=close,
            watch_model=watch_model,
            model=self.model,
            sandbox="bwrap",
            trouble=lambda: self.trouble,
        )


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    setting = Setting()
    yield setting
    setting.work.give_back()
    await setting.actor.stop(0)


ONE, TWO, THREE = (delivery(stream_seq=number) for number in (1, 2, 3))


async def test_it_takes_what_it_has_slots_for_and_refuses_the_rest(setting: Setting):
    report = await setting.actor.submit("s", [ONE, TWO, THREE])
    assert report.free == 0
    assert report.refused == [THREE.id]


async def test_an_empty_actor_takes_one_delivery_alone_and_nothing_beside_it(setting: Setting):
    first = await setting.actor.submit("s", [ONE], alone=True)
    assert (first.refused, first.used, first.free, first.alone) == ([], 1, 0, True)
    assert (await setting.actor.submit("s", [TWO])).refused == [TWO.id]
    await until(lambda: ONE.id in setting.work.gates)
    setting.work.gates[ONE.id].set()
    after = await setting.actor.completions("s")
    assert (after.finished, after.free, after.alone) == ([ONE.id], 2, False)


async def test_an_actor_that_holds_something_takes_nothing_alone(setting: Setting):
    await setting.actor.submit("other", [ONE])
    report = await setting.actor.submit("s", [TWO], alone=True)
    assert (report.refused, report.free, report.alone) == ([TWO.id], 1, False)


def big(size: int, number: int) -> Delivery:
    return delivery(b"x" * size, stream_seq=number)


async def test_it_refuses_what_exceeds_its_bytes_and_all_that_came_after(setting: Setting):
    one, two, small = big(600, 11), big(600, 12), big(1, 13)
    report = await setting.actor.submit("s", [one, two, small])
    assert report.refused == [two.id, small.id]
    assert (report.free, report.free_bytes) == (1, 400)
    assert (await setting.actor.submit("s", [small])).free_bytes == 399


async def test_the_bytes_of_a_settled_delivery_are_free_again(setting: Setting):
    one = big(600, 11)
    await setting.actor.submit("s", [one])
    await until(lambda: one.id in setting.work.gates)
    setting.work.gates[one.id].set()
    assert (await setting.actor.completions("s")).free_bytes == ROOM_BYTES


async def test_an_empty_actor_takes_what_is_bigger_than_its_bytes_and_nothing_beside_it(
    setting: Setting,
):
    huge, small = big(ROOM_BYTES + 1, 11), big(1, 12)
    assert (await setting.actor.submit("s", [small, huge])).refused == [huge.id]
    await until(lambda: small.id in setting.work.gates)
    setting.work.gates[small.id].set()
    await setting.actor.completions("s")
    report = await setting.actor.submit("s", [huge, small])
    assert report.refused == [small.id]
    assert report.free_bytes < 0


async def test_it_takes_no_more_than_the_model_has_room_for(setting: Setting):
    setting.model.room = 1
    assert (await setting.actor.hello("s")).free == 1
    report = await setting.actor.submit("s", [ONE, TWO])
    assert (report.free, report.refused) == (0, [TWO.id])


async def test_a_task_that_has_its_answer_leaves_room_for_another_until_it_asks_again(
    setting: Setting,
):
    setting.model.room = 1
    await setting.actor.submit("s", [ONE])
    await until(lambda: ONE.id in setting.work.askers)
    asker = setting.work.askers[ONE.id]
    with asker:
        pass
    assert (await setting.actor.completions("s")).free == 1
    with asker:
        assert (await setting.actor.look()).free == 0
    assert (await setting.actor.submit("s", [TWO])).refused == []
    # One rests, and one asks.
    assert (await setting.actor.look()).free == 0


async def test_a_task_that_has_ended_is_none_that_rests(setting: Setting):
    setting.model.room = 1
    await setting.actor.submit("s", [ONE])
    await until(lambda: ONE.id in setting.work.askers)
    with setting.work.askers[ONE.id]:
        pass
    setting.work.gates[ONE.id].set()
    await until(lambda: not setting.actor._held)
    assert (await setting.actor.submit("s", [TWO])).free == 0


async def test_an_actor_without_tasks_takes_one_however_little_room_there_is(setting: Setting):
    setting.model.room = 0
    assert (await setting.actor.hello("s")).free == 1
    assert (await setting.actor.submit("s", [ONE])).refused == []


async def test_more_and_less_room_is_told_at_once_but_only_when_it_counts(setting: Setting):
    assert (await setting.actor.hello("s")).free == 2
    setting.model.room = 50
    setting.model.changed()
    asked = asyncio.create_task(setting.actor.completions("s"))
    await asyncio.sleep(0)
    assert not asked.done()
    setting.model.room = 1
    setting.model.changed()
    assert (await asked).free == 1


async def test_the_model_servers_are_told_of_once_a_second(setting: Setting):
    first = await setting.actor.hello("s")
    assert [each.url for each in first.endpoints] == ["http://model"]
    assert (await setting.actor.look()).endpoints == []


async def test_what_is_held_already_is_not_refused_for_want_of_room(setting: Setting):
    await setting.actor.submit("s", [big(ROOM_BYTES, 11)])
    report = await setting.actor.submit("s", [big(ROOM_BYTES, 11)])
    assert (report.refused, report.free_bytes) == ([], 0)


async def test_the_same_delivery_twice_takes_one_slot(setting: Setting):
    await setting.actor.submit("s", [ONE])
    assert (await setting.actor.submit("s", [ONE])).free == 1


async def test_completions_wait_until_something_is_settled(setting: Setting):
    await setting.actor.submit("s", [ONE, TWO])
    news = asyncio.create_task(setting.actor.completions("s"))
    await asyncio.sleep(0)
    assert not news.done()
    setting.work.gates[ONE.id].set()
    report = await news
    assert report.finished == [ONE.id]
    assert report.free == 1


async def test_what_an_answer_told_that_was_lost_is_told_again(setting: Setting):
    await setting.actor.submit("s", [ONE, TWO])
    await setting.work.end(ONE)
    lost = await setting.actor.completions("s", heard=0)
    again = await setting.actor.completions("s", heard=0)
    assert lost.finished == again.finished == [ONE.id]
    await setting.work.end(TWO)
    assert (await setting.actor.completions("s", again.number)).finished == [TWO.id]


async def test_of_two_polls_the_one_that_is_heard_tells_all(setting: Setting):
    await setting.actor.submit("s", [ONE, TWO])
    polls = [asyncio.create_task(setting.actor.completions("s", heard=0)) for _ in "12"]
    await asyncio.sleep(0)
    await setting.work.end(ONE)
    given_up, heard = await asyncio.gather(*polls)
    assert given_up.finished == heard.finished == [ONE.id]
    await setting.work.end(TWO)
    later = await setting.actor.completions("s", heard.number)
    assert later.finished == [TWO.id]


async def test_completions_answer_several_times_before_the_actor_would_count_as_hung(
    setting: Setting,
):
    async with asyncio.timeout(setting.pool.hang_timeout_s * 0.7):
        assert (await setting.actor.completions("s")).finished == []
        assert (await setting.actor.completions("s")).finished == []


async def test_every_supervisor_hears_at_once_that_the_model_is_away_and_that_it_is_back(
    setting: Setting,
):
    for who in ("s", "other"):
        assert not (await setting.actor.hello(who)).model_away
    for away in (True, False):
        polls = [asyncio.create_task(setting.actor.completions(who)) for who in ("s", "other")]
        await asyncio.sleep(0)
        setting.say_away(away)
        reports = await asyncio.wait_for(asyncio.gather(*polls), 1)
        assert [(each.model_away, each.finished) for each in reports] == [(away, [])] * 2


async def test_what_is_settled_and_that_the_model_is_away_come_in_one_answer(setting: Setting):
    await setting.actor.submit("s", [ONE])
    await asyncio.sleep(0)
    away = True
    setting.say_away(away)
    setting.work.gates[ONE.id].set()
    await until(lambda: not setting.actor._held)
    report = await setting.actor.completions("s")
    assert (report.finished, report.model_away, report.free) == ([ONE.id], True, 2)


async def test_each_supervisor_hears_of_its_own_deliveries_only(setting: Setting):
    await setting.actor.submit("s", [ONE])
    await setting.actor.submit("other", [TWO])
    mine, theirs = (asyncio.create_task(setting.actor.completions(who)) for who in ("s", "other"))
    await asyncio.sleep(0)
    setting.work.gates[TWO.id].set()
    assert (await theirs).finished == [TWO.id]
    assert not mine.done()
    setting.work.gates[ONE.id].set()
    assert (await mine).finished == [ONE.id]


async def test_stopping_waits_until_what_tasks_have_left_is_cleared_away(setting: Setting):
    setting.work.clear.clear()
    await setting.actor.hello("s")
    stopping = asyncio.create_task(setting.actor.stop(0))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not setting.closed.is_set()
    setting.work.clear.set()
    await stopping
    assert setting.closed.is_set()


async def test_hello_tells_what_confines_commands_and_no_other_answer_does(setting: Setting):
    assert (await setting.actor.hello("s")).sandbox == "bwrap"
    assert (await setting.actor.submit("s", [ONE])).sandbox == ""


async def test_hello_tells_what_is_held_for_whom(setting: Setting):
    await setting.actor.submit("s", [ONE])
    await setting.actor.submit("other", [TWO])
    report = await setting.actor.hello("s")
    assert report.held == [ONE]
    assert report.free == 0


async def test_a_poll_left_behind_by_a_dead_supervisor_takes_no_news_from_its_successor(
    setting: Setting,
):
    await setting.actor.submit("s", [ONE])
    left_behind = asyncio.create_task(setting.actor.completions("s"))
    await asyncio.sleep(0)
    await setting.actor.hello("s")
    news = asyncio.create_task(setting.actor.completions("s"))
    await asyncio.sleep(0)
    setting.work.gates[ONE.id].set()
    assert (await news).finished == [ONE.id]
    assert not left_behind.done()
    left_behind.cancel()


async def test_a_settlement_that_raises_frees_its_slot(setting: Setting):
    setting.work.failures[ONE.id] = ValueError("a bug")
    await setting.actor.submit("s", [ONE])
    await asyncio.sleep(0)
    setting.work.gates[ONE.id].set()
    report = await setting.actor.completions("s")
    assert report.finished == [ONE.id]
    assert report.free == 2


@pytest.mark.parametrize("error", [PermissionDenied("denied"), StreamMissing("gone")])
async def test_an_actor_is_unable_from_a_task_that_nats_kept_from_ending_to_one_that_ends(
    setting: Setting, error: Exception
):
    setting.work.failures[ONE.id] = error
    for each, unable in ((ONE, True), (TWO, False)):
        await setting.actor.submit("s", [each])
        await asyncio.sleep(0)
        setting.work.gates[each.id].set()
        report = await setting.actor.completions("s")
        assert (report.finished, report.unable) == ([each.id], unable)


async def test_every_answer_tells_what_nats_does_not_do(setting: Setting):
    setting.trouble = "no answer"
    assert (await setting.actor.hello("s")).trouble == "no answer"
    assert (await setting.actor.submit("s", [ONE])).trouble == "no answer"
    setting.trouble = ""
    assert (await setting.actor.completions("s")).trouble == ""


async def test_what_runs_is_reported_as_in_progress_every_third_of_ack_wait(setting: Setting):
    await setting.actor.submit("s", [ONE, TWO])
    await asyncio.wait_for(setting.wire.beat.wait(), timeout=5)
    assert ("in_progress", [ONE, TWO]) in setting.wire.log


async def test_stopping_told_again_gives_back_once_the_shorter_time_is_over(setting: Setting):
    await setting.actor.submit("s", [ONE])
    await until(lambda: ONE.id in setting.work.gates)
    patient = asyncio.create_task(setting.actor.stop(60))
    await asyncio.sleep(0)
    await asyncio.wait_for(setting.actor.stop(0), 5)
    await patient
    assert setting.closed.is_set()
    assert setting.wire.verbs.count("in_progress") == 0


async def test_stopping_waits_for_what_runs_and_takes_nothing_more(setting: Setting):
    await setting.actor.submit("s", [ONE])
    await asyncio.sleep(0)
    stopping = asyncio.create_task(setting.actor.stop(60))
    await asyncio.sleep(0)
    assert (await setting.actor.submit("s", [TWO])).refused == [TWO.id]
    report = await setting.actor.look()
    assert (report.used, report.free, report.stopping) == (1, 0, True)
    assert not stopping.done()
    setting.work.gates[ONE.id].set()
    await stopping
    assert setting.closed.is_set()


async def test_stopping_gives_back_what_does_not_end_in_time(setting: Setting):
    await setting.actor.submit("s", [ONE])
    await asyncio.sleep(0)
    await setting.actor.stop(0.01)
    assert setting.work.gates[ONE.id].is_set()
    assert setting.closed.is_set()


async def test_it_builds_again_until_everything_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "BUILD_PAUSE_S", 0.0)
    setting = Setting()
    setting.build_troubles = [ServiceUnreachable("not yet"), ServiceUnreachable("not yet")]
    assert (await setting.actor.hello("s")).free == 2
    assert not setting.build_troubles
    await setting.actor.stop(0)


async def test_an_actor_that_never_stood_can_be_stopped():
    setting = Setting()
    setting.build_troubles = [ServiceUnreachable("not yet")] * 1_000
    await setting.actor.stop(0)
    assert not setting.closed.is_set()
