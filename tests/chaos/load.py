"""What is published, and what the model says to it: pure, and the same for the same seed."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent_actors.contract import peek_task_id
from agent_actors.local.model_server.script import Rule, Script, ScriptedCall, ScriptedReply, When

ROLES = ("dev", "qa", "architect", "data", "task_extractor", "poet")
TOOL_TURNS = 4
SLOW_MS = 1_500.0
# Longer than the `ack_wait_s` of chaos: without signs of life it would be handed out again.
LONG_MS = 4_000.0
HASTE_S = 0.4
FAR_S = 3_600.0
BIG_BYTES = 900_000
COPIES_WITHIN_S = 8.0
PLAN_ID = "chaos"


class Planned(Struct, frozen=True, kw_only=True):
    """A message to come. `deadline_in_s` becomes the task's deadline when it is published.

    `cancel_after_s` is when the task is cancelled, counted from its publishing; 0 is before it.
    """

    at_s: float
    message_id: str
    kind: str
    body: dict[str, Any] | bytes
    role: str = "dev"
    deadline_in_s: float | None = None
    cancel_after_s: float | None = None

    @property
    def subject(self) -> str:
        return f"agent.tasks.{self.role}"

    @property
    def task_id(self) -> str:
        """The id that the service can read from it, if any."""
        return peek_task_id(self.payload(datetime.now(UTC))) or ""

    def payload(self, now: datetime) -> bytes:
        """Return the bytes to publish."""
        if isinstance(self.body, bytes):
            return self.body
        if self.deadline_in_s is None:
            return msgspec.json.encode(self.body)
        deadline = (now + timedelta(seconds=self.deadline_in_s)).isoformat()
        return msgspec.json.encode({**self.body, "constraints": {"deadline": deadline}})


Compose = Callable[[random.Random, str], list[Planned]]


class TaskKind(Struct, frozen=True, kw_only=True):
    """A kind of task: its share of the load, how it must end, and in how many turns."""

    name: str
    weight: float
    outcomes: frozenset[str]
    compose: Compose
    turns: int = 1


KINDS: dict[str, TaskKind] = {}


def plan_load(seed: int, rate: float, duration_s: float) -> list[Planned]:
    """Return the messages of a run, in the order of their publishing; `rate` is tasks a second."""
    dice = random.Random(f"{seed} load")
    kinds = list(KINDS.values())
    messages: list[Planned] = []
    at_s, number = 0.0, 0
    while at_s < duration_s:
        (kind,) = dice.choices(kinds, weights=[kind.weight for kind in kinds])
        number += 1
        messages.extend(
            replace(message, at_s=min(at_s + message.at_s, duration_s))
            for message in kind.compose(dice, f"{kind.name}-{number}")
        )
        at_s += dice.expovariate(rate)
    ordered = sorted(messages, key=lambda message: message.at_s)
    return [replace(each, message_id=f"{PLAN_ID}-{n}") for n, each in enumerate(ordered)]


def task_kind(
    name: str, weight: float, *outcomes: str, turns: int = 1
) -> Callable[[Compose], Compose]:
    """Register what composes the messages of a kind of task; their `at_s` counts from its own."""

    def register(compose: Compose) -> Compose:
        KINDS[name] = TaskKind(
            name=name, weight=weight, outcomes=frozenset(outcomes), compose=compose, turns=turns
        )
        return compose

    return register


def _message(kind: str, body: dict[str, Any] | bytes, **more: Any) -> Planned:
    return Planned(at_s=more.pop("at_s", 0.0), message_id="", kind=kind, body=body, **more)


def description(kind: str, task_id: str, words: str = "write it down") -> str:
    """Return what the task says; by the id and the kind in it the model knows it again."""
    return f"<{task_id}> [{kind}] {words}"


def task_id_in(text: str) -> str:
    """Return the id that a task's text begins with."""
    return text.partition("<")[2].partition(">")[0]


def _task(kind: str, task_id: str, words: str = "write it down", **more: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "task_description": description(kind, task_id, words),
        "constraints": {},
        **more,
    }


@task_kind("proposal", 50, "completed")
def _proposal(dice: random.Random, task_id: str) -> list[Planned]:
    return [_message("proposal", _task("proposal", task_id), role=dice.choice(ROLES))]


@task_kind("odd-id", 3, "completed")
def _odd_id(dice: random.Random, task_id: str) -> list[Planned]:
    odd = f"{dice.choice(('job/', 'ü:', 'a.b=', '* ', '日'))}{task_id}"
    return [_message("odd-id", _task("odd-id", odd))]


@task_kind("tools", 8, "completed", turns=TOOL_TURNS)
def _tools(_: random.Random, task_id: str) -> list[Planned]:
    return [_message("tools", _task("tools", task_id, enable_tools=True))]


