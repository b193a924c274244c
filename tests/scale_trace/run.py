"""One run: the load of the trace, what the pool said meanwhile, and the results in the end."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

import msgspec
from chaos.history import History
from chaos.recording import messages_in
from chaos.stage import Setting, Stage, standing_stage
from chaos.telling import say
from msgspec.structs import replace
from scale_trace.trace import Phase, Phases, Results, Sample, Trace
from support.until import until

from agent_actors.client import AgentClient
from agent_actors.config import AutoscaleConfig, PoolConfig
from agent_actors.contract import RESPONSE_STREAM, AgentResult, AgentTask
from agent_actors.errors import PublishFailed, ServiceUnreachable
from agent_actors.local.model_server.settings import Latency
from agent_actors.patience import until_answered

BOUNDS = AutoscaleConfig(min=0, max=8, target_utilization=0.8, scale_down_delay_s=10.0)
SLOTS = 16
# With all slots in use 128 tasks a second, of which a machine with two cores does twice as many.
LATENCY = Latency(first_token_ms=1_000.0, spread=0.2)
IDLE_S = 10.0
BURST_TASKS = 5_000
STEADY_RATE = 30.0
STEADY_S = 45.0
BURST_TIMEOUT_S = 180.0
SHRINK_TIMEOUT_S = 60.0
SAMPLE_EVERY_S = 0.25
SUBMITTERS = 32
ROLES = ("DEV", "QA", "ARCHITECT", "DATA")

SETTING = Setting(
    tapped=False,
    kept_requests=1_000,
    latency=LATENCY,
    pool=PoolConfig(actors=BOUNDS, slots=SLOTS),
)


async def run(folder: Path, seed: int) -> tuple[Trace, Results]:
    """Run once; return what happened, and what came of the tasks."""
    async with standing_stage(replace(SETTING, seed=seed), folder, History()) as stage:
        stage.begin()
        async with _watched(stage) as samples:
            load = Load(stage, samples, seed)
            phases = Phases(
                before=await load.idle(),
                burst=await load.burst(),
                steady=await load.steady(),
                after=await load.idle_until_shrunk(),
            )
        trace = Trace(
            seed=seed,
            actors=BOUNDS,
            slots=SLOTS,
            answer_s=LATENCY.first_token_ms / 1_000,
            phases=phases,
            samples=samples,
        )
        return trace, await _results(stage, load.submitted)


class Load:
    """What is asked of the pool, phase after phase; `samples` grow meanwhile."""

    def __init__(self, stage: Stage, samples: list[Sample], seed: int) -> None:
        self.submitted: set[str] = set()
        self._stage = stage
        self._samples = samples
        self._client = AgentClient(stage.link)
        self._dice = Random(seed)

    async def idle(self) -> Phase:
        begin_s = self._begin("idle")
        await asyncio.sleep(IDLE_S)
        return self._phase("idle", begin_s)

    async def burst(self) -> Phase:
        """Submit many tasks at once, and wait until each has ended."""
        load = f"burst of {BURST_TASKS:,} tasks"
        begin_s = self._begin(load)
        tasks = self._tasks("burst", BURST_TASKS)
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(self._submit(tasks))
        stored_s = self._stage.now()
        await self._wait_for(
            lambda it: it.at_s > stored_s and not it.pending and not it.unacked, BURST_TIMEOUT_S
        )
        return self._phase(load, begin_s)

    async def steady(self) -> Phase:
        """Submit at a rate, whatever becomes of it."""
        load = f"steady, {STEADY_RATE:g} tasks/s"
        begin_s = self._begin(load)
        async with asyncio.TaskGroup() as group:
            for number, task in enumerate(self._tasks("steady", int(STEADY_RATE * STEADY_S))):
                await asyncio.sleep(begin_s + number / STEADY_RATE - self._stage.now())
                group.create_task(self._submit([task]))
        return self._phase(load, begin_s)

    async def idle_until_shrunk(self) -> Phase:
        """Wait until the pool is as small as it may be, and some seconds more."""
        begin_s = self._begin("idle")
        await self._wait_for(
            lambda it: it.at_s > begin_s and it.actors == BOUNDS.min, SHRINK_TIMEOUT_S
        )
        await asyncio.sleep(IDLE_S / 2)
        return self._phase("idle", begin_s)

    def _begin(self, load: str) -> float:
        now_s = self._stage.now()
        say(f"{now_s:5.0f} s  {load}")
        return now_s

    def _phase(self, load: str, begin_s: float) -> Phase:
        return Phase(load=load, begin_s=round(begin_s, 2), end_s=round(self._stage.now(), 2))

    def _tasks(self, name: str, count: int) -> Iterator[AgentTask]:
        for number in range(count):
            yield AgentTask(
                task_id=f"{name}-{number}",
                task_description=f"Write function number {number}",
                role=self._dice.choice(ROLES),
            )

    async def _submit(self, tasks: Iterable[AgentTask]) -> None:
        for task in tasks:
            await until_answered(partial(self._client.submit, task))
            self.submitted.add(task.task_id)

    async def _wait_for(self, holds: Callable[[Sample], bool], longest_s: float) -> None:
        """Wait for a sample of which that is true; that none came shows in the numbers."""
        with suppress(TimeoutError):
            await until(
                lambda: bool(self._samples) and holds(self._samples[-1]), timeout_s=longest_s
            )


@asynccontextmanager
async def _watched(stage: Stage) -> AsyncGenerator[list[Sample]]:
    """Give the samples, to which new ones are added for as long as the block lasts."""
    samples: list[Sample] = []
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(_keep_sampling(stage, samples))
        yield samples
        sampling.cancel()


async def _keep_sampling(stage: Stage, samples: list[Sample]) -> None:
    client = AgentClient(stage.link)
    while True:
        next_s = stage.now() + SAMPLE_EVERY_S
        with suppress(PublishFailed, ServiceUnreachable):
            (pool,) = await client.pools()
            if pool.pending >= 0:
                samples.append(Sample.of(pool, stage.now()))
        await asyncio.sleep(next_s - stage.now())


async def _results(stage: Stage, submitted: set[str]) -> Results:
    """Count what lies in the stream of results."""
    stored = [
        msgspec.json.decode(message.data, type=AgentResult)
        async for message in messages_in(stage, RESPONSE_STREAM)
    ]
    return Results(
        submitted=submitted,
        counts=Counter(result.task_id for result in stored),
        failed=[result.task_id for result in stored if not result.success],
    )
