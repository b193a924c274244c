"""What a running service uses under load stays within bounds: memory, and open descriptors."""

import asyncio
from time import monotonic

import msgspec
import pytest
from support.model_client import COMPLETION
from support.nats import NatsServer
from support.processes import descriptors, forget_peak, peak_bytes, pids_named
from support.raw_http import Exchange, raw_server, response
from support.service import RunningService, running_service
from support.until import until

from agent_actors.config import NatsConfig

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

MEGABYTE = 1_000_000
BIG_TEXT = "x" * 900_000


class Model:
    """Answers when it is told to, and closes each connection then."""

    def __init__(self, content: str = "Done.") -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        answer = msgspec.json.decode(COMPLETION)
        answer["choices"][0]["message"]["content"] = content
        self._answer = response(msgspec.json.encode(answer), Connection="close")

    async def __call__(self, exchange: Exchange) -> None:
        self.asked += 1
        await self.may_answer.wait()
        await exchange.send(self._answer)
        exchange.close()


class Memory:
    """What a process takes more than when this was made."""

    def __init__(self, title: str) -> None:
        (self._pid,) = pids_named(title)
        self._before = forget_peak(self._pid)

    @property
    def grown_mb(self) -> float:
        """By how much its peak is higher."""
        return (peak_bytes(self._pid) - self._before) / MEGABYTE


async def warm_up(running: RunningService, model: Model) -> None:
    model.may_answer.set()
    await running.publish("warm-up", BIG_TEXT)
    await running.results(1)
    model.may_answer.clear()
    model.asked = 0


async def one_waits_behind(running: RunningService, at_work: int) -> bool:
    """Tell whether one delivery, and not more, has been pulled beside those at work."""
    (pool,) = (await asyncio.to_thread(running.service.status)).pools
    return (pool.slots_used, pool.unacked) == (at_work, at_work + 1)


async def test_big_tasks_wait_in_nats_for_a_slow_model_and_not_in_memory(nats_server: NatsServer):
    model = Model()
    tasks = [f"task-{number}" for number in range(48)]
    async with (
        raw_server(model) as server,
        running_service(
            nats_server, server.url, actors=1, slots=64, max_in_flight_bytes=8 * MEGABYTE
        ) as running,
    ):
        await warm_up(running, model)
        actor, supervisor = Memory("ray::AgentActor"), Memory("ray::Supervisor")
        for task_id in tasks:
            await running.publish(task_id, BIG_TEXT)
        await until(lambda: model.asked == 8)
        await until(lambda: one_waits_behind(running, 8))
        # As many at once would take 210 MB in the actor, and 110 MB in the supervisor.
        assert actor.grown_mb < 70
        assert supervisor.grown_mb < 40
        model.may_answer.set()
        assert set(await running.announced()) == {"warm-up", *tasks}
        assert actor.grown_mb < 100
        assert supervisor.grown_mb < 80


async def test_big_results_wait_for_a_frozen_nats_and_their_copies_do_not_pile_up(
    nats_server: NatsServer,
):
    model = Model(BIG_TEXT)
    tasks = [f"task-{number}" for number in range(32)]
    async with (
        raw_server(model) as server,
        running_service(
            nats_server,
            server.url,
            actors=1,
            slots=len(tasks),
            nats=NatsConfig(url=nats_server.url, request_timeout_s=0.3),
        ) as running,
    ):
        await warm_up(running, model)
        actor = Memory("ray::AgentActor")
        for task_id in tasks:
            await running.publish(task_id)
        await until(lambda: model.asked == len(tasks))
        await nats_server.pause()
        model.may_answer.set()
        frozen_at = monotonic()
        await until(lambda: monotonic() > frozen_at + 5)
        await nats_server.resume()
        assert await running.announced() == dict.fromkeys(["warm-up", *tasks], 1)
        # With a copy of each in the buffer for every try it would be 400 MB.
        assert actor.grown_mb < 170


async def test_tasks_and_lost_connections_leave_no_descriptor_open(nats_server: NatsServer):
    model = Model()
    model.may_answer.set()
    rounds, at_a_time = 6, 32
    async with (
        raw_server(model) as server,
        running_service(nats_server, server.url, actors=1, slots=at_a_time) as running,
    ):

        async def round_trip(number: int) -> None:
            await nats_server.restart()
            ids = [f"task-{number}-{each}" for each in range(at_a_time)]
            await asyncio.gather(*(running.publish(task_id) for task_id in ids))
            await running.results((number + 1) * at_a_time)
            await running.until_queue_is_empty()

        def open_now() -> list[int]:
            return [descriptors(pid) for pid in pids]

        pids = pids_named("ray::AgentActor") + pids_named("ray::Supervisor")
        await round_trip(0)
        before = open_now()
        for number in range(1, rounds):
            await round_trip(number)
        await until(lambda: open_now() <= before, timeout_s=10)
