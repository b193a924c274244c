"""The servers of a pool, as the source of tools that an actor has for its whole life."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from agent_actors.adapters.mcp.configured import ServerSetup, server_setup
from agent_actors.adapters.mcp.naming import tool_names
from agent_actors.config_tools import McpServerConfig
from agent_actors.errors import ConfigError
from agent_actors.tools.registry import Tool

if TYPE_CHECKING:
    from agent_actors.adapters.mcp.session import Pace, ServerSession

# How long the first tasks of an actor wait for servers that are still starting.
FIRST_WAIT_S = 10.0
# They log each request, and each fault with a traceback; we say what comes of it.
LOUD_LOGGERS = ("mcp", "client", "httpx2", "httpcore2")


class McpServers:
    """Sessions with Model Context Protocol servers, and their tools.

    `where` is the path of `servers` in the configuration, for messages, and `built_in` are the
    names of the tools that are, which no server may have: it would be granted with the tool.
    Raises ConfigError, for a variable that is not set say, or for servers without the SDK.
    """

    def __init__(
        self,
        servers: Mapping[str, McpServerConfig],
        *,
        built_in: Collection[str] = (),
        environment: Mapping[str, str] | None = None,
        where: str = "mcpServers",
        pace: "Pace | None" = None,
    ) -> None:
        known = os.environ if environment is None else environment
        setups = [
            server_setup(name, config, known, f"{where}.{name}", built_in)
            for name, config in servers.items()
        ]
        self._sessions = _sessions(setups, pace, where) if setups else []
        self._known: object = None
        self._tools: dict[str, list[Tool]] = {}
        self._first_wait_ends_s = 0.0

    async def start(self) -> None:
        """Begin connecting to all of them; returns at once."""
        for name in LOUD_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._first_wait_ends_s = asyncio.get_running_loop().time() + FIRST_WAIT_S
        for session in self._sessions:
            session.start()

    async def close(self) -> None:
        """End all sessions, and the servers that are programs of ours."""
        await asyncio.gather(*(session.close() for session in self._sessions))

    async def tools(self) -> Sequence[Tool]:
        """Return the tools of the servers that are there now.

        Waits for servers that are just starting, in the first ten seconds of all.
        """
        await self._first_wait()
        offers = [(session, session.offers) for session in self._sessions]
        if offers != self._known:
            self._tools = _tools(self._sessions)
            self._known = offers
        ready = [session.setup.name for session in self._sessions if session.is_ready]
        return [tool for name in ready for tool in self._tools[name]]

    def states(self) -> dict[str, str]:
        """Return how each server is: `ready`, `starting`, or `away: ` and why."""
        return {session.setup.name: session.state for session in self._sessions}

    async def _first_wait(self) -> None:
        starting = [session.tried for session in self._sessions if not session.tried.is_set()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._first_wait_ends_s):
                for tried in starting:
                    await tried.wait()


def _sessions(
    setups: Sequence[ServerSetup], pace: "Pace | None", where: str
) -> "list[ServerSession]":
    """Import the SDK, which takes half a second and may not be there, only when it is needed."""
    try:
        from agent_actors.adapters.mcp.session import Pace, ServerSession  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"{where}: the Model Context Protocol SDK is not installed ({error}); "
            "pip install 'agent-actors[mcp]'"
        ) from error
    return [ServerSession(setup, pace or Pace()) for setup in setups]


def _tools(sessions: "Sequence[ServerSession]") -> dict[str, list[Tool]]:
    """Return the tools by server, those of servers that are away too, so that names stay."""
    from agent_actors.adapters.mcp.tool import McpTool  # noqa: PLC0415 - it imports the SDK

    names = tool_names(
        (session.setup.name, offer.tool) for session in sessions for offer in session.offers
    )
    return {
        session.setup.name: [
            McpTool(names[session.setup.name, offer.tool], offer, session)
            for offer in session.offers
        ]
        for session in sessions
    }
