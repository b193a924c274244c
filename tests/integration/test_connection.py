"""The connection to NATS against real servers: open, guarded, encrypted, restarted, frozen."""

import asyncio
import base64
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec, module_from_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import nkeys
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nats.aio.msg import Msg
from structlog.testing import capture_logs
from support.raw_nats import hpub, pub, send_raw
from support.until import until

from agent_actors.adapters.jetstream.connection import (
    STORING_BYTES,
    ApiError,
    Connection,
    NoResponders,
    connect,
)
from agent_actors.adapters.jetstream.nats_client import FULL_BYTES, NEWS_BYTES
from agent_actors.adapters.jetstream.publishing import NATSEvents
from agent_actors.adapters.jetstream.streams import check, provision
from agent_actors.config import Config, NatsConfig, TlsConfig
from agent_actors.config_types import Secret
from agent_actors.contract import TaskEvent
from agent_actors.errors import (
    ConfigError,
    FencedOut,
    PermissionDenied,
    PublishFailed,
    PublishRefused,
    ServiceUnreachable,
    StreamMissing,
)
from agent_actors.local.nats_server import LocalNats
from agent_actors.patience import until_answered

BIG_BYTES = 900_000

Serve = Callable[..., Awaitable[LocalNats]]
Open = Callable[..., Awaitable[Connection]]

