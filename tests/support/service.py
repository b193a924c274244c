"""The whole service for a test: real NATS, real Ray, a model server over HTTP."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import nats
import pytest
from msgspec.structs import replace
from nats.js.errors import NotFoundError
from support.nats import NatsServer
from support.until import until

from agent_actors.actor import Build
from agent_actors.adapters import ray_runtime
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.adapters.ray_runtime import BuildSupervisor
from agent_actors.assembly import build_agent_actor
from agent_actors.config import (
    Config,
    NatsConfig,
    PoolConfig,
    RayConfig,
    Resources,
    StreamsConfig,
    VllmConfig,
)
from agent_actors.contract import (
    DEADLETTER_STREAM,
    RESPONSE_STREAM,
    TASK_STREAM,
    AgentResult,
    task_key,
    task_subject,
)
from agent_actors.ledger import TaskRecord
from agent_actors.ports import Stored

# Ray has room for as many actors as this asks for.
ROOMY = Config(pools={"tests": PoolConfig(actors=64, resources=Resources(num_cpus=1))})


# A secret in the environment of every process of Ray: nothing of it may ever come to light.
CANARY_VARIABLE = "AGENT_ACTORS_TEST_SECRET"
CANARY = "canary-8c1f2e"


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for the session, in a folder and a home of its own; tests differ by namespace."""
    with (
        tempfile.TemporaryDirectory(prefix="aa-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("HOME", folder)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv(CANARY_VARIABLE, CANARY)
        ray_runtime.start_local_ray(ROOMY, temp_dir=f"{folder}/r", log_to_driver=False)
        yield
        ray_runtime.disconnect_ray()


QUICK = VllmConfig(retry_base_s=0.02, probe_interval_s=0.1)


class SeenService:
    """A service that is ready, as its users see it: through NATS."""

    def __init__(self, link: Connection) -> None:
        self.link = link
        self.js = link.js
        self._ledger = JetStreamLedger(link)

    async def publish(
        self, task_id: str, description: str | None = None, *, role: str = "dev", **more: Any
    ) -> None:
        description = f"work on {task_id}" if description is None else description
        task = {"task_id": task_id, "task_description": description, **more}
        await self.publish_raw(msgspec.json.encode(task), task_subject(role))

    async def publish_raw(self, payload: bytes, subject: str = "agent.tasks.dev") -> None:
        await self.link.publish_stored(subject, payload)

    async def results(self, count: int, *, timeout_s: float = 60.0) -> list[AgentResult]:
        """Return the first `count` results, in the order of the stream."""
        async with asyncio.timeout(timeout_s):
            subscription = await self.js.subscribe("agent.response.*", ordered_consumer=True)
            messages = [await subscription.next_msg(timeout=timeout_s) for _ in range(count)]
            await subscription.unsubscribe()
        return [msgspec.json.decode(each.data, type=AgentResult) for each in messages]

    async def stored(self, task_id: str) -> Stored:
        """Return the task's record as the ledger has it, if it has any."""
        return await self._ledger.read(task_key(task_id))

    async def record(self, task_id: str) -> TaskRecord:
        stored = await self.stored(task_id)
        assert stored.record is not None, f"{task_id} is not in the ledger"
        return stored.record

    async def until_queue_is_empty(self, *, timeout_s: float = 30.0) -> None:
        """Return once every task message is acked, which is after its result is published."""

        async def empty() -> bool:
            return (await self.js.stream_info(TASK_STREAM)).state.messages == 0

        await until(empty, timeout_s=timeout_s)

    async def announced(self) -> Counter[str]:
        """Return how often each task's result lies in the stream, once the queue is empty."""
        await self.until_queue_is_empty()
        count = (await self.js.stream_info(RESPONSE_STREAM)).state.messages
        return Counter(result.task_id for result in await self.results(count))

    async def dead_letters(self) -> list[nats.js.api.RawStreamMsg]:
        last = (await self.js.stream_info(DEADLETTER_STREAM)).state.last_seq
        letters = []
        for seq in range(1, last + 1):
            try:
                letters.append(await self.js.get_msg(DEADLETTER_STREAM, seq))
            except NotFoundError:
                continue
        return letters


class RunningService(SeenService):
    """A service on this session's Ray, with a handle on its supervisor."""

    def __init__(self, config: Config, service: ray_runtime.Service, link: Connection) -> None:
        super().__init__(link)
        self.config = config
        self.service = service


@asynccontextmanager
async def running_service(
    server: NatsServer,
    model_url: str,
    *,
    build_actor: Build = build_agent_actor,
    nats: NatsConfig | None = None,
    vllm: VllmConfig = QUICK,
    build: BuildSupervisor | None = None,
    provisions: bool = True,
    **pool: Any,
) -> AsyncIterator[RunningService]:
    """Run one pool, `default`, on this NATS and model; it is stopped without grace at the end.

    `nats` is how the service gets to that NATS, where that differs from how the test does, and
    `provisions` whether the service makes consumers.
    """
    config = Config(
        nats=nats or NatsConfig(url=server.url),
        vllm=replace(vllm, urls=(model_url,)),
        streams=StreamsConfig(replicas=server.replicas),
        ray=RayConfig(namespace=f"test-{uuid4().hex[:8]}"),
        pools={"default": PoolConfig(**pool)},
    )
    link = await connect(NatsConfig(url=server.url), name="test")
    await provision(link, config)
    service = ray_runtime.start_service(
        config, build_actor=build_actor, build=build, provisions=provisions
    )
    try:
        await asyncio.to_thread(service.wait_ready, 60)
        yield RunningService(config, service, link)
    finally:
        await asyncio.to_thread(service.stop, 0)
        await link.close()
