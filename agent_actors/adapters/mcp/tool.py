"""A server's tool as the loop calls it."""

from typing import Any

from agent_actors.adapters.mcp.content import summary_of, text_of
from agent_actors.adapters.mcp.offer import Offer
from agent_actors.adapters.mcp.session import ServerSession
from agent_actors.errors import ToolError
from agent_actors.ports import OfferedFunction, OfferedTool
from agent_actors.tools.registry import Surroundings, ToolOutput

MAX_ERROR_CHARS = 4_000


class McpTool:
    """One tool of one server; its group is the server."""

    def __init__(self, name: str, offer: Offer, session: ServerSession) -> None:
        self.name = name
        self.group = session.setup.name
        self.operation = offer.tool
        self.reads = offer.reads
        self.offered = OfferedTool(
            function=OfferedFunction(
                name=name, description=offer.description, parameters=offer.parameters
            )
        )
        self._offer = offer
        self._session = session

    async def call(
        self,
        surroundings: Surroundings,  # noqa: ARG002 - a server has surroundings of its own
        arguments: dict[str, Any],
    ) -> ToolOutput:
        """Check the arguments and have the server make the call. Raises ToolError."""
        if mismatch := self._offer.check.mismatch(arguments):
            raise ToolError(f"wrong arguments for {self.name}: {mismatch}")
        result = await self._session.call(self._offer.tool, arguments, reads=self.reads)
        text = self._session.setup.masked(text_of(result))
        if result.is_error:
            raise ToolError(text[:MAX_ERROR_CHARS] or f"{self.name} failed without saying why")
        return ToolOutput(text=text, summary=summary_of(result))
