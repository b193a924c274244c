"""How long a user waits: from `agent-actors up` to its one line, and to the first task's result."""

import asyncio
import os
import statistics
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import msgspec
from bench.saying import say
from msgspec import Struct

from agent_actors import AgentClient, AgentTask
from agent_actors.local.tied import tied

PATIENCE_S = 120.0


class StartUp(Struct, frozen=True, kw_only=True):
    """One start: seconds from the command to `Ready`, and to the result of a task sent then."""

    ready_s: float
    first_result_s: float


FIELDS = StartUp.__struct_fields__


async def start_up(folder: Path, rounds: int) -> list[StartUp]:
    """Start everything on this machine as a user does, and end it, some times.

    No other Ray may run meanwhile: the second one waits for the ports of the first.
    """
    found: list[StartUp] = []
    for number in range(rounds):
        async with asyncio.timeout(PATIENCE_S):
            found.append(await _start(folder / f"up-{number}"))
        say(f"{number + 1}: {_told(found[-1])}")
    medians = (statistics.median(getattr(each, name) for each in found) for name in FIELDS)
    say(f"medians: {_told(StartUp(**dict(zip(FIELDS, medians, strict=True))))}")
    return found


def _told(start: StartUp) -> str:
    return f"ready after {start.ready_s:.1f} s, the first result after {start.first_result_s:.1f} s"


async def _start(data: Path) -> StartUp:
    # Of this run's environment it gets nothing.
    foreign = ("RAY_", "AGENT_ACTORS_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    options = ("--port", "0", "--data-dir", str(data), "--json")
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *tied(sys.executable, "-m", "agent_actors", "up", *options),
        env=env,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        if not (line := await process.stdout.readline()):
            raise RuntimeError((await process.stderr.read()).decode())
        ready = msgspec.json.decode(line)
        ready_s = time.perf_counter() - began
        async with AgentClient.connect(ready["nats_url"]) as client:
            task = AgentTask(task_id="first", task_description="Write a haiku", role="DEV")
            result = await (await client.submit(task)).result(timeout_s=PATIENCE_S)
        if not result.success:
            raise RuntimeError(f"the first task failed: {result.error}")
        return StartUp(ready_s=ready_s, first_result_s=time.perf_counter() - began)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
