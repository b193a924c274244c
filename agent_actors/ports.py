"""What the inside needs of the outside: Protocols of one to three verbs, and what they exchange.

The adapters implement them (`adapters/`); unit tests implement them with small scripted objects.
"""

import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from agent_actors.config import Config, PoolConfig, Resources
from agent_actors.contract import (
    AgentRole,
    AgentTask,
    ArtifactRef,
    AuditEvent,
    Constraints,
    EndpointStatus,
    EventKind,
    Operation,
    Proposal,
    TaskEvent,
    Usage,
    utc_now,
)
from agent_actors.ledger import Source, TaskRecord

T = TypeVar("T")


class Delivery(Struct, frozen=True, kw_only=True):
    """One handing-out of a task message by JetStream; `reply` is the subject that acks it."""

    subject: str
    reply: str
    payload: bytes
    headers: dict[str, str]
    stream: str
    source: Source

    @property
    def id(self) -> str:
        """What tells this delivery from every other one, of the same message too."""
        return self.reply

    @property
    def size_bytes(self) -> int:
        """The message's size: headers and payload."""
        headers = sum(len(name) + len(value) for name, value in self.headers.items())
        return len(self.payload) + headers


class Message(Struct, frozen=True, kw_only=True):
    """What is to be published to a stream."""

    subject: str
    payload: bytes
    headers: dict[str, str]


class AgentConfig(Struct, frozen=True, kw_only=True):
    """Who works on a task, and how it asks the model.

    `model` empty leaves the choice to the model server; `prompt` empty takes the role's own.
    `vllm_url` serves those who build a client from it; the service has its endpoints elsewhere.
    """

    agent_id: str
    role: AgentRole | str
    model: str = ""
    vllm_url: str = ""
    enable_tools: bool = False
    temperature: float = 0.7
    max_tokens: int = 2048
    timeout_s: float = 600.0
    prompt: str = ""


class ExecutionRequest(Struct, frozen=True, kw_only=True):
    """One attempt at a task: what to do, as whom, and how long (seconds, counted from now)."""

    task: AgentTask
    constraints: Constraints
    agent: AgentConfig
    timeout_s: float
    attempt: int = 1


class Journal(Protocol):
    """What an attempt keeps of its work as it goes, so that another can go on from there.

    Entries stand in the order of their making, those of earlier attempts first.
    """

    async def entries(self) -> Sequence[bytes]:
        """Return what earlier attempts at this task have kept."""
        ...

    async def append(self, entry: bytes) -> None:
        """Return once the entry is stored. Raises FencedOut when another attempt has the task."""
        ...

    async def begin_anew(self, entry: bytes) -> None:
        """Return once the entry is stored in place of all before. Raises what `append` raises."""
        ...


class NoJournal:
    """Keeps nothing: for an attempt that nobody takes over."""

    async def entries(self) -> Sequence[bytes]:
        """Return nothing."""
        return ()

    async def append(self, entry: bytes) -> None:
        """Keep nothing."""

    async def begin_anew(self, entry: bytes) -> None:
        """Keep nothing."""


class Progress(Protocol):
    """Live news of an attempt; losing some loses nothing."""

    async def __call__(self, kind: EventKind, **detail: Any) -> None:  # noqa: ANN401 - any JSON value
        """Send an event without waiting."""
        ...


async def no_progress(kind: EventKind, **detail: Any) -> None:  # noqa: ANN401 - any JSON value
    """Tell nobody."""


class AttemptRecord:
    """What an attempt has done so far; a strategy writes it, and it survives its failure.

    `journal` keeps what another attempt would need to go on, `progress` tells whoever listens.
    """

    def __init__(self, journal: Journal | None = None, progress: Progress = no_progress) -> None:
        self.journal = journal or NoJournal()
        self.progress = progress
        self.proposal: Proposal | None = None
        self.operations: list[Operation] = []
        self.artifacts: dict[str, Any] = {}
        self.audit_trail: list[AuditEvent] = []
        self.usage = Usage()
        self.model = ""

    def note(self, event: str, **detail: Any) -> None:  # noqa: ANN401 - any JSON value
        """Add an event to the audit trail."""
        self.audit_trail.append(AuditEvent(time=utc_now(), event=event, detail=detail))

    def count(self, usage: Usage) -> None:
        """Add the tokens of one model request."""
        self.usage += usage


