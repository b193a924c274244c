"""What a model server's HTTP answer means: a reply, a refusal, or a failure to try again.

Pure. The shapes are those that vLLM 0.32 was seen to send, and the flatter error body of
versions before 0.10.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar, cast
from uuid import uuid4

import msgspec
from msgspec import UNSET, Struct, UnsetType

from agent_actors.adapters.vllm.endpoints import Endpoint
from agent_actors.contract import Usage, utc_now
from agent_actors.errors import (
    ContextExceeded,
    ModelRefused,
    ModelReplyInvalid,
    ModelUnavailable,
)
from agent_actors.ports import CalledFunction, ChatReply, ToolCall

T = TypeVar("T")

MAX_QUOTE_CHARS = 300
MAX_MESSAGE_CHARS = 2_000
MAX_RETRY_AFTER_S = 86_400.0

OK = 200
# Timeouts of a gateway, "too early" and "too many": the same request may pass a moment later.
BUSY_STATUSES = frozenset({408, 425, 429})
# More requests than a server or a gateway takes.
REJECTIONS = frozenset({429, 503})
# Not implemented, HTTP version: no server of this kind will ever take the request.
HOPELESS_STATUSES = frozenset({501, 505})

# What vLLM calls the parameter when a prompt does not fit, and says in every version.
PROMPT_PARAMS = frozenset({"input_tokens", "input_text"})
PROMPT_TOO_LONG = "maximum context length"

NO_ARGUMENTS = "{}"


class AttemptFailed(Exception):
    """One HTTP request failed: the error to raise in the end, and what to do before that.

    `retry`: the same request may well succeed now. `unhealthy`: this endpoint is to be left
    out until a probe succeeds. `rejected`: it has more requests than it takes.
    """

    def __init__(
        self,
        error: ModelUnavailable,
        *,
        retry: bool = True,
        unhealthy: bool = False,
        rejected: bool = False,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry = retry
        self.unhealthy = unhealthy
        self.rejected = rejected


def read_reply(endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> ChatReply:
    """Return the reply in the body of a 200. Raises AttemptFailed, ModelRefused."""
    content_type = headers.get("Content-Type", "")
    if content_type and "json" not in content_type:
        said = _quoted(endpoint, body)
        raise invalid(endpoint, f"answered {content_type}, not JSON: {said}")
    completion = decode(endpoint, _completions, body)
    if completion.error is not None:
        raise error_inside(endpoint, body)
    return reply_of(endpoint, completion)


def reply_of(endpoint: Endpoint, completion: "Completion") -> ChatReply:
    """Return the reply that a decoded answer is. Raises AttemptFailed."""
    choice = _first_choice(endpoint, completion)
    if choice.finish_reason is None:
        raise invalid(endpoint, "answered without a finish_reason")
    if choice.finish_reason == "abort":
        error = ModelUnavailable(
            f"{endpoint.name} aborted the answer (finish_reason abort): it is shutting down"
        )
        raise AttemptFailed(error, unhealthy=True)
    return ChatReply(
        content=_content(endpoint, choice),
        finish_reason=choice.finish_reason,
        model=completion.model or "",
        usage=_usage(completion.usage),
        tool_calls=_tool_calls(choice),
    )


def read_failure(
    endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes
) -> ModelRefused | AttemptFailed:
    """Return what an answer other than 200 means."""
    if status < 300:
        return invalid(endpoint, f"answered HTTP {status} where 200 is due")
    if status < 400:
        return ModelRefused(
            f"{endpoint.name} answered HTTP {status}, a redirection to "
            f"{endpoint.redacted(headers.get('Location', 'nowhere'))}, which is not followed; "
            "vllm.urls must name the server itself"
        )
    wait_s = retry_after_s(headers.get("Retry-After"), utc_now())
    return _error(endpoint, status, f"HTTP {status}", body, wait_s)


def too_long(endpoint: Endpoint, max_bytes: int) -> AttemptFailed:
    """Return the failure of an answer that did not end; the next one would not either."""
    error = ModelReplyInvalid(
        f"{endpoint.name} answered more than {max_bytes} bytes (vllm.max_response_bytes)"
    )
    return AttemptFailed(error, retry=False)


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, at most a day; None if it is none."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    if seconds is None or not seconds >= 0:  # also false for NaN
        return None
    return min(seconds, MAX_RETRY_AFTER_S)


class Function(Struct):
    """A called function, whole or in part; arguments should be a string, and may be anything."""

    name: str | None = None
    arguments: Any = None

    def arguments_text(self) -> str:
        """Return the arguments as JSON text, empty when there are none."""
        match self.arguments:
            case None:
                return ""
            case str(text):
                return text
            case value:
                return msgspec.json.encode(value).decode()


class Call(Struct):
    """A tool call as it arrives."""

    id: str | None = None
    function: Function | None = None


class Message(Struct):
    """What of an answer's message is understood."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None


class Choice(Struct):
    """One choice of an answer."""

    message: Message | None = None
    finish_reason: str | None = None


