"""What a tool is: a typed function whose arguments are a Struct, and its schema made from that.

    class ReadFile(Arguments):
        path: Annotated[str, Meta(description="Where the file is, from the workspace.")]

    @tool("files", reads=True)
    async def read_file(surroundings: Surroundings, arguments: ReadFile) -> ToolOutput:
        \"\"\"Read a text file.\"\"\"

The name and the docstring are what the model sees. Arguments are checked before the call.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, get_type_hints

import msgspec
from msgspec import Struct

from agent_actors.config_tools import ToolsConfig
from agent_actors.errors import ToolError
from agent_actors.ports import OfferedFunction, OfferedTool, Web
from agent_actors.tools.sandbox.command import Sandbox
from agent_actors.tools.workspace import Workspace


class Arguments(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of a tool; a field's `Meta(description=…)` is told to the model."""


class Surroundings(Struct, frozen=True, kw_only=True):
    """What a tool works with: its task's workspace, and what is shared by all tasks.

    `sandbox` is None where none works, and `no_sandbox` says then what would help.
    """

    workspace: Workspace
    settings: ToolsConfig
    web: Web
    sandbox: Sandbox | None = None
    no_sandbox: str = ""


class ToolOutput(Struct, frozen=True, kw_only=True):
    """What a call gave: `text` for the model, a short `summary` for the record.

    `artifacts` are added to those of the result, to the list under their name: `commits`,
    `tests`.
    """

    text: str
    summary: str = ""
    artifacts: dict[str, list[Any]] = {}


class Tool(Protocol):
    """Something the model may call.

    `group` is what an allow-list may name in place of the tool, and `operation` the tool's name
    within it. A tool that only `reads` runs beside others of its kind, and may run again.
    """

    @property
    def name(self) -> str:
        """The name that the model knows: at most 64 of A-Z, a-z, 0-9, _ and -."""
        ...

    @property
    def group(self) -> str:
        """`files`, `git`, `tests`, `http`, or the name of an MCP server."""
        ...

    @property
    def operation(self) -> str:
        """The name in the record of operations."""
        ...

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        ...

    @property
    def offered(self) -> OfferedTool:
        """The tool as the model is told of it."""
        ...

    async def call(self, surroundings: Surroundings, arguments: dict[str, Any]) -> ToolOutput:
        """Do it. Raises ToolError for what the model is to be told, ToolRefused."""
        ...


ArgumentsT = TypeVar("ArgumentsT", bound=Arguments)
Function = Callable[[Surroundings, ArgumentsT], Awaitable[ToolOutput]]


class FunctionTool:
    """A tool made of a function of this package; see `tool`."""

    def __init__(self, function: Function[Any], *, group: str, operation: str, reads: bool) -> None:
        self.name = function.__name__
        self.group = group
        self.operation = operation or self.name
        self.reads = reads
        self._function = function
        self._arguments: type[Arguments] = get_type_hints(function)["arguments"]
        self.offered = OfferedTool(
            function=OfferedFunction(
                name=self.name,
                description=inspect.cleandoc(function.__doc__ or ""),
                parameters=_schema(self._arguments),
            )
        )

    async def call(self, surroundings: Surroundings, arguments: dict[str, Any]) -> ToolOutput:
        """Check the arguments and call the function. Raises ToolError."""
        try:
            checked = msgspec.convert(arguments, self._arguments, strict=False)
        except msgspec.ValidationError as error:
            raise ToolError(f"wrong arguments for {self.name}: {error}") from None
        return await self._function(surroundings, checked)


def tool(
    group: str, *, reads: bool, operation: str = ""
) -> Callable[[Function[ArgumentsT]], FunctionTool]:
    """Make a tool of a function; its docstring tells the model what it is for."""

    def make(function: Function[ArgumentsT]) -> FunctionTool:
        return FunctionTool(function, group=group, operation=operation, reads=reads)

    return make


def _schema(arguments: type[Arguments]) -> dict[str, Any]:
    """Return the JSON Schema of the arguments, without the reference at its top."""
    schema = msgspec.json.schema(arguments)
    definitions = schema.pop("$defs")
    own: dict[str, Any] = definitions.pop(arguments.__name__)
    described = {key: value for key, value in own.items() if key not in {"title", "description"}}
    return described | ({"$defs": definitions} if definitions else {})