class CalledFunction(Struct, frozen=True, kw_only=True):
    """The function of a tool call; `arguments` is JSON as the model wrote it, right or wrong."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """One call that the model asks for; `id` is repeated with its result."""

    id: str
    function: CalledFunction


class ChatMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of a chat, as vLLM's OpenAI-style API takes it.

    An assistant's message may have `tool_calls`; each is answered by a message of the role
    `tool` with its `tool_call_id`.
    """

    role: str
    content: str | None
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str = ""


class OfferedFunction(Struct, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


class OfferedTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A tool as `ChatRequest.tools` has it."""

    function: OfferedFunction


class FunctionName(Struct, frozen=True, kw_only=True):
    """The function that `NamedTool` means."""

    name: str


class NamedTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The one tool that the model must call, as `ChatRequest.tool_choice` names it."""

    function: FunctionName


class ChatRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `POST /v1/chat/completions`; what is unset is left to the server.

    `tool_choice` is `auto`, `none`, `required`, or the tool to call.
    """

    messages: Sequence[ChatMessage]
    model: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    response_format: dict[str, Any] | None = None
    tools: Sequence[OfferedTool] = ()
    tool_choice: str | NamedTool | None = None


class ChatReply(Struct, frozen=True, kw_only=True):
    """The model's one answer. `finish_reason` is vLLM's: `stop`, `length`, `tool_calls`."""

    content: str
    finish_reason: str
    model: str
    usage: Usage
    tool_calls: Sequence[ToolCall] = ()


class Listener(Protocol):
    """Hears the model's words while it speaks."""

    async def __call__(self, text: str) -> None:
        """Take some more text; an empty one voids all before: the answer begins anew."""
        ...


class VLLMClient(Protocol):
    """A model server."""

    async def chat(self, request: ChatRequest, listener: Listener | None = None) -> ChatReply:
        """Return the model's answer; with a listener it is streamed, and told as it comes.

        Raises ModelRefused, ModelUnavailable.
        """
        ...

    async def context_length(self, model: str = "") -> int | None:
        """Return how many tokens prompt and answer may have together; None: nobody knows."""
        ...

    async def close(self) -> None:
        """Close the session; requests under way are aborted."""
        ...


class ModelRoom(Protocol):
    """How many requests the model takes of this process just now, so that none need wait for it."""

    @property
    def room(self) -> int:
        """Requests that may be under way at a time."""
        ...

    def watch_room(self, listener: Callable[[], None]) -> None:
        """Have the listener called whenever there may be more or less room."""
        ...

    def endpoints(self) -> list[EndpointStatus]:
        """Return what can be told of each model server."""
        ...


class AnyRoom:
    """A model that takes whatever comes."""

    room = sys.maxsize

    def watch_room(self, listener: Callable[[], None]) -> None:
        """Call nobody."""

    def endpoints(self) -> list[EndpointStatus]:
        """Return none."""
        return []


class ResultPublisher(Protocol):
    """Where results and dead letters are announced."""

    async def publish(self, message: Message) -> None:
        """Return once the message is stored, or was before. Raises PublishFailed."""
        ...

    async def close(self) -> None:
        """Close the connection, if it is this object's own."""
        ...


class AsyncExecutor(Protocol):
    """A way to run a coroutine from code that is not async."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return the coroutine's value."""
        ...


class Strategy(Protocol):
    """A way of working on a task."""

    async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
        """Do the task, writing down in `record` what was done. Raises TaskError, FencedOut."""
        ...


class Stored(Struct, frozen=True, kw_only=True):
    """A ledger record and the revision at which it was read; revision 0 is none yet."""

    record: TaskRecord | None
    revision: int


class LedgerStore(Protocol):
    """The key-value bucket with one record a task, changed only by compare-and-set."""

    async def read(self, key: str) -> Stored:
        """Return what the leader holds. Raises PublishFailed when it does not answer."""
        ...

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        """Replace the record at `revision`; return the new revision.

        Raises FencedOut when the record has moved on, PublishFailed when no answer came and
        the write may or may not have happened.
        """
        ...


class Acknowledger(Protocol):
    """The four answers to a delivery, each sent without waiting."""

    async def ack(self, delivery: Delivery) -> None:
        """Take the message off the queue."""
        ...

    async def nak(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        """Have the message handed out again, after `delay_s`."""
        ...

    async def term(self, delivery: Delivery) -> None:
        """Take the message off the queue as one that never was a task."""
        ...

    async def in_progress(self, deliveries: Sequence[Delivery]) -> None:
        """Tell JetStream that these are being worked on."""
        ...


class TaskQueue(Protocol):
    """The stream of tasks, asked of its leader."""

    async def holds(self, stream_seq: int, task_id: str) -> bool:
        """Tell whether this task's message is still there.

        The id is asked too: a stream made anew counts from 1 again. Raises PublishFailed
        without an answer.
        """
        ...


class ArtifactStore(Protocol):
    """The object store for what is too big for a message."""

    async def put(self, name: str, data: bytes) -> ArtifactRef:
        """Store the bytes under the name, over what was there. Raises PublishFailed."""
        ...

    async def get(self, ref: ArtifactRef) -> bytes:
        """Return the bytes that the reference means. Raises ArtifactLost, PublishFailed."""
        ...

    async def delete(self, ref: ArtifactRef) -> None:
        """Remove the object, if it is there. Raises PublishFailed."""
        ...


class WebAnswer(Struct, frozen=True, kw_only=True):
    """The answer of a web server; `truncated` tells that the body went on beyond the limit."""

    status: int
    url: str
    headers: dict[str, str]
    body: bytes
    truncated: bool = False


class Web(Protocol):
    """The web, as far as the configuration opens it to agents."""

    async def fetch(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> WebAnswer:
        """Return the answer, redirections followed. Raises ToolError, ToolRefused."""
        ...


class EventSink(Protocol):
    """Where live progress goes; losing an event loses nothing."""

    async def emit(self, event: TaskEvent) -> None:
        """Send the event without waiting."""
        ...


class Clock(Protocol):
    """The time, so that a test can say what it is."""

    def __call__(self) -> datetime:
        """Return the time in UTC."""
        ...


# What becomes of a request that comes by a lane.
Answer = Callable[[bytes], Awaitable[bytes]]


class ActorReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an actor says of itself in each of its answers.

    `incarnation` changes when the actor is restarted, `version` grows with each change of its
    slots. `used` are those in which something runs, `free` those that may get something: no more
    than the model has room for, none of one that is `stopping`, or whose delivery is `alone`.
    `free_bytes` is its room for the messages themselves, though one that holds nothing takes one of
    any size. `refused` and `finished` are ids of deliveries. `model_away`: none of the model's
    endpoints can be reached. `alone`: what it holds is to have no company. `stopping`: it takes
    nothing more, and will end. `trouble`: what keeps it from working, or what NATS does not do for
    it; `unable`: so its newest task could not be settled and stays in the queue. `endpoints` are
    told once a second, else none. `number` counts the answers that told one supervisor something.
    `node`, the id of the cluster's node that it is on, is filled by `look` and `hello`; `held`,
    `sandbox`, `process` (as `processes` tells it), `built_from` (as in `ActorSettings`),
    `hang_timeout_s`, by which it answers, `package`, the version of its code, and `lane`, where it
    can be asked over NATS, by `hello` only.
    """

    incarnation: str
    pid: int
    version: int
    slots: int
    free: int
    free_bytes: int
    used: int = 0
    model_away: bool = False
    alone: bool = False
    stopping: bool = False
    trouble: str = ""
    unable: bool = False
    refused: list[str] = []
    finished: list[str] = []
    endpoints: list[EndpointStatus] = []
    number: int = 0
    node: str = ""
    held: list[Delivery] = []
    sandbox: str = ""
    process: str = ""
    built_from: str = ""
    hang_timeout_s: float = 0.0
    package: str = ""
    lane: str = ""


class ActorSettings(Struct, frozen=True, kw_only=True):
    """Who an actor is, and the configuration that it builds itself from.

    `built_from` is a digest of what of it counts: actors with the same one do the same.
    """

    agent_id: str
    pool_name: str
    config: Config
    built_from: str = ""

    @property
    def pool(self) -> PoolConfig:
        """The configuration of the actor's pool."""
        return self.config.pools[self.pool_name]


class ActorHandle(Protocol):
    """A way to talk to one actor. Every verb raises ActorLost when the actor does not answer."""

    async def look(self) -> ActorReport:
        """Answer as soon as the actor has a process, whether it can work yet or not."""
        ...

    async def hello(self, supervisor_id: str) -> ActorReport:
        """Return the actor's slots and what it holds of this supervisor's deliveries."""
        ...

    async def submit(
        self, supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        """Hand over deliveries; return at once, with those that found no room.

        With `alone` it is one, which only an empty actor takes, and nothing more until it ends.
        """
        ...

    async def completions(self, supervisor_id: str) -> ActorReport:
        """Wait until something of this supervisor's is settled; return all that is."""
        ...

    async def kill(self) -> None:
        """End the actor's process at once; another one takes its place."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Let the actor finish what it can in `grace_s` seconds, give back the rest, and end."""
        ...

    async def end(self) -> None:
        """End the actor at once and for good, whatever it does."""
        ...


class ActorRuntime(Protocol):
    """Where actors come from and go to."""

    async def existing(self) -> list[str]:
        """Return the ids of all actors there are, of whatever pool. Raises ActorLost."""
        ...

    async def find(self, agent_id: str) -> ActorHandle:
        """Return a handle on an actor that exists. Raises ActorLost when there is none."""
        ...

    async def start(self, settings: ActorSettings) -> ActorHandle:
        """Return a handle on the actor of this id, starting it if there is none."""
        ...

    async def lacking(self, resources: Resources) -> str:
        """Return in words what an actor that asks for so much waits for."""
        ...


class Backlog(Struct, frozen=True, kw_only=True):
    """What a pool's consumer knows: messages never handed out yet, and those not acked yet."""

    pending: int
    unacked: int


class HandSize(Struct, frozen=True, kw_only=True):
    """A pool's size as somebody set it, in place of the one that was `configured` then."""

    actors: int
    configured: str


class SizeStore(Protocol):
    """The sizes set by hand; they outlive the supervisor."""

    async def read(self, pool_name: str) -> HandSize | None:
        """Return the pool's. Raises PublishFailed without an answer, StreamMissing."""
        ...

    async def write(self, pool_name: str, size: HandSize | None) -> None:
        """Keep the pool's, or none. Raises PublishFailed without an answer, StreamMissing."""
        ...


class TaskSource(Protocol):
    """A pool's durable consumer; what is asked for comes to the callback it was opened with."""

    @property
    def outstanding(self) -> int:
        """How many deliveries have been asked for and have not come."""
        ...

    @property
    def trouble(self) -> str:
        """Why nothing can be pulled; empty when all is well."""
        ...

    async def pull(self, count: int) -> None:
        """Ask for this many more deliveries."""
        ...

    def withdraw(self) -> None:
        """Ask for nothing more until the next `pull`; what is under way still comes."""
        ...

    async def backlog(self) -> Backlog:
        """Return what waits. Raises StreamMissing, PublishFailed without an answer."""
        ...

    async def close(self) -> None:
        """Ask for nothing more; what is under way still comes before this returns."""
        ...
