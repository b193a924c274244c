"""Scripted replies and faults, from a YAML file: what the server says in tests and demos.

    replies:                       # in this order, each once or `times` times
      - content: "A first answer"
      - status: 429
        headers: {Retry-After: "1"}
        times: 2
      - tool_calls: [{name: write_file, arguments: {path: a.py, content: "x = 1"}}]
    rules:                         # before the list; the first that matches, any number of times
      - when: {task: "binary search", repeat: 1}
        reply: {fault: hang}
      - when: {text: "OWASP", request: 7}
        reply: {content: "Cut", finish_reason: length, delay_ms: 250}
    default: {content: "Anything else"}

What a reply does not say the simulation says: `{delay_ms: 250}` is a simulated answer that comes
late, `{fault: truncated}` one that is cut off, and without a `default` the rest is simulated.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from agent_actors.errors import ConfigError
from agent_actors.local.model_server.faults import Fault
from agent_actors.local.model_server.prompt import asked_text, fingerprint, task_in
from agent_actors.local.model_server.wire import ChatRequest

Positive = Annotated[int, Meta(ge=1)]


class ScriptError(ConfigError):
    """A script file cannot be used; the message names the file, the path in it and the problem."""


class ScriptedCall(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tool call; arguments given as a string go out as they are, JSON or not."""

    name: str
    arguments: dict[str, Any] | str = {}


class ScriptedUsage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Token counts in place of the real ones."""

    prompt_tokens: Annotated[int, Meta(ge=0)]
    completion_tokens: Annotated[int, Meta(ge=0)]


class ScriptedReply(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do with a request, as far as it differs from the simulation.

    `status` makes it an error with `error` as its body's `error`, by default as vLLM words it.
    `finish_reason` is told as it stands. `times` is how often the reply may be given: once by
    default in the list, without end in a rule.
    """

    content: str | None = None
    tool_calls: tuple[ScriptedCall, ...] = ()
    finish_reason: str | None = None
    usage: ScriptedUsage | None = None
    status: Annotated[int, Meta(ge=400, le=599)] | None = None
    error: Any = None
    headers: dict[str, str] = {}
    delay_ms: Annotated[float, Meta(ge=0)] = 0.0
    fault: Fault | None = None
    times: Positive | None = None

    def __post_init__(self) -> None:
        answers = self.content is not None or bool(self.tool_calls)
        if self.status is not None and (answers or self.fault is not None):
            raise ValueError("`status` is an error: it goes with `error`, `headers`, `delay_ms`")
        if self.error is not None and self.status is None:
            raise ValueError("`error` needs a `status` of 400 or more")


class When(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests a rule is for: those for which everything given here holds.

    `text` occurs in some message, `task` in the task itself; `request` is the request's number
    since the start, `repeat` how often this very conversation was sent, both counted from 1.
    """

    text: str | None = None
    task: str | None = None
    request: Positive | None = None
    repeat: Positive | None = None


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reply for the requests that match."""

    when: When
    reply: ScriptedReply


class Script(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rules first, then the list, then the default; see the module for the YAML form."""

    rules: tuple[Rule, ...] = ()
    replies: tuple[ScriptedReply, ...] = ()
    default: ScriptedReply = ScriptedReply()


def load_script(path: Path) -> Script:
    """Read a script file; raises `ScriptError`."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Script)
    except OSError as error:
        raise ScriptError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        problem, _, where = str(error).partition(" - at `$")
        place = where.rstrip("`").lstrip(".") or "the file"
        raise ScriptError(f"{path}: {place}: {problem}") from error


class ScriptPlayer:
    """Plays a script: it remembers what has been given how often."""

    def __init__(self, script: Script) -> None:
        self._rules = [_Turns(rule.reply, rule.reply.times) for rule in script.rules]
        self._whens = [rule.when for rule in script.rules]
        self._list = [_Turns(reply, reply.times or 1) for reply in script.replies]
        self._default = script.default
        self._requests = 0
        self._repeats: Counter[str] = Counter()

    def reply_to(self, chat: ChatRequest) -> ScriptedReply:
        """Return the reply to the next request, which is this one."""
        self._requests += 1
        conversation = fingerprint(chat)
        self._repeats[conversation] += 1
        repeat = self._repeats[conversation]
        for when, turns in zip(self._whens, self._rules, strict=True):
            if self._matches(when, chat, repeat) and turns.take():
                return turns.reply
        for turns in self._list:
            if turns.take():
                return turns.reply
        return self._default

    def _matches(self, when: When, chat: ChatRequest, repeat: int) -> bool:
        return (
            when.request in {None, self._requests}
            and when.repeat in {None, repeat}
            and (when.text is None or when.text in asked_text(chat))
            and (when.task is None or when.task in task_in(chat))
        )


class _Turns:
    """A reply with what is left of its `times`; None is without end."""

    def __init__(self, reply: ScriptedReply, left: int | None) -> None:
        self.reply = reply
        self._left = left

    def take(self) -> bool:
        if self._left is None:
            return True
        self._left -= 1
        return self._left >= 0
