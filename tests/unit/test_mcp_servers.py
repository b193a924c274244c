"""The source of tools, without a server and without the SDK."""

import subprocess
import sys

import pytest

from agent_actors.adapters.mcp import McpServers
from agent_actors.config_tools import McpServerConfig
from agent_actors.errors import ConfigError

PROGRAM = {"db": McpServerConfig(command="x")}


async def test_no_servers_have_no_tools():
    servers = McpServers({})
    await servers.start()
    assert await servers.tools() == []
    assert servers.states() == {}
    await servers.close()


def test_servers_without_the_sdk_are_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "agent_actors.adapters.mcp.session", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigError, match=r"^mcpServers: .*pip install 'agent-actors\[mcp\]'$"):
        McpServers(PROGRAM)


def test_the_sdk_is_imported_only_for_servers():
    code = (
        "import sys\n"
        "from agent_actors.adapters.mcp import McpServers\n"
        "McpServers({})\n"
        "sys.exit('mcp' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_names_the_server_and_the_place_in_the_configuration():
    pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")
    with pytest.raises(ConfigError, match=r"^pools\.default\.tools\.mcpServers\.db: needs either"):
        McpServers({"db": McpServerConfig()}, where="pools.default.tools.mcpServers")


async def test_servers_that_were_never_started_can_be_closed():
    pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")
    await McpServers(PROGRAM).close()


def test_a_server_cannot_be_called_as_a_tool():
    pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")
    with pytest.raises(ConfigError, match="'http_get' is what built-in tools are called"):
        McpServers({"http_get": McpServerConfig(command="x")}, built_in=["http_get"])
