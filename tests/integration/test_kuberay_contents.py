"""What the manifests for production say, run on Ray nodes: tasks flow, whatever node goes.

The NATS has the users and permissions that are shipped for it.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from support.kuberay import Contents, Generation
from support.permissions import TEST, GuardedAccounts, guarded_nats, shipped_accounts
from support.ray_cluster import can_make_nodes, room_for_a_cluster
from support.service import SeenService
from support.service_on_nodes import ACTOR, SUPERVISOR, ServiceOnNodes, tasks
from support.until import until

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.client import AgentClient
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [
    pytest.mark.ray,
    pytest.mark.nats,
    pytest.mark.skipif(not can_make_nodes(), reason="this system lets us have no namespaces"),
]

SLOW = Behaviour(latency=Latency(first_token_ms=1_500))
SLOWER = Behaviour(latency=Latency(first_token_ms=10_000))
# The pool of the manifest, small, and with as little patience as the tests have.
POOL = {"actors": 2, "slots": 8, "placement": "spread", "hang_timeout_s": 2.0, "ack_wait_s": 5.0}
# A worker has room for all there is, so that the other one can go.
WORKER_CPUS = 4
READY_WITHIN_S = 60.0


class ServiceInPods(ServiceOnNodes):
    """The service on the nodes of one generation."""

    def __init__(self, link: Connection, generation: Generation) -> None:
        super().__init__(link, generation.cluster)
        self.generation = generation

    async def attempts(self, tasks: list[str]) -> set[int]:
        return {(await self.record(task_id)).attempt for task_id in tasks}

    async def until_ready(self) -> None:
        await self._until_told("/readyz", HTTPStatus.OK, "")

    async def until_not_ready(self, reason: str) -> None:
        await self._until_told("/readyz", HTTPStatus.SERVICE_UNAVAILABLE, reason)

    async def until_ill(self, reason: str) -> None:
        await self._until_told("/healthz", HTTPStatus.SERVICE_UNAVAILABLE, reason)

    async def until_wanted(self, actors: int) -> None:
        await self._until_told("/status", HTTPStatus.OK, f"'wanted': {actors},")

    async def until_draining(self) -> None:
        """Return once the supervisor has let an actor go."""
        client = AgentClient(self.link)

        async def draining() -> bool:
            (pool,) = await client.pools()
            return "draining" in {actor.state for actor in pool.actors}

        await until(draining)

    async def _until_told(self, path: str, status: HTTPStatus, words: str) -> None:
        async def told() -> bool:
            code, said = await self.generation.get(path)
            return code == status and words in str(said)

        await until(told, timeout_s=READY_WITHIN_S)


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[GuardedAccounts]:
    async with guarded_nats(tmp_path, shipped_accounts()) as (accounts,):
        yield accounts


@pytest.fixture
async def model() -> AsyncIterator[RunningModelServer]:
    async with running_model_server(ModelServerSettings(behaviour=SLOW)) as model:
        yield model


@pytest.fixture
def model_url(model: RunningModelServer) -> str:
    return model.url


@asynccontextmanager
async def running(
    accounts: GuardedAccounts, model_url: str, *, first: int = 1
) -> AsyncIterator[ServiceInPods]:
    """Run a generation of two workers, as the overlay for production has it."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(room_for_a_cluster())
        generation = Generation(Contents.of("prod"), folder, first=first)
        stack.callback(generation.cluster.stop)
        generation.mount(
            {
                "nats/service.nk": accounts.seed("service"),
                "provisioner/provisioner.nk": accounts.seed("provisioner"),
                "vllm/api-key": "unused",
            }
        )
        configure(generation, accounts, model_url)
        await generation.provision()
        link = await connect(accounts.reach(TEST), name="test")
        stack.push_async_callback(link.close)
        await asyncio.to_thread(generation.start, workers=2, cpus=WORKER_CPUS)
        await generation.deploy()
        yield ServiceInPods(link, generation)


def configure(
    generation: Generation, accounts: GuardedAccounts, model_url: str, **pool: Any
) -> None:
    """Say where this test's servers are, and how big its pool is."""
    shipped = generation.contents.config
    nats = {key: value for key, value in shipped["nats"].items() if key != "tls"}
    generation.configure(
        nats={**nats, "url": accounts.server.url},
        vllm={**shipped["vllm"], "urls": [model_url]},
        streams={"replicas": 1},
        pools={"default": {**shipped["pools"]["default"], **POOL, **pool}},
    )


