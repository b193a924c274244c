"""An HTTP server on loopback that answers with exactly the bytes a test says, however wrong."""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec


class Exchange:
    """One request, and the connection on which to answer it or to misbehave.

    `at` is when it came, in seconds of `time.monotonic()`.
    """

    def __init__(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        first, *lines = head.decode().split("\r\n")
        self.method, self.path, _ = first.split(" ")
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        self.body = body
        self.at = time.monotonic()
        self._reader = reader
        self._writer = writer

    @property
    def json(self):
        return msgspec.json.decode(self.body)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def hung_up(self) -> None:
        """Return once the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass

    def close(self) -> None:
        self._writer.close()

    def reset(self) -> None:
        """Close with a TCP reset instead of an orderly end."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Answer = Callable[[Exchange], Awaitable[None]]


class RawServer:
    """`answers` are given in turn, the last one for ever; GET requests get `health`."""

    def __init__(self, answers: tuple[Answer, ...], health: Answer) -> None:
        self._answers = answers
        self._health = health
        self.url = ""
        self.connections = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.asked = asyncio.Event()
        self.requests: list[Exchange] = []
        self.probes: list[Exchange] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self._serve_one(reader, writer)
        writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
        length = next(
            (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")),
            0,
        )
        exchange = Exchange(head, await reader.readexactly(length), reader, writer)
        if exchange.method == "GET":
            self.probes.append(exchange)
            await self._health(exchange)
        else:
            self.requests.append(exchange)
            self.asked.set()
            await self._answers[min(len(self.requests), len(self._answers)) - 1](exchange)


def response(body: bytes = b"", status: int = 200, **headers: str | None) -> bytes:
    """Return a whole HTTP response; a header given as None is left out."""
    shown = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    shown |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}\r\n" for name, value in shown.items() if value is not None]
    return f"HTTP/1.1 {status} Whatever\r\n{''.join(lines)}\r\n".encode() + body


def sends(data: bytes, *, then_close: bool = False) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(data)
        if then_close:
            exchange.close()

    return answer


@contextlib.asynccontextmanager
async def raw_server(
    *answers: Answer, health: Answer | None = None, port: int = 0
) -> AsyncIterator[RawServer]:
    raw = RawServer(answers, health or sends(response()))

    def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raw.tasks.add(asyncio.create_task(raw.connected(reader, writer)))

    server = await asyncio.start_server(connect, "127.0.0.1", port, backlog=1_000)
    raw.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        for task in raw.tasks:
            task.cancel()
        outcomes = await asyncio.gather(*raw.tasks, return_exceptions=True)
        unexpected = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if unexpected:
            raise unexpected[0]
