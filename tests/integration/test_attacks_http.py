"""Attacks through the http tools: none may reach the trap, none may cost more than is allowed.

The trap listens on 127.0.0.1 and ::1, the one permitted site at the same port of another
loopback address, so that a guard which fails shows as a trap that was reached. `allow_private`
is on wherever the guard under attack is another one.
"""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from msgspec import Struct
from support.raw_http import Exchange, raw_server, sends
from support.sites import SITE_ADDRESS, Names, Site, Trap, open_site, open_trap

from agent_actors.adapters.reach import Reach
from agent_actors.adapters.web import GuardedWeb
from agent_actors.config_tools import HttpConfig
from agent_actors.errors import ToolError, ToolRefused

METADATA = "169.254.169.254"
LIMIT_BYTES = 100_000

# {port} is that of the site and of the trap; good.example is permitted and means the site.
EVIL_URLS = {
    "loopback": "http://127.0.0.1:{port}/",
    "all addresses": "http://0.0.0.0:{port}/",
    "zero": "http://0:{port}/",
    "decimal": "http://2130706433:{port}/",
    "hexadecimal": "http://0x7f000001:{port}/",
    "hexadecimal parts": "http://0x7f.0x0.0x0.0x1:{port}/",
    "octal": "http://017700000001:{port}/",
    "octal parts": "http://0177.0.0.01:{port}/",
    "two parts": "http://127.1:{port}/",
    "three parts": "http://127.0.1:{port}/",
    "IPv6": "http://[::1]:{port}/",
    "IPv6 at length": "http://[0:0:0:0:0:0:0:1]:{port}/",
    "IPv6-mapped": "http://[::ffff:127.0.0.1]:{port}/",
    "IPv6-mapped, hexadecimal": "http://[::ffff:7f00:1]:{port}/",
    "IPv4-compatible": "http://[::127.0.0.1]:{port}/",
    "NAT64": "http://[64:ff9b::7f00:1]:{port}/",
    "6to4": "http://[2002:7f00:1::]:{port}/",
    "zone": "http://[::1%25lo]:{port}/",
    "zone, not encoded": "http://[::1%lo]:{port}/",
    "name": "http://localhost:{port}/",
    "name with a dot": "http://localhost.:{port}/",
    "name in capitals": "http://LOCALHOST:{port}/",
    "another name": "http://evil.example:{port}/",
    "good name as login": "http://good.example@127.0.0.1:{port}/",
    "good name and port as login": "http://good.example:{port}@127.0.0.1:{port}/",
    "two logins": "http://a@good.example@127.0.0.1:{port}/",
    "login at the good host": "http://user:password@good.example:{port}/",
    "backslash before the login": "http://127.0.0.1:{port}\\@good.example:{port}/",
    "backslash behind the good name": "http://good.example:{port}\\@127.0.0.1:{port}/",
    "backslashes": "http:\\\\127.0.0.1:{port}\\",
    "good name as fragment": "http://127.0.0.1:{port}#@good.example:{port}/",
    "good name as query": "http://127.0.0.1:{port}?@good.example:{port}/",
    "full-width digits": "http://１２７.０.０.１:{port}/",  # noqa: RUF001 - the attack
    "full-width dots": "http://127。0。0。1:{port}/",
    "digits in circles": "http://①②⑦.⓪.⓪.①:{port}/",
    "full-width letters": "http://ｌｏｃａｌｈｏｓｔ:{port}/",  # noqa: RUF001 - the attack
    "tab": "http://127.0.\t0.1:{port}/",
    "line end": "http://127.0.0.1\n:{port}/",
    "space before": " http://127.0.0.1:{port}/",
    "tab in the scheme": "ht\ttp://127.0.0.1:{port}/",
    "nul behind": "http://127.0.0.1\x00.good.example:{port}/",
    "encoded nul": "http://127.0.0.1%00.good.example:{port}/",
    "encoded fragment": "http://127.0.0.1%23.good.example:{port}/",
    "encoded digits": "http://%31%32%37.0.0.1:{port}/",
    "encoded login": "http://good.example%40127.0.0.1:{port}/",
    "request in the URL": "http://good.example:{port}/ HTTP/1.1\r\nHost: x\r\n\r\nGET /evil",
    "good name in front": "http://good.example.evil.example:{port}/",
    "good name at the end": "http://evilgood.example:{port}/",
    "beneath the good name": "http://inside.good.example:{port}/",
    "the wildcard itself": "http://wild.example:{port}/",
    "end of the wildcard": "http://evilwild.example:{port}/",
    "wildcard in front": "http://a.wild.example.evil.example:{port}/",
    "empty label of the wildcard": "http://.wild.example:{port}/",
    "another port": "http://good.example:{other_port}/",
    "no port": "http://good.example/",
    "another scheme": "https://good.example/",
    "websocket": "ws://good.example:{port}/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:{port}/_GET%20/",
    "scheme in a scheme": "view-source:http://127.0.0.1:{port}/",
    "data": "data:text/plain,hello",
    "unix": "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "no scheme": "//127.0.0.1:{port}/",
    "one slash": "http:/127.0.0.1:{port}/",
    "three slashes": "http:///127.0.0.1:{port}/",
}

