"""Supervisors that do something at a chosen point of a delivery; all else about them is real.

Most of them kill or freeze themselves there. At the points of `crashing.POINTS`, in an actor's
process, it is the actor that kills its supervisor and goes on.
"""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from support.crashing import Plan, is_first, wrap
from support.processes import kill_one

from agent_actors.adapters.ray_actors import RayActorHandle
from agent_actors.adapters.ray_runtime import BuildSupervisor, build_supervisor
from agent_actors.leases import Leases
from agent_actors.pool import SupervisorParts
from agent_actors.ports import ActorReport, Delivery

SUPERVISOR = "ray::Supervisor"
SUPERVISOR_POINTS = (
    "before it hands out",
    "after it handed out",
    "told that it ended",
    # These two need an actor that has died of the task.
    "before it gives back",
    "after it gave back",
)


def armed_supervisor(*plans: Plan) -> BuildSupervisor:
    """Return a `build` whose supervisors do all of this."""
    return partial(_build, plans)


def freeze_once(marker: Path) -> None:
    """Stop this process until somebody sends it SIGCONT, the first time only."""
    if is_first(marker):
        os.kill(os.getpid(), signal.SIGSTOP)


def kill_supervisor_once(marker: Path) -> None:
    """Kill the supervisor of the actor whose process this is, the first time only."""
    if is_first(marker):
        kill_one(SUPERVISOR, below=os.getppid())


async def _build(plans: Sequence[Plan], *args: Any, **more: Any) -> SupervisorParts:
    for plan in plans:
        _arm(plan)
    return await build_supervisor(*args, **more)


def _arm(plan: Plan) -> None:
    def about(*args: Any) -> bool:
        return plan.task_id in str(args)

    match plan.point:
        case "before it hands out":
            wrap(RayActorHandle, "submit", before=plan.act, when=about)
        case "after it handed out":
            wrap(RayActorHandle, "submit", after=plan.act, when=about)
        case "told that it ended":
            _arm_end(plan)
        case "before it gives back":
            wrap(Leases, "give_back", before=plan.act, when=about)
        case "after it gave back":
            wrap(Leases, "give_back", after=plan.act, when=about)


def _arm_end(plan: Plan) -> None:
    """Act on the actor's word that the task has ended, before anybody else hears of it."""
    submit, completions = RayActorHandle.submit, RayActorHandle.completions
    handed_out: set[str] = set()

    async def noting_submit(
        self: RayActorHandle, supervisor_id: str, batch: Sequence[Delivery], **how: bool
    ) -> ActorReport:
        handed_out.update(each.id for each in batch if plan.task_id.encode() in each.payload)
        return await submit(self, supervisor_id, batch, **how)

    async def acting_completions(self: RayActorHandle, supervisor_id: str) -> ActorReport:
        report = await completions(self, supervisor_id)
        if handed_out.intersection(report.finished):
            plan.act()
        return report

    RayActorHandle.submit = noting_submit
    RayActorHandle.completions = acting_completions
