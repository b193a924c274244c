"""Fetching from real servers: redirections, failures, and what never goes out."""

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.raw_http import Exchange, raw_server, response, sends
from support.sites import SITE_ADDRESS, Names, Site, open_site, open_trap

from agent_actors.adapters.web import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_HOST, GuardedWeb
from agent_actors.config_tools import HttpConfig
from agent_actors.errors import ToolError, ToolRefused

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
SECRET_HEADERS = {"Authorization": "Bearer s3cret", "Cookie": "a=s3cret", "X-Key": "s3cret"}


def guarded(*ports: int, tls: ssl.SSLContext | None = None, **config: object) -> GuardedWeb:
    """Return a web of the hosts a.example, b.example and 127.0.0.1, at these ports."""
    names = ("a.example", "b.example", "127.0.0.1")
    hosts = [f"{name}:{port}" for port in ports for name in names]
    settings = {"methods": METHODS, "allow_private": True, "timeout_s": 20.0, **config}
    here = Names(a_example=[SITE_ADDRESS], b_example=[SITE_ADDRESS])
    return GuardedWeb(
        HttpConfig(hosts=tuple(hosts), **settings),  # pyright: ignore[reportArgumentType]
        resolve=here,
        tls=tls,
    )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with open_site() as site:
        yield site


@pytest.mark.parametrize("method", METHODS)
async def test_each_method_brings_its_request_and_its_answer(site: Site, method: str):
    async with guarded(site.port) as http:
        url = f"http://a.example:{site.port}/x?y=%20z#part"
        answer = await http.fetch(method, url, headers={"X-A": "b"}, body=b"1")
    (asked,) = site.requests
    assert (asked.method, asked.target, asked.body) == (method, "/x?y=%20z", b"1")
    assert asked.headers["x-a"] == "b"
    assert asked.headers["host"] == f"a.example:{site.port}"
    assert answer.status == 200
    assert answer.url == f"http://a.example:{site.port}/x?y=%20z"
    assert answer.body == (b"" if method == "HEAD" else b"hello")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "status", "becomes"),
    [
        ("POST", 301, "GET"),
        ("POST", 302, "GET"),
        ("POST", 303, "GET"),
        ("PUT", 303, "GET"),
        ("HEAD", 303, "HEAD"),
        ("PUT", 301, "PUT"),
        ("PATCH", 302, "PATCH"),
        ("POST", 307, "POST"),
        ("POST", 308, "POST"),
    ],
)
async def test_redirections_keep_or_change_the_method_as_rfc_9110_has_it(
    site: Site, method: str, status: int, becomes: str
):
    site.redirects("/from", "/to", status)
    headers = {"Content-Type": "text/plain", "X-A": "b"}
    async with guarded(site.port) as http:
        answer = await http.fetch(
            method, f"http://a.example:{site.port}/from", headers=headers, body=b"1"
        )
    assert answer.url.endswith("/to")
    _, second = site.requests
    assert (second.method, second.target) == (becomes, "/to")
    assert second.body == (b"" if becomes == "GET" else b"1")
    assert second.headers.get("content-type") == (None if becomes == "GET" else "text/plain")
    assert second.headers["x-a"] == "b"


async def test_another_origin_is_sent_no_credentials_and_neither_is_the_first_one_again(
    site: Site,
):
    site.redirects("/1", f"http://b.example:{site.port}/2")
    site.redirects("/2", f"http://a.example:{site.port}/3")
    async with guarded(site.port) as http:
        headers = SECRET_HEADERS | {"Accept": "text/csv"}
        await http.fetch("GET", f"http://a.example:{site.port}/1", headers=headers)
    assert ["s3cret" in str(asked.headers) for asked in site.requests] == [True, False, False]
    assert [asked.headers["accept"] for asked in site.requests] == ["text/csv"] * 3


async def test_a_redirection_to_a_method_that_is_not_configured_is_refused(site: Site):
    site.redirects("/1", "/2", 303)
    async with guarded(site.port, methods=("POST",)) as http:
        with pytest.raises(ToolRefused, match="GET is not among the methods"):
            await http.fetch("POST", f"http://a.example:{site.port}/1", headers={})
    assert len(site.requests) == 1


async def test_what_is_called_a_redirection_and_leads_nowhere_is_the_answer(site: Site):
    async def nowhere(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, text="where?")

    site.on("/", nowhere)
    async with guarded(site.port) as http:
        answer = await http.fetch("GET", f"http://a.example:{site.port}/", headers={})
    assert (answer.status, answer.body) == (302, b"where?")


