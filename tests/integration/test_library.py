"""The library: one task, synchronously, without a queue; the usage example of the README."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.example import executor, run_example
from support.nats import NatsServer

from agent_actors import NATSResultPublisher
from agent_actors.adapters.jetstream.connection import connect
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.config import Config, NatsConfig, StreamsConfig
from agent_actors.contract import AgentResult
from agent_actors.errors import InvalidTask, ServiceUnreachable
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings

pytestmark = pytest.mark.nats


@pytest.fixture
async def model_url() -> AsyncIterator[str]:
    async with running_model_server(ModelServerSettings()) as model:
        yield model.url


@pytest.fixture
async def provisioned(nats_server: NatsServer) -> NatsServer:
    config = Config(
        nats=NatsConfig(url=nats_server.url), streams=StreamsConfig(replicas=nats_server.replicas)
    )
    link = await connect(config.nats, name="test")
    await provision(link, config)
    await link.close()
    return nats_server


async def announced(server: NatsServer) -> AgentResult:
    link = await connect(NatsConfig(url=server.url), name="test")
    message = await link.js.get_msg("AGENT_RESPONSES", 1)
    await link.close()
    return msgspec.json.decode(message.data or b"", type=AgentResult)


async def test_a_task_is_done_and_announced_without_a_queue(
    model_url: str, provisioned: NatsServer
):
    result = await asyncio.to_thread(run_example, model_url, provisioned.url)
    assert result["status"] == "completed"
    assert result["proposal"]["author_id"] == "agent-123"
    assert result["constraints"] == {"language": "python", "timeout": 120}
    assert (await announced(provisioned)).task_id == "task-abc-789"


async def test_one_executor_does_several_tasks_one_after_the_other(
    model_url: str, provisioned: NatsServer
):
    agent = executor(model_url, NATSResultPublisher(nats_url=provisioned.url))
    for number in range(2):
        result = await asyncio.to_thread(agent.run, f"task-{number}", "do it")
        assert result["status"] == "completed"


async def test_a_program_with_a_running_event_loop_may_call_it_too(provisioned: NatsServer):
    # The loop is blocked meanwhile, so the model cannot run in it.
    result = run_example("http://127.0.0.1:9", provisioned.url)
    assert result["status"] == "failed"
    assert result["error_type"] == "ModelUnavailable"
    assert (await announced(provisioned)).status == "failed"


async def test_bad_arguments_are_told_to_the_caller(model_url: str, provisioned: NatsServer):
    agent = executor(model_url, NATSResultPublisher(nats_url=provisioned.url))
    with pytest.raises(InvalidTask, match=r"constraints\.timeout"):
        await asyncio.to_thread(agent.run, "t", "do it", {"timeout": "soon"})


async def test_a_nats_that_is_away_is_told_to_the_caller(model_url: str):
    agent = executor(model_url, NATSResultPublisher(nats_url="nats://127.0.0.1:9"))
    with pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9"):
        await asyncio.to_thread(agent.run, "t", "do it")


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
async def test_it_works_inside_a_plain_ray_task(model_url: str, provisioned: NatsServer):
    import ray

    reference = ray.remote(run_example).remote(model_url, provisioned.url)
    assert (await reference)["status"] == "completed"
    assert (await announced(provisioned)).agent_id == "agent-123"
