"""An actor is put together whole, or leaves nothing behind: building is tried again and again."""

import asyncio

import pytest
from support.nats import NatsServer

from agent_actors.actor import ActorSettings
from agent_actors.assembly import build_agent_actor
from agent_actors.config import Config, NatsConfig, PoolConfig, VllmConfig
from agent_actors.config_tools import McpServerConfig, ToolsConfig
from agent_actors.config_types import Secret
from agent_actors.errors import ConfigError, ServiceUnreachable

SERVERS = {"db": McpServerConfig(command="cat", env={"TOKEN": Secret("${NOT_SET_ANYWHERE}")})}


def settings(nats_url: str, tools: ToolsConfig) -> ActorSettings:
    config = Config(
        nats=NatsConfig(url=nats_url, connect_timeout_s=1),
        vllm=VllmConfig(urls=("http://127.0.0.1:9",)),
        pools={"default": PoolConfig(tools=tools)},
    )
    return ActorSettings(agent_id="default-0", pool_name="default", config=config)


async def test_without_nats_nothing_is_started():
    before = asyncio.all_tasks()
    with pytest.raises(ServiceUnreachable):
        await build_agent_actor(settings("nats://127.0.0.1:9", ToolsConfig()))
    assert asyncio.all_tasks() == before


@pytest.mark.nats
async def test_when_the_tools_cannot_be_had_the_connection_is_closed(nats_server: NatsServer):
    pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")
    before = asyncio.all_tasks()
    with pytest.raises(ConfigError, match=r"mcpServers\.db.*NOT_SET_ANYWHERE"):
        await build_agent_actor(settings(nats_server.url, ToolsConfig(mcpServers=SERVERS)))
    assert asyncio.all_tasks() == before
