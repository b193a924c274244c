"""Where the CPU goes: py-spy on supervisor and actor under full load, and CPU by thread."""

import asyncio
import string
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.contestants import Place, Queue, Running, make_streams, queue_of, running
from bench.lineup import Entry
from bench.load import Feeder
from bench.measure import Plan, linked, look, refill, sample_of, until_results
from bench.sample import Sample
from bench.site import Site
from bench.stacks import Profile, loop_thread, profile_of
from bench.usage import TICKS_PER_S
from msgspec import Struct

PY_SPY = Path(sys.executable).with_name("py-spy")
RECORD_S = 10
HZ = 200
FLAGS = ("--threads", "--function", "--full-filenames")
FEED_EVERY_S = 0.2


class Profiled(Struct, frozen=True, kw_only=True):
    """A process as it was profiled, and its threads while it was not."""

    threads_us: dict[str, float]
    profile: Profile


async def profile(
    site: Site, plan: Plan, entry: Entry, folder: Path, *, native: bool = False
) -> tuple[Sample, dict[str, Profiled]]:
    """Return what our processes do under full load; flame graphs go to the folder.

    `native` takes functions in C into account, those of uvloop and of the C library above all.
    """
    flags = [*FLAGS, *(["--native"] if native else [])]
    async with site.model() as model, site.nats() as nats, linked(nats.urls) as link:
        place = Place(site=site, nats=nats, model=model, link=link, slots=plan.slots)
        await make_streams(place)
        queue = queue_of(entry)
        async with Feeder(link, nats.urls[0], queue.subject, queue.stream, queue.compose) as feeder:
            await feeder.publish(plan.queued)
            async with running(place, entry) as contestant, asyncio.TaskGroup() as group:
                await until_results(link, contestant)
                feeding = group.create_task(_keep_feeding(place, queue, feeder, plan))
                found = await _profile(place, contestant, plan, folder, flags)
                feeding.cancel()
                return found


async def _profile(
    place: Place, contestant: Running, plan: Plan, folder: Path, flags: Sequence[str]
) -> tuple[Sample, dict[str, Profiled]]:
    await asyncio.sleep(plan.warm_s)
    pids = {name: group[0] for name, group in contestant.processes().items() if group}
    before, threads = await look(place, contestant), {n: thread_ticks(p) for n, p in pids.items()}
    await asyncio.sleep(2 * plan.window_s)
    after, now = await look(place, contestant), {n: thread_ticks(p) for n, p in pids.items()}
    sample = sample_of(place, contestant, before, after)
    for kind in ("raw", "flamegraph"):
        await asyncio.gather(
            *(_record(pid, kind, _file(folder, n, kind), flags) for n, pid in pids.items())
        )
    stacks = {name: _file(folder, name, "raw").read_text().splitlines() for name in pids}
    return sample, {
        name: Profiled(
            threads_us=_threads_us(
                pids[name], threads[name], now[name], sample.tasks, loop_thread(lines)
            ),
            profile=profile_of(lines),
        )
        for name, lines in stacks.items()
    }


async def _record(pid: int, kind: str, file: Path, flags: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(PY_SPY), "record", "--pid", str(pid), "--format", kind, "--output", str(file)),
        *("--rate", str(HZ), "--duration", str(RECORD_S), *flags),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"py-spy: {said.decode(errors='replace').strip()}")


async def _keep_feeding(place: Place, queue: Queue, feeder: Feeder, plan: Plan) -> None:
    while True:
        await asyncio.sleep(FEED_EVERY_S)
        await refill(place, queue, feeder, plan)


def thread_ticks(pid: int) -> Mapping[int, int]:
    """Return the CPU time of a process's threads."""
    ticks: dict[int, int] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has just ended
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            ticks[int(task.name)] = int(fields[11]) + int(fields[12])
    return ticks


def _threads_us(
    pid: int, before: Mapping[int, int], after: Mapping[int, int], tasks: int, loop: int
) -> dict[str, float]:
    """Return the CPU time a task by thread, in microseconds; those of one name together."""
    used: Counter[str] = Counter()
    for thread, ticks in after.items():
        used[_thread_name(pid, thread, loop)] += ticks - before.get(thread, 0)
    return {
        name: round(ticks / TICKS_PER_S / tasks * 1e6, 1)
        for name, ticks in used.most_common()
        if ticks
    }


def _thread_name(pid: int, thread: int, loop: int) -> str:
    if thread == loop:
        return "event loop"
    if thread == pid:
        return "main thread"
    try:
        name = Path(f"/proc/{pid}/task/{thread}/comm").read_text()
    except OSError:
        return "ended"
    return f"Ray: {name.strip().rstrip(string.digits)}"


def _file(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}.{'svg' if kind == 'flamegraph' else 'txt'}"