async def test_five_redirections_are_followed(site: Site):
    for number in range(5):
        site.redirects(f"/{number}", f"/{number + 1}")
    async with guarded(site.port) as http:
        answer = await http.fetch("GET", f"http://a.example:{site.port}/0", headers={})
    assert (answer.status, answer.body) == (200, b"hello")
    assert len(site.requests) == 6


async def test_no_proxy_login_or_cookie_of_ours_takes_part(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def sweet(request: web.Request) -> web.StreamResponse:
        return web.Response(headers={"Set-Cookie": "a=b; Path=/"})

    site.on("/", sweet)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine a.example login us password s3cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with open_trap() as trap, guarded(site.port) as http:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
        for _ in range(2):
            await http.fetch("GET", f"http://a.example:{site.port}/", headers={})
    assert trap.connections == 0
    assert len(site.requests) == 2
    for asked in site.requests:
        assert asked.headers.keys() == {
            *("host", "accept", "accept-encoding", "user-agent", "connection"),
        }


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_body_comes_undone(site: Site, coding: str):
    async def packed(request: web.Request) -> web.StreamResponse:
        answer = web.Response(text="word " * 1_000)
        answer.enable_compression(web.ContentCoding(coding))
        return answer

    site.on("/", packed)
    async with guarded(site.port) as http:
        answer = await http.fetch("GET", f"http://a.example:{site.port}/", headers={})
    assert answer.body == b"word " * 1_000
    assert answer.headers.keys().isdisjoint({"content-encoding", "content-length"})


async def test_a_body_in_an_unknown_coding_comes_as_it_is_and_says_so(site: Site):
    async def packed(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\x01\x02", headers={"Content-Encoding": "x-own"})

    site.on("/", packed)
    async with guarded(site.port) as http:
        answer = await http.fetch("GET", f"http://a.example:{site.port}/", headers={})
    assert (answer.body, answer.headers["content-encoding"]) == (b"\x01\x02", "x-own")


@pytest.mark.parametrize("size", [99, 100, 101])
async def test_a_body_is_cut_at_the_limit_and_not_before(site: Site, size: int):
    async def long(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * size)

    site.on("/", long)
    async with guarded(site.port, max_body_bytes=100) as http:
        answer = await http.fetch("GET", f"http://a.example:{site.port}/", headers={})
    assert (len(answer.body), answer.truncated) == (min(size, 100), size > 100)


@pytest.mark.parametrize("method", METHODS)
async def test_a_request_is_never_sent_twice_when_its_connection_is_lost(method: str):
    async def hang_up(exchange: Exchange) -> None:
        exchange.close()

    async with raw_server(hang_up, health=hang_up) as server:
        port = int(server.url.rpartition(":")[2])
        async with guarded(port) as http:
            with pytest.raises(ToolError, match=r"connection was lost.*may have been carried out"):
                await http.fetch(method, server.url, headers={})
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (response(b"{}", Content_Length="99"), "was cut off, or its body is not encoded"),
        (response(b"plain", Content_Encoding="gzip"), "was cut off, or its body is not encoded"),
        (response(b"x", Content_Encoding="br"), "the answer is no HTTP|not encoded as it says"),
        (b"HTTP/1.1 100000 X\r\n\r\n", "the answer is no HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is no HTTP"),
    ],
)
async def test_an_answer_that_is_wrong_is_told_in_words(answer: bytes, told: str):
    async with raw_server(health=sends(answer, then_close=True)) as server:
        port = int(server.url.rpartition(":")[2])
        async with guarded(port) as http:
            with pytest.raises(ToolError, match=rf"^127\.0\.0\.1: .*{told}"):
                await http.fetch("GET", server.url, headers={})


async def test_a_server_that_is_not_there_is_told_without_its_address(site: Site):
    port = site.port
    http = GuardedWeb(
        HttpConfig(hosts=(f"*.example:{port}",), allow_private=True),
        resolve=Names(closed_example=["127.0.0.9", "127.0.0.10"], empty_example=[]),
    )
    async with http:
        with pytest.raises(ToolError, match=rf"closed\.example:{port}: .*refused") as failure:
            await http.fetch("GET", f"http://closed.example:{port}/", headers={})
        assert "127.0.0" not in str(failure.value)
        for missing in ("empty.example", "unknown.example"):
            with pytest.raises(ToolError, match=rf"{missing}: there is no such host"):
                await http.fetch("GET", f"http://{missing}:{port}/", headers={})


