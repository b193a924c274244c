"""How fast the service recovers, measured: `scripts/chaos --report`.

The service is configured as it is by default. Each fault is made several times, under a steady
load of tasks that take the model some 1.5 s, and each time is from the fault (or its end) to the
first sign that work goes on.
"""

import asyncio
import math
import os
import signal
import statistics
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random

import msgspec
from chaos.faults import FAULTS
from chaos.history import History
from chaos.load import Planned, description
from chaos.recording import publish, watch_events
from chaos.stage import ChaosFailed, Setting, Stage, standing_stage
from chaos.telling import say, table, tell_numbers
from msgspec import Struct
from support.ready import until_healthy
from support.until import until

from agent_actors.contract import CONTROL_GROUP, ServiceStatus, TaskEvent
from agent_actors.errors import AgentActorsError
from agent_actors.local.model_server.settings import Latency

RATE = 20.0
BACKLOG = 100
AWAY_S = 5.0
LONGEST_S = 90.0
CALM_S = 3.0
DEFAULTS = Setting(latency=Latency(first_token_ms=1_500.0, spread=0.5))


class Recovery(Struct, frozen=True, kw_only=True):
    """A fault, what is measured after it, how fast it must be, and how fast it was, in seconds."""

    fault: str
    until: str
    target_s: float
    times_s: Sequence[float]

    @property
    def p50_s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def p95_s(self) -> float:
        return percentile(self.times_s, 95)

    @property
    def holds(self) -> bool:
        return self.p95_s <= self.target_s