# What good.example may be made to mean by whoever owns it.
EVIL_ADDRESSES = {
    "loopback": "127.0.0.1",
    "all addresses": "0.0.0.0",
    "IPv6": "::1",
    "any IPv6": "::",
    "IPv6-mapped": "::ffff:127.0.0.1",
    "IPv4-compatible": "::127.0.0.1",
    "NAT64": "64:ff9b::7f00:1",
    "6to4": "2002:7f00:1::",
    "zone": "::1%lo",
    "private": "10.0.0.1",
    "unique local": "fd00::1",
    "shared": "100.64.0.1",
    "link-local": "fe80::1",
    "metadata": METADATA,
    "metadata of IPv6": "fd00:ec2::254",
}

EVIL_HEADERS = {
    "host": {"Host": "evil.example"},
    "host in other letters": {"hOsT": "evil.example"},
    "length": {"Content-Length": "0"},
    "smuggled request": {"Transfer-Encoding": "chunked"},
    "connection": {"Connection": "X-Forwarded-For"},
    "websocket": {"Upgrade": "websocket"},
    "proxy": {"Proxy-Authorization": "Basic eDp5"},
    "method behind a method": {"X-HTTP-Method-Override": "DELETE"},
    "split value": {"X-A": "b\r\n\r\nGET /evil HTTP/1.1"},
    "line feed alone": {"X-A": "b\nHost: evil.example"},
    "carriage return alone": {"X-A": "b\rHost: evil.example"},
    "nul": {"X-A": "b\x00"},
    "split name": {"X-A: b\r\nHost": "evil.example"},
    "space in a name": {"Host ": "evil.example"},
    "line end of another script": {"X-A": "b\u560a\u560dHost: evil.example"},
}


class Field(Struct, frozen=True):
    """The site that is permitted, the trap that is not, and what names mean."""

    site: Site
    trap: Trap
    names: Names

    @property
    def good(self) -> str:
        return f"http://good.example:{self.site.port}"

    def guarded(self, *hosts: str, **config: object) -> GuardedWeb:
        port = self.site.port
        hosts = (f"good.example:{port}", f"*.wild.example:{port}", *hosts)
        settings = {"allow_private": True, "timeout_s": 20.0, "max_body_bytes": LIMIT_BYTES}
        return GuardedWeb(
            HttpConfig(hosts=hosts, **(settings | config)),  # pyright: ignore[reportArgumentType]
            resolve=self.names,
        )


@pytest.fixture
async def field() -> AsyncIterator[Field]:
    async with open_trap() as trap, open_site(port=trap.port) as site:
        names = Names(good_example=[SITE_ADDRESS], localhost=["127.0.0.1"])
        yield Field(site, trap, names)
    assert trap.connections == 0


async def refused(http: GuardedWeb, url: str, **headers: str) -> str:
    async with http:
        with pytest.raises(ToolRefused) as refusal:
            await http.fetch("GET", url, headers=headers)
    return str(refusal.value)


