"""What the manifests for production say, run on Ray nodes: tasks flow, whatever node goes."""

import asyncio
import json
import secrets as random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import nkeys
import pytest
from support.kuberay import Contents, Generation
from support.nats import NatsServer, StartNats
from support.ray_cluster import RayCluster, RayNode, can_make_nodes, room_for_a_cluster
from support.service import SeenService
from support.until import until

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.config import NatsConfig
from agent_actors.config_types import Secret
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [
    pytest.mark.ray,
    pytest.mark.nats,
    pytest.mark.skipif(not can_make_nodes(), reason="this system lets us have no namespaces"),
]

SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=1_500)))
# The pool of the manifest, small, and with as little patience as the tests have.
POOL = {"actors": 2, "slots": 8, "placement": "spread", "hang_timeout_s": 2.0}
SUPERVISOR, ACTOR = "ray::Supervisor", "ray::AgentActor"
# A worker has room for all there is, so that one of them can go.
WORKER_CPUS = 4


class ServiceInPods(SeenService):
    """The service on the nodes of one generation."""

    def __init__(self, seen: Connection, generation: Generation) -> None:
        super().__init__(seen)
        self.generation = generation

    @property
    def supervisors_node(self) -> RayNode:
        (node,) = (n for n in self.generation.cluster.nodes if n.pids(SUPERVISOR))
        return node

    async def begin(self, tasks: list[str]) -> None:
        """Publish tasks, and return once all of them have begun."""
        starts = await self.link.nc.subscribe("agent.events.*.started")
        for task_id in tasks:
            await self.publish(task_id)
        for _ in tasks:
            await starts.next_msg(timeout=20)
        await starts.unsubscribe()

    async def attempts(self, tasks: list[str]) -> set[int]:
        return {(await self.record(task_id)).attempt for task_id in tasks}

    async def is_ready(self) -> bool:
        status, _ = await self.generation.get("/readyz")
        return status == HTTPStatus.OK

    async def says_not_ready(self) -> bool:
        status, _ = await self.generation.get("/readyz")
        return status == HTTPStatus.SERVICE_UNAVAILABLE


@asynccontextmanager
async def running(seeds: Path, server: NatsServer, model_url: str) -> AsyncIterator[ServiceInPods]:
    """Run one generation with two workers, as the overlay for production has it."""
    contents = Contents.of("prod")
    secrets = {
        "nats/service.nk": (seeds / "service.nk").read_text(),
        "provisioner/provisioner.nk": (seeds / "provisioner.nk").read_text(),
        "vllm/api-key": "none\n",
    }
    with room_for_a_cluster() as folder:
        cluster = RayCluster(folder)
        generation = Generation(cluster, contents, folder / "mounted")
        generation.mount(secrets)
        generation.configure(
            nats={k: v for k, v in contents.config["nats"].items() if k != "tls"}
            | {"url": server.url},
            vllm=contents.config["vllm"] | {"urls": [model_url]},
            streams={"replicas": server.replicas},
            pools={"default": contents.config["pools"]["default"] | POOL},
        )
        await generation.provision()
        link = await connect(
            NatsConfig(url=server.url, user="test", password=Secret("test")), name="test"
        )
        try:
            await asyncio.to_thread(generation.start, workers=2, cpus=WORKER_CPUS)
            await generation.deploy()
            yield ServiceInPods(link, generation)
        finally:
            await link.close()
            cluster.stop()


def write_key(file: Path) -> str:
    seed = nkeys.encode_seed(random.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    file.write_bytes(seed + b"\n")
    return nkeys.from_seed(bytearray(seed)).public_key.decode()


def tasks(name: str, count: int = 8) -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


@pytest.fixture
async def model_url() -> AsyncIterator[str]:
    async with running_model_server(SLOW) as model:
        yield model.url


async def test_tasks_flow_readyz_tells_the_truth_and_a_drained_worker_loses_nothing(
    start_nats: StartNats, tmp_path: Path, model_url: str
):
    users = [{"nkey": write_key(tmp_path / f"{name}.nk")} for name in ("service", "provisioner")]
    users.append({"user": "test", "password": "test"})
    nats_server = await start_nats(f"authorization: {json.dumps({'users': users})}")
    async with running(tmp_path, nats_server, model_url) as service:
        generation = service.generation
        await until(service.is_ready, timeout_s=30)
        status, told = await generation.get("/status")
        assert (status, [pool["name"] for pool in told["pools"]]) == (HTTPStatus.OK, ["default"])

        before, after = tasks("before"), tasks("after")
        await service.begin(before)
        leaving = service.supervisors_node
        head = asyncio.create_task(generation.pre_stop(generation.cluster.head))
        code, said = await generation.pre_stop(leaving)
        assert code == 0, said
        assert "Nothing of the service is on this node." in said
        assert leaving.pids(SUPERVISOR) == leaving.pids(ACTOR) == []
        leaving.kill()
        assert (await head)[0] == 0
        await service.begin(after)
        assert await service.announced() == dict.fromkeys(before + after, 1)
        assert await service.attempts(before + after) == {1}
        await until(service.is_ready, timeout_s=30)

        await nats_server.pause()
        try:
            await until(service.says_not_ready)
            assert (await generation.get("/healthz"))[0] == HTTPStatus.OK
        finally:
            await nats_server.resume()
        await until(service.is_ready)
