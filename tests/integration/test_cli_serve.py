"""`agent-actors serve` on a NATS, a Ray and a model server that are there already."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import ray
from support.nats import NatsServer
from support.ready import free_port

from agent_actors.cli.running import connected_ray
from agent_actors.client import AgentClient
from agent_actors.config import Config, RayConfig
from agent_actors.contract import AgentTask
from agent_actors.errors import ServiceUnreachable
from agent_actors.local.model_server.serving import running_model_server

pytestmark = pytest.mark.nats


async def serve(*args: str, **settings: str) -> Process:
    env = {f"AGENT_ACTORS_{name}": value for name, value in settings.items()}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_actors", "serve", "--json", *args),
        env={**os.environ, **env},
        stdout=PIPE,
        stderr=PIPE,
    )


@asynccontextmanager
async def ready(**settings: str) -> AsyncIterator[Process]:
    process = await serve(**settings)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = await process.stdout.readline()
        assert line, (await process.stderr.read()).decode()
        assert json.loads(line)["nats_url"] == settings["NATS_URL"]
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def actors_in(namespace: str) -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == namespace]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
async def test_the_service_outlives_a_killed_serve_is_found_again_and_ends_by_a_signal(
    nats_server: NatsServer,
):
    async with (
        running_model_server() as model,
        AgentClient.connect(nats_server.url) as client,
    ):
        namespace = f"serve-{uuid4().hex[:8]}"
        settings = {
            "NATS_URL": nats_server.url,
            "VLLM_URLS": model.url,
            "VLLM_API_KEY": "",
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "RAY_NAMESPACE": namespace,
            "STREAMS_REPLICAS": str(nats_server.replicas),
        }
        async with ready(**settings) as first:
            started = (await client.service_status()).started
            first.kill()
            await first.wait()
        task = await client.submit(AgentTask(task_id="t-1", task_description="do it"))
        assert (await task.result(timeout_s=30)).success

        async with ready(**settings) as second:
            assert (await client.service_status()).started == started
            assert set(actors_in(namespace)) >= {"default-0", "default-1"}
            second.terminate()
            _, err = await second.communicate()
            assert second.returncode == 0, err.decode()
        assert actors_in(namespace) == []


async def test_without_provisioning_missing_streams_end_it_with_3(nats_server: NatsServer):
    process = await serve("--no-provision", NATS_URL=nats_server.url, VLLM_URLS="http://127.0.0.1")
    out, err = await process.communicate()
    assert (process.returncode, out) == (3, b"")
    assert b"stream AGENT_TASKS is missing" in err


async def test_a_ray_that_cannot_be_reached_ends_it_with_3(nats_server: NatsServer):
    address = f"127.0.0.1:{free_port()}"
    process = await serve(
        NATS_URL=nats_server.url,
        VLLM_URLS="http://127.0.0.1",
        RAY_ADDRESS=address,
        STREAMS_REPLICAS=str(nats_server.replicas),
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (3, b"")
    assert f"cannot connect to Ray at {address}: Connection refused".encode() in err


def test_a_ray_client_address_is_tried_too():
    address = f"127.0.0.1:{free_port()}"
    with (
        pytest.raises(ServiceUnreachable, match=f"Ray at ray://{address}: Connection refused"),
        connected_ray(Config(ray=RayConfig(address=f"ray://{address}"))),
    ):
        pass