@pytest.mark.parametrize("url", EVIL_URLS.values(), ids=EVIL_URLS)
async def test_no_url_leads_beside_the_list(field: Field, url: str):
    for name in ("evil.example", "good.example.evil.example", "evilgood.example", "wild.example"):
        field.names.mean(name, ["127.0.0.1"])
    port = field.site.port
    await refused(field.guarded(), url.format(port=port, other_port=port ^ 1))
    assert field.names.asked == []
    assert field.site.requests == []


async def test_the_same_field_lets_through_what_is_permitted(field: Field):
    field.names.mean("a.wild.example", [SITE_ADDRESS])
    async with field.guarded() as http:
        for host in ("good.example", "GOOD.example.", "a.wild.example"):
            answer = await http.fetch("GET", f"http://{host}:{field.site.port}/", headers={})
            assert answer.body == b"hello"


@pytest.mark.parametrize("address", EVIL_ADDRESSES.values(), ids=EVIL_ADDRESSES)
async def test_no_name_leads_to_an_address_inside(field: Field, address: str):
    field.names.mean("good.example", [address])
    told = await refused(field.guarded(allow_private=False), field.good)
    assert address not in told


@pytest.mark.parametrize("address", [METADATA, "::ffff:169.254.169.254", "fd00:ec2::254"])
@pytest.mark.parametrize("first", [True, False])
async def test_one_answer_of_two_addresses_reaches_neither(
    field: Field, address: str, *, first: bool
):
    both = [address, SITE_ADDRESS] if first else [SITE_ADDRESS, address]
    field.names.mean("good.example", both)
    await refused(field.guarded(), field.good)
    assert field.site.requests == []


async def test_the_address_that_was_judged_is_the_one_that_is_reached(field: Field):
    field.names.mean("good.example", [SITE_ADDRESS], ["127.0.0.1"])
    async with field.guarded() as http:
        answer = await http.fetch("GET", field.good, headers={})
    assert answer.body == b"hello"
    assert field.names.asked == ["good.example"]


async def test_a_name_is_judged_anew_with_each_request_and_each_redirection(field: Field):
    field.site.redirects("/away", f"{field.good}/again")
    field.names.mean("good.example", [SITE_ADDRESS], [SITE_ADDRESS], [METADATA])
    async with field.guarded() as http:
        await http.fetch("GET", field.good, headers={})
        with pytest.raises(ToolRefused):
            await http.fetch("GET", f"{field.good}/away", headers={})
    assert [asked.target for asked in field.site.requests] == ["/", "/away"]


async def test_a_connection_to_an_address_that_nobody_judged_is_not_made(
    field: Field, monkeypatch: pytest.MonkeyPatch
):
    """Two guards fail at once here: the list, and the judgement of an address written out."""
    monkeypatch.setattr(Reach, "_check_host", lambda *_: None)
    http = field.guarded(allow_private=False)
    async with http:
        with pytest.raises(ToolError, match="no connection: Permission denied"):
            await http.fetch("GET", f"http://127.0.0.1:{field.trap.port}/", headers={})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://[::1]:{port}/",
        "http://evil.example:{port}/",
        "http://good.example:{port}@127.0.0.1:{port}/",
        "http://good.example:{port}\\@127.0.0.1:{port}/",
        "/\\127.0.0.1:{port}/",
        "\\\\127.0.0.1:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/_x",
        "javascript:alert(1)",
        "http://169.254.169.254/latest/meta-data/",
        "http://inside.wild.example:{port}/",
        "",
    ],
)
async def test_no_redirection_leads_beside_the_list_or_inside(
    field: Field, location: str, status: int
):
    field.names.mean("evil.example", ["127.0.0.1"])
    field.names.mean("inside.wild.example", [METADATA])
    field.site.redirects("/", location.format(port=field.site.port), status)
    async with field.guarded() as http:
        with pytest.raises(ToolError):
            await http.fetch("GET", field.good, headers={"Authorization": "Bearer s3cret"})
    assert {asked.target for asked in field.site.requests} == {"/"}


async def test_an_open_redirect_takes_no_credentials_to_another_permitted_host(field: Field):
    async with open_site() as other:
        field.names.mean("other.example", [SITE_ADDRESS])
        field.site.redirects("/", f"http://other.example:{other.port}/", 307)
        async with field.guarded(f"other.example:{other.port}", methods=("POST",)) as http:
            headers = {"Authorization": "Bearer s3cret", "Cookie": "s3cret", "X-Key": "s3cret"}
            await http.fetch("POST", field.good, headers=headers, body=b"data")
    (asked,) = other.requests
    assert asked.body == b"data"
    assert "s3cret" not in str(asked.headers)