USERS = """
authorization {
  users: [
    {user: free, password: "p@ss/word"}
    {user: bound, password: b, permissions: {
      publish: {deny: ["secret.>", "$JS.API.STREAM.CREATE.*"]}
      subscribe: {allow: ["_INBOX_bound.>"]}
    }}
  ]
}
"""


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start servers with settings of their own, and stop them after the test."""
    async with AsyncExitStack() as stack:

        async def start(settings: str = "") -> LocalNats:
            folder = tmp_path / f"nats-{secrets.token_hex(4)}"
            return await stack.enter_async_context(LocalNats(folder, settings=settings))

        yield start


@pytest.fixture
async def open_connection() -> AsyncIterator[Open]:
    """Connect, and close after the test."""
    async with AsyncExitStack() as stack:

        async def start(url: str, on_closed=None, **settings) -> Connection:
            config = NatsConfig(url=url, **{"connect_timeout_s": 1.0, **settings})
            connection = await connect(config, name="test", on_closed=on_closed)
            stack.push_async_callback(connection.close)
            return connection

        yield start


async def make_stream(connection: Connection, name: str, *subjects: str) -> None:
    config = {"name": name, "subjects": subjects, "storage": "memory"}
    await connection.api(f"STREAM.CREATE.{name}", json.dumps(config).encode())


def an_event(**detail: Any) -> TaskEvent:
    now = datetime.now(UTC)
    return TaskEvent(task_id="t", kind="token", time=now, agent_id="a", attempt=1, detail=detail)


def with_user(url: str, userinfo: str) -> str:
    return url.replace("//", f"//{userinfo}@")


# What is stored, and what is not.


async def test_a_stored_message_is_acknowledged_and_its_copy_is_told_apart(serve, open_connection):
    connection = await open_connection((await serve()).url)
    await make_stream(connection, "S", "s.>")
    headers = {"Nats-Msg-Id": "same"}
    first = await connection.publish_stored("s.1", b"x", headers)
    again = await connection.publish_stored("s.1", b"x", headers)
    assert (first.stream, first.seq, first.duplicate) == ("S", 1, False)
    assert (again.seq, again.duplicate) == (1, True)


async def test_a_lost_race_is_fenced_out(serve, open_connection):
    connection = await open_connection((await serve()).url)
    await make_stream(connection, "S", "s.>")
    expected = {"Nats-Expected-Last-Subject-Sequence": "0"}
    await connection.publish_stored("s.1", b"winner", expected)
    with pytest.raises(FencedOut, match="wrong last sequence: 1"):
        await connection.publish_stored("s.1", b"loser", expected)


async def test_many_requests_at_once_each_get_their_own_answer(serve, open_connection):
    connection = await open_connection((await serve()).url)
    await make_stream(connection, "S", "s.>")
    acks = await asyncio.gather(*(connection.publish_stored(f"s.{i}", b"") for i in range(500)))
    assert sorted(ack.seq for ack in acks) == list(range(1, 501))


async def test_a_message_that_no_stream_takes_fails(serve, open_connection):
    connection = await open_connection((await serve()).url)
    with pytest.raises(NoResponders, match=r"nowhere.*agent-actors provision"):
        await connection.publish_stored("nowhere", b"", timeout_s=0.1)


async def test_a_stream_without_a_leader_for_a_moment_gets_the_message(serve, open_connection):
    connection = await open_connection((await serve()).url)
    publishing = asyncio.create_task(connection.publish_stored("late.1", b"", timeout_s=30))
    # This goes over the same wire, so the message above has been turned away by its answer.
    await connection.api("INFO")
    await make_stream(connection, "LATE", "late.>")
    assert (await publishing).seq == 1


async def test_a_full_stream_says_so(serve, open_connection):
    connection = await open_connection((await serve()).url)
    config = {"name": "F", "subjects": ["f"], "max_msgs": 1, "discard": "new", "storage": "memory"}
    await connection.api("STREAM.CREATE.F", json.dumps(config).encode())
    await connection.publish_stored("f", b"")
    with pytest.raises(ApiError, match="maximum messages exceeded") as caught:
        await connection.publish_stored("f", b"")
    assert caught.value.err_code == 10077


async def test_what_would_end_the_connection_is_refused_before_it_is_sent(serve, open_connection):
    connection = await open_connection((await serve()).url)
    await make_stream(connection, "S", "s.>")
    limit = connection.nc.max_payload
    with pytest.raises(PublishRefused, match="max_payload"):
        await connection.publish_stored("s.1", b"x" * limit, {"a": "b"})
    with pytest.raises(PublishRefused, match="over 3800 bytes"):
        await connection.publish_stored("s." + "é" * 2_000, b"")
    with pytest.raises(PublishRefused, match="invalid header"):
        await connection.publish_stored("s.1", b"", {"not a name": ""})
    with pytest.raises(PublishRefused, match="invalid subject"):
        await connection.publish_stored("s. 1", b"")
    for subject, value in (("s.\ud800", ""), ("s.1", "\ud800")):
        with pytest.raises(PublishRefused, match="surrogates not allowed"):
            await connection.publish_stored(subject, b"", {"a": value})
    longest = 3_800 - len("s.")
    assert (await connection.publish_stored("s." + "x" * longest, b"")).seq == 1
    assert (await connection.publish_stored("s.1", b"x" * limit)).seq == 2


async def test_what_jetstream_will_never_take_is_told_from_what_may_be_tried_again(
    serve, open_connection
):
    connection = await open_connection((await serve()).url)
    config = {"name": "S", "subjects": ["s"], "max_msg_size": 10, "storage": "memory"}
    await connection.api("STREAM.CREATE.S", json.dumps(config).encode())
    with pytest.raises(PublishRefused, match="message size exceeds maximum"):
        await connection.publish_stored("s", b"x" * 11)
    await make_stream(connection, "HEADERS", "h")
    with pytest.raises(PublishRefused, match="header size exceeds maximum"):
        await connection.publish_stored("h", b"", {"a": "x" * 65_536})
    assert not issubclass(PublishRefused, PublishFailed)


@pytest.mark.parametrize("answer", [b"", b"thanks", b'{"stream": 5}', b"{}"])
async def test_an_answer_that_is_not_a_streams_is_no_confirmation(serve, open_connection, answer):
    connection = await open_connection((await serve()).url)

    async def somebody(message):
        await message.respond(answer)

    await connection.nc.subscribe("s", cb=somebody)
    with pytest.raises(PublishFailed, match="no stream"):
        await connection.publish_stored("s", b"")


# JetStream's own interface.


async def test_a_missing_stream_and_consumer_are_told_apart_from_other_errors(
    serve, open_connection
):
    connection = await open_connection((await serve()).url)
    with pytest.raises(StreamMissing, match="stream not found: run `agent-actors provision`"):
        await connection.api("STREAM.INFO.NONE")
    await make_stream(connection, "S", "s.>")
    with pytest.raises(StreamMissing, match="consumer not found"):
        await connection.api("CONSUMER.INFO.S.none")
    with pytest.raises(ApiError, match="no message found") as caught:
        await connection.api("STREAM.MSG.GET.S", b'{"seq": 7}')
    assert caught.value.err_code == 10037


async def test_a_server_without_jetstream_is_named(serve, open_connection):
    server = await serve("accounts { PLAIN { users: [{user: u, password: p}] } }")
    connection = await open_connection(server.url, user="u", password=Secret("p"))
    with pytest.raises((NoResponders, ApiError), match=r"(?i)jetstream.*not enabled|no JetS"):
        await connection.api("INFO")


async def test_without_anybody_to_ask_a_request_may_be_repeated_but_a_start_fails(
    serve, open_connection, monkeypatch
):
    connection = await open_connection((await serve()).url)

    async def nobody(*_) -> None:
        raise NoResponders("nobody answers")

    monkeypatch.setattr(connection, "_exchange", nobody)
    with pytest.raises(PublishFailed, match="has no JetStream for this account"):
        await connection.api("INFO")
    for start in (provision, check):
        with pytest.raises(ServiceUnreachable, match="has no JetStream for this account"):
            await start(connection, Config())


# What strangers send.


@pytest.mark.parametrize(
    ("lines", "subject", "headers"),
    [
        (pub(b"in.d\xe9v", b"x"), "in.d\N{REPLACEMENT CHARACTER}v", None),
        (pub(b"in.d\x0ce\x0bv", b"x"), "in.d\x0ce\x0bv", None),
        (hpub(b"in.a", b"x", b"abc"), "in.a", None),
        (hpub(b"in.a\x0c", b"x", b"NATS/1.0\r\na: b\r\n\r\n"), "in.a\x0c", {"a": "b"}),
        (hpub(b"in.a", b"x", b"NATS/1.0 \xff\xff\xff\r\n\r\n"), "in.a", None),
        (hpub(b"in.a", b"x", b"NATS/1.0 200 \xff\r\n\r\n"), "in.a", None),
        (hpub(b"in.a", b"x", b"NATS/1.0 200 \xff\r\na: b\r\n\r\n"), "in.a", None),
    ],
)
async def test_what_is_not_as_nats_has_it_is_read_all_the_same(
    serve, open_connection, lines, subject, headers
):
    server = await serve()
    connection = await open_connection(server.url)
    messages = await connection.nc.subscribe("in.>")
    await connection.nc.flush()
    await send_raw(server.url, lines + pub(b"in.next", b"y"))
    message, following = await messages.next_msg(5), await messages.next_msg(5)
    assert (message.subject, message.data, message.headers) == (subject, b"x", headers)
    assert (following.subject, following.data) == ("in.next", b"y")
    assert connection.nc.stats["reconnects"] == 0


async def test_a_ping_does_not_overtake_what_was_sent_before_it(serve, open_connection):
    connection = await open_connection((await serve()).url)
    got = []

    async def take(message):
        got.append(message.data)

    await connection.nc.subscribe("echo", cb=take)
    for number in range(20):
        await connection.nc.publish("echo", b"%d" % number)
        await connection.nc.flush()
        assert len(got) == number + 1


async def test_an_answer_to_a_ping_that_was_given_up_does_no_harm(serve, open_connection):
    connection = await open_connection((await serve()).url)
    pongs = connection.nc._pongs
    flushing = asyncio.create_task(connection.nc.flush())
    await asyncio.sleep(0)
    assert len(pongs) == 1
    flushing.cancel()
    await asyncio.wait([flushing])
    await connection.nc.flush()


async def test_a_connection_that_stops_reading_is_ended_and_reported(
    serve, open_connection, monkeypatch
):
    closed = asyncio.Event()
    connection = await open_connection((await serve()).url, on_closed=closed.set)

    async def bug(data: bytes) -> None:
        raise LookupError

    monkeypatch.setattr(connection.nc._ps, "parse", bug)
    with capture_logs() as logs:
        async with asyncio.timeout(5):
            with pytest.raises(PublishFailed, match="lost before the answer came"):
                await connection.api("INFO", timeout_s=60)
            await closed.wait()
    assert connection.nc.is_closed
    (error,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (error["event"], error["reason"]) == (
        "nats.closed",
        "reading has stopped at what nats-py did not expect",
    )


async def test_a_reader_that_is_cancelled_with_its_loop_is_no_loss(serve, open_connection):
    closed = asyncio.Event()
    connection = await open_connection((await serve()).url, on_closed=closed.set)
    reading = connection.nc._reading_task
    reading.cancel()
    await asyncio.wait([reading])
    assert not closed.is_set()


def test_nats_py_reads_by_the_patterns_that_were_replaced():
    """Ours stand in for exactly these: look at them anew when nats-py changes its own."""
    spec = find_spec("nats.protocol.parser")
    theirs = module_from_spec(spec)
    spec.loader.exec_module(theirs)
    assert theirs.MSG_RE.pattern == (
        b"\\AMSG\\s+([^\\s]+)\\s+([^\\s]+)\\s+(([^\\s]+)[^\\S\r\n]+)?(\\d+)\r\n"
    )
    assert theirs.HMSG_RE.pattern == (
        b"\\AHMSG\\s+([^\\s]+)\\s+([^\\s]+)\\s+(([^\\s]+)[^\\S\r\n]+)?([\\d]+)\\s+(\\d+)\r\n"
    )
    assert {"MSG_RE", "HMSG_RE"} <= set(theirs.Parser.parse.__code__.co_names)


async def test_a_hearer_that_fails_is_reported_and_hears_what_comes_next(serve, open_connection):
    connection = await open_connection((await serve()).url)
    heard: list[bytes] = []

    def hear(message: Msg) -> None:
        heard.append(message.data)
        if len(heard) == 1:
            raise ValueError("cannot take that")

    with capture_logs() as logs:
        await connection.nc.hear("news", hear)
        for number in range(2):
            await connection.send("news", b"%d" % number)
        await connection.nc.flush()
    assert heard == [b"0", b"1"]
    assert ["cannot take that" in str(entry.get("reason")) for entry in logs] == [True]


async def test_a_hearer_hears_nothing_once_its_subscription_has_ended(serve, open_connection):
    connection = await open_connection((await serve()).url)
    heard: list[bytes] = []
    subscription = await connection.nc.hear("news", lambda message: heard.append(message.data))
    await connection.send("news", b"before")
    await connection.nc.end(subscription, 2.0)
    await connection.send("news", b"after")
    await connection.nc.flush()
    assert heard == [b"before"]


# What the server denies.


async def test_a_denied_message_fails_at_once_in_the_servers_words(serve, open_connection):
    url = with_user((await serve(USERS)).url, "bound:b")
    connection = await open_connection(url, inbox_prefix="_INBOX_bound")
    async with asyncio.timeout(5):
        with pytest.raises(PermissionDenied, match=r'Violation for Publish to "secret\.Plan"'):
            await connection.publish_stored("secret.Plan", b"", timeout_s=60)
        with pytest.raises(PermissionDenied, match=r"STREAM\.CREATE\.S"):
            await make_stream(connection, "S", "s.>")


async def test_a_denied_message_leaves_the_others_alone(serve, open_connection):
    url = (await serve(USERS)).url
    owner = await open_connection(with_user(url, "free:p%40ss%2Fword"))
    await make_stream(owner, "S", "s.>", "secret.>")
    connection = await open_connection(with_user(url, "bound:b"), inbox_prefix="_INBOX_bound")
    subjects = ["s.1", "secret.1", "s.2"]
    outcomes = await asyncio.gather(
        *(connection.publish_stored(subject, b"") for subject in subjects), return_exceptions=True
    )
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "PubAck",
        "PermissionDenied",
        "PubAck",
    ]


async def test_a_user_who_may_not_get_replies_is_told_so_when_connecting(serve, open_connection):
    url = with_user((await serve(USERS)).url, "bound:b")
    with pytest.raises(PermissionDenied, match=r'Subscription to "_INBOX\..*nats\.inbox_prefix'):
        await open_connection(url)


async def test_denied_subjects_that_begin_alike_are_logged_loudly_once(serve, open_connection):
    url = with_user((await serve(USERS)).url, "bound:b")
    connection = await open_connection(url, inbox_prefix="_INBOX_bound")
    with capture_logs() as logs:
        for subject in ("secret.a.1", "secret.a.2", "secret.b.1"):
            await connection.nc.publish(subject)
        await connection.nc.flush()
    assert [entry["log_level"] for entry in logs] == ["warning", "debug", "warning"]


# What stands until it is done.


async def test_what_is_denied_stands_until_it_is_done_after_all(serve, open_connection):
    url = (await serve(USERS)).url
    owner = await open_connection(with_user(url, "free:p%40ss%2Fword"))
    await make_stream(owner, "S", "s.>")
    connection = await open_connection(with_user(url, "bound:b"), inbox_prefix="_INBOX_bound")
    assert connection.trouble(within_s=60) == ""
    with pytest.raises(PermissionDenied):
        await connection.publish_stored("secret.Plan", b"")
    await connection.publish_stored("s.1", b"")
    said = 'Permissions Violation for Publish to "secret.Plan"'
    assert connection.trouble(within_s=60) == said


async def test_a_denial_that_nobody_waits_for_stands_too_and_is_told_who_asks(
    serve, open_connection
):
    url = with_user((await serve(USERS)).url, "bound:b")
    connection = await open_connection(url, inbox_prefix="_INBOX_bound")
    told: list[str] = []
    connection.on_denied("secret.Ack", told.append)
    await connection.send("secret.Ack", b"")
    await connection.nc.flush()
    assert told == ['Permissions Violation for Publish to "secret.Ack"']
    assert connection.trouble(within_s=60) == 'Permissions Violation for Publish to "secret.ack"'


async def test_a_missing_stream_stands_until_it_is_made(serve, open_connection):
    connection = await open_connection((await serve()).url)
    with pytest.raises(NoResponders):
        await connection.publish_stored("s.x.1", b"", timeout_s=0.1)
    assert "agent-actors provision" in connection.trouble(within_s=60)
    await make_stream(connection, "S", "s.>")
    await connection.publish_stored("s.x.2", b"")
    assert connection.trouble(within_s=60) == ""


async def test_an_answer_is_no_trouble_though_it_is_no(serve, open_connection):
    connection = await open_connection((await serve()).url)
    await make_stream(connection, "S", "s.>")
    with pytest.raises(ApiError):
        await connection.api("STREAM.MSG.GET.S", b'{"last_by_subj": "s.1"}')
    with pytest.raises(FencedOut):
        await connection.publish_stored("s.1", b"", {"Nats-Expected-Last-Subject-Sequence": "7"})
    with pytest.raises(PublishRefused):
        await connection.publish_stored("s.1", bytes(2_000_000))
    assert connection.trouble(within_s=60) == ""


async def test_with_a_new_connection_nothing_stands(serve, open_connection):
    server = await serve()
    connection = await open_connection(server.url)
    with pytest.raises(NoResponders):
        await connection.publish_stored("s.1", b"", timeout_s=0.1)
    back = asyncio.Event()
    _after(connection, "_reconnected_cb", back)
    await server.stop()
    await server.start()
    await asyncio.wait_for(back.wait(), 10)
    assert connection.trouble(within_s=60) == ""


# The first connection.


async def test_the_reason_why_there_is_no_connection_is_given_in_words(serve, open_connection):
    server = await serve(USERS)
    async with _raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
        for url, reason in {
            "nats://127.0.0.1:1": "connection is refused",
            "nats://no-such-host.invalid": "host name cannot be resolved",
            with_user(server.url, "free:wrong"): "does not let us in .Authorization Violation",
            server.url.replace("nats:", "tls:"): "server offers no TLS",
            other.url: "does not greet like a NATS server",
        }.items():
            with pytest.raises(ServiceUnreachable, match=reason) as caught:
                await open_connection(url)
            assert "wrong" not in str(caught.value)


async def test_a_silent_server_is_given_up_on(open_connection):
    async with _raw_server(b"") as silent, asyncio.timeout(10):
        with pytest.raises(ServiceUnreachable, match=f"{silent.url}: no answer within 1 s"):
            await open_connection(silent.url)


async def test_giving_up_while_connecting_leaves_nothing_open():
    async with _raw_server(b"") as silent, asyncio.timeout(10):
        config = NatsConfig(url=silent.url, connect_timeout_s=60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connect(config, name="test"), 0.3)
        await silent.left.wait()


async def test_a_dead_server_in_the_list_does_no_harm(serve, open_connection):
    server = await serve()
    connection = await open_connection(f"nats://127.0.0.1:1, {server.url}")
    assert connection.nc.is_connected


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": ""}, "nats.url: is not set"),
        ({"url": "http://host"}, "nats.url: 'http://host' is no URL like nats://HOST:PORT"),
        ({"url": "nats://me:pw@host:x"}, "nats.url: 'nats://host:x' is no URL"),
        ({"url": "nats://a:1@x,nats://b:2@y"}, "nats.url: the URLs name different users"),
        ({"credentials_file": "/none"}, "nats.credentials_file: /none cannot be read"),
        ({"credentials_file": __file__}, "nats.credentials_file: .* does not hold what"),
        ({"nkey_seed_file": "/none"}, "nats.nkey_seed_file: /none cannot be read"),
        ({"nkey_seed_file": __file__}, "nats.nkey_seed_file: .* does not hold what"),
        ({"tls": TlsConfig(ca_file="/none")}, "nats.tls: /none: No such file"),
        ({"tls": TlsConfig(ca_file=__file__)}, "nats.tls: .*test_connection.py: "),
    ],
)
async def test_a_configuration_that_cannot_work_is_named(settings, problem):
    config = NatsConfig(**({"url": "nats://127.0.0.1:1"} | settings))
    with pytest.raises(ConfigError, match=problem):
        await connect(config, name="test")


# Who we are.


@pytest.mark.parametrize(
    ("guard", "userinfo", "settings"),
    [
        ("user: u, password: 'p@s'", "", {"user": "u", "password": Secret("p@s")}),
        ("user: u, password: 'p@s'", "u:p%40s@", {}),
        ("token: t0k", "", {"token": Secret("t0k")}),
        ("token: t0k", "t0k@", {}),
    ],
)
async def test_password_and_token_let_us_in(serve, open_connection, guard, userinfo, settings):
    server = await serve(f"authorization {{ {guard} }}")
    url = server.url.replace("//", f"//{userinfo}")
    with capture_logs() as logs:
        connection = await open_connection(url, **settings)
    assert connection.nc.is_connected
    assert not [word for word in ("p@s", "p%40s", "t0k") if word in repr(logs)]


async def test_an_nkey_lets_us_in(serve, open_connection, tmp_path: Path):
    seed, public = _new_key(nkeys.PREFIX_BYTE_USER)
    server = await serve(f"authorization {{ users: [{{nkey: {public}}}] }}")
    file = tmp_path / "user.nk"
    file.write_text(f"{seed}\n")
    connection = await open_connection(server.url, nkey_seed_file=str(file))
    assert connection.nc.is_connected


async def test_credentials_let_us_in_and_are_read_anew_when_they_expire(
    serve, open_connection, tmp_path: Path
):
    realm = _Realm()
    server = await serve(realm.settings)
    file = tmp_path / "user.creds"
    file.write_text(realm.credentials(expires_in_s=2))
    connection = await open_connection(server.url, credentials_file=str(file))
    file.write_text(realm.credentials(expires_in_s=3600))

    reconnected = _reconnection(connection)
    async with asyncio.timeout(20):
        await reconnected.wait()
    await connection.nc.flush()


# TLS.


async def test_a_server_certificate_is_checked(serve, open_connection, tmp_path: Path):
    files = _Certificates(tmp_path)
    server = await serve(f"tls {{ {files.server} }}")
    connection = await open_connection(server.url, tls=TlsConfig(ca_file=files.ca))
    assert connection.nc.is_connected

    for tls, reason in {
        TlsConfig(): "certificate is not trusted .*issuer",
        TlsConfig(ca_file=files.ca, server_name="elsewhere"): "not trusted .*mismatch",
        None: "certificate is not trusted",
    }.items():
        with pytest.raises(ServiceUnreachable, match=reason):
            await open_connection(server.url, tls=tls)


async def test_a_client_certificate_lets_us_in(serve, open_connection, tmp_path: Path):
    files = _Certificates(tmp_path)
    server = await serve(f"tls {{ {files.server}, ca_file: '{files.ca}', verify: true }}")
    mine = TlsConfig(ca_file=files.ca, cert_file=files.cert, key_file=files.key)
    connection = await open_connection(server.url, tls=mine)
    assert connection.nc.is_connected

    with pytest.raises(ServiceUnreachable, match=r"(?i)certificate"):
        await open_connection(server.url, tls=TlsConfig(ca_file=files.ca))


# A server that goes, comes back, hangs, or throws us out.


async def test_work_goes_on_after_the_server_restarts(serve, open_connection):
    server = await serve()
    with capture_logs() as logs:
        connection = await open_connection(with_user(server.url, "me:hidden"))
        config = {"name": "S", "subjects": ["s"], "storage": "file"}
        await connection.api("STREAM.CREATE.S", json.dumps(config).encode())
        reconnected = _reconnection(connection)
        await server.stop()
        await server.start()
        async with asyncio.timeout(10):
            await reconnected.wait()
            assert (await connection.publish_stored("s", b"")).seq == 1
    events = [entry["event"] for entry in logs]
    assert [event for event in events if event in {"nats.disconnected", "nats.reconnected"}] == [
        "nats.disconnected",
        "nats.reconnected",
    ]
    assert "hidden" not in repr(logs)


async def test_a_request_under_way_fails_when_the_connection_is_lost(serve, open_connection):
    server = await serve()
    connection = await open_connection(server.url)
    await connection.nc.subscribe("never.answers")
    asking = asyncio.create_task(connection.request("never.answers", timeout_s=60))
    await connection.nc.flush()
    await server.stop()
    async with asyncio.timeout(5):
        with pytest.raises(PublishFailed, match="lost before the answer came"):
            await asking


async def test_a_message_waits_for_the_server_to_come_back(serve, open_connection):
    server = await serve()
    connection = await open_connection(server.url)
    config = {"name": "S", "subjects": ["s"], "storage": "file"}
    await connection.api("STREAM.CREATE.S", json.dumps(config).encode())
    lost = asyncio.Event()
    _after(connection, "_disconnected_cb", lost)
    await server.stop()
    await lost.wait()
    publishing = asyncio.create_task(connection.publish_stored("s", b"", timeout_s=30))
    await server.start()
    assert (await publishing).seq == 1


async def test_a_connection_that_is_ended_for_good_is_reported(serve, open_connection):
    server = await serve()
    closed = asyncio.Event()
    connection = await open_connection(server.url, on_closed=closed.set)
    with capture_logs() as logs:
        await connection.nc.publish("x" * 5_000)
        async with asyncio.timeout(5):
            await closed.wait()
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["nats.closed"]
    with pytest.raises(PublishFailed, match="connection closed"):
        await connection.publish_stored("s", b"")


async def test_a_message_meets_a_lost_connection_as_a_failure_to_publish(
    serve, open_connection, monkeypatch
):
    connection = await open_connection((await serve()).url)

    async def reset(*_) -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(connection.nc, "publish", reset)
    connection.nc._flusher_task.cancel()
    await asyncio.wait([connection.nc._flusher_task])
    with pytest.raises(PublishFailed, match="s: Connection lost"):
        await connection.send("s", b"")
    await NATSEvents(connection).emit(an_event())


async def test_closing_is_not_reported_as_a_loss(serve, open_connection):
    closed = asyncio.Event()
    connection = await open_connection((await serve()).url, on_closed=closed.set)
    await connection.close()
    assert connection.nc.is_closed
    assert not closed.is_set()


async def test_closing_fails_what_waits_and_never_hangs(serve, open_connection):
    server = await serve()
    connection = await open_connection(server.url)
    _freeze(server.pid)
    try:
        asking = asyncio.create_task(connection.api("INFO", timeout_s=60))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await connection.close()
            with pytest.raises(PublishFailed, match="before the answer came"):
                await asking
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def test_a_cancelled_request_ends_even_while_the_buffer_is_full(serve, open_connection):
    server = await serve()
    connection = await open_connection(server.url, request_timeout_s=60)
    _freeze(server.pid)
    try:
        block = b"x" * connection.nc.max_payload
        tasks = [asyncio.create_task(connection.publish_stored("s", block)) for _ in range(64)]
        done, waiting = await asyncio.wait(tasks, timeout=0.5)
        assert not done
        for task in waiting:
            task.cancel()
        done, waiting = await asyncio.wait(tasks, timeout=5)
        assert not waiting
        assert all(task.cancelled() for task in done)
    finally:
        os.kill(server.pid, signal.SIGCONT)


# A server that is slow: what waits for it is bounded.


async def test_what_waits_for_a_server_that_does_not_read_is_bounded_and_none_of_it_is_lost(
    serve, open_connection
):
    server = await serve()
    connection = await open_connection(server.url, request_timeout_s=0.1)
    await make_stream(connection, "S", "s")
    tries = 0
    most = 0

    async def publish(number: int) -> None:
        nonlocal tries, most
        tries += 1
        most = max(most, connection.nc.pending_data_size)
        await connection.publish_stored("s", bytes(BIG_BYTES), {"Nats-Msg-Id": str(number)})

    _freeze(server.pid)
    try:
        publishing = [
            asyncio.create_task(until_answered(partial(publish, number))) for number in range(16)
        ]
        await until(lambda: tries > 60)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert FULL_BYTES <= most < FULL_BYTES + 2 * BIG_BYTES
    async with asyncio.timeout(30):
        await asyncio.gather(*publishing)
    assert (await connection.js.stream_info("S")).state.messages == len(publishing)


async def test_only_so_many_bytes_wait_to_be_stored_at_a_time(serve, open_connection):
    connection = await open_connection((await serve()).url)
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    await connection.nc.subscribe("s", cb=arrived.put)
    at_a_time = STORING_BYTES // BIG_BYTES
    publishing = [
        asyncio.create_task(connection.publish_stored("s", bytes(BIG_BYTES)))
        for _ in range(3 * at_a_time)
    ]
    for _ in range(3):
        unanswered = [await asyncio.wait_for(arrived.get(), 5) for _ in range(at_a_time)]
        await connection.nc.flush()
        assert arrived.empty()
        for message in unanswered:
            await message.respond(b'{"stream": "S", "seq": 1}')
    await asyncio.gather(*publishing)


async def test_news_is_dropped_while_the_server_is_slow_and_keeps_nothing_else_waiting(
    serve, open_connection
):
    server = await serve()
    connection = await open_connection(server.url, request_timeout_s=60)
    await make_stream(connection, "S", "s")
    heard = asyncio.Queue()
    listener = await open_connection(server.url)
    await listener.nc.subscribe("agent.events.>", cb=heard.put)
    await listener.nc.flush()
    events = NATSEvents(connection)
    news = an_event(text="x" * 10_000)
    _freeze(server.pid)
    try:
        async with asyncio.timeout(5):
            for _ in range(5_000):
                await events.emit(news)
                await asyncio.sleep(0)
        assert connection.nc.pending_data_size < NEWS_BYTES + 64 * 1024
        publishing = asyncio.create_task(connection.publish_stored("s", bytes(BIG_BYTES)))
        await until(lambda: connection.nc.pending_data_size > BIG_BYTES)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        assert (await publishing).seq == 1
        await listener.nc.flush()
        assert 0 < heard.qsize() < 2_500
        while not heard.empty():
            heard.get_nowait()
        await events.emit(news)
        await heard.get()


async def test_a_connection_that_is_given_up_is_not_kept_open_with_what_it_was_sent(
    serve, open_connection
):
    server = await serve()
    connection = await open_connection(server.url, request_timeout_s=0.1, connect_timeout_s=0.1)
    await make_stream(connection, "S", "s")
    before = _open_descriptors()
    _freeze(server.pid)
    try:
        with suppress(PublishFailed):
            await asyncio.gather(
                *(connection.publish_stored("s", bytes(BIG_BYTES)) for _ in range(16))
            )
        reconnected = _reconnection(connection)
        await connection.nc.force_reconnect()
        await until(lambda: connection.nc._current_server.reconnects >= 5)
        assert _open_descriptors() <= before
    finally:
        os.kill(server.pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        await reconnected.wait()
    assert _open_descriptors() == before


def _open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _freeze(pid: int) -> None:
    """Stop our child; return once it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def _reconnection(connection: Connection) -> asyncio.Event:
    event = asyncio.Event()
    _after(connection, "_reconnected_cb", event)
    return event


