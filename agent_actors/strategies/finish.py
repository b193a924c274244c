"""The tool `finish`: the way to answer where each turn must be a call (`tool_choice: required`)."""

from collections.abc import Sequence
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from agent_actors.errors import ToolError
from agent_actors.ports import OfferedFunction, OfferedTool, ToolCall
from agent_actors.tools.registry import Arguments, Tool, ToolOutput
from agent_actors.tools.toolbox import parameters_of

NAME = "finish"


class Tools(Protocol):
    """What an agent may call: `tools.toolbox.Toolbox`."""

    async def offered(self) -> Sequence[OfferedTool]:
        """Return the tools to tell the model of, for its next turn."""
        ...

    def find(self, name: str) -> Tool | None:
        """Return the tool of this name, permitted or not."""
        ...

    async def run(self, call: ToolCall) -> ToolOutput:
        """Make the call that the model asks for. Raises ToolError, ToolRefused."""
        ...


class Finish(Arguments, frozen=True, kw_only=True):
    """The arguments of `finish`."""

    answer: Annotated[str, Meta(description="The whole final answer to the task.")]


class WithFinish:
    """Other tools and `finish`. A right call of that is no call to run, but the task's answer."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def offered(self) -> Sequence[OfferedTool]:
        """Return the others' and `finish`."""
        return [*await self._tools.offered(), _offered]

    def find(self, name: str) -> Tool | None:
        """Return one of the others."""
        return None if name == NAME else self._tools.find(name)

    async def run(self, call: ToolCall) -> ToolOutput:
        """Make a call of another tool; of `finish`, say what is wrong with it."""
        if call.function.name == NAME:
            return ToolOutput(text=answer_in(call))
        return await self._tools.run(call)


def is_finish(call: ToolCall) -> bool:
    """Tell whether the call ends the task; one with wrong arguments does not."""
    if call.function.name != NAME:
        return False
    try:
        answer_in(call)
    except ToolError:
        return False
    return True


def answer_in(call: ToolCall) -> str:
    """Return the answer that a call of `finish` gives. Raises ToolError for wrong arguments."""
    try:
        return msgspec.convert(parameters_of(call), Finish).answer
    except msgspec.ValidationError as error:
        raise ToolError(f"wrong arguments for {NAME}: {error}") from None


_offered = OfferedTool(
    function=OfferedFunction(
        name=NAME,
        description="End the task with your final answer, once everything is done.",
        parameters=msgspec.json.schema(Finish)["$defs"]["Finish"],
    )
)
