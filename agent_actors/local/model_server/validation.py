"""Reads a chat request and refuses what vLLM refuses, with its status, type and param.

The order is vLLM's too: first the form of the body, then the model, then the length of the
prompt, then the ranges of the parameters. Where several things are wrong with the form vLLM
tells them all, this server the first.
"""

import re
from collections.abc import Callable

import msgspec
from msgspec import UNSET

from agent_actors.local.model_server.refusal import (
    Refusal,
    bad_request,
    malformed,
    unreadable_body,
)
from agent_actors.local.model_server.settings import ModelServerSettings
from agent_actors.local.model_server.tokens import prompt_tokens
from agent_actors.local.model_server.wire import ChatRequest, ContentPart, NamedTool

# No usual vocabulary has longer tokens, so vLLM does not even tokenize what is longer than that.
MAX_CHARS_PER_TOKEN = 16

# In a union vLLM names the branch that it tried first, whatever was meant.
MESSAGE_BRANCH = "ChatCompletionDeveloperMessageParam"
CALL_BRANCH = "ChatCompletionMessageFunctionToolCallParam"

# Which values fit, how vLLM says so, and whether it names the parameter beside the message.
RANGES: dict[str, tuple[Callable[[float], bool], str, bool]] = {
    "temperature": (lambda value: 0 <= value <= 2, "in [0, 2]", True),
    "top_p": (lambda value: 0 < value <= 1, "in (0, 1]", True),
    "top_k": (lambda value: value >= -1, "0 (disable), or at least 1", False),
    "min_p": (lambda value: 0 <= value <= 1, "in [0, 1]", False),
    "presence_penalty": (lambda value: -2 <= value <= 2, "in [-2, 2]", False),
    "frequency_penalty": (lambda value: -2 <= value <= 2, "in [-2, 2]", False),
    "repetition_penalty": (lambda value: value > 0, "greater than zero", False),
}

_decode = msgspec.json.Decoder(ChatRequest, strict=False).decode
_WRONG = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<where>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")
_BYTE = re.compile(r"\(byte (?P<position>\d+)\)")


def read_chat_request(content_type: str, body: bytes) -> ChatRequest:
    """Decode the body of a chat request; raises `Refusal` when its form is wrong."""
    if content_type != "application/json":
        raise malformed("Unsupported Media Type: Only 'application/json' is allowed", param=None)
    try:
        chat = _decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_form(str(error), nothing=body.strip() == b"null") from None
    except msgspec.DecodeError as error:
        raise _no_json(str(error), length=len(body)) from None
    except (UnicodeDecodeError, RecursionError):
        raise unreadable_body() from None
    _check_combinations(chat)
    return chat


def check_chat_request(chat: ChatRequest, settings: ModelServerSettings) -> int:
    """Refuse what this model cannot do; returns the number of tokens of the prompt."""
    if chat.model and chat.model not in settings.model_names:
        aliases = ", ".join(settings.model_names)
        raise Refusal(
            404,
            f"The model `{chat.model}` does not exist. Valid aliases: {aliases}.",
            kind="NotFoundError",
            param="model",
        )
    _check_messages(chat)
    length = _check_length(chat, settings.max_model_len)
    _check_ranges(chat)
    _check_constraints(chat)
    return length


def max_new_tokens(chat: ChatRequest) -> int | None:
    """Return how long the answer may get; the newer name of the two wins."""
    return chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens


def _no_json(problem: str, *, length: int) -> Refusal:
    if not length:
        return malformed("Field required", param="body")
    byte = _BYTE.search(problem)
    position = byte["position"] if byte else length
    return malformed(f"JSON decode error: {problem}", param=f"body.{position}")


def _wrong_form(problem: str, *, nothing: bool) -> Refusal:
    wrong = _WRONG.fullmatch(problem)
    if wrong is None or nothing:
        return malformed("Field required", param="body")
    what, where = wrong["what"], wrong["where"] or ""
    if where.startswith(".tool_choice"):
        return _wrong_tool_choice(what, where)
    if missing := _MISSING.fullmatch(what):
        what, where = "Field required", f"{where}.{missing['field']}"
    return malformed(what, param=_pydantic_path(where))


def _wrong_tool_choice(what: str, where: str) -> Refusal:
    usage = '`{"type": "function", "function": {"name": "my_function"}}`'
    if _MISSING.fullmatch(what) and not where.endswith(".function"):
        return bad_request(
            f"Invalid value for `function`: `None` in `tool_choice`! Correct usage: {usage}",
            param="tool_choice.function",
        )
    if ".function" in where:
        return bad_request(
            f"Expected field `name` in `function` in `tool_choice`! Correct usage: {usage}",
            param="tool_choice.function.name",
        )
    return bad_request(
        'Invalid value for `tool_choice`! Only named tools, "none", "auto" or "required" '
        f"are supported; a named tool is {usage}",
        param="tool_choice",
    )


