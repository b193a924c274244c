"""Web servers on loopback, a trap that nothing may reach, and names that mean what a test says."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from ssl import SSLContext

from aiohttp import web
from msgspec import Struct

SITE_ADDRESS = "127.0.0.3"
TRAP_ADDRESSES = ("127.0.0.1", "::1")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Asked(Struct, frozen=True, kw_only=True):
    """A request that came, the names of its headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Site:
    """A server on `SITE_ADDRESS`; every path answers `hello` until told otherwise."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[Asked] = []
        self._handlers: dict[str, Handler] = {}

    def on(self, path: str, handler: Handler) -> None:
        self._handlers[path] = handler

    def redirects(self, path: str, location: str, status: int = 302) -> None:
        async def redirect(request: web.Request) -> web.StreamResponse:
            return web.Response(status=status, headers={"Location": location})

        self.on(path, redirect)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(
            Asked(
                method=request.method,
                target=request.raw_path,
                headers={name.lower(): value for name, value in request.headers.items()},
                body=await request.read(),
            )
        )
        handler = self._handlers.get(request.path)
        return await handler(request) if handler else web.Response(text="hello")


class Trap:
    """What listens where no agent may come; `heard` is what was sent to it."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.heard: list[bytes] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.heard.append(await reader.read(65_536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        writer.close()


@contextlib.asynccontextmanager
async def open_site(*, port: int = 0, tls: SSLContext | None = None) -> AsyncIterator[Site]:
    site = Site()
    runner = web.AppRunner(_application(site), access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        listener = web.TCPSite(runner, SITE_ADDRESS, port, ssl_context=tls)
        await listener.start()
        site.port = runner.addresses[0][1]
        yield site
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def open_trap() -> AsyncIterator[Trap]:
    """Listen on the addresses of this machine, IPv6 too where there is any."""
    trap = Trap()
    servers: list[asyncio.Server] = []
    try:
        for address in TRAP_ADDRESSES:
            with contextlib.suppress(OSError):
                servers.append(await asyncio.start_server(trap.connected, address, trap.port))
                trap.port = servers[0].sockets[0].getsockname()[1]
        assert servers
        yield trap
    finally:
        for server in servers:
            server.close()


class Names:
    """A name server of the test's own, which keeps what it was asked.

    A name may mean something else each time; the last meaning stays. What is not known is
    taken for an address in any form that the system's resolver reads, and never asked of it.
    """

    def __init__(self, **names: Sequence[str]) -> None:
        self.asked: list[str] = []
        self._meanings = {name.replace("_", "."): [meaning] for name, meaning in names.items()}

    def mean(self, name: str, *meanings: Sequence[str]) -> None:
        self._meanings[name] = list(meanings)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if meanings := self._meanings.get(host):
            return meanings.pop(0) if len(meanings) > 1 else meanings[0]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(address[0]) for *_, address in found]


def _application(site: Site) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", site.answer)
    return application