class TokenCounts(Struct):
    """The usage of an answer."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Completion(Struct):
    """An answer of `POST /v1/chat/completions`, or an error in place of one."""

    choices: list[Choice] | UnsetType | None = UNSET
    model: str | None = None
    usage: TokenCounts | None = None
    error: Any = None


_completions = msgspec.json.Decoder(Completion)


def decode(endpoint: Endpoint, decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return what the body says. Raises AttemptFailed."""
    # What may be an answer is not quoted: answers do not belong in errors and logs.
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(endpoint, f"answered what vLLM does not: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "truncated" in str(error):  # msgspec has no class of its own for it
            cut_off = f"answered JSON that is cut off after {len(body)} bytes"
            raise invalid(endpoint, cut_off) from None
        said = _quoted(endpoint, body)
        raise invalid(endpoint, f"answered no JSON ({error}): {said}") from None


def _first_choice(endpoint: Endpoint, completion: Completion) -> Choice:
    if completion.choices is UNSET:
        raise invalid(endpoint, "answered without choices")
    if not completion.choices:
        raise invalid(endpoint, "answered with no choice in choices")
    return completion.choices[0]


def _content(endpoint: Endpoint, choice: Choice) -> str:
    message = choice.message
    if message is None:
        raise invalid(endpoint, "answered a choice without a message")
    if message.content is not None:
        return message.content
    if message.tool_calls:
        return ""
    # A reasoning model that stops while it still reasons leaves the content null, and would do
    # so again: that answer is empty or cut off, not invalid.
    if choice.finish_reason == "length" or message.reasoning or message.reasoning_content:
        return ""
    raise invalid(endpoint, f"answered null content (finish_reason {choice.finish_reason})")


def _tool_calls(choice: Choice) -> Sequence[ToolCall]:
    if choice.message is None or not choice.message.tool_calls:
        return ()
    # An answer that was cut off may have lost its last call's arguments: they are not none.
    missing = "" if choice.finish_reason == "length" else NO_ARGUMENTS
    return tuple(_with_ids(choice.message.tool_calls, missing))


def _with_ids(calls: Sequence[Call], missing: str) -> Iterator[ToolCall]:
    """Yield the calls, with an id of ours for one that has none of its own."""
    taken: set[str] = set()
    for call in calls:
        call_id = call.id or ""
        while not call_id or call_id in taken:
            call_id = uuid4().hex[:9]  # Mistral's template takes nothing but nine letters or digits
        taken.add(call_id)
        function = call.function or Function()
        arguments = function.arguments_text()
        yield ToolCall(
            id=call_id,
            function=CalledFunction(
                # A call without a name is the model's mistake to hear of, as of any unknown name.
                name=function.name or "",
                arguments=arguments if arguments.strip() else missing,
            ),
        )


def _usage(usage: TokenCounts | None) -> Usage:
    if usage is None:
        return Usage()
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=usage.total_tokens or prompt + completion,
    )


def error_inside(endpoint: Endpoint, body: bytes) -> ModelRefused | AttemptFailed:
    """Return what an error in the JSON of a 200 means."""
    match msgspec.json.decode(body):
        case {"error": {"code": int(code)}} if 400 <= code < 600:
            return _error(endpoint, code, f"HTTP 200 with error {code} inside", body)
        case _:
            said = _said(endpoint, body)
            return AttemptFailed(
                ModelReplyInvalid(f"{endpoint.name} answered HTTP 200 with an error inside: {said}")
            )


def _error(
    endpoint: Endpoint, status: int, how: str, body: bytes, wait_s: float | None = None
) -> ModelRefused | AttemptFailed:
    said = _said(endpoint, body)
    if status not in BUSY_STATUSES and (status < 500 or status in HOPELESS_STATUSES):
        refusal = ContextExceeded if _names_the_prompt(body) else ModelRefused
        return refusal(f"{endpoint.name} refused the request: {how}: {said}")
    error = ModelUnavailable(f"{endpoint.name} answered {how}: {said}", retry_after_s=wait_s)
    return AttemptFailed(error, unhealthy=status >= 500, rejected=status in REJECTIONS)


def _names_the_prompt(body: bytes) -> bool:
    """Tell whether an error body says that the prompt is too long."""
    match _json_or_none(body):
        case {"error": {"param": str(param)}} if param in PROMPT_PARAMS:
            return True
        case {"error": {"message": str(message)}} | {"message": str(message)}:
            return PROMPT_TOO_LONG in message
        case _:
            return False


def _said(endpoint: Endpoint, body: bytes) -> str:
    """Return what an error body says, whichever of the known shapes it has."""
    said = _json_or_none(body)
    match said:
        case {"error": {"message": str(message)} as error}:
            text = _with_details(message, cast("dict[str, Any]", error))
        case {"error": str(message)} | {"detail": str(message)}:
            text = message
        case {"message": str(message)}:
            text = _with_details(message, cast("dict[str, Any]", said))
        case _:
            return _quoted(endpoint, body)
    return endpoint.redacted(text)[:MAX_MESSAGE_CHARS]


def _json_or_none(body: bytes) -> Any:  # noqa: ANN401 - it is whatever the server sent
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _with_details(message: str, error: dict[str, Any]) -> str:
    known = {key: error.get(key) for key in ("type", "param", "code")}
    details = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
    return f"{message} ({details})" if details else message


def invalid(endpoint: Endpoint, what: str) -> AttemptFailed:
    """Return the failure of an answer that is not what vLLM answers."""
    return AttemptFailed(ModelReplyInvalid(f"{endpoint.name} {what}"))


def _quoted(endpoint: Endpoint, body: bytes) -> str:
    # Cut twice: the whole may be megabytes, and half a secret would not be recognised.
    start = body[: 4 * MAX_QUOTE_CHARS + len(endpoint.secret)].decode(errors="replace")
    text = endpoint.redacted(start).strip()
    if not text:
        return "nothing"
    return repr(text if len(text) <= MAX_QUOTE_CHARS else text[:MAX_QUOTE_CHARS] + "…")


def _seconds_until(value: str, now: datetime) -> float | None:
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - now).total_seconds())
