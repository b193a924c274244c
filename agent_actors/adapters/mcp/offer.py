"""A tool as a server offers it, with what is needed to offer it to a model and to check calls."""

from collections.abc import Iterable
from typing import Any

from mcp.types import Tool
from msgspec import Struct

from agent_actors.adapters.mcp.arguments import ArgumentsCheck
from agent_actors.adapters.mcp.configured import ServerSetup
from agent_actors.json_schema import BrokenSchema

MAX_DESCRIPTION_CHARS = 4_000


class Offer(Struct, frozen=True, kw_only=True):
    """One tool of one server, by the name that the server has for it."""

    tool: str
    description: str
    parameters: dict[str, Any]
    reads: bool
    check: ArgumentsCheck

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Offer) and self._told == other._told

    def __hash__(self) -> int:
        return hash(self.tool)

    @property
    def _told(self) -> tuple[object, ...]:
        return self.tool, self.description, self.parameters, self.reads


def offers_of(tools: Iterable[Tool], setup: ServerSetup) -> tuple[list[Offer], dict[str, str]]:
    """Return what can be offered of these tools, and why the others cannot, by name.

    A schema that is none would have the model server refuse every request that names the tool.
    """
    offers: dict[str, Offer] = {}
    left_out: dict[str, str] = {}
    for tool in tools:
        try:
            offers[tool.name] = _offer(tool, setup)
        except BrokenSchema as error:
            left_out[tool.name] = f"its inputSchema{error}"
        except RecursionError:
            left_out[tool.name] = "its inputSchema is nested too deeply"
    return list(offers.values()), left_out


def _offer(tool: Tool, setup: ServerSetup) -> Offer:
    hints = tool.annotations
    return Offer(
        tool=tool.name,
        description=_cut(tool.description or tool.title or ""),
        parameters=tool.input_schema,
        reads=tool.name in setup.read_only_tools or bool(hints and hints.read_only_hint),
        check=ArgumentsCheck(tool.input_schema),
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_DESCRIPTION_CHARS else f"{text[:MAX_DESCRIPTION_CHARS]}…"
