"""What one history is to have in it, drawn from its seed: tasks, faults, and when.

Faults strike after so many steps, so that they meet whatever is under way then. A `gentle`
history has only those that the service answers at once, without waiting for `ack_wait`.
"""

from random import Random
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

# About as many steps as a small history takes.
SOON, LATE = 60, 700
GENTLE_SHARE = 0.45
HANGS_SHARE = 0.03


class PlannedTask(Struct, frozen=True, kw_only=True):
    """One task, and what becomes of those who work on it.

    Its first `crashes` runs raise; those with `kills` end their process. `turns` are kept in the
    journal. `copies` are further messages with the same task, a `conflict` one with other content.
    """

    task_id: str
    payload_kind: str = "task"
    published_at: tuple[int, ...] = (0,)
    turns: int = 0
    turn_bytes: int = 10
    crashes: int = 0
    kills: bool = False
    think_s: float = 0.0
    deadline_s: float | None = None
    timeout_s: float | None = None
    conflict_at: int | None = None
    cancelled_at: int | None = None


class Fault(Struct, frozen=True, kw_only=True):
    """What is done at a step: `kind` is the name of a method of `WholeService`."""

    kind: str
    at_step: int
    how: dict[str, Any] = {}


class Plan(Struct, frozen=True, kw_only=True):
    """One history. `odds` are those of its weather until it clears up."""

    seed: int
    gentle: bool
    actors: int
    slots: int
    tasks: tuple[PlannedTask, ...]
    faults: tuple[Fault, ...]
    odds: dict[str, float]
    clears_up_at: int
    drained_at_last: bool


def draw(seed: int, *, gentle: bool | None = None) -> Plan:
    """Return the history of this seed."""
    random = Random(seed)
    is_gentle = random.random() < GENTLE_SHARE
    if gentle is not None:
        is_gentle = gentle
    actors = random.choice((1, 1, 2))
    tasks = tuple(_task(random, f"t-{number}") for number in range(random.choice((1, 1, 2, 2, 3))))
    faults = tuple(_faults(random, actors, GENTLE if is_gentle else ROUGH))
    hangs = any(fault.kind == "hang_actor" for fault in faults)
    if hangs:
        tasks = tuple(replace(task, kills=False) for task in tasks)
    return Plan(
        seed=seed,
        gentle=is_gentle,
        actors=actors,
        slots=random.choice((1, 2, 2, 3)),
        tasks=tasks,
        faults=faults,
        odds={} if is_gentle else _odds(random, hangs=hangs),
        clears_up_at=random.randrange(LATE // 2, LATE),
        drained_at_last=random.random() < 0.15,
    )


def _task(random: Random, task_id: str) -> PlannedTask:
    maybe = random.random
    published_at = [random.randrange(SOON)]
    while maybe() < 0.15:
        published_at.append(random.randrange(LATE // 2))
    has_turns = maybe() < 0.3
    has_big_turns = has_turns and maybe() < 0.2
    return PlannedTask(
        task_id=task_id,
        payload_kind=random.choice(("no task", "no id")) if maybe() < 0.06 else "task",
        published_at=tuple(published_at),
        turns=4 if has_big_turns else random.randrange(1, 4) if has_turns else 0,
        turn_bytes=9_000 if has_big_turns else 10,
        crashes=random.choice((1, 1, 2, 3)) if maybe() < 0.2 else 0,
        kills=maybe() < 0.04,
        think_s=random.choice((0.0, 0.0, 0.3, 2.0, 14.0)) * maybe(),
        deadline_s=random.choice((0.0, 1.0, 4.0)) if maybe() < 0.06 else None,
        timeout_s=random.choice((0.5, 1.0)) if maybe() < 0.06 else None,
        conflict_at=random.randrange(LATE // 2) if maybe() < 0.08 else None,
        cancelled_at=random.randrange(LATE // 2) if maybe() < 0.15 else None,
    )


GENTLE = (
    "kill_actor",
    "kill_actor",
    "kill_actor_unseen",
    "send_model_away",
    "drain",
    "scale",
    "reconfigure",
)
ROUGH = (
    "kill_actor",
    "kill_actor",
    "kill_supervisor",
    "kill_all",
    "freeze_actor",
    "freeze_supervisor",
    "start_another_supervisor",
    "make_consumer_anew",
    "send_model_away",
    "drain",
    "scale",
    "reconfigure",
    "purge_a_copy",
)


def _faults(random: Random, actors: int, kinds: tuple[str, ...]) -> list[Fault]:
    if kinds is ROUGH and random.random() < HANGS_SHARE:
        how = {"index": random.randrange(actors)}
        return [Fault(kind="hang_actor", at_step=random.randrange(LATE // 2), how=how)]
    faults: list[Fault] = []
    for _ in range(random.choice((0, 1, 1, 2, 2, 3))):
        kind = random.choice(kinds)
        how: dict[str, Any] = {}
        if kind in {"kill_actor", "kill_actor_unseen", "freeze_actor"}:
            how["index"] = random.randrange(actors)
        if kind in {"freeze_actor", "freeze_supervisor"}:
            how["for_s"] = random.choice((0.5, 4.0, 9.0))
        if kind == "send_model_away":
            how["for_s"] = random.choice((0.5, 3.0))
        if kind == "scale":
            how["actors"] = random.choice((1, 2, 3))
        if kind == "drain":
            how["grace_s"] = random.choice((0.0, 0.5, 3.0))
        faults.append(Fault(kind=kind, at_step=random.randrange(LATE), how=how))
    return faults


ODDS = {
    "slow": (0.05, 0.4),
    "lost_requests": (0.03, 0.2),
    "lost_answers": (0.03, 0.3),
    "late_requests": (0.03, 0.2),
    "lagging_reads": (0.1, 0.5),
    "lost_sends": (0.05, 0.3),
    "stale_sends": (0.05, 0.5),
    "lost_deliveries": (0.05, 0.3),
    "lost_pulls": (0.05, 0.3),
    "lost_calls": (0.03, 0.15),
    "lost_last_words": (0.5,),
}


def _odds(random: Random, *, hangs: bool) -> dict[str, float]:
    """Return a few kinds of trouble, each rare or frequent: no history has them all.

    An actor that hangs is found by its silence to a supervisor that it has answered before; so
    in its history none is lost otherwise, and greeted anew.
    """
    share = random.choice((0.0, 0.2, 0.4))
    odds = {name: random.choice(each) for name, each in ODDS.items() if random.random() < share}
    if hangs:
        odds.pop("lost_calls", None)
    return odds