def _pydantic_path(where: str) -> str:
    """Return `.messages[0].role` as vLLM names it."""
    path = "body" + re.sub(r"\[(\d+)\]", r".\1", where)
    path = re.sub(
        r"body\.messages\.\d+\.tool_calls(\.\d+)?(\.\w+)?.*",
        lambda call: f"body{call[1] or '.0'}.{CALL_BRANCH}{call[2] or ''}",
        path,
    )
    return re.sub(r"(body\.messages\.\d+)", rf"\1.{MESSAGE_BRANCH}", path)


def _check_combinations(chat: ChatRequest) -> None:
    form = chat.response_format
    if form is not None and form.type == "json_schema" and form.json_schema is None:
        raise bad_request(
            "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
            param="response_format",
        )
    if chat.stream_options is not None and not chat.stream:
        raise bad_request(
            "Stream options can only be defined when `stream=True`.", param="stream_options"
        )
    if chat.tools is not None and not chat.tools:
        raise bad_request(
            "`tools` must not be an empty array. Either provide at least one tool or omit the "
            "field entirely.",
            param="tools",
        )
    if not chat.tools and chat.tool_choice not in {UNSET, None, "none"}:
        raise bad_request("When using `tool_choice`, `tools` must be set.", param="tool_choice")
    if isinstance(chat.tool_choice, NamedTool) and not any(
        tool.function.name == chat.tool_choice.function.name for tool in chat.tools or []
    ):
        raise bad_request(
            "The tool specified in `tool_choice` does not match any of the specified `tools`",
            param="tool_choice",
        )


def _check_messages(chat: ChatRequest) -> None:
    if not chat.messages:
        raise bad_request(
            "Cannot apply chat template to an empty conversation. Provide at least one message."
        )
    for index, message in enumerate(chat.messages):
        if message.content is None and message.role not in {"assistant", "function"}:
            raise malformed(
                "Input should be a valid string",
                param=_pydantic_path(f".messages[{index}].content"),
            )
        if isinstance(message.content, list):
            _check_parts(message.content)


def _check_parts(parts: list[ContentPart]) -> None:
    for part in parts:
        if part.type in {"image_url", "input_audio", "video_url"}:
            raise bad_request("The simulated model is not a multimodal model")
        if part.type != "text" or part.text is None:
            raise bad_request(f"A content part of type {part.type!r} with a text is not known")


def _check_length(chat: ChatRequest, max_model_len: int) -> int:
    field = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    wanted = max_new_tokens(chat) or 0
    if wanted > max_model_len:
        raise bad_request(
            f"{field}={wanted} cannot be greater than {max_model_len=}. "
            "Please request fewer output tokens.",
            param=field,
            value=wanted,
        )
    limit = f"This model's maximum context length is {max_model_len} tokens. However, your prompt "
    remedy = "Please reduce the length of the input prompt."
    most_chars = max_model_len * MAX_CHARS_PER_TOKEN
    chars = sum(len(message.text) for message in chat.messages)
    if chars > most_chars:
        raise bad_request(
            f"{limit}contains {chars} characters (more than {most_chars} characters, which is "
            f"the upper bound for {max_model_len} input tokens). {remedy}",
            param="input_text",
            value=chars,
        )
    length = prompt_tokens(chat)
    if length >= max_model_len:
        raise bad_request(
            f"{limit}contains at least {max_model_len + 1} input tokens, which exceeds this limit "
            f"even without any output tokens. {remedy}",
            param="input_tokens",
            value=max_model_len + 1,
        )
    return length


def _check_ranges(chat: ChatRequest) -> None:
    if (wanted := max_new_tokens(chat)) is not None and wanted < 1:
        raise bad_request(
            f"max_tokens must be at least 1, got {wanted}.", param="max_tokens", value=wanted
        )
    for field, (fits, problem, told) in RANGES.items():
        value = getattr(chat, field)
        if value is not None and not fits(value):
            told_param = field if told else None
            raise bad_request(
                f"{field} must be {problem}, got {value}.", param=told_param, value=value
            )
    if "" in ([chat.stop] if isinstance(chat.stop, str) else chat.stop or []):
        raise bad_request("stop cannot contain an empty string.")
    choices = 1 if chat.n is None else chat.n
    if choices < 1:
        raise bad_request(f"n must be at least 1, got {choices}.")
    if choices > 1 and chat.temperature == 0:
        raise bad_request(f"n must be 1 when using greedy sampling, got {choices}.")


def _check_constraints(chat: ChatRequest) -> None:
    form, own = chat.response_format, chat.structured_outputs
    given: list[str] = []
    if own is not None:
        given = [name for name in own.__struct_fields__ if getattr(own, name) is not None]
        if not given:
            raise bad_request(
                "You must use one kind of structured outputs constraint but none are specified"
            )
    if form is not None and form.type != "text":
        given.append(form.type)
    if len(given) > 1:
        raise bad_request(
            "You can only use one kind of structured outputs constraint but multiple are "
            f"specified: {', '.join(given)}"
        )
    if form is not None and form.json_schema is not None and form.json_schema.schema is None:
        raise bad_request(
            "You must use one kind of structured outputs constraint but none are specified"
        )
