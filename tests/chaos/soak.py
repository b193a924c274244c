"""A long load without faults, and what becomes of the memory: `scripts/chaos --soak`."""

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec
from chaos.history import History, Sample
from chaos.invariants import MEGABYTE
from chaos.load import KINDS
from chaos.recording import PUBLISH_TIMEOUT_S, until_quiet, watch_processes
from chaos.stage import ChaosFailed, Setting, Stage, standing_stage
from chaos.telling import say, table, tell_numbers
from msgspec import Struct

from agent_actors.config import StreamsConfig
from agent_actors.contract import MSG_ID_HEADER, RESPONSE_STREAM, utc_now
from agent_actors.local.model_server.settings import Latency
from agent_actors.patience import until_answered

SOAKED = {"proposal": 95, "invalid": 2, "twice": 2, "refused": 1}
WARM_UP_S = 300.0
WINDOW_S = 60.0
MAX_GROWTH_MB = 10.0
TELL_EVERY_S = 30.0
QUIET_PATIENCE_S = 60.0
# What is kept of half an hour's results and requests must not fill the machine.
SETTING = Setting(
    tapped=False,
    kept_requests=1_000,
    latency=Latency(first_token_ms=100.0, spread=0.5),
    streams=StreamsConfig(responses_max_bytes=500 * MEGABYTE),
)


class Growth(Struct, frozen=True, kw_only=True):
    """What a process used when it was warm, and at the end: medians of a minute."""

    who: str
    pid: int
    warm_mb: float
    end_mb: float

    @property
    def grown_mb(self) -> float:
        return round(self.end_mb - self.warm_mb, 1)


async def soak(folder: Path, *, minutes: float, rate: float, json_file: Path | None) -> None:
    """Load, watch, tell. Raises ChaosFailed when memory has grown, or the load was too much."""
    duration_s = minutes * 60
    warm_up_s = min(WARM_UP_S, duration_s / 3)
    async with standing_stage(SETTING, folder, History()) as stage:
        stage.begin()
        watching = asyncio.create_task(watch_processes(stage))
        telling = asyncio.create_task(_tell_progress(stage))
        try:
            published = await _publish(stage, duration_s, rate)
            lasted_s = stage.now()
        finally:
            watching.cancel()
            telling.cancel()
        quiet = await until_quiet(stage, QUIET_PATIENCE_S)
        grown = growth(stage.history.samples, warm_up_s, lasted_s)
    say("")
    heads = ("process", "", "warm", "end", "grown", "")
    for line in table([heads, *(_row(each) for each in grown)]):
        say(line)
    say(f"\n  {published} tasks in {lasted_s:.0f} s, {published / lasted_s:.0f} a second")
    _write(json_file, grown, published, lasted_s)
    if not quiet:
        say(f"  the queue was not empty, and nothing was done for {QUIET_PATIENCE_S:g} s")
    if not grown or not quiet or any(each.grown_mb > MAX_GROWTH_MB for each in grown):
        raise ChaosFailed


def growth(samples: Sequence[Sample], warm_up_s: float, end_s: float) -> list[Growth]:
    """Return how much each process grew that lived all the time after the first minutes."""
    window_s = min(WINDOW_S, (end_s - warm_up_s) / 3)
    found: list[Growth] = []
    for pid in sorted({each.pid for each in samples}):
        mine = [each for each in samples if each.pid == pid]
        warm = [s.rss_bytes for s in mine if warm_up_s <= s.at_s <= warm_up_s + window_s]
        last = [s.rss_bytes for s in mine if end_s - window_s <= s.at_s <= end_s]
        if warm and last:
            found.append(
                Growth(
                    who=mine[0].who,
                    pid=pid,
                    warm_mb=round(statistics.median(warm) / MEGABYTE, 1),
                    end_mb=round(statistics.median(last) / MEGABYTE, 1),
                )
            )
    return found


async def _publish(stage: Stage, duration_s: float, rate: float) -> int:
    """Publish at the rate, whatever the service does; return how many tasks that were."""
    dice = Random(0)
    number = 0
    async with asyncio.TaskGroup() as group:
        while stage.now() < duration_s:
            due = int(stage.now() * rate)
            while number < due:
                number += 1
                (kind,) = dice.choices(list(SOAKED), weights=list(SOAKED.values()))
                for copy, message in enumerate(KINDS[kind].compose(dice, f"{kind}-{number}")):
                    group.create_task(
                        _store(stage, message.subject, message.payload(utc_now()), number, copy)
                    )
            await asyncio.sleep(1 / 50)
    return number


async def _store(stage: Stage, subject: str, payload: bytes, number: int, copy: int) -> None:
    headers = {MSG_ID_HEADER: f"soak-{number}-{copy}"}
    await until_answered(
        lambda: stage.link.publish_stored(subject, payload, headers, PUBLISH_TIMEOUT_S)
    )


async def _tell_progress(stage: Stage) -> None:
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        now_s = stage.now()
        latest = {each.pid: each for each in stage.history.samples if each.at_s > now_s - 10}
        used = ", ".join(
            f"{each.who} {each.rss_bytes / MEGABYTE:.1f} MB" for each in latest.values()
        )
        state = (await stage.link.api(f"STREAM.INFO.{RESPONSE_STREAM}"))["state"]
        rate = state["last_seq"] / now_s
        say(f"{now_s:5.0f} s  {state['last_seq']} results, {rate:.0f} a second; {used}")


def _row(grown: Growth) -> tuple[str, ...]:
    verdict = "TOO MUCH" if grown.grown_mb > MAX_GROWTH_MB else ""
    sizes = (f"{each:.1f} MB" for each in (grown.warm_mb, grown.end_mb, grown.grown_mb))
    return (grown.who, str(grown.pid), *sizes, verdict)


def _write(json_file: Path | None, grown: list[Growth], published: int, lasted_s: float) -> None:
    processes = [{**msgspec.to_builtins(each), "grown_mb": each.grown_mb} for each in grown]
    numbers = {"tasks": published, "seconds": round(lasted_s, 1), "processes": processes}
    tell_numbers(numbers, json_file)
