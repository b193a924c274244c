import asyncio
import time

import pytest
from support.until import until

from agent_actors.local.model_server.engine import Engine
from agent_actors.local.model_server.refusal import EngineFull
from agent_actors.local.model_server.settings import Latency, Limits

ENDLESS_MS = 60_000.0


def make_engine(*, limits: Limits | None = None, **latency: float) -> Engine:
    return Engine(limits=limits or Limits(), latency=Latency(**latency), seed=1)


async def run(engine: Engine, count: int = 3, prompt_tokens: int = 10) -> list[int]:
    async with engine.sequence(prompt_tokens) as sequence:
        return [made async for made in sequence.tokens(count)]


async def start(engine: Engine) -> asyncio.Task:
    """Start a request, and return its task once it runs or waits in the engine."""
    before = engine.running + engine.waiting
    task = asyncio.create_task(run(engine))
    await until(lambda: engine.running + engine.waiting > before)
    return task


async def test_without_latency_all_tokens_come_at_once():
    assert await run(make_engine(), count=3) == [3]


async def test_with_time_between_them_tokens_come_one_by_one():
    assert await run(make_engine(between_tokens_ms=1), count=3) == [1, 2, 3]


async def test_tokens_take_their_time():
    engine = make_engine(first_token_ms=20, prefill_ms_per_token=1, between_tokens_ms=10)
    begun = time.monotonic()
    await run(engine, count=3, prompt_tokens=10)
    assert time.monotonic() - begun >= 0.050


def test_the_spread_stays_within_its_share_and_follows_the_seed():
    one, same = make_engine(spread=0.5), make_engine(spread=0.5)
    times_ms = [one.stretched(10) for _ in range(100)]
    assert all(5 <= time_ms <= 15 for time_ms in times_ms)
    assert max(times_ms) - min(times_ms) > 5
    assert times_ms == [same.stretched(10) for _ in range(100)]


@pytest.mark.parametrize(("running", "factor"), [(1, 1.0), (2, 2.0), (3, 3.0)])
async def test_load_slows_everything_down_in_proportion(running: int, factor: float):
    engine = make_engine(limits=Limits(max_num_seqs=3), first_token_ms=ENDLESS_MS, slowdown=3)
    tasks = [await start(engine) for _ in range(running)]
    assert engine.stretched(10) == pytest.approx(10 * factor)
    engine.stop()
    await asyncio.gather(*tasks)


async def test_requests_beyond_the_places_wait_their_turn():
    engine = make_engine(limits=Limits(max_num_seqs=2), first_token_ms=ENDLESS_MS)
    tasks = [await start(engine) for _ in range(3)]
    assert (engine.running, engine.waiting) == (2, 1)

    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    await until(lambda: not engine.waiting)
    assert (engine.running, engine.waiting) == (2, 0)
    engine.stop()
    await asyncio.gather(*tasks[1:])


async def test_a_request_that_gives_up_waiting_leaves_no_trace():
    engine = make_engine(limits=Limits(max_num_seqs=1), first_token_ms=ENDLESS_MS)
    running, waiting = await start(engine), await start(engine)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (engine.running, engine.waiting) == (1, 0)
    engine.stop()
    await running
    assert (engine.running, engine.tokens_held) == (0, 0)


async def test_too_many_requests_are_refused():
    limits = Limits(max_num_seqs=1, max_num_queued_reqs=2)
    engine = make_engine(limits=limits, first_token_ms=ENDLESS_MS)
    tasks = [await start(engine), await start(engine)]
    with pytest.raises(EngineFull):
        await run(engine)
    engine.stop()
    await asyncio.gather(*tasks)


async def test_stopping_ends_running_and_waiting_requests_with_what_they_have():
    engine = make_engine(limits=Limits(max_num_seqs=1), between_tokens_ms=ENDLESS_MS)
    tasks = [await start(engine) for _ in range(3)]
    engine.stop()
    assert await asyncio.gather(*tasks) == [[1], [], []]


async def test_cache_usage_follows_the_tokens_of_running_requests():
    limits = Limits(kv_cache_tokens=100)
    engine = make_engine(limits=limits, between_tokens_ms=ENDLESS_MS)
    task = await start(engine)
    await until(lambda: engine.tokens_held > 0)
    assert engine.cache_usage == pytest.approx(0.11)
    engine.stop()
    await task
    assert engine.cache_usage == 0


async def test_latency_can_be_changed_while_requests_run():
    engine = make_engine(between_tokens_ms=1)
    async with engine.sequence(1) as sequence:
        made = []
        async for number in sequence.tokens(50):
            made.append(number)
            engine.latency = Latency()
    assert made == [1, 50]
