"""The model is kept full and not flooded: what is too much for it waits with us, and in NATS."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, pairwise

import pytest
from structlog.testing import capture_logs
from support.model_client import ANSWER, PATIENCE_S, QUESTION, client
from support.nats import NatsServer
from support.raw_http import raw_server, response, sends
from support.service import RunningService, running_service
from support.until import until

from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.asking import Asker, start_as
from agent_actors.contract import PoolStatus
from agent_actors.errors import ModelUnavailable
from agent_actors.local.model_server.faults import Fault, Faults
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import (
    Behaviour,
    Latency,
    Limits,
    ModelServerSettings,
)

PLACES = 8
ANSWER_S = 0.1
LOOK_S = 0.02


def settings(answer_s: float = ANSWER_S, **limits: int) -> ModelServerSettings:
    latency = Latency(first_token_ms=1_000 * answer_s, spread=0.5)
    return ModelServerSettings(
        behaviour=Behaviour(latency=latency), limits=Limits(max_num_seqs=PLACES, **limits)
    )


class Watcher:
    """Looks at a server all the time: how many wait, and how many of its places are taken."""

    def __init__(self, server: RunningModelServer) -> None:
        self._server = server
        self.waiting: list[int] = []
        self.busy: list[float] = []

    async def watch(self) -> None:
        while True:
            self.waiting.append(self._server.engine.waiting)
            self.busy.append(self._server.engine.running / PLACES)
            await asyncio.sleep(LOOK_S)

    def forget(self) -> None:
        self.waiting.clear()
        self.busy.clear()


@asynccontextmanager
async def watched(server: RunningModelServer) -> AsyncIterator[Watcher]:
    watcher = Watcher(server)
    watching = asyncio.create_task(watcher.watch())
    try:
        yield watcher
    finally:
        watching.cancel()


def mean(values: list[int] | list[float]) -> float:
    return sum(values) / len(values)


class Askers:
    """Tasks without end, each of which asks one question after the other."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.seen = Counter[str]()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, asking: VLLMHTTPClient, count: int) -> None:
        await self._stack.enter_async_context(asking)
        self._tasks += [asyncio.create_task(self._ask(asking)) for _ in range(count)]
        self._stack.push_async_callback(self.stop)  # else they would open the client again

    async def until_answered(self, count: int) -> None:
        goal = self.seen["answered"] + count
        await until(lambda: self.seen["answered"] >= goal)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, asking: VLLMHTTPClient) -> None:
        while True:
            try:
                await asking.chat(QUESTION)
                self.seen["answered"] += 1
            except ModelUnavailable:
                self.seen["failed"] += 1


async def test_two_clients_keep_an_overloaded_server_full_and_its_queue_short():
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_model_server(settings()))
        watcher = await stack.enter_async_context(watched(server))
        askers = Askers(stack)
        for _ in range(2):
            await askers.start(client(server.url, metrics="auto"), 64)
        await askers.until_answered(80)
        watcher.forget()
        await askers.until_answered(320)
        assert mean(watcher.waiting) < PLACES
        assert mean(watcher.busy) > 0.95
        assert askers.seen["failed"] == 0


async def test_rejections_are_few_where_nothing_but_they_tell_that_a_server_is_full():
    async with AsyncExitStack() as stack:
        strict = settings(answer_s=3 * ANSWER_S, max_num_queued_reqs=PLACES)
        server = await stack.enter_async_context(running_model_server(strict))
        watcher = await stack.enter_async_context(watched(server))
        askers = Askers(stack)
        asking = client(server.url, retry_base_s=0.05, retry_cap_s=0.05)
        rooms: list[int] = []
        asking.watch_room(lambda: rooms.append(asking.room))

        async def until_there_is_less_room() -> None:
            known = len(rooms)
            await until(lambda: any(less < more for more, less in pairwise(rooms[known:])))

        await askers.start(asking, 64)
        await askers.until_answered(4 * PLACES)
        await until_there_is_less_room()
        before = len(server.requests)
        watcher.forget()
        await until_there_is_less_room()  # it has found out slowly that there is no more
        asked = list(server.requests)[before:]
        assert sum(request.status == 503 for request in asked) < 0.1 * len(asked)
        assert mean(watcher.busy) > 0.8