async def test_a_loop_of_redirections_ends(field: Field):
    field.site.redirects("/1", "/2")
    field.site.redirects("/2", "/1")
    async with field.guarded() as http:
        with pytest.raises(ToolError, match="more than 5 redirections"):
            await http.fetch("GET", f"{field.good}/1", headers={})
    assert len(field.site.requests) == 6


@pytest.mark.parametrize("headers", EVIL_HEADERS.values(), ids=EVIL_HEADERS)
async def test_no_header_changes_where_a_request_goes_or_ends(
    field: Field, headers: dict[str, str]
):
    await refused(field.guarded(), field.good, **headers)
    assert field.site.requests == []


async def test_a_gzip_bomb_costs_no_more_than_the_limit(field: Field):
    bomb = gzip.compress(bytes(64 * 1024 * 1024))

    async def explode(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    field.site.on("/", explode)
    async with field.guarded() as http:
        tracemalloc.start()
        try:
            answer = await http.fetch("GET", field.good, headers={})
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (len(answer.body), answer.truncated) == (LIMIT_BYTES, True)
    assert peak_bytes < 16 * 1024 * 1024


async def test_an_endless_body_is_cut_and_its_connection_closed(field: Field):
    hung_up = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b"x" * 10_000)
        finally:
            hung_up.set()

    field.site.on("/", endless)
    async with field.guarded() as http:
        answer = await http.fetch("GET", field.good, headers={})
        assert (len(answer.body), answer.truncated) == (LIMIT_BYTES, True)
        async with asyncio.timeout(10):
            await hung_up.wait()


async def drip(exchange: Exchange) -> None:
    """Send a byte now and then, for ever."""
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        await exchange.send(b"x")
        await asyncio.sleep(0.02)


async def drip_headers(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        await exchange.send(b"x")
        await asyncio.sleep(0.02)


async def say_wait(exchange: Exchange) -> None:
    while True:
        await exchange.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.02)


async def say_nothing(exchange: Exchange) -> None:
    await exchange.hung_up()


@pytest.mark.parametrize("answer", [drip, drip_headers, say_wait, say_nothing])
async def test_a_slow_server_holds_nobody_up_for_longer_than_the_timeout(answer):
    async with raw_server(health=answer) as server:
        host = server.url.removeprefix("http://")
        settings = HttpConfig(hosts=(host,), allow_private=True, timeout_s=0.3)
        async with asyncio.timeout(10), GuardedWeb(settings) as http:
            with pytest.raises(ToolError, match=r"within 0\.3 s \(tools\.http\.timeout_s\)"):
                await http.fetch("GET", server.url, headers={})
    assert len(server.probes) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"<html>no head at all</html>", id="HTTP/0.9"),
        pytest.param(b"\x16\x03\x01\x00\x00", id="TLS on a plain port"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000, id="endless headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000, id="huge header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort", id="length too long"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="length below zero"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            id="two lengths",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="bad chunk"
        ),
        pytest.param(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\n\r\n\x81\x05hello",
            id="websocket",
        ),
    ],
)
async def test_an_answer_that_is_no_proper_http_is_an_error(answer: bytes):
    async with raw_server(health=sends(answer, then_close=True)) as server:
        host = server.url.removeprefix("http://")
        settings = HttpConfig(hosts=(host,), allow_private=True)
        async with GuardedWeb(settings) as http:
            with pytest.raises(ToolError, match=r"^127\.0\.0\.1: "):
                await http.fetch("GET", server.url, headers={})


async def test_what_follows_the_body_is_not_taken_for_an_answer_to_the_next_request():
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with raw_server(health=sends(first + smuggled)) as server:
        host = server.url.removeprefix("http://")
        async with GuardedWeb(HttpConfig(hosts=(host,), allow_private=True)) as http:
            bodies = [(await http.fetch("GET", server.url, headers={})).body for _ in range(2)]
    assert bodies == [b"ok", b"ok"]
    assert server.connections == 2
