"""Actors that die or hang while they work: found soon, replaced, and their tasks run elsewhere."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest
from support.crashing import hanging_actor
from support.nats import NatsServer
from support.service import RunningService, running_service
from support.until import until

from agent_actors.contract import ActorStatus, TaskEvent
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

# Longer than a test may take: nobody can wait for JetStream to hand a task out again.
ACK_WAIT_S = 100
HANG_TIMEOUT_S = 2.0
SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=4_000)))


class Starts:
    """Which actor began which task, as the events tell it."""

    def __init__(self, subscription) -> None:
        self._subscription = subscription

    @classmethod
    async def of(cls, running: RunningService) -> "Starts":
        return cls(await running.link.nc.subscribe("agent.events.*.started"))

    async def next(self, within_s: float = 20.0) -> TaskEvent:
        message = await self._subscription.next_msg(timeout=within_s)
        return msgspec.json.decode(message.data, type=TaskEvent)


@pytest.mark.parametrize(
    ("fault", "within_s"),
    [(signal.SIGKILL, 3.0), (signal.SIGSTOP, HANG_TIMEOUT_S + 3.0)],
    ids=["killed", "frozen"],
)
async def test_the_tasks_of_a_lost_actor_run_elsewhere_soon(
    fault: signal.Signals, within_s: float, nats_server: NatsServer
):
    async with (
        running_model_server(SLOW) as model,
        running_service(
            nats_server,
            model.url,
            actors=2,
            slots=8,
            ack_wait_s=ACK_WAIT_S,
            hang_timeout_s=HANG_TIMEOUT_S,
        ) as running,
    ):
        starts = await Starts.of(running)
        for number in range(8):
            await running.publish(f"task-{number}")
        first = [await starts.next() for _ in range(8)]
        lost = await actor(running, first[0].agent_id)
        held = {each.task_id for each in first if each.agent_id == lost.agent_id}
        os.kill(lost.pid, fault)
        async with asyncio.timeout(within_s):
            again = [await starts.next() for _ in held]
        assert {each.task_id for each in again} == held
        assert await running.announced() == dict.fromkeys((f"task-{n}" for n in range(8)), 1)
        await until_replaced(running, lost)


async def test_an_actor_whose_event_loop_hangs_is_replaced_and_its_tasks_end_once(
    nats_server: NatsServer, tmp_path: Path
):
    async with (
        running_model_server() as model,
        running_service(
            nats_server,
            model.url,
            build_actor=hanging_actor("blocks", tmp_path / "hung"),
            actors=1,
            slots=4,
            ack_wait_s=ACK_WAIT_S,
            hang_timeout_s=HANG_TIMEOUT_S,
        ) as running,
    ):
        before = await actor(running, "default-0")
        tasks = ["beside-1", "blocks", "beside-2"]
        for task_id in tasks:
            await running.publish(task_id)
        assert await running.announced() == dict.fromkeys(tasks, 1)
        await until_replaced(running, before)


async def actor(running: RunningService, agent_id: str) -> ActorStatus:
    (pool,) = (await asyncio.to_thread(running.service.status)).pools
    return next(each for each in pool.actors if each.agent_id == agent_id)


async def until_replaced(running: RunningService, lost: ActorStatus) -> None:
    async def replaced() -> bool:
        now = await actor(running, lost.agent_id)
        return now.state == "running" and now.pid != lost.pid

    await until(replaced)
    with pytest.raises(ProcessLookupError):
        os.kill(lost.pid, 0)
