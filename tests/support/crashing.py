"""Actors that die at a chosen point of a delivery, once: built in place of the real ones.

Everything is real but for one call that is followed, or not even begun, by SIGKILL.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from agent_actors.actor import ActorParts, ActorSettings, Build
from agent_actors.adapters.jetstream.publishing import NATSResultPublisher
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.tasks import JetStreamAcks
from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.assembly import build_agent_actor
from agent_actors.contract import task_key
from agent_actors.ledger import TaskRecord
from agent_actors.tools.toolbox import Toolbox

POINTS = (
    "before begin",
    "after begin",
    "mid-strategy",
    "after commit",
    "after publish",
    "after ack",
)

# Points in the work of an agent with tools whose every turn makes one call that writes.
TURN_POINTS = (
    "before the first turn is stored",
    "between two turns",
    "before a call that writes",
    "after a call that wrote",
    "after the last turn",
)
# Longer than any test.
HANG_S = 1_000
# What the call has in it at which an actor dies.
FATAL = "the fatal line"


class Plan(NamedTuple):
    """What a process does at a point of a task."""

    point: str
    task_id: str
    act: Callable[[], None]


def deadly_actor(task_id: str) -> Build:
    """Return a `build` whose actors die with this task every time."""
    return armed_actor(Plan("mid-strategy", task_id, _die))


def hanging_actor(task_id: str, marker: Path) -> Build:
    """Return a `build` whose actors block their event loop with this task, the first time only."""
    return armed_actor(Plan("mid-strategy", task_id, partial(_hang_once, marker)))


def crashing_actor(point: str, task_id: str, marker: Path, lost: Path | None = None) -> Build:
    """Return a `build` whose actors die at this point of this task, the first time only.

    `lost` is a folder that goes with them.
    """
    return armed_actor(Plan(point, task_id, partial(die_once, marker, lost)))


def armed_actor(*plans: Plan) -> Build:
    """Return a `build` whose actors do all of this."""
    return partial(_build, plans)


async def _build(plans: Sequence[Plan], settings: ActorSettings) -> ActorParts:
    for plan in plans:
        _arm(plan)
    return await build_agent_actor(settings)


def _arm(plan: Plan) -> None:
    if plan.point in TURN_POINTS:
        _arm_turns(plan.point, task_key(plan.task_id), plan.act)
    else:
        _arm_delivery(plan.point, plan.task_id, plan.act)


def _arm_delivery(point: str, task_id: str, die: Callable[[], None]) -> None:
    key = task_key(task_id)

    def about(*args: Any) -> bool:
        return key in str(args) or task_id in str(args)

    match point:
        case "before begin":
            wrap(JetStreamLedger, "write", before=die, when=_makes(key, "running"))
        case "after begin":
            wrap(JetStreamLedger, "write", after=die, when=_makes(key, "running"))
        case "mid-strategy":
            wrap(VLLMHTTPClient, "chat", after=die, when=about)
        case "after commit":
            wrap(JetStreamLedger, "write", after=die, when=_makes(key, "completed"))
        case "after publish":
            wrap(NATSResultPublisher, "publish", after=die, when=about)
        case "after ack":
            wrap(JetStreamAcks, "ack", after=die, when=about)


def _arm_turns(point: str, key: str, die: Callable[[], None]) -> None:
    match point:
        case "before the first turn is stored":
            wrap(JetStreamLedger, "write", before=die, when=_keeps(key))
        case "between two turns":
            stores_a_turn = _keeps(key, writes=4)  # each turn is stored before its call and after
            wrap(JetStreamLedger, "write", after=die, when=stores_a_turn)
        case "before a call that writes":
            wrap(Toolbox, "run", before=die, when=lambda _self, call: FATAL in str(call))
        case "after a call that wrote":
            wrap(Toolbox, "run", after=die, when=lambda _self, call: FATAL in str(call))
        case "after the last turn":
            wrap(JetStreamLedger, "write", before=die, when=_makes(key, "completed"))


def _makes(key: str, state: str) -> Callable[..., bool]:
    """Return whether a write to the ledger puts the task into this state."""
    return lambda _self, written, record, _revision: written == key and record.state == state


def _keeps(key: str, writes: int = 1) -> Callable[..., bool]:
    """Return whether a write to the ledger is the one, counted from 1, that keeps a turn."""
    kept = count(1)

    def is_the_one(_self: Any, written: str, record: TaskRecord, _revision: int) -> bool:
        keeps = written == key and bool(record.turns or record.recent_turns)
        return keeps and record.state == "running" and next(kept) == writes

    return is_the_one


def wrap(
    owner: type,
    verb: str,
    *,
    when: Callable[..., bool],
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    original = getattr(owner, verb)

    async def wrapped(self: Any, *args: Any, **how: Any) -> Any:
        concerned = when(self, *args)
        if concerned and before:
            before()
        answer = await original(self, *args, **how)
        if concerned and after:
            if isinstance(self, JetStreamAcks):
                await self._connection.nc.flush()  # the ack has left when the process dies
            after()
        return answer

    setattr(owner, verb, wrapped)


def die_once(marker: Path, lost: Path | None = None) -> None:
    if is_first(marker):
        if lost:
            shutil.rmtree(lost)
        _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang_once(marker: Path) -> None:
    if is_first(marker):
        time.sleep(HANG_S)


def is_first(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