@task_kind("invalid", 5, "InvalidTask")
def _invalid(dice: random.Random, task_id: str) -> list[Planned]:
    bad: tuple[dict[str, Any] | bytes, ...] = (
        b"{oops " + task_id.encode(),
        b'{"task_description": "no id"}',
        {"task_id": task_id, "task_description": 5},
        {"task_id": task_id, "task_description": "  "},
        {"task_id": task_id, "task_description": "x", "constraints": {"timeout": "soon"}},
        {"task_id": task_id, "task_description": "x", "role": "QA"},
    )
    return [_message("invalid", dice.choice(bad))]


@task_kind("twice", 6, "completed")
def _twice(dice: random.Random, task_id: str) -> list[Planned]:
    body = _task("twice", task_id)
    later = [dice.uniform(0, COPIES_WITHIN_S) for _ in range(dice.randint(1, 2))]
    return [_message("twice", body, at_s=at_s) for at_s in (0.0, *later)]


@task_kind("conflict", 4, "completed")
def _conflict(dice: random.Random, task_id: str) -> list[Planned]:
    first, other = (_task("conflict", task_id, words) for words in ("one", "the other"))
    at_s = dice.choice((0.0, dice.uniform(0, COPIES_WITHIN_S)))
    return [_message("conflict", first), _message("conflict", other, at_s=at_s)]


@task_kind("timeout", 4, "TaskTimeout")
def _timeout(_: random.Random, task_id: str) -> list[Planned]:
    return [_message("timeout", _task("slow", task_id, constraints={"timeout": HASTE_S}))]


@task_kind("deadline", 3, "DeadlineExceeded")
def _deadline(_: random.Random, task_id: str) -> list[Planned]:
    return [_message("deadline", _task("slow", task_id), deadline_in_s=HASTE_S)]


@task_kind("far-deadline", 3, "completed")
def _far_deadline(_: random.Random, task_id: str) -> list[Planned]:
    return [_message("far-deadline", _task("far-deadline", task_id), deadline_in_s=FAR_S)]


@task_kind("long", 2, "completed")
def _long(_: random.Random, task_id: str) -> list[Planned]:
    return [_message("long", _task("long", task_id))]


@task_kind("cancelled", 5, "completed", "Cancelled")
def _cancelled(dice: random.Random, task_id: str) -> list[Planned]:
    """Cancel a task before it is published, while it runs, or about when it ends."""
    body = _task(dice.choice(("slow", "long", "proposal")), task_id)
    after_s = dice.choice((0.0, dice.uniform(0, 0.2), dice.uniform(0.2, 4)))
    return [_message("cancelled", body, cancel_after_s=after_s)]


@task_kind("killer", 0.3, "PoisonTask")
def _killer(_: random.Random, task_id: str) -> list[Planned]:
    """Add a task that takes its actor with it each time it runs: see `killing`."""
    return [_message("killer", _task("killer", task_id))]


@task_kind("refused", 3, "ModelRefused")
def _refused(_: random.Random, task_id: str) -> list[Planned]:
    return [_message("refused", _task("refused", task_id))]


@task_kind("cut-off", 2, "AnswerTruncated")
def _cut_off(_: random.Random, task_id: str) -> list[Planned]:
    return [_message("cut-off", _task("cut-off", task_id, max_tokens=3))]


@task_kind("big", 0.7, "completed")
def _big(dice: random.Random, task_id: str) -> list[Planned]:
    """Add a task whose result must go to the object store in part."""
    filler = f"{dice.getrandbits(64):016x}" * (BIG_BYTES // 16)
    return [_message("big", _task("big", task_id, constraints={"metadata": {"filler": filler}}))]


def model_script() -> Script:
    """Return what the model says: mostly the simulation's words, by the kind in the task."""
    return Script(
        rules=(
            Rule(when=When(task="[slow]"), reply=ScriptedReply(delay_ms=SLOW_MS)),
            Rule(when=When(task="[long]"), reply=ScriptedReply(delay_ms=LONG_MS)),
            Rule(when=When(task="[refused]"), reply=ScriptedReply(status=400)),
            Rule(when=When(task="[big]"), reply=ScriptedReply(content="A short answer.")),
            *_tool_turns(),
        )
    )


def _tool_turns() -> Iterator[Rule]:
    """Append a line in each turn but the last; the model knows its turn by what it said before."""
    done = ScriptedReply(content="All lines are written.")
    yield Rule(when=When(task="[tools]", text=_said(TOOL_TURNS - 1)), reply=done)
    for turn in range(TOOL_TURNS - 1, 0, -1):
        line = {"path": "notes.txt", "content": f"line {turn}\n"}
        call = ScriptedCall(name="append_file", arguments=line)
        reply = ScriptedReply(content=_said(turn), tool_calls=(call,))
        yield Rule(
            when=When(task="[tools]", text=_said(turn - 1) if turn > 1 else None), reply=reply
        )


def _said(turn: int) -> str:
    return f"<turn {turn} said>"
