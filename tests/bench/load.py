"""Tasks into a queue as fast as NATS takes them: in its own protocol, many in one write."""

import asyncio
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec
from support.until import until

from agent_actors.adapters.jetstream.connection import Connection

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n'
# JetStream refuses what waits to be stored beyond some 10,000 messages a stream.
AT_ONCE = 4_000
STORED_TIMEOUT_S = 60.0

CONSTRAINTS = {
    "language": "python",
    "requirements": ["type hints", "no dependencies"],
    "context": "The tree keeps orders by price; most of what is asked for is its first element.",
    "metadata": {"story_id": "s-1"},
}

Compose = Callable[[str], bytes]


def plain_task(task_id: str) -> bytes:
    """Return a task as this project, and most peers, are given it."""
    return msgspec.json.encode(_task(task_id))


def taskiq_task(task_id: str) -> bytes:
    """Return the same task as taskiq's own client sends it."""
    message = {
        "task_id": task_id,
        "task_name": "work",
        "labels": {},
        "labels_types": {},
        "args": [_task(task_id)],
        "kwargs": {},
    }
    return msgspec.json.encode(message)


def _task(task_id: str) -> dict[str, object]:
    return {
        "task_id": task_id,
        "task_description": "Implement a balanced binary search tree with insert and delete",
        "role": "DEV",
        "constraints": CONSTRAINTS,
    }


class Feeder:
    """Publishes to one subject of one stream, without asking for a receipt of each message."""

    def __init__(self, link: Connection, url: str, subject: str, stream: str, compose: Compose):
        self._link = link
        self._url = url
        self._subject = subject.encode()
        self._stream = stream
        self._compose = compose
        self._numbers = itertools.count()
        self._sent = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        address = urlsplit(self._url)
        self._reader, self._writer = await asyncio.open_connection(address.hostname, address.port)
        self._writer.write(CONNECT)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def publish(self, count: int) -> None:
        """Return once so many more tasks are stored. Raises TimeoutError when some are not."""
        for chunk in _chunks(count):
            self._writer.write(b"".join(self._line() for _ in range(chunk)))
            await self._writer.drain()
            self._sent += chunk
            await self._until_stored()

    def _line(self) -> bytes:
        payload = self._compose(f"task-{next(self._numbers)}")
        return b"PUB %s %d\r\n%s\r\n" % (self._subject, len(payload), payload)

    async def _until_stored(self) -> None:
        async def stored() -> bool:
            return (await stream_state(self._link, self._stream))["last_seq"] >= self._sent

        await until(stored, timeout_s=STORED_TIMEOUT_S)


async def stream_state(link: Connection, stream: str) -> dict[str, int]:
    """Return the state of a stream as JetStream tells it."""
    return (await link.api(f"STREAM.INFO.{stream}"))["state"]


async def purge(link: Connection, stream: str) -> None:
    """Remove what waits in a stream."""
    await link.api(f"STREAM.PURGE.{stream}")


def _chunks(count: int) -> list[int]:
    whole, rest = divmod(count, AT_ONCE)
    return [AT_ONCE] * whole + [rest] * bool(rest)
