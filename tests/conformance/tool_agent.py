"""An agent with tools as the service has one, in real workspaces, asking a model server."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from support.workspaces import workspaces_in
from vllm_server import API_KEY, MODEL

from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.config_tools import ToolsConfig
from agent_actors.contract import AgentResult, AgentTask, EventKind, Usage, constraints_of, utc_now
from agent_actors.errors import ModelRefused
from agent_actors.execution import TOOLS, ExecuteAgentTask
from agent_actors.ports import (
    AgentConfig,
    CalledFunction,
    ChatReply,
    ChatRequest,
    ExecutionRequest,
    Listener,
    ToolCall,
)
from agent_actors.strategies.tool_loop import ToolLoop
from agent_actors.tools.commands import TEST_TOOLS
from agent_actors.tools.files import FILE_TOOLS
from agent_actors.tools.git import GIT_TOOLS, prepare_repository
from agent_actors.tools.permissions import Grant
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool
from agent_actors.tools.sandbox.command import Sandbox
from agent_actors.tools.toolbox import Toolbox
from agent_actors.tools.workspace import Workspace

REPORT = "weather.txt"


class City(Arguments, frozen=True, kw_only=True):
    """What `get_weather` takes."""

    city: Annotated[str, Meta(description="Its name.")]


@tool("weather", reads=True)
async def get_weather(surroundings: Surroundings, arguments: City) -> ToolOutput:
    """Tell the weather of a city."""
    report = surroundings.workspace.path / REPORT
    text = report.read_text() if report.exists() else f"It is sunny in {arguments.city}."
    return ToolOutput(text=text, summary=f"{len(text)} characters")


POOL = (*FILE_TOOLS, *GIT_TOOLS, *TEST_TOOLS, get_weather)
ALL_GROUPS = frozenset({"files", "git", "tests", "weather"})


class NotingClient:
    """The real client, and what goes through it; `given` replies stand for its first ones.

    So a history that this model would not make by itself is sent to the server all the same.
    """

    def __init__(self, client: VLLMHTTPClient, given: Sequence[ChatReply]) -> None:
        self._client = client
        self._given = list(given)
        self.sent: list[ChatRequest] = []
        self.replies: list[ChatReply] = []
        self.refusals: list[ModelRefused] = []

    async def chat(self, request: ChatRequest, listener: Listener | None = None) -> ChatReply:
        if self._given:
            return self._given.pop(0)
        self.sent.append(request)
        try:
            reply = await self._client.chat(request, listener)
        except ModelRefused as refusal:
            self.refusals.append(refusal)
            raise
        self.replies.append(reply)
        return reply

    async def context_length(self, model: str = "") -> int | None:
        return await self._client.context_length(model)

    async def close(self) -> None:
        await self._client.close()


class ToolAgent:
    """Works on tasks, and keeps what went to the model and what came of it live."""

    def __init__(self, client: NotingClient, loop: ToolLoop) -> None:
        self.client = client
        self._execute = ExecuteAgentTask({TOOLS: loop}, utc_now)
        self.events: list[tuple[EventKind, dict[str, Any]]] = []

    async def work(
        self, *, max_tokens: int = 500, temperature: float = 0.0, **constraints: Any
    ) -> AgentResult:
        """Attempt one task as the service would."""
        task = AgentTask(
            task_id="t-1",
            task_description="What is the weather in Paris?",
            constraints=constraints,
        )
        agent = AgentConfig(
            agent_id="dev-1",
            role="DEV",
            model=MODEL,
            enable_tools=True,
            max_tokens=max_tokens,
            temperature=temperature,
            # The built-in prompts would take a third of so small a context.
            prompt="You are a developer.",
        )
        request = ExecutionRequest(
            task=task, constraints=constraints_of(task), agent=agent, timeout_s=60.0
        )
        return (await self._execute.run(request, progress=self._tell)).result

    @property
    def words(self) -> str:
        """All that was told live of what the model said."""
        return "".join(detail["text"] for kind, detail in self.events if kind == "token")

    async def _tell(self, kind: EventKind, **detail: Any) -> None:
        self.events.append((kind, detail))


@asynccontextmanager
async def tool_agent(
    url: str,
    root: Path,
    *,
    given: Sequence[ChatReply] = (),
    files: Mapping[str, str] = {},
    sandbox: Sandbox | None = None,
    **settings: Any,
) -> AsyncIterator[ToolAgent]:
    """Yield an agent that finds `files` in its workspace and asks the server at `url`.

    Without a sandbox it has no git repository, and its commands are refused.
    """
    tools = ToolsConfig(**settings)

    def surroundings(workspace: Workspace) -> Surroundings:
        return Surroundings(
            workspace=workspace, settings=tools, web=None, sandbox=sandbox, no_sandbox="not wanted"
        )

    async def prepare(_: ExecutionRequest, workspace: Workspace) -> dict[str, Any]:
        for name, text in files.items():
            workspace.files.write((name,), text.encode())
        return await prepare_repository(surroundings(workspace), None)

    def toolbox(request: ExecutionRequest, workspace: Workspace) -> Toolbox:
        asked = request.constraints.allowed_tools
        granted = Grant(
            role="DEV",
            names=ALL_GROUPS,
            narrowed=None if asked is None else frozenset(asked),
            read_only=False,
        )
        return Toolbox(POOL, granted, surroundings(workspace))

    async with VLLMHTTPClient(url, api_key=API_KEY) as client:
        noting = NotingClient(client, given)
        loop = ToolLoop(
            client=noting,
            settings=tools,
            workspaces=workspaces_in(root),
            toolbox_for=toolbox,
            prepare=prepare,
        )
        yield ToolAgent(noting, loop)


def given_reply(content: str, *calls: ToolCall, finish_reason: str = "") -> ChatReply:
    """Return a reply as another model might have made it."""
    return ChatReply(
        content=content,
        finish_reason=finish_reason or ("tool_calls" if calls else "stop"),
        model=MODEL,
        usage=Usage(),
        tool_calls=calls,
    )


def call(name: str, known: str = "c-1", /, **arguments: Any) -> ToolCall:
    return raw_call(name, msgspec.json.encode(arguments).decode(), known)


def raw_call(name: str, arguments: str, known: str = "c-1") -> ToolCall:
    return ToolCall(id=known, function=CalledFunction(name=name, arguments=arguments))
