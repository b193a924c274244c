"""`agent-actors serve` as a process, with a configuration file that a test edits."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import ray
import yaml
from support.nats import NatsServer
from support.until import until

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.client import AgentClient
from agent_actors.config import NatsConfig
from agent_actors.contract import AgentResult, PoolStatus, ServiceStatus
from agent_actors.errors import PublishFailed, ServiceUnreachable

# A supervisor and several actors start meanwhile, one after the other.
SETTLED_WITHIN_S = 60.0
RESULT_WITHIN_S = 30.0
ASK_AGAIN_S = 0.1


class Serving:
    """A `serve` that is ready, its configuration file, and a client."""

    def __init__(self, file: Path, settings: dict[str, Any], link: Connection) -> None:
        self.file = file
        self.settings = settings
        self.client = AgentClient(link)
        self.process: Process
        self._link = link

    @property
    def cluster(self) -> str:
        return self.settings["ray"]["namespace"]

    def edit(self, **sections: Any) -> None:
        """Write the file anew, with some sections in place of those before."""
        self.settings |= sections
        self.write(yaml.safe_dump(self.settings))

    def write(self, text: str) -> None:
        """Put other contents in the file's place, as an editor does."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)

    async def status(self) -> ServiceStatus:
        """Return what the service says, as soon as it does: its supervisor may just be replaced."""
        async with asyncio.timeout(SETTLED_WITHIN_S):
            while True:
                with suppress(PublishFailed, ServiceUnreachable):
                    return await self.client.service_status()
                await asyncio.sleep(ASK_AGAIN_S)

    async def pool(self, name: str = "default") -> PoolStatus:
        return next(pool for pool in (await self.status()).pools if pool.name == name)

    async def results(self, task_ids: Collection[str]) -> dict[str, AgentResult]:
        """Return the one result of each of these tasks, in the order in which they ended."""
        found: dict[str, AgentResult] = {}
        subscription = await self._link.js.subscribe("agent.response.*", ordered_consumer=True)
        while not found.keys() >= set(task_ids):
            message = await subscription.next_msg(timeout=RESULT_WITHIN_S)
            result = msgspec.json.decode(message.data, type=AgentResult)
            assert result.task_id not in found, "announced twice"
            found[result.task_id] = result
        await subscription.unsubscribe()
        return {task_id: result for task_id, result in found.items() if task_id in task_ids}

    async def until_sized(self, count: int, name: str = "default") -> PoolStatus:
        """Return the pool once it has so many actors, and all of them work and are up to date."""

        async def sized() -> bool:
            pools = [pool for pool in (await self.status()).pools if pool.name == name]
            return bool(pools) and _is_settled(pools[0], count)

        await until(sized, timeout_s=SETTLED_WITHIN_S)
        return await self.pool(name)

    async def command(self, *args: str) -> tuple[int, str]:
        """Run a command of the command line with this configuration; return its code and words."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent_actors", *args, "--config", str(self.file)),
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()


def _is_settled(pool: PoolStatus, count: int) -> bool:
    working = [actor for actor in pool.actors if actor.state == "running" and not actor.outdated]
    return len(working) == len(pool.actors) == pool.wanted == count


def settings_for(
    server: NatsServer, model_url: str, pools: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Return a configuration for a service of this test's own."""
    return {
        "nats": {"url": server.url},
        "vllm": {"urls": [model_url], "retry_base_s": 0.02, "probe_interval_s": 0.1},
        "streams": {"replicas": server.replicas},
        "ray": {
            "address": ray.get_runtime_context().gcs_address,
            "namespace": f"serve-{uuid4().hex[:8]}",
        },
        "pools": dict(pools),
        **more,
    }


@asynccontextmanager
async def serving(
    folder: Path,
    settings: dict[str, Any],
    to: str | NatsConfig,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Serving]:
    """Run `serve` until the block ends, and its service with it; `to` is how tests get to NATS."""
    file = folder / "agent-actors.yaml"
    link = await connect(to if isinstance(to, NatsConfig) else NatsConfig(url=to), name="test")
    service = Serving(file, settings, link)
    service.edit()
    service.process = await start_serve(service.file, env)
    try:
        yield service
    finally:
        if service.process.returncode is None:
            service.process.terminate()
        await service.command("drain", "--timeout", "0")
        await service.process.communicate()
        await link.close()


async def start_serve(file: Path, env: Mapping[str, str] | None = None) -> Process:
    """Return a `serve` that has said that it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_actors", "serve", "--json", "--config", str(file)),
        env={**os.environ, **(env or {})},
        # Ray's workers look in the folder where the driver runs before they look anywhere else.
        cwd=file.parent,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    line = await process.stdout.readline()
    assert line, (await process.stderr.read()).decode()
    json.loads(line)
    return process
