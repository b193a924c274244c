"""The web for agents: the one place where what a model writes becomes a request.

What may be asked is judged in `reach`. Here its judgement is held to: names are resolved once,
by the connector, which connects to what was judged and to nothing else; redirections are
followed by hand, each judged like a first request; size and time are bounded.
"""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from msgspec import Struct
from msgspec.structs import replace
from yarl import URL

from agent_actors import __version__
from agent_actors.adapters.reach import Reach
from agent_actors.config_tools import HttpConfig
from agent_actors.errors import ToolError, ToolRefused
from agent_actors.ports import WebAnswer

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

MAX_REDIRECTS = 5
MAX_CONNECTIONS = 32
MAX_CONNECTIONS_PER_HOST = 8

# What is sent unless the model says otherwise; only what the connection can undo is asked for.
DEFAULT_HEADERS = {
    "accept": "*/*",
    "accept-encoding": "gzip, deflate",
    "user-agent": f"agent-actors/{__version__}",
}
# What another origin may be sent of the model's headers: they tell nothing about anyone.
_HARMLESS_HEADERS = frozenset({"accept", "accept-language", "content-type"})
_BODY_HEADER_PREFIX = "content-"
_UNDONE_ENCODINGS = frozenset({"gzip", "deflate", "br", "zstd"})  # by aiohttp, if it can


