"""Two supervisors at once, as in an upgrade or a split brain: still one result each."""

import asyncio

import pytest
import ray
from support.nats import NatsServer
from support.rival import build_rival
from support.service import RunningService, running_service

from agent_actors.adapters.ray_runtime import RemoteSupervisor
from agent_actors.assembly import end_process
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=100)))
TASKS = [f"task-{number}" for number in range(100)]


async def test_two_services_on_one_consumer_share_its_tasks(nats_server: NatsServer):
    async with (
        running_model_server(SLOW) as model,
        running_service(nats_server, model.url, actors=1, slots=4) as one,
        running_service(nats_server, model.url, actors=1, slots=4) as other,
    ):
        await assert_each_task_has_one_result(one)
        assert await settled(one) > 0
        assert await settled(other) > 0


async def test_two_supervisors_of_the_same_actors_hand_out_each_task_once(nats_server: NatsServer):
    async with (
        running_model_server(SLOW) as model,
        running_service(nats_server, model.url, actors=2, slots=4) as running,
    ):
        rival = RemoteSupervisor.remote(
            running.config, "rival", build_rival, end_process, end_process
        )
        try:
            await rival.ready.remote()
            await assert_each_task_has_one_result(running)
        finally:
            ray.kill(rival)


async def assert_each_task_has_one_result(running: RunningService) -> None:
    for task_id in TASKS:
        await running.publish(task_id)
    await running.results(len(TASKS))
    assert await running.announced() == dict.fromkeys(TASKS, 1)
    records = [await running.record(task_id) for task_id in TASKS]
    assert {(record.state, record.attempt) for record in records} == {("completed", 1)}


async def settled(running: RunningService) -> int:
    (pool,) = (await asyncio.to_thread(running.service.status)).pools
    return pool.settled
