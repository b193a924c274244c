"""Where actors are: spread over three nodes, fewer when one is lost, and waiting for room."""

import asyncio
from collections.abc import Iterator

import pytest
from support.nats import NatsServer
from support.ray_cluster import RayCluster, RayNode, can_make_nodes, running_cluster, serving
from support.until import until

from agent_actors.client import AgentClient
from agent_actors.contract import AgentTask, PoolStatus
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.ray,
    pytest.mark.nats,
    pytest.mark.skipif(not can_make_nodes(), reason="this system lets us have no namespaces"),
]

SUPERVISOR, ACTOR = "ray::Supervisor", "ray::AgentActor"
NODE_CPUS = 3
MODEL = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=500)))
POOL = {"actors": 3, "slots": 4, "ack_wait_s": 5.0, "hang_timeout_s": 2.0}


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    with running_cluster() as cluster:
        yield cluster


async def test_actors_are_spread_and_those_without_room_are_told_and_wait_for_a_node(
    cluster: RayCluster, nats_server: NatsServer
):
    await asyncio.to_thread(cluster.fill, 3, cpus=NODE_CPUS)
    async with (
        running_model_server(MODEL) as model,
        serving(cluster, nats_server, model.url, num_cpus=1, **POOL) as seen,
        AgentClient.connect(nats_server.url) as client,
    ):
        await until(lambda: has(client, running=3, wanted=3))
        assert actors_on(cluster.nodes) == [1, 1, 1]

        # A third of what runs is all that the loss of a node takes along.
        tasks = [f"task-{number}" for number in range(12)]
        for task_id in tasks:
            await client.submit(AgentTask(task_id=task_id, task_description="do it"))
        await until(lambda: all_slots_in_use(client))
        lost = next(node for node in cluster.nodes if not node.pids(SUPERVISOR))
        lost.kill()
        attempts = [(await client.result(task_id, timeout_s=60)).attempt for task_id in tasks]
        assert attempts.count(1) >= 8
        await until(lambda: has(client, running=3, wanted=3), timeout_s=60)

        # The two nodes have room for five, beside the supervisor.
        await client.scale((await client.service_status()).cluster, "default", 6)
        await until(lambda: is_short_of_room(client), timeout_s=60)
        task = await client.submit(AgentTask(task_id="meanwhile", task_description="do it"))
        assert (await task.result(timeout_s=30)).success
        await asyncio.to_thread(cluster.fill, 3, cpus=NODE_CPUS)
        await until(lambda: has(client, running=6, wanted=6), timeout_s=60)
        assert await seen.announced() == dict.fromkeys([*tasks, "meanwhile"], 1)


async def pool_of(client: AgentClient) -> PoolStatus:
    (pool,) = await client.pools()
    return pool


async def has(client: AgentClient, *, running: int, wanted: int) -> bool:
    pool = await pool_of(client)
    return (pool.running, pool.wanted, len(pool.actors)) == (running, wanted, wanted)


async def all_slots_in_use(client: AgentClient) -> bool:
    pool = await pool_of(client)
    return pool.slots_used == pool.slots == 12


async def is_short_of_room(client: AgentClient) -> bool:
    pool = await pool_of(client)
    waiting = [actor.agent_id for actor in pool.actors if actor.state == "starting"]
    told = f"no room for {', '.join(waiting)}: each asks for CPU 1 (the cluster has 6, 0.9 free)"
    return (pool.running, pool.starting, pool.reason) == (5, 1, told)


def actors_on(nodes: list[RayNode]) -> list[int]:
    return [len(node.pids(ACTOR)) for node in nodes]
