"""The tools of one task: those that its agent may use, and how a call of the model is made."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from agent_actors.errors import ToolError, ToolRefused
from agent_actors.ports import OfferedTool, ToolCall
from agent_actors.tools.permissions import Grant
from agent_actors.tools.registry import Surroundings, Tool, ToolOutput


class ToolSource(Protocol):
    """Where tools come from that may change while the service runs: MCP servers."""

    async def tools(self) -> Sequence[Tool]:
        """Return the tools that there are now; a server that is away has none."""
        ...


class Toolbox:
    """What one task's agent may call. Tools beyond its grant are known, not offered, refused."""

    def __init__(
        self,
        tools: Sequence[Tool],
        grant: Grant,
        surroundings: Surroundings,
        sources: Sequence[ToolSource] = (),
    ) -> None:
        self._built_in = tools
        self._grant = grant
        self._surroundings = surroundings
        self._sources = sources
        self._tools = {tool.name: tool for tool in tools}

    async def offered(self) -> list[OfferedTool]:
        """Return the tools to tell the model of, for its next turn."""
        found = [tool for source in self._sources for tool in await source.tools()]
        self._tools = {tool.name: tool for tool in (*found, *self._built_in)}
        return [tool.offered for tool in self._tools.values() if not self._grant.refusal(tool)]

    def find(self, name: str) -> Tool | None:
        """Return the tool of this name, permitted or not."""
        return self._tools.get(name)

    async def run(self, call: ToolCall) -> ToolOutput:
        """Make the call that the model asks for.

        Raises ToolError for an unknown tool, arguments that are no JSON object or do not fit the
        tool, and whatever fails in it; ToolRefused when it may not be used.
        """
        name = call.function.name
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(f"there is no tool {name!r}; there are {', '.join(self._permitted())}")
        if refusal := self._grant.refusal(tool):
            raise ToolRefused(f"refused: {refusal}; there are {', '.join(self._permitted())}")
        return await tool.call(self._surroundings, parameters_of(call))

    def _permitted(self) -> list[str]:
        return [name for name, tool in self._tools.items() if not self._grant.refusal(tool)]


def parameters_of(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call. Raises ToolError when they are no JSON object."""
    try:
        return msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ToolError(
            f"the arguments of {call.function.name} are no JSON object: {error}"
        ) from None
