"""The bare loop: one asyncio process with nats-py, aiohttp and uvloop, and nothing around it."""

import asyncio

import nats
import uvloop
from bench.peers.work import Settings, Work, open_session
from bench.wire import DURABLE, PEER_STREAM
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext


async def run(settings: Settings) -> None:
    """Work until killed."""
    nc = await nats.connect(settings.nats_urls)
    js = nc.jetstream()
    fetched: asyncio.Queue[Msg] = asyncio.Queue(settings.slots)
    async with open_session() as session, asyncio.TaskGroup() as group:
        work = Work(session, js, settings)
        for _ in range(settings.slots):
            group.create_task(_work_off(fetched, work))
        await _keep_fetching(js, fetched, settings.slots)


async def _keep_fetching(js: JetStreamContext, fetched: asyncio.Queue[Msg], slots: int) -> None:
    consumer = await js.pull_subscribe_bind(DURABLE, PEER_STREAM)
    while True:
        try:
            messages = await consumer.fetch(slots, timeout=5)
        except NatsTimeoutError:
            continue
        for message in messages:
            await fetched.put(message)


async def _work_off(fetched: asyncio.Queue[Msg], work: Work) -> None:
    while True:
        message = await fetched.get()
        await work.on_bytes(message.data)
        await message.ack()


if __name__ == "__main__":
    uvloop.run(run(Settings.read()))
