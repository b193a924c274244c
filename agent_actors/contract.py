"""The wire contract: every Struct, subject and header that leaves or enters a process.

Messages are plain JSON in UTF-8. Unknown fields are ignored on the way in; a new field always
has a default. `tests/contract/` pins messages of every version for ever.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
from msgspec import Meta, Struct

from agent_actors.errors import InvalidTask

# Streams, buckets and subjects.

TASK_STREAM = "AGENT_TASKS"
RESPONSE_STREAM = "AGENT_RESPONSES"
DEADLETTER_STREAM = "AGENT_DEADLETTER"
LEDGER_BUCKET = "agent_ledger"
CONFIG_BUCKET = "agent_config"
ARTIFACT_BUCKET = "agent_artifacts"
# Where in it the payloads of dead letters are that are too big for a message.
DEADLETTER_FOLDER = "deadletter/"

TASK_PREFIX = "agent.tasks."
TASK_SUBJECTS = "agent.tasks.>"
COMPLETED_SUBJECT = "agent.response.completed"
FAILED_SUBJECT = "agent.response.failed"
DEADLETTER_PREFIX = "agent.deadletter."
EVENT_PREFIX = "agent.events."
CANCEL_PREFIX = "agent.cancel."

CONTROL_SERVICE = "agent-actors"
CONTROL_GROUP = "agent.control"

# Headers. Names of NATS, CloudEvents (binary mode) and W3C trace context are theirs.

MSG_ID_HEADER = "Nats-Msg-Id"
TRACE_HEADER = "traceparent"
REASON_HEADER = "Agent-Actors-Reason"
ERROR_HEADER = "Agent-Actors-Error"
TASK_ID_HEADER = "Agent-Actors-Task-Id"
ATTEMPTS_HEADER = "Agent-Actors-Attempts"
SOURCE_HEADER = "Agent-Actors-Source"
SUBJECT_HEADER = "Agent-Actors-Subject"
GENERATION_HEADER = "Agent-Actors-Generation"
OBJECT_HEADER = "Agent-Actors-Object"
OBJECT_SIZE_HEADER = "Agent-Actors-Object-Size"
OBJECT_SHA256_HEADER = "Agent-Actors-Object-SHA256"
ORIGINAL_HEADER_PREFIX = "Agent-Actors-Original-"

# Limits.

MAX_TASK_ID_CHARS = 128
MAX_ROLE_CHARS = 64
MAX_NESTING = 64
MIN_INTEGER = -(2**63)
MAX_INTEGER = 2**64 - 1
MAX_ERROR_CHARS = 4_000
MAX_GENERATION_DIGITS = 9
PAYLOAD_MARGIN_BYTES = 64 * 1024
MAX_SECONDS = 30 * 86_400.0
MAX_ACTORS = 10_000

# What a role cannot have: wildcards, and the mark of bytes that are no UTF-8.
ODD = frozenset("*>\ufffd")
KEY_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class AgentRole(StrEnum):
    """The built-in roles; any other name is allowed and gets a generic prompt."""

    DEV = "DEV"
    QA = "QA"
    ARCHITECT = "ARCHITECT"
    DEVOPS = "DEVOPS"
    DATA = "DATA"
    TASK_EXTRACTOR = "TASK_EXTRACTOR"


ResultStatus = Literal["completed", "failed"]
Moment = Annotated[datetime, Meta(tz=True)]
Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
Count = Annotated[int, Meta(ge=1, le=2**53)]
Text = str | list[Any] | dict[str, Any]
ModelName = Annotated[str, Meta(max_length=256)]
# What these two must satisfy is said by `decode_task`; here it is for the schema.
TaskId = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": MAX_TASK_ID_CHARS})]
Description = Annotated[str, Meta(extra_json_schema={"minLength": 1})]


class Constraints(Struct, frozen=True, kw_only=True):
    """What a task may ask for beyond its description, all of it optional.

    Other keys are kept and echoed in the result. `timeout` is in seconds and bounds one
    attempt; `deadline` is a point in time (ISO 8601 with a zone) and bounds the whole task.
    `allowed_tools` and `tool_mode` narrow what the role may use, and never widen it.
    `workspace` names what an agent with tools finds in its folder: `{"repo": URL, "ref": NAME}`.
    """

    rubric: Text | None = None
    requirements: Text | None = None
    context: Text | None = None
    metadata: dict[str, Any] | None = None
    timeout: Seconds | None = None
    deadline: Moment | None = None
    max_operations: Count | None = None
    max_iterations: Count | None = None
    token_budget: Count | None = None
    abort_on_error: bool | None = None
    workspace: dict[str, Any] | None = None
    allowed_tools: list[str] | None = None
    tool_mode: Literal["read-only", "full"] | None = None
    response_format: dict[str, Any] | None = None


class AgentTask(Struct, frozen=True, kw_only=True):
    """A task as published to `agent.tasks.<role>`; only the id and the description are required.

    `constraints` is open: see `Constraints` for the keys that mean something. `model`,
    `temperature` and `max_tokens` override the pool's, `max_tokens` only downwards.
    """

    task_id: TaskId
    task_description: Description
    role: str = ""
    enable_tools: bool | None = None
    diversity: bool = False
    constraints: dict[str, Any] = {}
    model: ModelName | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Count | None = None


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of all requests for the task, as the model server counted them.

    Of a server that counts none, they are an estimate; the audit trail says so.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        """Return the sum."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
        )


