"""A TCP proxy that stands between two parts and can be told to carry badly, or not at all.

It takes a port outside the range that the system gives away, so that nobody else has it while
connections are refused.
"""

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable
from typing import Literal, Self

from msgspec import Struct
from support.ready import free_port

HOST = "127.0.0.1"
READ_BYTES = 64 * 1024
QUEUED_CHUNKS = 16
# How finely a narrow link is cut into pieces.
TICK_S = 0.05
# A socket that may not linger is reset when it is closed.
NO_LINGER = struct.pack("ii", 1, 0)

Way = Literal["up", "down"]
BOTH: frozenset[Way] = frozenset({"up", "down"})


class Link(Struct, frozen=True, kw_only=True):
    """How bytes are carried; `up` is from the client to the target.

    What is `frozen` waits here, with its connection open, and goes on when that ends: frozen
    both ways it is a partition.
    """

    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    frozen: frozenset[Way] = frozenset()


HEALTHY = Link()
PARTITIONED = Link(frozen=BOTH)

OnBytes = Callable[[int, Way, bytes], None]


class TcpProxy:
    """Carries connections from its own port to `target`, a port on this machine.

    `accepted` counts the connections that there were so far. `on_bytes` is told what was carried:
    the connection's number, the way, the bytes.
    """

    def __init__(self, target: int = 0, *, on_bytes: OnBytes | None = None) -> None:
        self.target = target
        self.port = free_port()
        self._on_bytes = on_bytes
        self._link = HEALTHY
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: dict[int, _Connection] = {}
        self.accepted = 0
        self._cuts: dict[Way, int] = {}

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def link(self) -> Link:
        return self._link

    @link.setter
    def link(self, link: Link) -> None:
        """Carry like this from now on, also what is on its way."""
        self._link = link
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def accept(self) -> None:
        """Listen, if it does not."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def refuse(self) -> None:
        """Refuse new connections and reset those that are open, until `accept`."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.reset()
        ended = [connection.ended for connection in self._connections.values()]
        if ended:
            await asyncio.wait(ended)

    def reset(self) -> None:
        """Reset all connections, both ends of each."""
        for connection in tuple(self._connections.values()):
            connection.reset()

    def forget(self) -> None:
        """Carry nothing more on the connections that are open, and tell neither end."""
        for connection in self._connections.values():
            connection.forgotten = True

    def cut(self, way: Way, at_least_bytes: int = 1) -> None:
        """Carry half of the next chunk of this size that goes this way, then reset its connection.

        A client that writes a message at once has it cut in the midst.
        """
        self._cuts[way] = at_least_bytes

    def cancel_cut(self, way: Way) -> None:
        """Cut nothing any more, if nothing was cut yet."""
        self._cuts.pop(way, None)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        connection = _Connection(self, number, reader, writer)
        self._connections[number] = connection
        connection.ended.add_done_callback(lambda _: self._connections.pop(number, None))

    async def held(self, way: Way, since: float) -> None:
        """Return once a chunk that came at `since` may be carried on."""
        loop = asyncio.get_running_loop()
        while True:
            frozen = way in self._link.frozen
            wait_s = math.inf if frozen else since + self._link.latency_s - loop.time()
            if wait_s <= 0:
                return
            await self.change(wait_s)

    async def change(self, longest_s: float) -> None:
        """Return when the link is changed, or after some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if longest_s == math.inf else longest_s):
                await self._changed.wait()

    def is_cut(self, way: Way, size: int) -> bool:
        """Tell whether a chunk of this size is the one to cut."""
        if size > 1 and size >= self._cuts.get(way, size + 1):
            del self._cuts[way]
            return True
        return False

    def carried(self, number: int, way: Way, piece: bytes) -> None:
        """Take note of what has been written to the other side."""
        if self._on_bytes is not None:
            self._on_bytes(number, way, piece)


class _Connection:
    """One connection: two ways, each with a reader and a writer of its own."""

    def __init__(
        self,
        proxy: TcpProxy,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._number = number
        self._writers = [writer]
        self.forgotten = False
        self.ended = asyncio.ensure_future(self._run(reader, writer))

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)
        self.ended.cancel()

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = await asyncio.open_connection(HOST, self._proxy.target)
        except OSError:
            _reset(writer)
            return
        self._writers.append(target[1])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry("up", reader, target[1]))
                group.create_task(self._carry("down", target[0], writer))
        except* OSError:
            pass  # one end has hung up: so will the other
        finally:
            for each in self._writers:
                each.close()

    async def _carry(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
        reading = asyncio.create_task(_read(reader, queue))
        try:
            while True:
                since, chunk = await queue.get()
                await self._proxy.held(way, since)
                if self.forgotten:
                    continue
                if not chunk:
                    break
                if self._proxy.is_cut(way, len(chunk)):
                    await self._write(way, writer, chunk[: len(chunk) // 2])
                    self.reset()
                    return
                await self._write(way, writer, chunk)
        finally:
            reading.cancel()
        writer.close()

    async def _write(self, way: Way, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        loop = asyncio.get_running_loop()
        while chunk:
            rate = self._proxy.link.bytes_per_s
            size = len(chunk) if rate == math.inf else max(1, int(rate * TICK_S))
            piece, chunk = chunk[:size], chunk[size:]
            writer.write(piece)
            await writer.drain()
            self._proxy.carried(self._number, way, piece)
            if rate != math.inf:
                await self._proxy.change(len(piece) / rate)
                await self._proxy.held(way, loop.time() - self._proxy.link.latency_s)


async def _read(reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
    """Put what comes into the queue; an empty chunk is the end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            chunk = await reader.read(READ_BYTES)
        except OSError:
            chunk = b""
        await queue.put((loop.time(), chunk))
        if not chunk:
            return


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    writer.transport.abort()
