"""An actor is put together whole, or leaves nothing behind: building is tried again and again.

In a process of its own, as an actor is: it sets up the logs of the whole process.
"""

import asyncio
import subprocess
import sys

import pytest
from support.nats import NatsServer

from agent_actors.actor import ActorSettings
from agent_actors.assembly import build_agent_actor
from agent_actors.config import Config, NatsConfig, PoolConfig, VllmConfig
from agent_actors.config_tools import McpServerConfig, ToolsConfig
from agent_actors.config_types import Secret
from agent_actors.errors import AgentActorsError

SERVERS = {"db": McpServerConfig(command="cat", env={"TOKEN": Secret("${NOT_SET_ANYWHERE}")})}


async def build(nats_url: str, tools: ToolsConfig) -> None:
    """Try to build an actor; print why that fails, and how many tasks it has left running."""
    config = Config(
        nats=NatsConfig(url=nats_url, connect_timeout_s=1),
        vllm=VllmConfig(urls=("http://127.0.0.1:9",)),
        pools={"default": PoolConfig(tools=tools)},
    )
    before = asyncio.all_tasks()
    try:
        await build_agent_actor(
            ActorSettings(agent_id="default-0", pool_name="default", config=config)
        )
    except AgentActorsError as error:
        print(type(error).__name__, error)  # noqa: T201 - the test reads it
    print("left:", len(asyncio.all_tasks() - before))  # noqa: T201 - likewise


def told_of(nats_url: str, tools: str) -> str:
    program = f"import asyncio, test_assembly as t; asyncio.run(t.build({nats_url!r}, {tools}))"
    path = f"import sys; sys.path[:0] = {[*sys.path, str(__file__).rpartition('/')[0]]!r}; "
    run = subprocess.run(
        [sys.executable, "-c", path + program], capture_output=True, text=True, check=True
    )
    return run.stdout


def test_without_nats_nothing_is_started():
    told = told_of("nats://127.0.0.1:9", "t.ToolsConfig()")
    assert told.startswith("ServiceUnreachable ")
    assert told.endswith("left: 0\n")


@pytest.mark.nats
def test_when_the_tools_cannot_be_had_the_connection_is_closed(nats_server: NatsServer):
    pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")
    told = told_of(nats_server.url, "t.ToolsConfig(mcpServers=t.SERVERS)")
    assert told.startswith("ConfigError pools.default.tools.mcpServers.db")
    assert "NOT_SET_ANYWHERE" in told
    assert told.endswith("left: 0\n")