class Proposal(Struct, frozen=True, kw_only=True):
    """The text that the model proposed, who it speaks as, and how it was sampled."""

    content: str
    author_id: str
    author_role: str
    model: str
    temperature: float
    tokens: int = 0


class Operation(Struct, frozen=True, kw_only=True):
    """One tool call."""

    tool: str
    operation: str
    params: dict[str, Any] = {}
    success: bool = False
    duration_ms: float = 0.0
    error: str | None = None
    summary: str | None = None


class AuditEvent(Struct, frozen=True, kw_only=True):
    """Something that happened during the attempt."""

    time: Moment
    event: str
    detail: dict[str, Any] = {}


class ArtifactRef(Struct, frozen=True, kw_only=True):
    """A part of a result that lies in the object store because it is too big for a message."""

    object: str
    size: int
    sha256: str


class AgentResult(Struct, frozen=True, kw_only=True):
    """What became of a task: published to `agent.response.completed` or `.failed`.

    `duration_ms` is the attempt that decided, without waiting in the queue. A result too big
    for a message has its big parts in the object store and an `ArtifactRef` for each, under
    the part's name, in `artifacts`.
    """

    task_id: str
    agent_id: str
    role: str
    status: ResultStatus
    success: bool
    duration_ms: float
    timestamp: Moment
    proposal: Proposal | None = None
    operations: list[Operation] = []
    artifacts: dict[str, Any] = {}
    audit_trail: list[AuditEvent] = []
    error: str | None = None
    error_type: str | None = None
    model: str = ""
    enable_tools: bool = False
    diversity: bool = False
    constraints: dict[str, Any] = {}
    attempt: int = 0
    usage: Usage = Usage()


EventKind = Literal["started", "token", "tool_call", "tool_result", "retry", "finished"]


