"""One turn of one contestant: a window under full load, then one task at a time."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from bench.contestants import Place, Queue, Running, make_streams, queue_of, running
from bench.lineup import FRESH_ACTOR, Entry
from bench.load import Feeder, purge, stream_state
from bench.peers.work import Task, request_of
from bench.sample import Sample
from bench.site import Durability, Model, Site
from bench.usage import Groups, Usage, machine_busy_s, pss_bytes, ray_daemons
from msgspec import Struct
from nats.aio.msg import Msg

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.config import NatsConfig
from agent_actors.contract import COMPLETED_SUBJECT, RESPONSE_STREAM

POLL_S = 0.05
FIRST_RESULT_TIMEOUT_S = 60.0
QUIET_S = 0.3
ALONE_SHARE = 0.15
QUIET_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 20.0
MEGABYTE = 1e6
DRIVER = "driver"


class Plan(Struct, frozen=True, kw_only=True):
    """How a turn goes.

    `queued` tasks wait from the beginning, and are kept from running out. For `patience_s` a turn
    waits until others leave the machine alone.
    """

    slots: int = 64
    queued: int = 6_000
    warm_s: float = 1.0
    window_s: float = 2.5
    single_tasks: int = 100
    patience_s: float = 0.0


async def take_turn(
    site: Site, model: Model, entry: Entry, plan: Plan, durability: Durability = "default"
) -> Sample:
    """Start a contestant on a fresh NATS, measure it, and end it.

    Raises RuntimeError when it has ended before, or what it did is not what is measured here.
    """
    await _until_left_alone(plan.patience_s)
    async with site.nats(durability) as nats, linked(nats.urls) as link:
        place = Place(site=site, nats=nats, model=model, link=link, slots=plan.slots)
        await make_streams(place)
        queue = queue_of(entry)
        async with Feeder(link, nats.urls[0], queue.subject, queue.stream, queue.compose) as feeder:
            await feeder.publish(plan.queued)
            async with running(place, entry) as contestant:
                return await _measure(place, contestant, entry, queue, feeder, plan)


@asynccontextmanager
async def linked(urls: list[str]) -> AsyncIterator[Connection]:
    """Connect to a NATS."""
    link = await connect(NatsConfig(url=",".join(urls)), name="bench")
    try:
        yield link
    finally:
        await link.close()


async def _measure(
    place: Place, contestant: Running, entry: Entry, queue: Queue, feeder: Feeder, plan: Plan
) -> Sample:
    is_slow = entry.who == FRESH_ACTOR
    await until_results(place.link, contestant)
    await asyncio.sleep(0 if is_slow else plan.warm_s)
    before = await look(place, contestant)
    end_s = before.at_s + (4 * plan.window_s if is_slow else plan.window_s)
    while (left_s := end_s - time.perf_counter()) > 0:
        await asyncio.sleep(min(left_s, 2 * POLL_S))
        await refill(place, queue, feeder, plan)
        if is_slow:
            contestant.note_usage()
    after = await look(place, contestant)
    sample = sample_of(place, contestant, before, after)
    await _check_results(place.link, entry)
    if is_slow or not plan.single_tasks:
        return sample
    await purge(place.link, queue.stream)
    await _until_quiet(place.link)
    return msgspec.structs.replace(
        sample,
        task_ms=await single_tasks(place, queue, plan.single_tasks),
        direct_ms=await direct_calls(place.model, plan.single_tasks),
    )


async def _until_left_alone(patience_s: float) -> None:
    """Wait for a moment in which little else runs here, for so long at most."""
    end_s = time.perf_counter() + patience_s
    while time.perf_counter() < end_s:
        before_s, begin_s = machine_busy_s(), time.perf_counter()
        await asyncio.sleep(QUIET_S)
        passed_s = (time.perf_counter() - begin_s) * (os.cpu_count() or 1)
        if (machine_busy_s() - before_s) / passed_s < ALONE_SHARE:
            return


async def _check_results(link: Connection, entry: Entry) -> None:
    """Raise RuntimeError when not every task was completed."""
    info = await link.api(f"STREAM.INFO.{RESPONSE_STREAM}", b'{"subjects_filter": ">"}')
    if counts := info["state"]["subjects"].keys() - {COMPLETED_SUBJECT}:
        raise RuntimeError(f"{entry.label}: there are results on {', '.join(counts)}")


async def refill(place: Place, queue: Queue, feeder: Feeder, plan: Plan) -> None:
    """Fill the queue up once half of it is gone."""
    waiting = (await stream_state(place.link, queue.stream))["messages"]
    if waiting < plan.queued // 2:
        await feeder.publish(plan.queued - waiting)


class Asked(Struct, frozen=True, kw_only=True):
    """What the stub was asked so far; `busy_s` adds up how long each request has been there."""

    asked: int
    busy_s: float


class Look(Struct, frozen=True, kw_only=True):
    """How far a contestant has come at a moment, and what has been used by then."""

    at_s: float
    results: int
    asked: Asked
    usage: Usage
    machine_s: float


async def look(place: Place, contestant: Running) -> Look:
    results = await results_so_far(place.link)
    asked = await asked_so_far(place.model)
    others = _others(place, contestant.processes()) | {DRIVER: [os.getpid()]}
    return Look(
        at_s=time.perf_counter(),
        results=results,
        asked=asked,
        usage=contestant.usage(others),
        machine_s=machine_busy_s(),
    )


def sample_of(place: Place, contestant: Running, before: Look, after: Look) -> Sample:
    """Return what happened between two looks."""
    tasks = max(1, after.results - before.results)
    window_s = after.at_s - before.at_s
    used = after.usage.since(before.usage)
    strangers_s = after.machine_s - before.machine_s - sum(used.values())
    own = contestant.processes()
    groups = dict(own) | _others(place, own)
    memory = {name: pss_bytes(pids) / MEGABYTE for name, pids in groups.items()}
    cpu_us = {name: seconds / tasks * 1e6 for name, seconds in used.items()}
    return Sample(
        tasks=tasks,
        window_s=window_s,
        strangers=max(0.0, strangers_s / window_s / (os.cpu_count() or 1)),
        asked=(after.asked.asked - before.asked.asked) / tasks,
        in_flight=(after.asked.busy_s - before.asked.busy_s) / window_s,
        cpu_us=cpu_us,
        own_us=sum(cpu_us[name] for name in own),
        pss_mb=memory,
        own_mb=sum(memory[name] for name in own),
    )


def _others(place: Place, own: Groups) -> dict[str, list[int]]:
    return {"ray daemons": ray_daemons(own), "nats": place.nats.pids, "model": place.model.pids}


async def results_so_far(link: Connection) -> int:
    return (await stream_state(link, RESPONSE_STREAM))["last_seq"]


async def asked_so_far(model: Model) -> Asked:
    if not model.counts:
        return Asked(asked=0, busy_s=0.0)
    async with aiohttp.ClientSession() as session, session.get(f"{model.url}/asked") as response:
        return msgspec.json.decode(await response.read(), type=Asked)


async def until_results(link: Connection, contestant: Running) -> None:
    async with asyncio.timeout(FIRST_RESULT_TIMEOUT_S):
        while not await results_so_far(link):
            contestant.check()
            await asyncio.sleep(POLL_S)


async def _until_quiet(link: Connection) -> None:
    """Return once no result has come for a moment."""
    async with asyncio.timeout(QUIET_TIMEOUT_S):
        before = -1
        while (now := await results_so_far(link)) != before:
            before = now
            await asyncio.sleep(QUIET_S)


async def single_tasks(place: Place, queue: Queue, count: int) -> list[float]:
    """Return how many milliseconds each of so many tasks takes, from publishing to result."""
    arrived: asyncio.Queue[float] = asyncio.Queue()

    async def note(_: Msg) -> None:
        arrived.put_nowait(time.perf_counter())

    nc = place.link.nc
    subscription = await nc.subscribe(COMPLETED_SUBJECT, cb=note)
    await nc.flush()
    times: list[float] = []
    for number in range(count):
        payload = queue.compose(f"single-{number}")
        begin_s = time.perf_counter()
        await nc.publish(queue.subject, payload)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            times.append((await arrived.get() - begin_s) * 1e3)
    await subscription.unsubscribe()
    return times


async def direct_calls(model: Model, count: int) -> list[float]:
    """Return how many milliseconds a request to the model takes by itself."""
    body = request_of(Task(task_id="direct", task_description="Implement a tree"))
    url = f"{model.url}/v1/chat/completions"
    times: list[float] = []
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for _ in range(count):
            begin_s = time.perf_counter()
            async with session.post(url, data=body) as response:
                await response.read()
            times.append((time.perf_counter() - begin_s) * 1e3)
    return times
