"""What an agent with tools needs in a unit test: a scripted model, notes to read and write."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent_actors.config_tools import ToolsConfig
from agent_actors.contract import AgentTask, Usage, constraints_of
from agent_actors.errors import ToolError
from agent_actors.ports import (
    AgentConfig,
    AttemptRecord,
    CalledFunction,
    ChatMessage,
    ChatReply,
    ChatRequest,
    ExecutionRequest,
    Listener,
    ToolCall,
)
from agent_actors.strategies.tool_loop import ToolLoop
from agent_actors.tools.permissions import Grant
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool
from agent_actors.tools.toolbox import Toolbox
from agent_actors.tools.workspace import WorkspaceId

USAGE = Usage(prompt_tokens=100, completion_tokens=10, total_tokens=110)


def call(name: str, known: str = "c", /, **arguments: Any) -> ToolCall:
    return raw_call(name, msgspec.json.encode(arguments).decode(), known)


def raw_call(name: str, arguments: str, known: str = "c") -> ToolCall:
    return ToolCall(id=known, function=CalledFunction(name=name, arguments=arguments))


def reply(
    content: str = "",
    *calls: ToolCall,
    finish_reason: str = "",
    usage: Usage = USAGE,
) -> ChatReply:
    return ChatReply(
        content=content,
        finish_reason=finish_reason or ("tool_calls" if calls else "stop"),
        model="tiny",
        usage=usage,
        tool_calls=calls,
    )


Step = ChatReply | Exception | Callable[[ChatRequest], ChatReply]


class ScriptedModel:
    """Gives one step after the other, or raises it; keeps what it was asked."""

    def __init__(self, *script: Step, context_tokens: int | None = None) -> None:
        self._script = list(script)
        self._context_tokens = context_tokens
        self.asked: list[ChatRequest] = []

    async def chat(self, request: ChatRequest, listener: Listener | None = None) -> ChatReply:
        self.asked.append(request)
        step = self._script[len(self.asked) - 1]
        if isinstance(step, Exception):
            raise step
        answer = step(request) if callable(step) else step
        if listener:
            for word in answer.content.split():
                await listener(word)
        return answer

    async def context_length(self, model: str = "") -> int | None:
        return self._context_tokens

    async def close(self) -> None: ...


class Killed(BaseException):
    """The process is gone."""


class MemoryJournal:
    """Keeps pages. The one with the number `dies_at` kills whoever stores it, stored or not."""

    def __init__(
        self,
        pages: Sequence[bytes] = (),
        dies_at: int = -1,
        *,
        is_stored: bool = True,
        error: BaseException | None = None,
    ) -> None:
        self.pages = list(pages)
        self.appends = 0
        self._dies_at = dies_at
        self._is_stored = is_stored
        self._error = error or Killed()

    async def entries(self) -> Sequence[bytes]:
        return tuple(self.pages)

    async def append(self, entry: bytes) -> None:
        self._store([*self.pages, entry])

    async def begin_anew(self, entry: bytes) -> None:
        self._store([entry])

    def _store(self, pages: list[bytes]) -> None:
        dies = self.appends == self._dies_at
        self.appends += 1
        if self._is_stored or not dies:
            self.pages = pages
        if dies:
            raise self._error


class Folder:
    """A workspace."""

    uid = None

    def __init__(self, path: Path) -> None:
        self.id = WorkspaceId(path=str(path), token="token")
        self.path = path
        self.is_closed = False
        self.baseline: list[str] | None = None
        self.slow = asyncio.Event()
        self.slow.set()

    async def mark_baseline(self) -> None:
        self.baseline = self._names()

    async def artifacts(self, timeout_s: float) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            await self.slow.wait()
        return {"files_changed": [name for name in self._names() if name not in self.baseline]}

    def close(self) -> None:
        self.is_closed = True

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())


class Folders:
    """Workspaces beneath one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.made: list[Folder] = []

    async def make(self, task_id: str) -> Folder:
        path = self._root / f"{task_id}-{len(self.made)}"
        path.mkdir()
        self.made.append(Folder(path))
        return self.made[-1]

    async def reopen(self, known: WorkspaceId) -> Folder | None:
        for folder in self.made:
            if folder.id == known and folder.path.exists():
                return folder
        return None