class TaskEvent(Struct, frozen=True, kw_only=True):
    """Live progress on `agent.events.<task key>.<kind>`; core NATS, so it may be missed.

    More kinds than `EventKind` has may come: from a newer service.
    """

    task_id: str
    kind: Annotated[str, Meta(extra_json_schema={"examples": list(get_args(EventKind))})]
    time: Moment
    agent_id: str = ""
    attempt: int = 0
    detail: dict[str, Any] = {}


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A message given up on, as `AGENT_DEADLETTER` keeps it; `stream_seq` is its number there.

    `payload` and `headers` are the publisher's, the bytes as Base64 in JSON; a payload of `size`
    bytes too big for a message lies in the object store, where `object` says. `task_id` is empty
    when the message had no usable one. `source` is where it was queued, as `stream:sequence`.
    """

    stream_seq: int
    time: Moment
    role: str
    reason: str
    error: str = ""
    attempts: int = 0
    generation: int = 0
    task_id: str = ""
    subject: str = ""
    source: str = ""
    headers: dict[str, str] = {}
    size: int = 0
    payload: bytes = b""
    object: ArtifactRef | None = None


class Replay(Struct, frozen=True, kw_only=True):
    """What a dead letter's replay came to: the task's `generation` and where it stands.

    `already` tells that it had been replayed before, and that nothing was done but to remove
    the letter.
    """

    stream_seq: int
    task_id: str
    generation: int
    state: "TaskState"
    already: bool = False


# The control service: requests and replies of its endpoints, JSON as well.

TaskState = Literal["unknown", "running", "waiting", "completed", "failed"]


class ResultRequest(Struct, frozen=True, kw_only=True):
    """What `agent.control.result` is asked."""

    task_id: str


class DrainRequest(Struct, frozen=True, kw_only=True):
    """What `agent.control.drain` is asked; only the service of this `cluster` answers.

    That is its Ray namespace. `grace_s` unset is each pool's `stop_grace_s`; asked again with
    less, the service hurries. `only_ask` changes nothing.
    """

    cluster: str
    only_ask: bool = False
    grace_s: Annotated[float, Meta(ge=0, le=MAX_SECONDS)] | None = None


class DrainReply(Struct, frozen=True, kw_only=True):
    """Whether the service drains: then nothing more is pulled, and what is `running` may finish."""

    cluster: str
    draining: bool
    running: int


class TaskStatus(Struct, frozen=True, kw_only=True):
    """Where a task stands; `unknown` is one that no agent has begun, or that never was."""

    task_id: str
    state: TaskState
    attempt: int = 0
    agent_id: str = ""
    result: AgentResult | None = None
    cancel_requested: bool = False


CancelState = Literal["cancel_requested", "cancelled", "completed", "failed"]


class CancelRequest(Struct, frozen=True, kw_only=True):
    """What `agent.control.cancel` is asked."""

    task_id: str


class CancelReply(Struct, frozen=True, kw_only=True):
    """What a cancel has come to; all but `cancel_requested` is how the task had ended before.

    A task that nobody has begun, or that never was, is marked too: it fails as `Cancelled`
    when it is handed out.
    """

    task_id: str
    state: CancelState


class ScaleRequest(Struct, frozen=True, kw_only=True):
    """What `agent.control.scale` is asked; only the service of this `cluster` answers.

    That is its Ray namespace. `actors` is the size that the pool is to keep from now on, unset
    gives it back to its configuration.
    """

    cluster: str
    pool: str
    actors: Annotated[int, Meta(ge=0, le=MAX_ACTORS)] | None = None


class ScaleReply(Struct, frozen=True, kw_only=True):
    """How many actors the pool is to have, and had before; `sized_by` as in `PoolStatus`."""

    cluster: str
    pool: str
    wanted: int
    before: int
    sized_by: str


class ConfigReply(Struct, frozen=True, kw_only=True):
    """The configuration that a service runs, secrets masked, and what kept it from a newer one."""

    cluster: str
    config: dict[str, Any]
    trouble: str = ""


class EndpointStatus(Struct, frozen=True, kw_only=True):
    """One model server as an actor sees it: how many requests it may have of it, and has.

    `waiting` are those of everybody that wait in the server; -1 where it does not say.
    """

    url: str
    limit: int
    in_flight: int
    waiting: int = -1


class ActorStatus(Struct, frozen=True, kw_only=True):
    """One actor as its supervisor sees it; `pid` is its process, on its node.

    It is `starting`, `running` or `draining`; more states may come, from a newer service.
    `sandbox` confines the commands of its tools; empty before it is known. `version` is that of
    its package. An `outdated` one was built from an earlier configuration, and is being replaced.
    `trouble` tells what NATS does not do for it, `endpoints` how much it asks of the model.
    """

    agent_id: str
    state: str
    slots: int
    slots_used: int
    pid: int = 0
    sandbox: str = ""
    version: str = ""
    outdated: bool = False
    trouble: str = ""
    endpoints: list[EndpointStatus] = []


class PoolStatus(Struct, frozen=True, kw_only=True):
    """One pool: what it serves, what waits for it (-1: not known), and its actors.

    `wanted` is how many actors it is to have: by `configuration`, by `hand` or by its `load`, as
    `sized_by` tells. `rate` is how many deliveries were settled a second of late.
    """

    name: str
    subjects: list[str]
    state: str
    reason: str = ""
    actors: list[ActorStatus] = []
    wanted: int = 0
    sized_by: str = ""
    running: int = 0
    starting: int = 0
    draining: int = 0
    slots: int = 0
    slots_used: int = 0
    pending: int = -1
    unacked: int = -1
    settled: int = 0
    rate: float = 0.0


class ServiceStatus(Struct, frozen=True, kw_only=True):
    """One supervisor and its pools. `cluster` is its Ray namespace.

    `unserved` are subjects that no pool serves, with how many tasks wait on them. `trouble` tells
    what is wrong with a newer configuration, or which part of it only a restart brings in force.
    """

    version: str
    supervisor_id: str
    started: Moment
    pools: list[PoolStatus]
    cluster: str = ""
    unserved: dict[str, int] = {}
    trouble: str = ""


class Health(Struct, frozen=True, kw_only=True):
    """Whether a service is well or ready, as it says over HTTP, and the reasons when it is not."""

    ok: bool
    reasons: list[str] = []


def decode_task(payload: bytes, subject: str, *, max_bytes: int) -> tuple[AgentTask, Constraints]:
    """Return the task in `payload`, its role taken from `subject`, and its typed constraints.

    Raises InvalidTask, whose message begins with the field that is wrong.
    """
    if len(payload) > max_bytes:
        raise InvalidTask(f"payload: is {len(payload)} bytes, may be at most {max_bytes}")
    _check_utf8(payload)
    try:
        task = _task_decoder.decode(payload)
    except RecursionError as error:
        raise InvalidTask(f"payload: is nested deeper than {MAX_NESTING} levels") from error
    except msgspec.ValidationError as error:
        raise InvalidTask(_explain(error)) from error
    except msgspec.DecodeError as error:
        raise InvalidTask(f"payload: is not JSON: {error}") from error
    check_task_id(task.task_id)
    if not task.task_description.strip():
        raise InvalidTask("task_description: is empty")
    _check_plain(task.constraints, "constraints")
    role = _role_for(task, subject)
    return msgspec.structs.replace(task, role=role), constraints_of(task)


def constraints_of(task: AgentTask) -> Constraints:
    """Return the task's constraints with their types. Raises InvalidTask naming the key."""
    try:
        return msgspec.convert(task.constraints, Constraints)
    except msgspec.ValidationError as error:
        raise InvalidTask(_explain(error, "constraints")) from error