async def addresses_of(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, asked of the system. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedWeb:
    """Fetches what the configuration opens to agents. Opened when first used, in that loop.

    `resolve` says which addresses a name has, `tls` whose certificates are trusted (the
    system's authorities). No cookies, proxies, netrc or other logins of ours take part.
    """

    def __init__(
        self,
        config: HttpConfig,
        *,
        resolve: Resolve = addresses_of,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._reach = Reach(config)
        self._resolve = resolve
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def fetch(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> WebAnswer:
        """Return the answer, redirections followed, its body up to `max_body_bytes`.

        Raises ToolRefused for what is not open, ToolError when no answer comes of it.
        """
        self._reach.check_headers(headers)
        target = self._reach.parse(url)
        lower = {name.lower(): value for name, value in headers.items()}
        request = _Request(method=method, url=target, headers=lower, body=body)
        timeout_s = self._config.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(request)
        except TimeoutError:
            raise ToolError(
                f"{target.raw_host}: no whole answer within {timeout_s:g} s (tools.http.timeout_s)"
            ) from None

    async def close(self) -> None:
        """Close the session; requests under way are aborted."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _follow(self, request: "_Request") -> WebAnswer:
        for _ in range(1 + MAX_REDIRECTS):
            self._reach.check_method(request.method)
            answer = await self._ask(request)
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            target = self._reach.redirected(request.url, location)
            request = _redirected(request, answer.status, target)
        raise ToolError(f"{request.url.raw_host}: more than {MAX_REDIRECTS} redirections")

    async def _ask(self, request: "_Request") -> WebAnswer:
        """Send one request. Raises ToolError, ToolRefused."""
        try:
            async with self._opened().request(
                request.method,
                request.url,
                headers=DEFAULT_HEADERS | request.headers,
                data=request.body or None,
                allow_redirects=False,
                skip_auto_headers=("Content-Type",),
            ) as response:
                return await self._answer(response)
        except aiohttp.ClientError as error:
            # Not chained: aiohttp's errors hold the request's headers and our addresses.
            raise ToolError(_told(request.url, error)) from None

    async def _answer(self, response: aiohttp.ClientResponse) -> WebAnswer:
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            raise ToolError(f"{response.url.raw_host}: switched to another protocol, unasked")
        headers = _headers(response)
        redirects = response.status in _REDIRECTS and "location" in headers
        body = b"" if redirects else await self._body(response)
        limit = self._config.max_body_bytes
        return WebAnswer(
            status=response.status,
            url=str(response.url),
            headers=headers,
            body=body[:limit],
            truncated=len(body) > limit,
        )

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body, or a little more than `max_body_bytes` of it.

        It comes decompressed, in pieces of a bounded size, however small it was on the way. A
        connection that has more to say is closed with the response.
        """
        pieces: list[bytes] = []
        size = 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > self._config.max_body_bytes:
                break
        return b"".join(pieces)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_connector(self._reach, self._resolve, self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(),  # none of its own: `fetch` keeps the time
                middlewares=(_send_once,),
                trust_env=False,
            )
        return self._session


def _connector(reach: Reach, resolve: Resolve, tls: ssl.SSLContext | None) -> aiohttp.TCPConnector:
    """Return what connects to judged addresses only, and judges each connection anew."""

    def judged_socket(target: tuple[int, int, int, str, Sequence[object]]) -> socket.socket:
        """Look at the address once more: aiohttp resolves no host that is written as one."""
        family, kind, protocol, _, (address, *_) = target
        try:
            reach.check_addresses("the server", [str(address)])
        except ToolRefused as refusal:
            # Its race for the fastest address knows no other errors.
            raise PermissionError(errno.EACCES, str(refusal)) from None
        return socket.socket(family, kind, protocol)

    return aiohttp.TCPConnector(
        resolver=_JudgedResolver(reach, resolve),
        socket_factory=judged_socket,
        use_dns_cache=False,
        force_close=True,
        limit=MAX_CONNECTIONS,
        limit_per_host=MAX_CONNECTIONS_PER_HOST,
        ssl=tls or True,
    )


class _JudgedResolver(AbstractResolver):
    """Resolves a name once and hands out all its addresses, or none of them."""

    def __init__(self, reach: Reach, resolve: Resolve) -> None:
        self._reach = reach
        self._resolve = resolve

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - the connector takes any
    ) -> list[ResolveResult]:
        """Return the addresses of a host. Raises ToolRefused when one is not for agents."""
        addresses = await self._resolve(host, port)
        if not addresses:
            raise OSError(f"{host} has no address")
        self._reach.check_addresses(host, addresses)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is kept."""


class _Request(Struct, frozen=True, kw_only=True):
    """One request on the way through redirections; its headers have names in lower case."""

    method: str
    url: URL
    headers: dict[str, str]
    body: bytes


_REDIRECTS = frozenset(
    {
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    }
)


def _redirected(request: _Request, status: int, target: URL) -> _Request:
    """Return the next request (RFC 9110, 15.4): its method, body and headers."""
    kept = request.headers
    if target.origin() != request.url.origin():
        kept = {name: value for name, value in kept.items() if name in _HARMLESS_HEADERS}
    if not _becomes_get(request.method, status):
        return replace(request, url=target, headers=kept)
    kept = {name: value for name, value in kept.items() if not name.startswith(_BODY_HEADER_PREFIX)}
    return _Request(method="GET", url=target, headers=kept, body=b"")


def _becomes_get(method: str, status: int) -> bool:
    if status == HTTPStatus.SEE_OTHER:
        return method != "HEAD"
    return method == "POST" and status in {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND}


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a PUT or DELETE again when the connection was lost.

    Whether the first one did its work nobody knows, and it is the model that has to decide.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise  # was not sent, and is not repeated
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ToolError(_told(request.url, error)) from None


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the headers by their names in lower case.

    Those that describe the body as it was on the way are left out where it has been undone.
    """
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    if headers.get("content-encoding", "").lower() in _UNDONE_ENCODINGS:
        del headers["content-encoding"]
        headers.pop("content-length", None)
    return headers


def _told(url: URL, error: aiohttp.ClientError) -> str:
    """Return what a failure means, without the addresses that aiohttp would tell."""
    host = url.raw_host
    match error:
        case aiohttp.ClientConnectorDNSError():
            return f"{host}: there is no such host, or no name server answers"
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "")
            return f"{host}: its certificate is not trusted: {reason or 'it does not fit'}"
        case aiohttp.ClientConnectorSSLError():
            return f"{host}:{url.port}: no TLS connection; is it an https server?"
        case aiohttp.ClientConnectorError():
            reason = os.strerror(error.os_error.errno) if error.os_error.errno else "unreachable"
            return f"{host}:{url.port}: no connection: {reason}"
        case aiohttp.ClientPayloadError():
            return f"{host}: the answer was cut off, or its body is not encoded as it says"
        case aiohttp.ClientResponseError():
            return f"{host}: the answer is no HTTP"
        case aiohttp.InvalidURL():
            return f"{host}: no request can be made of this URL"
        case _:
            return (
                f"{host}: the connection was lost before the answer; it may have been carried out"
            )