async def report(folder: Path, *, cluster: bool, json_file: Path | None) -> None:
    """Measure and tell. Raises ChaosFailed when a target is missed."""
    setting = msgspec.structs.replace(DEFAULTS, cluster=cluster)
    async with standing_stage(setting, folder, History()) as stage:
        measured = await _Measuring(stage).all()
    numbers = [_numbers(each) for each in measured]
    say("")
    heads = ("fault", "until", "times", "p50", "p95", "max", "target", "")
    for line in table([heads, *(_row(each) for each in measured)]):
        say(line)
    tell_numbers(numbers, json_file)
    if not all(each.holds for each in measured):
        raise ChaosFailed


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that is not exceeded by so many percent of all."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class _Measuring:
    """Makes the faults, and watches for when work goes on."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._numbers = count(1)
        self._held: dict[str, str] = {}  # the actor that works on a task
        self._started: dict[str, float] = {}
        self._published: dict[str, float] = {}

    async def all(self) -> list[Recovery]:
        stage = self._stage
        stage.begin()
        await watch_events(stage, self._hear)
        load = asyncio.create_task(self._publish_steadily())
        try:
            return [
                await self._repeat(
                    "kill -9 of an actor", "its tasks run elsewhere", 3.0, self._actor_killed, 6
                ),
                await self._repeat(
                    "kill -9 of the supervisor",
                    "a new task runs",
                    10.0,
                    self._supervisor_killed,
                    5,
                ),
                await self._repeat(
                    "NATS killed, back", "tasks are pulled", 5.0, self._nats_back, 4
                ),
                await self._repeat(
                    "NATS frozen, back", "tasks are pulled", 5.0, self._after("nats frozen"), 3
                ),
                await self._repeat(
                    "NATS partitioned, back",
                    "tasks are pulled",
                    5.0,
                    self._after("nats partitioned"),
                    3,
                ),
                await self._repeat(
                    "model refuses, back", "it is asked again", 5.0, self._model_back, 4
                ),
            ]
        finally:
            load.cancel()

    async def _repeat(
        self,
        fault: str,
        until_what: str,
        target_s: float,
        measure: Callable[[], Awaitable[list[float]]],
        times: int,
    ) -> Recovery:
        measured: list[float] = []
        for _ in range(times):
            await self._until_steady()
            measured += await measure()
        recovery = Recovery(fault=fault, until=until_what, target_s=target_s, times_s=measured)
        say(f"{self._stage.now():5.0f} s  {fault}: {recovery.p50_s:.2f} s (p50)")
        return recovery

    async def _actor_killed(self) -> list[float]:
        """Kill the actor that holds most; each of its tasks begins again, or has ended before."""
        status = await self._status()
        (pool,) = status.pools
        victim = max(pool.actors, key=lambda actor: actor.slots_used)
        at_s = self._stage.now()
        held = [task for task, agent_id in self._held.items() if agent_id == victim.agent_id]
        os.kill(victim.pid, signal.SIGKILL)
        await until(
            lambda: all(t not in self._held or self._started[t] > at_s for t in held),
            timeout_s=LONGEST_S,
        )
        return [self._started[task] - at_s for task in held if self._started[task] > at_s]

    async def _supervisor_killed(self) -> list[float]:
        async with FAULTS["supervisor killed"].begin(self._stage, Random(0)):
            at_s = self._stage.now()
        return [await self._until_new_task_runs(at_s)]

    async def _nats_back(self) -> list[float]:
        await self._fill_backlog()
        async with FAULTS["nats killed"].begin(self._stage, Random(0)):
            await asyncio.sleep(AWAY_S)
        for node in self._stage.nodes:
            await until_healthy(node.monitoring_url)
        return [await self._until_pulled(self._stage.now())]

    def _after(self, fault: str) -> Callable[[], Awaitable[list[float]]]:
        async def measure() -> list[float]:
            await self._fill_backlog()
            async with FAULTS[fault].begin(self._stage, Random(0)):
                await asyncio.sleep(AWAY_S)
            return [await self._until_pulled(self._stage.now())]

        return measure

    async def _model_back(self) -> list[float]:
        async with FAULTS["model refuses connections"].begin(self._stage, Random(0)):
            await asyncio.sleep(AWAY_S)
        at_s = self._stage.now()
        times = self._stage.request_times
        known = len(times)
        await until(lambda: len(times) > known, timeout_s=LONGEST_S)
        return [times[known + 1] - at_s]

    async def _until_new_task_runs(self, at_s: float) -> float:
        """Wait until a task runs that was published after a moment; return how long after."""

        def new() -> list[float]:
            return [
                started
                for task, started in self._started.items()
                if self._published.get(task, 0.0) > at_s
            ]

        await until(lambda: bool(new()), timeout_s=LONGEST_S)
        return min(new()) - at_s

    async def _until_pulled(self, at_s: float) -> float:
        """Wait until a task is handed out after a moment; return how long after."""
        delivered = self._stage.history.delivered
        await until(lambda: bool(delivered) and delivered[-1].at_s > at_s, timeout_s=LONGEST_S)
        return min(each.at_s for each in delivered if each.at_s > at_s) - at_s

    async def _until_steady(self) -> None:
        """Wait until all actors work, the backlog is gone, and tasks run on each."""

        async def steady() -> bool:
            try:
                (pool,) = (await self._status()).pools
            except (AgentActorsError, ValueError):
                return False
            return pool.pending == 0 and all(actor.slots_used for actor in pool.actors)

        await until(steady, timeout_s=LONGEST_S)
        await asyncio.sleep(CALM_S)

    async def _status(self) -> ServiceStatus:
        answer = await self._stage.link.request(f"{CONTROL_GROUP}.status", timeout_s=2.0)
        return msgspec.json.decode(answer.data, type=ServiceStatus)

    async def _fill_backlog(self) -> None:
        """Publish more than there are slots, so that there is something to pull."""
        await asyncio.gather(*(self._publish_one() for _ in range(BACKLOG)))

    async def _publish_steadily(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._publish_one())
                await asyncio.sleep(1 / RATE)

    async def _publish_one(self) -> None:
        task_id = f"steady-{next(self._numbers)}"
        body = {"task_id": task_id, "task_description": description("proposal", task_id)}
        await publish(
            self._stage, Planned(at_s=0.0, message_id=task_id, kind="proposal", body=body)
        )
        self._published[task_id] = self._stage.now()

    def _hear(self, event: TaskEvent) -> None:
        match event.kind:
            case "started":
                self._held[event.task_id] = event.agent_id
                self._started[event.task_id] = self._stage.now()
            case "finished" | "retry":
                self._held.pop(event.task_id, None)
            case _:
                pass


def _numbers(recovery: Recovery) -> dict[str, object]:
    return {
        "fault": recovery.fault,
        "until": recovery.until,
        "count": len(recovery.times_s),
        "p50_s": round(recovery.p50_s, 3),
        "p95_s": round(recovery.p95_s, 3),
        "max_s": round(max(recovery.times_s), 3),
        "target_s": recovery.target_s,
    }


def _row(recovery: Recovery) -> tuple[str, ...]:
    return (
        recovery.fault,
        recovery.until,
        str(len(recovery.times_s)),
        f"{recovery.p50_s:.2f} s",
        f"{recovery.p95_s:.2f} s",
        f"{max(recovery.times_s):.2f} s",
        f"{recovery.target_s:g} s",
        "" if recovery.holds else "MISSED",
    )
