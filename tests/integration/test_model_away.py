"""A model server that goes away and comes back: tasks wait for it and lose no attempt."""

import asyncio
from contextlib import AsyncExitStack
from time import monotonic

import pytest
from support.nats import NatsServer
from support.ready import free_port
from support.service import RunningService, running_service
from support.until import until

from agent_actors.contract import TASK_STREAM, PoolStatus
from agent_actors.local.model_server.serving import running_model_server

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

TASKS = [f"task-{number}" for number in range(100)]


async def test_a_pool_pauses_while_its_model_is_away_and_goes_on_within_5_s_of_its_return(
    nats_server: NatsServer,
):
    port = free_port()
    async with AsyncExitStack() as first_life:
        model = await first_life.enter_async_context(running_model_server(port=port))
        async with running_service(nats_server, model.url, actors=2, slots=8) as running:
            await running.publish("before")
            await running.results(1)
            await first_life.aclose()
            await asyncio.gather(*(running.publish(task_id) for task_id in TASKS))
            await until(lambda: is_paused(running))
            delivered = await deliveries(running)
            began = monotonic()
            await until(lambda: monotonic() > began + 3)
            # One a second, some of them handed out anew; not every slot again and again.
            assert await deliveries(running) - delivered < 8

            async with running_model_server(port=port):
                back = monotonic()
                await running.results(2)
                assert monotonic() - back < 5
                await running.results(1 + len(TASKS))
                assert set(await running.announced()) == {"before", *TASKS}
            records = await asyncio.gather(*(running.record(task_id) for task_id in TASKS))
            assert {(record.state, record.failures) for record in records} == {("completed", 0)}


async def pool_of(running: RunningService) -> PoolStatus:
    (pool,) = (await asyncio.to_thread(running.service.status)).pools
    return pool


async def is_paused(running: RunningService) -> bool:
    pool = await pool_of(running)
    return (pool.state, pool.reason) == ("paused", "model unavailable")


async def deliveries(running: RunningService) -> int:
    """Return how often the pool's consumer has handed out anything."""
    info = await running.js.consumer_info(TASK_STREAM, "default")
    assert info.delivered is not None
    return info.delivered.consumer_seq