def peek_task_id(payload: bytes) -> str | None:
    """Return the usable task id of a message that is no valid task, if there is one."""
    try:
        task_id = _id_decoder.decode(payload).task_id
        check_task_id(task_id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidTask):
        return None
    return task_id


def check_task_id(task_id: str) -> None:
    """Raise InvalidTask unless `task_id` is printable text of 1 to 128 characters."""
    if not task_id.strip():
        raise InvalidTask("task_id: is empty")
    if len(task_id) > MAX_TASK_ID_CHARS:
        raise InvalidTask(
            f"task_id: has {len(task_id)} characters, may have at most {MAX_TASK_ID_CHARS}"
        )
    if not task_id.isprintable():
        raise InvalidTask("task_id: has a character that cannot be printed")


def task_key(task_id: str) -> str:
    """Return the id as one token for subjects, keys and headers; different ids stay different.

    Everything outside `[A-Za-z0-9_-]` becomes `=` and two hex digits for each UTF-8 byte.
    """
    if KEY_CHARS.issuperset(task_id):
        return task_id
    return "".join(
        char if char in KEY_CHARS else "".join(f"={byte:02X}" for byte in char.encode())
        for char in task_id
    )


def task_subject(role: str) -> str:
    """Return the subject to which a task of this role is published."""
    return TASK_PREFIX + (role.lower() or "task")


def response_subject(status: ResultStatus) -> str:
    """Return the subject on which results with this status are announced."""
    return COMPLETED_SUBJECT if status == "completed" else FAILED_SUBJECT


def event_subject(task_id: str, kind: str) -> str:
    """Return the subject of a task's live events of one kind (`*` for all)."""
    return f"{EVENT_PREFIX}{task_key(task_id)}.{kind}"


def cancel_subject(task_key: str) -> str:
    """Return the subject on which agents hear that a task is cancelled (`*` for all)."""
    return CANCEL_PREFIX + task_key


def role_token(subject: str) -> str:
    """Return what follows `agent.tasks.`; dots become dashes, so that it stays one token."""
    return subject.removeprefix(TASK_PREFIX).replace(".", "-")


