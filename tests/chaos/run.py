"""One run of chaos: load and faults from a seed, then healing, quiet, and judgement."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

from chaos.faults import FAULTS
from chaos.history import FaultWindow, History
from chaos.invariants import Violation, check
from chaos.load import KINDS, Planned, plan_load
from chaos.recording import (
    cancel,
    collect,
    log_lines,
    publish,
    until_quiet,
    watch_events,
    watch_processes,
)
from chaos.schedule import PlannedFault, schedule
from chaos.stage import ChaosFailed, Setting, Stage, standing_stage
from chaos.telling import SHOWN_LOG_LINES, broken, say, story, summary

# Healed, it must come nearer to quiet within so long.
QUIET_PATIENCE_S = 60.0
TELL_EVERY_S = 5.0
# For publishing what waits still, and for faults to heal, once the time is over.
END_TIMEOUT_S = 60.0


async def run(folder: Path, setting: Setting, *, minutes: float, rate: float) -> None:
    """Run once. Raises ChaosFailed."""
    history = History(
        max_asks=1 + setting.vllm.max_retries,
        max_attempts=setting.pool.max_attempts,
        turns={name: kind.turns for name, kind in KINDS.items()},
        outcomes={name: kind.outcomes for name, kind in KINDS.items()},
    )
    async with standing_stage(setting, folder, history) as stage:
        stage.begin()
        await _load_and_faults(stage, minutes * 60, rate)
        await stage.heal()
        say(f"{stage.now():5.0f} s  healed, waiting for quiet")
        if await until_quiet(stage, QUIET_PATIENCE_S):
            say(f"{stage.now():5.0f} s  quiet")
        else:
            say(f"{stage.now():5.0f} s  no quiet: nothing was done for {QUIET_PATIENCE_S:g} s")
        await collect(stage)
        violations = check(history)
        for line in summary(history, violations):
            say(line)
        if violations:
            _tell_all(stage, violations)
            raise ChaosFailed


async def _load_and_faults(stage: Stage, duration_s: float, rate: float) -> None:
    kinds = [
        known.kind
        for known in FAULTS.values()
        if stage.setting.cluster or not known.kind.cluster_only
    ]
    faults = schedule(stage.setting.seed, duration_s, kinds)
    load = plan_load(stage.setting.seed, rate, duration_s)
    await watch_events(stage)
    watching = asyncio.create_task(watch_processes(stage))
    under_way: set[str] = set()
    telling = asyncio.create_task(_tell_progress(stage, under_way))
    try:
        async with asyncio.timeout(duration_s + END_TIMEOUT_S), asyncio.TaskGroup() as group:
            for message in load:
                group.create_task(_publish_at(stage, message))
            for fault in faults:
                group.create_task(_inject_at(stage, fault, under_way))
    finally:
        telling.cancel()
        watching.cancel()


async def _publish_at(stage: Stage, message: Planned) -> None:
    await asyncio.sleep(message.at_s - stage.now())
    if message.cancel_after_s == 0.0:
        await cancel(stage, message.task_id)
    await publish(stage, message)
    if message.cancel_after_s:
        await asyncio.sleep(message.cancel_after_s)
        await cancel(stage, message.task_id)


async def _inject_at(stage: Stage, planned: PlannedFault, under_way: set[str]) -> None:
    await asyncio.sleep(planned.at_s - stage.now())
    begin_s, detail = stage.now(), ""
    under_way.add(planned.kind)
    try:
        async with FAULTS[planned.kind].begin(stage, Random(planned.luck)) as detail:
            await asyncio.sleep(planned.lasts_s)
    finally:
        under_way.discard(planned.kind)
        window = FaultWindow(
            kind=planned.kind,
            lane=planned.lane,
            begin_s=begin_s,
            end_s=stage.now(),
            detail=detail,
        )
        stage.history.faults.append(window)


async def _tell_progress(stage: Stage, under_way: set[str]) -> None:
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        published = len({each.result_id for each in stage.history.published})
        ended = len({each.msg_id for each in stage.history.confirmed if not each.source_seq})
        state = stage.history.slots[-1].state if stage.history.slots else "not known"
        faults = f"now: {', '.join(sorted(under_way))}" if under_way else "no fault now"
        say(
            f"{stage.now():5.0f} s  {published} tasks published, {ended} ended; "
            f"pool {state}; {len(stage.history.faults)} faults, {faults}"
        )


def _tell_all(stage: Stage, violations: list[Violation]) -> None:
    for task_id, what in broken(violations):
        say(f"\n{task_id or 'no single task'}")
        for line in what:
            say(f"  {line}")
        if task_id:
            for line in story(stage.history, task_id):
                say(f"    {line}")
            tell_logs(stage, task_id, say)
    say(f"\nThe logs stay in {stage.folder}.")


def tell_logs(stage: Stage, words: str, tell: Callable[[str], None]) -> None:
    """Tell the last lines of the service's own logs that name a task."""
    found = list(log_lines(stage, f'"{words}"'))
    tell(f"    {len(found)} lines of the logs name it")
    for path, line in found[-SHOWN_LOG_LINES:]:
        tell(f"      {path.name[-30:]}: {line[:300]}")
