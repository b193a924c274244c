"""What the tools of an agent need for as long as its process lives: a sandbox, the web, servers."""

import asyncio
from typing import Any, Self

import structlog

from agent_actors.adapters.mcp import McpServers
from agent_actors.adapters.web import GuardedWeb
from agent_actors.config import PoolConfig
from agent_actors.contract import ResultStatus
from agent_actors.ports import ExecutionRequest, VLLMClient
from agent_actors.strategies.tool_loop import ToolLoop
from agent_actors.tools.commands import TEST_TOOLS
from agent_actors.tools.files import FILE_TOOLS
from agent_actors.tools.git import GIT_TOOLS, prepare_repository, repository_request
from agent_actors.tools.http import HTTP_TOOLS
from agent_actors.tools.permissions import grant
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Sandbox
from agent_actors.tools.sandbox.finding import find_sandbox
from agent_actors.tools.sandbox.undumpable import make_undumpable
from agent_actors.tools.toolbox import Toolbox
from agent_actors.tools.workspace import Workspace, Workspaces

log = structlog.get_logger()

TOOLS = (*FILE_TOOLS, *GIT_TOOLS, *TEST_TOOLS, *HTTP_TOOLS)
# No MCP server is named like a tool of ours: allow-lists could not tell them apart.
BUILT_IN = [tool.name for tool in TOOLS]
SWEEP_S = 600.0


class Workbench:
    """What all tasks of a pool share in one process; `open` makes one, `close` ends it."""

    def __init__(
        self,
        pool: PoolConfig,
        *,
        workspaces: Workspaces,
        servers: McpServers,
        sandbox: Sandbox | None,
        no_sandbox: str,
    ) -> None:
        self._pool = pool
        self._workspaces = workspaces
        self._sandbox = sandbox
        self._no_sandbox = no_sandbox
        self._web = GuardedWeb(pool.tools.http)
        self._servers = servers
        self._sweeper = asyncio.create_task(self._sweep())

    @classmethod
    async def open(cls, pool_name: str, pool: PoolConfig) -> Self:
        """Return a workbench whose MCP servers are being connected. Raises ConfigError.

        From here on no child of ours can look into this process.
        """
        make_undumpable()
        config = pool.tools
        servers = McpServers(
            config.mcpServers, built_in=BUILT_IN, where=f"pools.{pool_name}.tools.mcpServers"
        )
        sandbox, no_sandbox = await find_sandbox(config.sandbox)
        workspaces = Workspaces(
            config.workspace, pool_name=pool_name, first_uid=config.sandbox.first_uid
        )
        await servers.start()
        return cls(
            pool, workspaces=workspaces, servers=servers, sandbox=sandbox, no_sandbox=no_sandbox
        )

    @property
    def sandbox(self) -> str:
        """What confines the commands of tools, or why there are none."""
        return self._sandbox.name if self._sandbox else f"unavailable: {self._no_sandbox}"

    def strategy(self, client: VLLMClient) -> ToolLoop:
        """Return the strategy that works at this bench and asks this model."""
        return ToolLoop(
            client=client,
            settings=self._pool.tools,
            workspaces=self._workspaces,
            toolbox_for=self._toolbox,
            prepare=self._prepare,
        )

    async def clear_away(self, task_id: str, status: ResultStatus) -> None:
        """Remove the workspaces of a task that has ended, unless they are to be kept."""
        await self._workspaces.clear_away(task_id, status)

    async def close(self) -> None:
        """End the sessions with servers."""
        self._sweeper.cancel()
        await self._servers.close()
        await self._web.close()

    def _toolbox(self, request: ExecutionRequest, workspace: Workspace) -> Toolbox:
        role = str(request.agent.role)
        granted = grant(role, self._pool.roles.get(role.upper()), request.constraints)
        return Toolbox(TOOLS, granted, self._surroundings(workspace), [self._servers])

    async def _prepare(self, request: ExecutionRequest, workspace: Workspace) -> dict[str, Any]:
        wanted = repository_request(request.constraints.workspace)
        return await prepare_repository(self._surroundings(workspace), wanted)

    def _surroundings(self, workspace: Workspace) -> Surroundings:
        return Surroundings(
            workspace=workspace,
            settings=self._pool.tools,
            web=self._web,
            sandbox=self._sandbox,
            no_sandbox=self._no_sandbox,
        )

    async def _sweep(self) -> None:
        """Remove old workspaces now and then; what cannot be removed now may be later."""
        while True:
            try:
                await self._workspaces.sweep()
            except Exception as error:
                log.warning("workspaces.not_swept", exc_info=error)
            await asyncio.sleep(SWEEP_S)