def _after(connection: Connection, callback: str, event: asyncio.Event) -> None:
    """Set the event after nats-py has called one of its callbacks."""
    original = getattr(connection.nc, callback)

    async def called() -> None:
        await original()
        event.set()

    setattr(connection.nc, callback, called)


class _Raw(NamedTuple):
    """Where it is, and whether a client has left."""

    url: str
    left: asyncio.Event


@asynccontextmanager
async def _raw_server(greeting: bytes) -> AsyncIterator[_Raw]:
    """A server that is not NATS: it says its piece, then nothing."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        left.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield _Raw(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", left)


def _new_key(prefix: int) -> tuple[str, str]:
    """Return a fresh seed and its public key."""
    seed = nkeys.encode_seed(secrets.token_bytes(32), prefix)
    pair = nkeys.from_seed(bytearray(seed))
    return bytes(seed).decode(), pair.public_key.decode()


class _Realm:
    """An operator with two accounts, one of them the system's, as `nsc` would make them."""

    def __init__(self) -> None:
        self._operator = _new_key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, system = (
            _new_key(nkeys.PREFIX_BYTE_ACCOUNT),
            _new_key(nkeys.PREFIX_BYTE_ACCOUNT),
        )
        operator = _jwt(self._operator, self._operator[1], "operator")
        preload = "".join(
            f"{key[1]}: {self._account_jwt(key[1])}\n" for key in (self._account, system)
        )
        self.settings = (
            f"operator: {operator}\nsystem_account: {system[1]}\n"
            f"resolver: MEMORY\nresolver_preload {{\n{preload}}}\n"
        )

    def _account_jwt(self, public: str) -> str:
        names = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        limits = dict.fromkeys(names, -1) | {"wildcards": True}
        return _jwt(self._operator, public, "account", limits=limits)

    def credentials(self, *, expires_in_s: int) -> str:
        seed, public = _new_key(nkeys.PREFIX_BYTE_USER)
        expires = int(time.time()) + expires_in_s
        jwt = _jwt(self._account, public, "user", expires, subs=-1, data=-1, payload=-1)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )


