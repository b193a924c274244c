"""A real vLLM, asked by the service and by nobody but a plain load generator, in turns.

It has one core for itself, and everybody else the others (`cores`).
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from bench.lineup import OURS, Entry
from bench.load import plain_task
from bench.measure import Plan, take_turn
from bench.modes import Line, Outcome
from bench.sample import Sample
from bench.saying import say
from bench.site import Model, Site
from bench.usage import with_word
from bench.verdict import Target, judge
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from vllm_server import API_KEY, MODEL

from agent_actors.adapters.vllm.requests import encode_request
from agent_actors.contract import AgentTask, constraints_of
from agent_actors.ports import AgentConfig, ChatRequest, ExecutionRequest
from agent_actors.strategies.prompts import messages

# The server runs 64 sequences at a time.
SEQUENCES = 64
FITTING = 48
TOO_MANY = 512
ROUNDS = 2
PLAN = Plan(slots=FITTING, queued=4_000, warm_s=4.0, window_s=15.0, single_tasks=0)
SAMPLE_EVERY_S = 0.25
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"

GOODPUT = Target(
    name=f"goodput of {FITTING} slots, of a load generator's",
    must=0.95,
    aim=0.98,
    at_most=False,
    unit="",
)
WAITING_REQUESTS = Target(
    name=f"{TOO_MANY} slots: requests waiting in vLLM, on average",
    must=16,
    aim=8,
    at_most=True,
    unit="",
)
BEST_GOODPUT = Target(
    name=f"{TOO_MANY} slots: goodput, of the best there is",
    must=0.95,
    aim=0.98,
    at_most=False,
    unit="",
)


async def real_model(site: Site, url: str) -> Outcome:
    """Measure our goodput against that of the same requests sent by themselves."""
    model = Model(url=url, pids=with_word("vllm"), api_key=API_KEY, counts=False)
    direct: list[float] = []
    ours: list[Sample] = []
    # All the time, since that takes something of what the server can do.
    async with _watched(model) as loads:
        for _ in range(ROUNDS):
            direct.append(await _direct(model, FITTING))
            say(f"  load generator: {direct[-1]:.1f}/s")
            ours.append(await take_turn(site, model, Entry(who=OURS), PLAN))
            say(f"  ours: {ours[-1].rate:.1f}/s")
        fullest = await _direct(model, SEQUENCES)
        say(f"  load generator, {SEQUENCES} at a time: {fullest:.1f}/s")
        loads.clear()
        plan = replace(PLAN, slots=TOO_MANY)
        flooding = await take_turn(site, model, Entry(who=OURS), plan)
    best = max(*direct, fullest, *(sample.rate for sample in ours))
    share = statistics.median(o.rate / d for o, d in zip(ours, direct, strict=True))
    running, waited = map(statistics.fmean, zip(*loads, strict=True))
    return Outcome(
        title=f"a real vLLM of {SEQUENCES} sequences",
        lines=[
            Line(
                setting=f"{FITTING} slots", samples=ours, note=f"{share:.3f} of a load generator's"
            ),
            Line(
                setting=f"{TOO_MANY} slots",
                samples=[flooding],
                note=f"{running:.1f} requests running and {waited:.1f} waiting, "
                f"{flooding.rate / best:.3f} of the best",
            ),
        ],
        verdicts=[
            judge(GOODPUT, round(share, 3)),
            judge(WAITING_REQUESTS, round(waited, 1)),
            judge(BEST_GOODPUT, round(flooding.rate / best, 3)),
        ],
    )


async def _direct(model: Model, at_once: int) -> float:
    """Return how many completions a second so many askers get, who do nothing else."""
    body, done = _request(), itertools.count()
    async with _session(model) as session, asyncio.TaskGroup() as group:
        askers = [
            group.create_task(_keep_asking(session, model, body, done)) for _ in range(at_once)
        ]
        await asyncio.sleep(PLAN.warm_s)
        first, begin_s = next(done), time.perf_counter()
        await asyncio.sleep(PLAN.window_s)
        last, end_s = next(done), time.perf_counter()
        for asker in askers:
            asker.cancel()
    return (last - first - 1) / (end_s - begin_s)


async def _keep_asking(
    session: aiohttp.ClientSession, model: Model, body: bytes, done: "itertools.count[int]"
) -> None:
    while True:
        async with session.post(f"{model.url}/v1/chat/completions", data=body) as response:
            response.raise_for_status()
            await response.read()
        next(done)


def _request() -> bytes:
    """Return what the service sends for a task of the load."""
    task = msgspec.json.decode(plain_task("task-0"), type=AgentTask)
    agent = AgentConfig(agent_id="default-0", role="DEV", model=MODEL)
    request = ExecutionRequest(
        task=task, constraints=constraints_of(task), agent=agent, timeout_s=60.0
    )
    return encode_request(
        ChatRequest(
            messages=messages(request),
            model=MODEL,
            temperature=agent.temperature,
            max_tokens=agent.max_tokens,
        ),
        stream=False,
    )


def _session(model: Model) -> aiohttp.ClientSession:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {model.api_key}"}
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)


@asynccontextmanager
async def _watched(model: Model) -> AsyncIterator[list[tuple[float, float]]]:
    """Give the numbers of requests that run and wait, as they are sampled while some run."""
    loads: list[tuple[float, float]] = []
    async with _session(model) as session, asyncio.TaskGroup() as group:
        watching = group.create_task(_keep_watching(session, model, loads))
        yield loads
        watching.cancel()


async def _keep_watching(
    session: aiohttp.ClientSession, model: Model, loads: list[tuple[float, float]]
) -> None:
    while True:
        async with session.get(f"{model.url}/metrics") as response:
            text = await response.text()
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        if values[RUNNING]:
            loads.append((values[RUNNING], values[WAITING]))
        await asyncio.sleep(SAMPLE_EVERY_S)
