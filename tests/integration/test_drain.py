"""Draining: what runs may finish, the rest runs later, nothing runs twice."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import ray
from support.nats import NatsServer
from support.processes import kill_one
from support.service import RunningService, running_service
from support.until import until

from agent_actors.adapters.jetstream.connection import connect
from agent_actors.client import AgentClient
from agent_actors.config import Config, NatsConfig
from agent_actors.contract import TASK_STREAM, AgentTask
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=2_000)))
FOR_EVER = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=600_000)))


def environment(server: NatsServer, model: RunningModelServer, namespace: str) -> dict[str, str]:
    settings = {
        "NATS_URL": server.url,
        "VLLM_URLS": model.url,
        "VLLM_API_KEY": "",
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_NAMESPACE": namespace,
        "STREAMS_REPLICAS": str(server.replicas),
    }
    return {**os.environ, **{f"AGENT_ACTORS_{name}": value for name, value in settings.items()}}


async def command(env: dict[str, str], *args: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_actors", *args), env=env, stdout=PIPE, stderr=PIPE
    )


@asynccontextmanager
async def serving(env: dict[str, str]) -> AsyncIterator[Process]:
    process = await command(env, "serve", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = await process.stdout.readline()
        assert line, (await process.stderr.read()).decode()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_running(client: AgentClient, count: int) -> None:
    async def running() -> bool:
        return sum(pool.slots_used for pool in await client.pools()) == count

    await until(running)


def actors_in(namespace: str) -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == namespace]


async def redelivered(server: NatsServer) -> int:
    link = await connect(NatsConfig(url=server.url), name="test")
    info = await link.js.consumer_info(TASK_STREAM, "default")
    await link.close()
    return info.num_redelivered or 0


async def submit(client: AgentClient, count: int) -> list[str]:
    tasks = [f"task-{number}" for number in range(count)]
    for task_id in tasks:
        await client.submit(AgentTask(task_id=task_id, task_description="do it"))
    await until_running(client, count)
    return tasks


async def test_the_drain_command_lets_tasks_finish_and_ends_serve_with_0(nats_server: NatsServer):
    namespace = f"drain-{uuid4().hex[:8]}"
    async with running_model_server(SLOW) as model, AgentClient.connect(nats_server.url) as client:
        env = environment(nats_server, model, namespace)
        async with serving(env) as process:
            tasks = await submit(client, 10)
            drain = await command(env, "drain", "--timeout", "60")
            _, said = await drain.communicate()
            assert drain.returncode == 0, said.decode()
            assert said.decode().splitlines() == [
                f"Draining {namespace}: {len(tasks)} running.",
                "Drained.",
            ]
            await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0
        for task_id in tasks:
            status = await client.status(task_id)
            assert (status.state, status.attempt) == ("completed", 1)
        assert await redelivered(nats_server) == 0
        await until(lambda: actors_in(namespace) == [])


async def test_a_drain_without_a_serve_leaves_no_actor_and_gives_back_what_takes_too_long(
    nats_server: NatsServer,
):
    namespace = f"drain-{uuid4().hex[:8]}"
    async with (
        running_model_server(FOR_EVER) as model,
        AgentClient.connect(nats_server.url) as client,
    ):
        env = environment(nats_server, model, namespace)
        async with serving(env) as process:
            (task_id,) = await submit(client, 1)
            process.kill()
        drain = await command(env, "drain", "--timeout", "0")
        _, said = await drain.communicate()
        assert drain.returncode == 0, said.decode()
        await until(lambda: actors_in(namespace) == [])
        status = await client.status(task_id)
        assert (status.state, status.attempt) == ("waiting", 1)


async def test_a_second_signal_gives_back_at_once_what_runs(nats_server: NatsServer):
    namespace = f"drain-{uuid4().hex[:8]}"
    async with (
        running_model_server(FOR_EVER) as model,
        AgentClient.connect(nats_server.url) as client,
    ):
        env = environment(nats_server, model, namespace)
        async with serving(env) as process:
            tasks = await submit(client, 3)
            assert process.stderr is not None
            process.send_signal(signal.SIGTERM)
            while b"Stopping" not in await process.stderr.readline():
                pass
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), Config().pools["default"].stop_grace_s)
            assert process.returncode == 0
        for task_id in tasks:
            status = await client.status(task_id)
            assert (status.state, status.attempt) == ("waiting", 1)
        assert actors_in(namespace) == []


async def test_a_signal_while_the_supervisor_restarts_lets_tasks_finish(nats_server: NatsServer):
    namespace = f"drain-{uuid4().hex[:8]}"
    async with running_model_server(SLOW) as model, AgentClient.connect(nats_server.url) as client:
        async with serving(environment(nats_server, model, namespace)) as process:
            (task_id,) = await submit(client, 1)
            kill_one("ray::Supervisor")
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0
        status = await client.status(task_id)
        assert (status.state, status.attempt) == ("completed", 1)
        assert actors_in(namespace) == []


async def test_a_cluster_that_is_not_there_is_told_by_its_name(nats_server: NatsServer):
    async with running_model_server() as model, running_service(nats_server, model.url) as running:
        env = environment(nats_server, model, "elsewhere")
        env["AGENT_ACTORS_NATS_REQUEST_TIMEOUT_S"] = "1"
        drain = await command(env, "drain")
        _, said = await drain.communicate()
        assert drain.returncode == 3
        assert b"no service of the cluster 'elsewhere' answers" in said
        await assert_it_still_works(running)


async def assert_it_still_works(running: RunningService) -> None:
    await running.publish("afterwards")
    await running.results(1)