def message_id(task_id: str, generation: int) -> str:
    """Return the `Nats-Msg-Id` under which a task's result and dead letter are announced."""
    key = task_key(task_id)
    return f"{key}#{generation}" if generation else key


def generation_in(msg_id: str, task_id: str) -> int:
    """Return which generation of this task a `Nats-Msg-Id` names; 0 when it names none."""
    _, _, number = msg_id.rpartition("#")
    if not (number.isascii() and number.isdecimal() and len(number) <= MAX_GENERATION_DIGITS):
        return 0
    generation = int(number)
    return generation if msg_id == message_id(task_id, generation) else 0


def subjects_overlap(left: str, right: str) -> bool:
    """Tell whether some subject matches both, with NATS's wildcards `*` and `>`."""
    ours, theirs = left.split("."), right.split(".")
    for mine, other in zip(ours, theirs, strict=False):
        if ">" in (mine, other):
            return True
        if mine != other and "*" not in (mine, other):
            return False
    return len(ours) == len(theirs)


def utc_now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def header_text(value: str) -> str:
    """Return the text on one line, printable and within bounds, as a header can carry it."""
    short = value[:MAX_ERROR_CHARS]
    if not short.isprintable():
        short = "".join(char if char.isprintable() else " " for char in short)
    return " ".join(short.split())


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a task, a result and an event, generated from the Structs."""
    components: dict[str, Any]
    (task, constraints, result, event), components = msgspec.json.schema_components(
        (AgentTask, Constraints, AgentResult, TaskEvent), ref_template="#/$defs/{name}"
    )
    components["AgentTask"]["properties"]["constraints"] = {**constraints, "default": {}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "agent_actors messages",
        "anyOf": [task, result, event],
        "$defs": components,
    }


class _TaskId(Struct):
    task_id: str


_task_decoder = msgspec.json.Decoder(AgentTask)
_id_decoder = msgspec.json.Decoder(_TaskId)
encode = msgspec.json.Encoder().encode


def _check_utf8(payload: bytes) -> None:
    """Raise InvalidTask unless all of it is UTF-8; the decoder only looks at what it needs."""
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise InvalidTask(f"payload: is not UTF-8, see byte {error.start}") from error


def _explain(error: msgspec.ValidationError, parent: str = "") -> str:
    """Turn msgspec's `Expected …, got … - at `$.path`` into `path: expected …, got …`."""
    what, _, where = str(error).partition(" - at `$")
    path = ".".join(part for part in (parent, where.rstrip("`").removeprefix(".")) if part)
    missing = what.removeprefix("Object missing required field ")
    if missing != what:
        return f"{'.'.join(part for part in (path, missing.strip('`')) if part)}: is missing"
    return f"{path or 'payload'}: {what[:1].lower()}{what[1:]}"


def _role_for(task: AgentTask, subject: str) -> str:
    token = subject.removeprefix(TASK_PREFIX)
    if "." in token or token == subject:
        raise InvalidTask(f"subject: is {subject}, must be {TASK_PREFIX}<role> with one token")
    if len(token) > MAX_ROLE_CHARS or not token.isprintable() or not ODD.isdisjoint(token):
        raise InvalidTask(
            f"subject: its role {token[:MAX_ROLE_CHARS]!r} must be printable, without wildcards, "
            f"of at most {MAX_ROLE_CHARS} characters"
        )
    if task.role and task.role.upper() != token.upper():
        role = task.role[:MAX_TASK_ID_CHARS]
        raise InvalidTask(f"role: is {role!r}, but the subject {subject} is for {token!r}")
    return token.upper()


def _check_plain(value: Any, path: str) -> None:  # noqa: ANN401 - any JSON value
    """Raise InvalidTask where JSON of another language could not carry `value` onwards."""
    layer: list[Any] = [value]
    for _ in range(MAX_NESTING):
        layer = [child for parent in layer for child in _children(parent, path)]
        if not layer:
            return
    raise InvalidTask(f"{path}: is nested deeper than {MAX_NESTING} levels")


def _children(value: Any, path: str) -> Iterable[Any]:  # noqa: ANN401 - any JSON value
    match value:
        case dict():
            return cast("dict[str, Any]", value).values()
        case list():
            return cast("list[Any]", value)
        case int() if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise InvalidTask(f"{path}: holds an integer beyond 64 bits")
        case _:
            return ()
