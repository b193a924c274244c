"""Speaking with the servers of this folder: started as programs, or as services on loopback."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from support.until import until

from agent_actors.adapters.mcp import McpServers
from agent_actors.adapters.mcp.session import Pace
from agent_actors.config_tools import McpServerConfig
from agent_actors.config_types import Secret
from agent_actors.tools.registry import Surroundings, Tool, ToolOutput

TOOLSHED = str(Path(__file__).with_name("toolshed.py"))
QUICK = Pace(ping_every_s=0.3, first_pause_s=0.05, longest_pause_s=0.2)
# MCP servers look at none of it.
NOWHERE: Surroundings = None  # type: ignore[assignment]


def as_program(*words: str, **settings: Any) -> McpServerConfig:
    return McpServerConfig(command=sys.executable, args=(TOOLSHED, "stdio", *words), **settings)


@asynccontextmanager
async def connected(
    servers: dict[str, McpServerConfig],
    *,
    pace: Pace = QUICK,
    environment: dict[str, str] | None = None,
) -> AsyncIterator[McpServers]:
    sessions = McpServers(servers, pace=pace, environment=environment)
    await sessions.start()
    try:
        yield sessions
    finally:
        await sessions.close()


async def tool(servers: McpServers, name: str) -> Tool:
    """Return the tool of this name, as soon as there is one."""
    found: list[Tool] = []

    async def is_there() -> bool:
        found[:] = [each for each in await servers.tools() if each.name == name]
        return bool(found)

    await until(is_there)
    return found[0]


async def call(servers: McpServers, name: str, /, **arguments: Any) -> ToolOutput:
    return await (await tool(servers, name)).call(NOWHERE, arguments)


class HttpServer:
    """The toolshed as a service: it can be stopped, and started again at its port."""

    def __init__(self, *words: str, token: str = "") -> None:
        self.words = words
        self.token = token
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"

    def config(self, **settings: Any) -> McpServerConfig:
        headers = {"Authorization": Secret(f"Bearer {self.token}")} if self.token else {}
        return McpServerConfig(url=self.url, headers=headers, **settings)

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            TOOLSHED,
            "http",
            str(self.port),
            *self.words,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"TOOLSHED_TOKEN": self.token},
        )
        assert self.process.stdout
        self.port = int(await self.process.stdout.readline())

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


def is_alive(pid: int) -> bool:
    """Tell whether the process still runs; one that nobody has buried does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
