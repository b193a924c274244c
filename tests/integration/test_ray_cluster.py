"""A Ray cluster that loses its GCS or a node, or lacks memory or room: each task ends once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import chain

import pytest
from support.nats import NatsServer
from support.ray_cluster import RayCluster, can_make_nodes, running_cluster, serving
from support.service import SeenService
from support.service_on_nodes import ACTOR, SUPERVISOR, ServiceOnNodes, tasks
from support.until import until

from agent_actors.client import AgentClient
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.ray,
    pytest.mark.nats,
    pytest.mark.skipif(not can_make_nodes(), reason="this system lets us have no namespaces"),
]

# A node has room for one actor, and for the supervisor beside it.
NODE_CPUS, ACTOR_CPUS = 3, 2
SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=2_000)))
# Longer than a test may take: nobody can wait for JetStream to hand a task out again.
NEVER_S = 100.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One for all tests of this module."""
    with running_cluster() as cluster:
        yield cluster


class TwoActors(ServiceOnNodes):
    """The service with an actor on each of two nodes."""

    def __init__(self, seen: SeenService, client: AgentClient, cluster: RayCluster) -> None:
        super().__init__(seen.link, cluster)
        self._client = client

    async def until_all_is_up(self) -> None:
        """Return once the supervisor says that both actors work."""

        async def up() -> bool:
            (pool,) = await self._client.pools()
            return [actor.state for actor in pool.actors] == ["running", "running"]

        await until(up, timeout_s=60)
        assert [len(node.pids(ACTOR)) for node in self.cluster.nodes] == [1, 1]

    async def assert_each_ended_once(self, *rounds: list[str]) -> None:
        assert await self.announced() == dict.fromkeys(chain(*rounds), 1)

    async def assert_one_actor_was_lost(self, began: dict[str, str]) -> None:
        """All that one of the two had begun has run twice, and nothing else."""
        attempts = {agent_id: set[int]() for agent_id in began.values()}
        for task_id, agent_id in began.items():
            attempts[agent_id].add((await self.record(task_id)).attempt)
        assert sorted(attempts.values(), key=max) == [{1}, {2}]


@asynccontextmanager
async def running(
    cluster: RayCluster, server: NatsServer, *, ack_wait_s: float = NEVER_S
) -> AsyncIterator[TwoActors]:
    await asyncio.to_thread(cluster.fill, 2, cpus=NODE_CPUS)
    pool = {"actors": 2, "slots": 8, "ack_wait_s": ack_wait_s, "hang_timeout_s": 2.0}
    async with (
        running_model_server(SLOW) as model,
        serving(cluster, server, model.url, num_cpus=ACTOR_CPUS, **pool) as seen,
        AgentClient.connect(server.url) as client,
    ):
        service = TwoActors(seen, client, cluster)
        await service.until_all_is_up()
        yield service


async def test_tasks_go_on_without_the_gcs_and_an_actor_that_died_comes_back_with_it(
    cluster: RayCluster, nats_server: NatsServer
):
    async with running(cluster, nats_server) as service:
        before, after = tasks("before", 4), tasks("after", 4)
        began = await service.begin(before)
        gcs = cluster.gcs
        gcs.kill()
        began |= await service.begin(after)
        (actor,) = service.supervisors_node.pids(ACTOR)
        os.kill(actor, signal.SIGKILL)
        await service.results(8)
        gcs.start()
        await service.until_all_is_up()
        await service.assert_each_ended_once(before, after)
        await service.assert_one_actor_was_lost(began)


async def test_tasks_run_elsewhere_when_an_actor_hangs_on_another_node_or_all_of_it_is_lost(
    cluster: RayCluster, nats_server: NatsServer
):
    """The supervisor sees no process there; it has Ray, and its own patience."""
    async with running(cluster, nats_server) as service:
        hung, lost = tasks("hung"), tasks("lost")
        began = await service.begin(hung)
        (actor,) = service.other_node.pids(ACTOR)
        os.kill(actor, signal.SIGSTOP)
        await service.results(8)
        await service.until_all_is_up()
        assert service.other_node.pids(ACTOR) != [actor]
        await service.assert_one_actor_was_lost(began)

        began = await service.begin(lost)
        service.other_node.kill()
        await service.results(16)
        await asyncio.to_thread(cluster.fill, 2, cpus=NODE_CPUS)
        await service.until_all_is_up()
        await service.assert_one_actor_was_lost(began)
        await service.assert_each_ended_once(hung, lost)


async def test_a_supervisor_comes_back_that_ray_ended_for_memory_or_whose_node_was_given_up(
    cluster: RayCluster, nats_server: NatsServer
):
    """Its actor goes with it. What that had, JetStream hands out again after `ack_wait`."""
    async with running(cluster, nats_server, ack_wait_s=3.0) as service:
        ended, given_up = tasks("ended"), tasks("given-up")
        await service.begin(ended)
        short = service.supervisors_node
        (before,) = short.pids(SUPERVISOR)
        with short.short_of_memory():
            await until(lambda: before not in short.pids(SUPERVISOR))
        await service.results(8)
        await service.until_all_is_up()

        await service.begin(given_up)
        frozen, other = service.supervisors_node, service.other_node
        frozen.signal(signal.SIGSTOP)
        try:
            await until(lambda: bool(other.pids(SUPERVISOR)))
            await service.results(16)
        finally:
            frozen.signal(signal.SIGCONT)
        # Told that it was given up, the node ends what it still runs, the other supervisor too.
        await until(lambda: not frozen.pids("ray::"))
        frozen.kill()
        await service.assert_each_ended_once(ended, given_up)