async def test_a_storm_of_429_is_left_to_blow_over_with_few_requests():
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_model_server(settings()))
        server.behaviour = Behaviour(faults=Faults(rates={Fault.TOO_MANY_REQUESTS: 1.0}))
        askers = Askers(stack)
        asking = client(server.url, retry_base_s=0.05, retry_cap_s=0.05)
        await askers.start(asking, 64)
        await until(lambda: asking.room == 1)
        server.behaviour = Behaviour(latency=Latency(first_token_ms=20))
        await askers.until_answered(100)
        await until(lambda: asking.room > 1)


async def test_a_server_without_metrics_is_asked_for_them_once_and_given_all_there_is():
    async with (
        raw_server(sends(ANSWER), health=sends(response(b"404", 404))) as server,
        client(server.url, metrics="auto", max_in_flight=300) as asking,
    ):
        with capture_logs() as logs:
            async with asyncio.timeout(PATIENCE_S):
                while asking.room < 300:
                    await asking.chat(QUESTION)
        assert [exchange.path for exchange in server.probes] == ["/metrics"]
        assert {entry["log_level"] for entry in logs} == {"debug"}


async def test_the_requests_of_one_task_go_to_one_server():
    async with (
        raw_server(sends(ANSWER)) as one,
        raw_server(sends(ANSWER)) as other,
        client(one.url, other.url) as asking,
    ):

        async def ask(count: int) -> None:
            for _ in range(count):
                await asking.chat(QUESTION)

        for count in (4, 3):
            await start_as(Asker(), ask(count))
        assert sorted(len(server.requests) for server in (one, other)) == [3, 4]


async def until_asked(model: RunningModelServer, requests: int) -> None:
    await until(lambda: len(model.requests) >= requests)


async def supply(running: RunningService, model: RunningModelServer) -> None:
    """Publish tasks without end, so far ahead of the model that some always wait in NATS."""
    for number in count():
        await until_asked(model, number - 20 * PLACES)
        await running.publish(f"t-{number}")


async def pool_of(running: RunningService) -> PoolStatus:
    (pool,) = (await asyncio.to_thread(running.service.status)).pools
    return pool


@pytest.mark.ray
@pytest.mark.nats
@pytest.mark.usefixtures("local_ray")
async def test_what_is_too_much_for_the_model_waits_in_nats(nats_server: NatsServer):
    async with AsyncExitStack() as stack:
        model = await stack.enter_async_context(running_model_server(settings()))
        watcher = await stack.enter_async_context(watched(model))
        running = await stack.enter_async_context(
            running_service(nats_server, model.url, actors=2, slots=64)
        )
        supplying = asyncio.create_task(supply(running, model))
        stack.callback(supplying.cancel)

        async def know_the_model() -> bool:
            actors = (await pool_of(running)).actors
            limits = [endpoint.limit for actor in actors for endpoint in actor.endpoints]
            return len(limits) == 2 and sum(limits) < 2 * PLACES > model.engine.waiting

        # They begin with what they know of no model, and it has to work that off.
        await until(know_the_model)
        watcher.forget()
        await until_asked(model, len(model.requests) + 30 * PLACES)
        busy, waiting = mean(watcher.busy), mean(watcher.waiting)
        pool = await pool_of(running)
        supplying.cancel()
        assert waiting < PLACES
        assert busy > 0.9
        assert pool.slots_used < 3 * PLACES
        assert pool.pending > 0
        for actor in pool.actors:
            (endpoint,) = actor.endpoints
            assert endpoint.url == model.url
            assert endpoint.limit < 3 * PLACES
        assert set((await running.announced()).values()) == {1}
