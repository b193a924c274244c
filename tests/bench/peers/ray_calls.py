"""Ray as its users first write it: a dispatcher pulls tasks and makes one Ray call for each.

`python -m bench.peers.ray_calls` keeps async actors and calls the one with the fewest tasks;
with `fresh` every task gets an actor of its own, with sessions of its own, that ends with it.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import ray
import uvloop
from bench.peers.work import Settings, Work, open_session
from bench.wire import DURABLE, PEER_STREAM
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError

NAMESPACE = "bench-peer"
# Actors that start at the same time, in the fresh way: more do not start sooner on two cores.
FRESH_AT_ONCE = 4

Handle = Callable[[bytes], Awaitable[None]]


class Worker:
    """An async actor with one HTTP session and one NATS connection."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: asyncio.Task[Work] | None = None

    async def work(self, data: bytes) -> None:
        if self._opened is None:
            self._opened = asyncio.create_task(self._open())
        await (await self._opened).on_bytes(data)

    async def ready(self) -> None:
        """Return once the actor runs."""

    async def _open(self) -> Work:
        nc = await nats.connect(self._settings.nats_urls)
        return Work(open_session(), nc.jetstream(), self._settings)


RemoteWorker: Any = ray.remote(Worker)


async def run(settings: Settings, handle: Handle, at_once: int) -> None:
    """Work until killed."""
    nc = await nats.connect(settings.nats_urls)
    consumer = await nc.jetstream().pull_subscribe_bind(DURABLE, PEER_STREAM)
    room = asyncio.Semaphore(at_once)
    running: set[asyncio.Task[None]] = set()

    async def one(message: Msg) -> None:
        try:
            await handle(message.data)
            await message.ack()
        finally:
            room.release()

    while True:
        try:
            messages = await consumer.fetch(at_once, timeout=5)
        except NatsTimeoutError:
            continue
        for message in messages:
            await room.acquire()
            task = asyncio.create_task(one(message))
            running.add(task)
            task.add_done_callback(running.discard)


def standing_actors(settings: Settings) -> Handle:
    """Call one of as many actors as there are workers."""
    options = {"num_cpus": 0.1, "max_concurrency": settings.slots}
    actors = [RemoteWorker.options(**options).remote(settings) for _ in range(settings.workers)]
    ray.get([actor.ready.remote() for actor in actors])
    busy = dict.fromkeys(range(settings.workers), 0)

    async def handle(data: bytes) -> None:
        least = min(busy, key=busy.__getitem__)
        busy[least] += 1
        try:
            await actors[least].work.remote(data)
        finally:
            busy[least] -= 1

    return handle


def fresh_actors(settings: Settings) -> Handle:
    """Start an actor for each task, and end it afterwards."""

    async def handle(data: bytes) -> None:
        actor = RemoteWorker.options(num_cpus=0.1).remote(settings)
        await actor.work.remote(data)
        ray.kill(actor)

    return handle


async def main(settings: Settings, way: str) -> None:
    if way == "fresh":
        await run(settings, fresh_actors(settings), FRESH_AT_ONCE)
    else:
        await run(settings, standing_actors(settings), settings.slots * settings.workers)


if __name__ == "__main__":
    told = Settings.read()
    ray.init(address=told.ray_address, namespace=NAMESPACE, log_to_driver=False)
    uvloop.run(main(told, sys.argv[1]))
