"""Actors that die at a chosen point of a delivery, once: built in place of the real ones.

Everything is real but for one call that is followed, or not even begun, by SIGKILL.
"""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from agent_actors.actor import ActorParts, ActorSettings, Build
from agent_actors.adapters.jetstream.publishing import NATSResultPublisher
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.tasks import JetStreamAcks
from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.assembly import build_agent_actor
from agent_actors.contract import task_key

POINTS = (
    "before begin",
    "after begin",
    "mid-strategy",
    "after commit",
    "after publish",
    "after ack",
)


def crashing_actor(point: str, task_id: str, marker: Path) -> Build:
    """Return a `build` whose actors die at this point of this task, the first time only."""
    return partial(_build, point, task_id, marker)


async def _build(point: str, task_id: str, marker: Path, settings: ActorSettings) -> ActorParts:
    die = partial(_die_once, marker)
    key = task_key(task_id)

    def about(*args: Any) -> bool:
        return key in str(args) or task_id in str(args)

    def writes(state: str) -> Callable[..., bool]:
        return lambda _self, written, record, _revision: written == key and record.state == state

    match point:
        case "before begin":
            _wrap(JetStreamLedger, "write", before=die, when=writes("running"))
        case "after begin":
            _wrap(JetStreamLedger, "write", after=die, when=writes("running"))
        case "mid-strategy":
            _wrap(VLLMHTTPClient, "chat", after=die, when=about)
        case "after commit":
            _wrap(JetStreamLedger, "write", after=die, when=writes("completed"))
        case "after publish":
            _wrap(NATSResultPublisher, "publish", after=die, when=about)
        case "after ack":
            _wrap(JetStreamAcks, "ack", after=die, when=about)
    return await build_agent_actor(settings)


def _wrap(
    owner: type,
    verb: str,
    *,
    when: Callable[..., bool],
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    original = getattr(owner, verb)

    async def wrapped(self: Any, *args: Any) -> Any:
        concerned = when(self, *args)
        if concerned and before:
            before()
        answer = await original(self, *args)
        if concerned and after:
            if isinstance(self, JetStreamAcks):
                await self._connection.nc.flush()  # the ack has left when the process dies
            after()
        return answer

    setattr(owner, verb, wrapped)


def _die_once(marker: Path) -> None:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