async def test_neither_refusals_nor_failures_nor_cut_bodies_use_up_the_connections(site: Site):
    port = site.port
    hosts = (f"inside.example:{port}", f"a.example:{port}", f"closed.example:{port}")
    http = GuardedWeb(
        HttpConfig(hosts=hosts, allow_private=True, max_body_bytes=2),
        resolve=Names(
            inside_example=["169.254.169.254"],
            closed_example=["127.0.0.9"],
            a_example=[SITE_ADDRESS],
        ),
    )
    async with http:
        for _ in range(2 * MAX_CONNECTIONS):
            for name in ("inside", "closed"):
                with pytest.raises(ToolError):
                    await http.fetch("GET", f"http://{name}.example:{port}/", headers={})
            answer = await http.fetch("GET", f"http://a.example:{port}/", headers={})
            assert answer.truncated


async def test_no_more_connections_are_open_at_once_than_one_server_may_have(site: Site):
    full, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> web.StreamResponse:
        if len(site.requests) >= MAX_CONNECTIONS_PER_HOST:
            full.set()
        await go_on.wait()
        return web.Response()

    site.on("/", hold)
    url = f"http://a.example:{site.port}/"
    async with guarded(site.port) as http, asyncio.TaskGroup() as group:
        for _ in range(MAX_CONNECTIONS_PER_HOST + 5):
            group.create_task(http.fetch("GET", url, headers={}))
        await full.wait()
        async with guarded(site.port) as other:
            await other.fetch("HEAD", f"{url}another", headers={})  # a round trip later
        assert len(site.requests) == MAX_CONNECTIONS_PER_HOST + 1
        go_on.set()


async def test_closing_ends_what_is_under_way(site: Site):
    asked, ended = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        asked.set()
        await ended.wait()
        return web.Response()

    site.on("/", hang)
    http = guarded(site.port)
    fetching = asyncio.create_task(http.fetch("GET", f"http://a.example:{site.port}/", headers={}))
    await asked.wait()
    await http.close()
    with pytest.raises(ToolError, match="connection was lost"):
        await fetching
    ended.set()


async def test_a_closed_web_opens_again(site: Site):
    http = guarded(site.port)
    for _ in range(2):
        answer = await http.fetch("GET", f"http://a.example:{site.port}/", headers={})
        assert answer.body == b"hello"
        await http.close()
    await http.close()


class Authority:
    """An authority of the test's own, and one certificate for a.example."""

    def __init__(self, folder: Path) -> None:
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca = _certificate("authority", "authority", ca_key, ca_key, ca=True)
        cert = _certificate("a.example", "authority", key, ca_key, ca=False)
        pem = serialization.Encoding.PEM
        both = folder / "both.pem"
        both.write_bytes(
            cert.public_bytes(pem)
            + key.private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(both)
        self.client = ssl.create_default_context(cadata=ca.public_bytes(pem).decode())


def _certificate(subject: str, issuer: str, key, issuer_key, *, ca: bool) -> x509.Certificate:
    now = datetime.now(UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def test_a_certificate_is_checked_against_the_name_that_was_asked_for(authority: Authority):
    async with open_site(tls=authority.server) as site:
        async with guarded(site.port, tls=authority.client) as http:
            answer = await http.fetch("GET", f"https://a.example:{site.port}/", headers={})
            assert answer.body == b"hello"
            with pytest.raises(ToolError, match=r"certificate is not trusted: .*b\.example"):
                await http.fetch("GET", f"https://b.example:{site.port}/", headers={})
        async with guarded(site.port) as http:
            with pytest.raises(ToolError, match=r"certificate is not trusted: .*issuer"):
                await http.fetch("GET", f"https://a.example:{site.port}/", headers={})
    assert len(site.requests) == 1


async def test_https_never_leads_back_to_http(authority: Authority):
    async with open_site() as plain, open_site(tls=authority.server) as site:
        site.redirects("/", f"http://a.example:{plain.port}/")
        async with guarded(site.port, plain.port, tls=authority.client) as http:
            with pytest.raises(ToolRefused, match="from https to http"):
                await http.fetch("GET", f"https://a.example:{site.port}/", headers={})
    assert plain.requests == []


async def test_a_server_without_tls_is_told_as_such(site: Site):
    async with guarded(site.port) as http:
        with pytest.raises(ToolError, match="no TLS connection; is it an https server"):
            await http.fetch("GET", f"https://a.example:{site.port}/", headers={})


async def test_a_wrong_checksum_of_a_compressed_body_is_told(site: Site):
    async def broken(request: web.Request) -> web.StreamResponse:
        packed = zlib.compress(b"word " * 1_000)[:-4] + b"oops"
        return web.Response(body=packed, headers={"Content-Encoding": "deflate"})

    site.on("/", broken)
    async with guarded(site.port) as http:
        with pytest.raises(ToolError, match="not encoded as it says"):
            await http.fetch("GET", f"http://a.example:{site.port}/", headers={})