class Note(Arguments):
    name: str
    text: str = ""


@tool("notes", reads=True, operation="read")
async def read_note(surroundings: Surroundings, arguments: Note) -> ToolOutput:
    """Read a note."""
    try:
        text = (surroundings.workspace.path / arguments.name).read_text()
    except FileNotFoundError:
        raise ToolError(f"there is no note {arguments.name!r}") from None
    return ToolOutput(text=text, summary=f"{len(text)} characters")


@tool("notes", reads=False, operation="write")
async def write_note(surroundings: Surroundings, arguments: Note) -> ToolOutput:
    """Write more into a note."""
    with (surroundings.workspace.path / arguments.name).open("a") as file:
        file.write(arguments.text)
    return ToolOutput(text="written", artifacts={"written": [arguments.name]})


@tool("secrets", reads=True)
async def read_secret(surroundings: Surroundings, arguments: Note) -> ToolOutput:
    """Nobody may."""
    raise AssertionError("a refused tool was called")


GRANT = Grant(role="DEV", names=frozenset({"notes"}), narrowed=None, read_only=False)


NOTHING = Grant(role="DEV", names=frozenset(), narrowed=None, read_only=False)


class Agent:
    """A tool loop with all that belongs to it; `more` tools belong to the group `notes`."""

    def __init__(
        self,
        root: Path,
        model: ScriptedModel,
        *more: Any,
        folders: Folders | None = None,
        grant: Grant = GRANT,
        **settings: Any,
    ) -> None:
        self.model = model
        self.folders = folders or Folders(root)
        self.settings = ToolsConfig(**settings)
        self._grant = grant
        self._tools = [read_note, write_note, read_secret, *more]
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.record = AttemptRecord()

    async def run(
        self,
        journal: MemoryJournal | None = None,
        *,
        timeout_s: float = 60.0,
        max_tokens: int = 500,
        **constraints: Any,
    ) -> AttemptRecord:
        """Attempt the task; the record is there when it fails, too."""
        self.record = AttemptRecord(journal, self._tell)
        loop = ToolLoop(
            client=self.model,
            settings=self.settings,
            workspaces=self.folders,
            toolbox_for=self._toolbox,
            prepare=self._prepare,
        )
        await loop.run(
            request(constraints, timeout_s=timeout_s, max_tokens=max_tokens), self.record
        )
        return self.record

    @property
    def folder(self) -> Folder:
        return self.folders.made[-1]

    def kinds(self) -> list[str]:
        return [event.event for event in self.record.audit_trail]

    def _toolbox(self, _request: ExecutionRequest, workspace: Any) -> Toolbox:
        surroundings = Surroundings(workspace=workspace, settings=self.settings, web=None)
        return Toolbox(self._tools, self._grant, surroundings)

    async def _prepare(self, _request: ExecutionRequest, workspace: Folder) -> dict[str, Any]:
        (workspace.path / "found").write_text("found")
        return {"commit": "abc"}

    async def _tell(self, kind: str, **detail: Any) -> None:
        self.events.append((kind, detail))


def request(
    constraints: dict[str, Any], *, timeout_s: float = 60.0, max_tokens: int = 500
) -> ExecutionRequest:
    task = AgentTask(task_id="t-1", task_description="Take notes", constraints=constraints)
    agent = AgentConfig(
        agent_id="a-1", role="DEV", model="asked-for", enable_tools=True, max_tokens=max_tokens
    )
    return ExecutionRequest(
        task=task, constraints=constraints_of(task), agent=agent, timeout_s=timeout_s
    )


def told(asked: ChatRequest) -> list[str]:
    """Return what the newest results in a request say, in their order."""
    texts: list[str] = []
    for message in reversed(asked.messages):
        if message.role != "tool":
            break
        texts.insert(0, message.content or "")
    return texts


def last(asked: ChatRequest) -> ChatMessage:
    return asked.messages[-1]