async def test_tasks_flow_readyz_tells_the_truth_and_a_drained_worker_loses_nothing(
    accounts: GuardedAccounts, model_url: str
):
    async with running(accounts, model_url) as service:
        generation = service.generation
        await service.until_ready()
        before, after = tasks("before"), tasks("after")
        await service.begin(before)

        leaving = service.supervisors_node
        head = asyncio.create_task(generation.pre_stop(generation.cluster.head))
        code, said = await generation.pre_stop(leaving)
        assert code == 0, said
        assert "Nothing of the service is on this node." in said
        assert leaving.pids(SUPERVISOR) == leaving.pids(ACTOR) == []
        leaving.kill()
        code, said = await head
        assert code == 0, said
        assert "The head stays" in said
        await service.begin(after)
        assert await service.announced() == dict.fromkeys(before + after, 1)
        assert await service.attempts(before + after) == {1}
        await service.until_ready()

        await accounts.server.pause()
        try:
            await service.until_not_ready("NATS")
            assert (await generation.get("/healthz"))[0] == HTTPStatus.OK
        finally:
            await accounts.server.resume()
        await service.until_ready()

        configure(generation, accounts, model_url, actors=1)
        await service.until_wanted(1)
        await AgentClient(service.link).drain("agent-actors", grace_s=0)
        await service.until_not_ready("drained")
        assert (await generation.get("/healthz"))[0] == HTTPStatus.OK
        assert (await generation.application())["status"] == "RUNNING"
        assert accounts.refusals() == set()


@pytest.mark.timeout(300)
async def test_nothing_is_lost_with_a_killed_worker_or_gcs_and_silence_is_told(
    accounts: GuardedAccounts, model_url: str
):
    async with running(accounts, model_url) as service:
        cluster = service.cluster
        await service.until_ready()
        killed, meanwhile, away = tasks("killed"), tasks("meanwhile"), tasks("away")
        await service.begin(killed)
        service.supervisors_node.kill()
        for task_id in meanwhile:
            await service.publish(task_id)
        assert await service.announced() == dict.fromkeys(killed + meanwhile, 1)
        await asyncio.to_thread(cluster.fill, 2, cpus=WORKER_CPUS)
        await service.until_ready()

        gcs = cluster.gcs
        gcs.kill()
        await service.begin(away)
        assert await service.announced() == dict.fromkeys(killed + meanwhile + away, 1)
        assert await service.attempts(away) == {1}
        gcs.start()
        await service.until_ready()

        (frozen,) = service.supervisors_node.pids(SUPERVISOR)
        os.kill(frozen, signal.SIGSTOP)
        await service.until_ill("the supervisor has not answered")
        os.kill(frozen, signal.SIGCONT)
        await service.until_ready()
        assert (await service.generation.get("/healthz"))[0] == HTTPStatus.OK


async def test_a_node_is_left_in_order_though_the_supervisor_is_lost_and_finds_no_place(
    accounts: GuardedAccounts, model: RunningModelServer
):
    async with running(accounts, model.url) as service:
        cluster = service.cluster
        await service.until_ready()
        model.behaviour = SLOWER
        last = tasks("last")
        await service.begin(last)
        leaving = service.other_node
        before_stop = asyncio.create_task(service.generation.pre_stop(leaving))
        await service.until_draining()
        service.supervisors_node.kill()
        code, said = await before_stop
        assert code == 0, said
        assert leaving.pids(ACTOR) == []
        leaving.kill()

        model.behaviour = SLOW
        await asyncio.to_thread(cluster.fill, 2, cpus=WORKER_CPUS)
        await service.until_ready()
        assert await service.announced() == dict.fromkeys(last, 1)
        assert await service.attempts(last) == {1, 2}


@pytest.mark.timeout(300)
async def test_a_second_generation_takes_over_under_load_and_the_first_one_ends(
    accounts: GuardedAccounts, model_url: str
):
    async with running(accounts, model_url) as blue:
        await blue.until_ready()
        load = Load(blue)
        async with running(accounts, model_url, first=100) as green:
            await green.until_ready()
            old = blue.cluster
            ended = await asyncio.gather(*map(blue.generation.end, [*old.nodes, old.head]))
            for code, said in ended:
                assert code == 0, said
            published = await load.stop(after=20)
            assert await green.announced() == dict.fromkeys(published, 1)
            assert await green.attempts(published) == {1}
            await green.until_ready()


class Load:
    """Tasks that are published one after the other, for as long as somebody wants."""

    def __init__(self, service: SeenService) -> None:
        self._service = service
        self._published: list[str] = []
        self._is_enough = asyncio.Event()
        self._publishing = asyncio.create_task(self._publish())

    async def stop(self, *, after: int) -> list[str]:
        """Return what has been published, once there are so many more."""
        count = len(self._published) + after
        await until(lambda: len(self._published) >= count or self._publishing.done())
        self._is_enough.set()
        await self._publishing
        return self._published

    async def _publish(self) -> None:
        while not self._is_enough.is_set():
            task_id = f"load-{len(self._published)}"
            await self._service.publish(task_id)
            self._published.append(task_id)
            await asyncio.sleep(0.1)
