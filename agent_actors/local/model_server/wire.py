"""The shapes that go over HTTP: chat requests as vLLM reads them, answers as vLLM 0.32 writes them.

What is null there is null here, so that no client learns to rely on a field we left out; fields
that are `UNSET` are absent. Unknown fields of a request are ignored, as vLLM does.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

encode = msgspec.json.encode


class ContentPart(Struct, frozen=True):
    """A part of a message; only text is understood."""

    type: str
    text: str | None = None


class CalledFunction(Struct, frozen=True):
    """A tool's name with its arguments, which are JSON in a string."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """One call that a model made."""

    id: str
    type: str
    function: CalledFunction


class Message(Struct, frozen=True):
    """One message of a conversation; any role is taken."""

    role: str
    content: str | list[ContentPart] | UnsetType | None = UNSET
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """All text of the message."""
        if isinstance(self.content, str):
            return self.content
        if isinstance(self.content, list):
            return "\n".join(part.text or "" for part in self.content)
        return ""


class ToolFunction(Struct, frozen=True):
    """A function that is offered; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct, frozen=True):
    """A tool that is offered."""

    function: ToolFunction
    type: Literal["function"] = "function"


class FunctionName(Struct, frozen=True):
    """The function that must be called."""

    name: str


class NamedTool(Struct, frozen=True):
    """The `tool_choice` that names a function."""

    function: FunctionName
    type: Literal["function"] = "function"


class StreamOptions(Struct, frozen=True):
    """What a stream brings besides the text."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchemaFormat(Struct, frozen=True):
    """The schema of a `response_format`; its name is not used."""

    name: str
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct, frozen=True):
    """The form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Struct, frozen=True):
    """VLLM's own way to constrain an answer: at most one of these."""

    json: dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None


class ChatRequest(Struct, frozen=True, kw_only=True):
    """The body of `POST /v1/chat/completions`: what changes an answer, and what is checked."""

    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logprobs: bool | None = False
    user: str | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | UnsetType | None = UNSET
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def offered(self) -> list[Tool]:
        """The tools that the answer may call: none of them when the choice is `none`."""
        return [] if self.tool_choice in {"none", None} else self.tools or []


class CallDeltaFunction(Struct, frozen=True):
    """What a stream's event adds to a called function."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallDelta(Struct, frozen=True):
    """What a stream's event adds to a call; id and type come with the first."""

    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int = 0
    function: CallDeltaFunction = CallDeltaFunction()


class Delta(Struct, frozen=True):
    """What a stream's event adds to a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    """One choice in an event; the first, with the role, has no `token_ids`."""

    index: int
    delta: Delta
    logprobs: None = None
    finish_reason: str | UnsetType | None = None
    stop_reason: str | UnsetType | None = UNSET
    token_ids: UnsetType | None = UNSET


class Usage(Struct, frozen=True):
    """The tokens of a request; a stream leaves details out."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: UnsetType | None = UNSET
    completion_tokens_details: UnsetType | None = UNSET


class Chunk(Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice] | UnsetType
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: UnsetType | None = UNSET
    prompt_text: UnsetType | None = UNSET
    system_fingerprint: str | UnsetType = UNSET


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The message of an answer that is not a stream."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: None = None


class Choice(Struct, frozen=True, kw_only=True):
    """One choice of an answer that is not a stream."""

    index: int
    message: AnswerMessage
    logprobs: None = None
    finish_reason: str | UnsetType
    stop_reason: str | None = None
    token_ids: None = None
    routed_experts: None = None


class Completion(Struct, frozen=True, kw_only=True):
    """An answer that is not a stream."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice] | UnsetType
    service_tier: None = None
    system_fingerprint: str
    usage: Usage
    prompt_logprobs: None = None
    prompt_token_ids: None = None
    prompt_text: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    metrics: None = None


class ModelPermission(Struct, frozen=True, kw_only=True):
    """What `/v1/models` says one may do with a model; nobody reads it."""

    id: str
    object: str = "model_permission"
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: None = None
    is_blocking: bool = False


class ModelCard(Struct, frozen=True, kw_only=True):
    """One model of `/v1/models`; `root` is where its weights lie, and here are none."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "vllm"
    root: str = "simulated"
    parent: None = None
    max_model_len: int
    permission: list[ModelPermission]


class ModelList(Struct, frozen=True, kw_only=True):
    """The answer of `/v1/models`."""

    object: str = "list"
    data: list[ModelCard]