def _jwt(issuer: tuple[str, str], subject: str, kind: str, expires: int = 0, **claims) -> str:
    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    body = {
        "jti": secrets.token_hex(16),
        "iat": int(time.time()),
        "iss": issuer[1],
        "name": kind,
        "sub": subject,
        "nats": {"type": kind, "version": 2} | claims,
    }
    if expires:
        body["exp"] = expires
    head = part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    signed = f"{head}.{part(json.dumps(body).encode())}"
    signature = nkeys.from_seed(bytearray(issuer[0].encode())).sign(signed.encode())
    return f"{signed}.{part(signature)}"


class _Certificates:
    """An authority of our own, and one certificate for 127.0.0.1 to serve and to call with."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.cert, self.key = (str(folder / f"{name}.pem") for name in ("ca", "me", "key"))
        self.server = f"cert_file: '{self.cert}', key_file: '{self.key}'"
        ca_key, key = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        me = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test server")])
        ca = self._certificate(authority, authority, ca_key, ca_key, ca=True)
        cert = self._certificate(me, authority, key, ca_key, ca=False)
        pem = serialization.Encoding.PEM
        Path(self.ca).write_bytes(ca.public_bytes(pem))
        Path(self.cert).write_bytes(cert.public_bytes(pem))
        Path(self.key).write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )

    def _certificate(self, subject, issuer, key, issuer_key, *, ca: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(issuer_key, hashes.SHA256())
        )
