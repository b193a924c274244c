"""One connection to NATS for a whole life, and what its errors mean.

nats-py reports a denied publish, and nothing more about it, to its `error_cb`; the request
itself would only time out. So requests go through a table of our own, where the server's words
end the very request that they are about. It also spares two random names and a timeout task a
request.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg
from nats.errors import (
    BadHeaderError,
    BadSubjectError,
    Error,
    MaxPayloadError,
    SlowConsumerError,
)
from nats.js import JetStreamContext

from agent_actors.adapters.jetstream.nats_client import NatsClient, header_block
from agent_actors.adapters.jetstream.options import (
    connect_options,
    explain,
    redacted,
    wants_tls,
)
from agent_actors.adapters.jetstream.troubles import FAMILY_TOKENS, Troubles
from agent_actors.adapters.jetstream.window import Window
from agent_actors.config import NatsConfig
from agent_actors.errors import (
    AgentActorsError,
    FencedOut,
    PermissionDenied,
    PublishFailed,
    PublishRefused,
    ServiceUnreachable,
    StreamMissing,
)

CLOSE_TIMEOUT_S = 2
NO_LEADER_WAIT_S = 0.25

# What may wait to be stored at a time, over one connection. Enough for 8,000 small messages a
# second when the answer takes 60 ms, and for 60 MB a second of big ones.
STORING_MESSAGES = 512
STORING_BYTES = 4 * 1024 * 1024

# nats-server ends a connection for good when subject, reply subject and two lengths are longer
# than its `max_control_line`, 4096 bytes by default, or headers and payload than `max_payload`.
MAX_SUBJECT_BYTES = 3_800

HUNG_UP = (ConnectionResetError, BrokenPipeError)

# nats-server's errors.json.
NO_STREAM = 10059
NO_CONSUMER = 10014
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
NOT_FOUND = 404  # an HTTP-like code: what was asked for is not there, which is an answer
TOO_BIG = frozenset({10054, 10097})  # the message; its headers, of which JetStream takes 64 KiB

# nats-py hands on the server's words in lower case.
DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')

log = structlog.get_logger(__name__)


class NoResponders(PublishFailed):
    """Nobody listens on the subject: no stream takes it, or its leader is being elected."""


class ApiError(PublishFailed):
    """JetStream refused; `err_code` tells why, by nats-server's errors.json."""

    def __init__(self, message: str, *, code: int, err_code: int) -> None:
        super().__init__(message)
        self.code = code
        self.err_code = err_code


class ConsumerMissing(StreamMissing):
    """The stream is there, and the consumer is not: run `agent-actors provision`."""


class PubAck(Struct, frozen=True, kw_only=True):
    """A stored message; `duplicate` when its `Nats-Msg-Id` had been stored before."""

    stream: str
    seq: int
    duplicate: bool


class Fault(Struct, frozen=True, kw_only=True):
    """The `error` in an answer of JetStream."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubReply(Struct, frozen=True, kw_only=True):
    """JetStream's answer to a publish."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: Fault | None = None


_pub_reply = msgspec.json.Decoder(PubReply)
_api_reply = msgspec.json.Decoder(dict[str, Any])


async def connect(
    config: NatsConfig, *, name: str, on_closed: Callable[[], None] | None = None
) -> "Connection":
    """Return a connection that reconnects for ever; the server lists it under `name`.

    Each URL is tried three times at first. `on_closed` is called when the server ends the
    connection for good (not by `close()`): a process that lives by it had better end too.
    Raises ConfigError, ServiceUnreachable, and PermissionDenied when we may not get replies.
    """
    connection = Connection(config, name=name, on_closed=on_closed)
    await connection.open()
    return connection


class Connection:
    """A NATS client whose requests fail with errors that say what is wrong; see `connect`."""

    def __init__(
        self, config: NatsConfig, *, name: str, on_closed: Callable[[], None] | None = None
    ) -> None:
        self._timeout_s = config.request_timeout_s
        self._connect_timeout_s = config.connect_timeout_s
        self._url = redacted(config.url)
        self._api_prefix = config.jetstream_prefix
        self._options = connect_options(config, name)
        self._on_closed = on_closed
        self._log = log.bind(connection=name, url=self._url)
        self._last_error: Exception | None = None
        self._opened = False
        self._closing = False
        self._window = Window(messages=STORING_MESSAGES, max_bytes=STORING_BYTES)
        self._tokens = count()
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg | AgentActorsError]]] = {}
        self._replies = ""
        self._replies_denied = ""
        self._denied_families: set[tuple[str, ...]] = set()
        self._on_denied_publish: dict[str, Callable[[], None]] = {}
        self._troubles = Troubles()
        self._told = ""
        self.nc = NatsClient(secure=wants_tls(config))
        self.js = JetStreamContext(self.nc, self._api_prefix, timeout=self._timeout_s)

    async def open(self) -> None:
        """Connect and subscribe to replies. Raises ServiceUnreachable, PermissionDenied."""
        try:
            await self._connect()
            if self._replies_denied:
                raise PermissionDenied(self._replies_denied)
            self.nc.options["max_reconnect_attempts"] = -1
            self._opened = True
        except (Error, OSError) as error:
            reason = explain(self._last_error or error, self._connect_timeout_s)
            raise ServiceUnreachable(f"cannot connect to NATS at {self._url}: {reason}") from error
        finally:
            if not self._opened:
                await self.close()
        self._log.info("nats.connected")

    async def close(self) -> None:
        """Send what is buffered and close; takes a few seconds at most, whatever the server does.

        Requests that still wait fail with PublishFailed.
        """
        self._closing = True
        closing = asyncio.ensure_future(self._flush_and_close())
        await asyncio.wait({closing}, timeout=2 * CLOSE_TIMEOUT_S)
        closing.cancel()
        self._fail_all(PublishFailed("the connection to NATS was closed before the answer came"))

    async def publish_stored(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> PubAck:
        """Return once a stream has stored the message, or had stored it before.

        How many may be on their way is limited; others wait for their turn, `timeout_s` at most.
        Raises FencedOut when the expected last sequence is another one; PublishFailed when no
        answer came within `timeout_s` (the message may or may not be stored), ApiError or
        NoResponders when it certainly is not; PublishRefused when it never will be;
        StreamMissing; PermissionDenied.
        """
        try:
            reply = await self._store(subject, payload, headers, timeout_s or self._timeout_s)
        except AgentActorsError as error:
            self._note_trouble(subject, error)
            raise
        self._troubles.clear(subject)
        return PubAck(stream=reply.stream, seq=reply.seq, duplicate=reply.duplicate)

    async def api(
        self, request: str, payload: bytes = b"", timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Return JetStream's answer to a request, such as `STREAM.INFO.AGENT_TASKS`.

        Raises StreamMissing when the stream or the consumer is not there, another ApiError as
        JetStream says, PublishFailed without an answer (NoResponders when nobody is there to
        answer, which may pass), PermissionDenied.
        """
        subject = self.api_subject(request)
        try:
            answer = await self._call(subject, payload, timeout_s or self._timeout_s)
        except AgentActorsError as error:
            self._note_trouble(subject, error)
            raise
        self._troubles.clear(subject)
        return answer

    def api_subject(self, request: str) -> str:
        """Return where JetStream hears a request: `$JS.API.<request>`, if not configured so."""
        return f"{self._api_prefix}.{request}"

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Msg:
        """Return somebody's answer. Raises PublishFailed (none), NoResponders, PermissionDenied."""
        return await self._exchange(subject, payload, headers, timeout_s or self._timeout_s)

    async def send(
        self, subject: str, payload: bytes, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Hand the message to the connection, and wait only while its buffer is full.

        Raises PublishRefused, and PublishFailed when it certainly was not sent.
        """
        try:
            block = header_block(headers) if headers else b""
            self._check_size(subject, len(block) + len(payload))
            if not self.nc.offer(subject, payload, reply, block):
                await self._publish(subject, payload, reply, headers)
        except (BadSubjectError, BadHeaderError, MaxPayloadError, UnicodeEncodeError) as error:
            raise PublishRefused(f"{subject}: {explain(error)}") from error
        except (Error, OSError) as error:
            raise PublishFailed(f"{subject}: {explain(error)}") from error

    async def tell(self, subject: str, payload: bytes) -> None:
        """Send news that nobody needs, without ever waiting.

        Raises PublishRefused, and PublishFailed when NATS is slow or away and enough waits already.
        """
        if not self.nc.has_room_for_news(len(payload)):
            raise PublishFailed(f"{subject}: dropped, since NATS is slow or away")
        await self.send(subject, payload)

    def trouble(self, within_s: float) -> str:
        """Return why something that was asked for in these seconds is not done; empty: all is.

        Denied messages count too that nobody waits for, such as acks.
        """
        return self._troubles.reason(within_s)

    def on_denied(self, subject: str, hear: Callable[[str], None]) -> None:
        """Have `hear` told the server's words when what is sent to this subject is denied."""
        self._on_denied_publish[subject.lower()] = partial(hear, _denial(subject))

    def end(self, reason: str) -> None:
        """Tell whoever lives by this connection to end, since a part that uses it has crashed."""
        self._log.error("nats.user_crashed", reason=reason)
        if self._on_closed is not None:
            self._on_closed()

    async def _connect(self) -> None:
        await self.nc.connect(
            **self._options,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_nats_closed,
        )
        inbox = self.nc.new_inbox()
        self._replies = f"{inbox}."
        await self.nc.hear(f"{inbox}.*", self._on_reply)
        # The answer to this ping comes after a denial of the subscription, if there is one.
        await self.nc.flush(timeout=round(self._connect_timeout_s) or 1)

    def _note_trouble(self, subject: str, error: AgentActorsError) -> None:
        """Note what became of a request that failed, unless it never was sent."""
        if isinstance(error, PublishRefused):
            return
        is_answer = isinstance(error, ApiError) and error.code == NOT_FOUND
        if is_answer or isinstance(error, FencedOut):
            self._troubles.clear(subject)
        else:
            self._troubles.note(subject, str(error))

    async def _store(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float
    ) -> PubReply:
        try:
            await self._window.enter(len(payload), timeout_s)
        except TimeoutError as error:
            raise _no_room(subject, timeout_s) from error
        try:
            reply = _decoded(await self._to_stream(subject, payload, headers, timeout_s))
        finally:
            self._window.leave(len(payload))
        if reply.error is not None:
            raise _error_for(reply.error, subject)
        if not reply.stream:
            raise PublishFailed(f"{subject}: answered by somebody who is no stream")
        return reply

    async def _call(self, subject: str, payload: bytes, timeout_s: float) -> dict[str, Any]:
        try:
            message = await self._exchange(subject, payload, None, timeout_s)
        except NoResponders as error:
            raise NoResponders(
                f"{self._url} has no JetStream for this account: switch it on in nats-server, "
                "or wait for its cluster or hub"
            ) from error
        answer = _api_reply.decode(message.data)
        if "error" in answer:
            raise _error_for(msgspec.convert(answer["error"], Fault), subject)
        return answer

    async def _to_stream(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float
    ) -> bytes:
        """Ask again while nobody listens: a stream has no leader for a moment now and then."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return (await self._exchange(subject, payload, headers, timeout_s)).data
            except NoResponders:
                timeout_s = deadline - time.monotonic() - NO_LEADER_WAIT_S
                if timeout_s < NO_LEADER_WAIT_S:
                    raise
                await asyncio.sleep(NO_LEADER_WAIT_S)

    async def _exchange(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float
    ) -> Msg:
        if self._replies_denied:
            raise PermissionDenied(self._replies_denied)
        if self.nc.is_full:
            try:
                await self.nc.room(timeout_s)
            except TimeoutError as error:
                raise _no_room(subject, timeout_s) from error
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        future: asyncio.Future[Msg | AgentActorsError] = loop.create_future()
        self._waiting[token] = subject, future
        timer = loop.call_later(timeout_s, _expire, future, subject, timeout_s)
        try:
            await self.send(subject, payload, self._replies + token, headers)
            answer = await future
        finally:
            timer.cancel()
            del self._waiting[token]
        if isinstance(answer, AgentActorsError):
            raise answer
        if not answer.data and answer.headers and answer.headers.get("Status") == "503":
            raise NoResponders(f"nobody answers on {subject}: `agent-actors provision` makes it")
        return answer

    async def _publish(
        self, subject: str, payload: bytes, reply: str, headers: dict[str, str] | None
    ) -> None:
        """Have nats-py publish it, which may wait for room in its buffer.

        Meanwhile it swallows a cancellation: that is raised here.
        """
        cancels = _cancel_requests()
        await self.nc.publish(subject, payload, reply, headers)
        if _cancel_requests() > cancels:
            raise asyncio.CancelledError

    def _check_size(self, subject: str, size_bytes: int) -> None:
        if size_bytes > self.nc.max_payload:
            raise PublishRefused(
                f"{subject}: headers and payload are {size_bytes} bytes; "
                f"the server takes {self.nc.max_payload} (max_payload)"
            )
        if len(subject) * 4 > MAX_SUBJECT_BYTES < len(subject.encode()):
            raise PublishRefused(f"the subject {subject[:80]}... is over {MAX_SUBJECT_BYTES} bytes")

    def _on_reply(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None:
            _settle(waiting[1], message)

    async def _on_error(self, error: Exception) -> None:
        # A server that refuses us says why and closes at once; now and then the closing
        # overtakes the words. So a mere reset does not replace what an earlier try was told.
        if self._last_error is None or not isinstance(error, HUNG_UP):
            self._last_error = error
        denied = DENIED.search(str(error))
        if denied is not None:
            self._on_denied(*denied.groups())
        elif isinstance(error, SlowConsumerError):
            self._log.warning("nats.slow_consumer", subject=error.subject)
        else:
            self._tell(explain(error, self._connect_timeout_s))

    def _tell(self, reason: str) -> None:
        """Log why there is no connection, loudly only when it is news: tries go on for ever."""
        news = self._opened and not self._closing and reason != self._told
        self._log.log(logging.WARNING if news else logging.DEBUG, "nats.error", reason=reason)
        self._told = reason

    def _on_denied(self, verb: str, subject: str) -> None:
        replies = f"{self._replies}*"
        if verb == "subscription" and subject == replies.lower():
            self._replies_denied = (
                f'Permissions Violation for Subscription to "{replies}": '
                "allow nats.inbox_prefix with .> to this user"
            )
            self._fail_all(PermissionDenied(self._replies_denied))
        if verb == "publish":
            self._on_publish_denied(subject)
        family = verb, *subject.split(".")[:FAMILY_TOKENS]
        known = family in self._denied_families
        self._denied_families.add(family)
        level = logging.DEBUG if known else logging.WARNING
        self._log.log(level, "nats.denied", verb=verb, subject=subject)

    def _on_publish_denied(self, subject: str) -> None:
        for asked, future in tuple(self._waiting.values()):
            if asked.lower() == subject:
                _settle(future, PermissionDenied(_denial(asked)))
        self._troubles.note(subject, _denial(subject))
        if hear := self._on_denied_publish.get(subject):
            hear()

    async def _on_disconnected(self) -> None:
        # The answers to what was sent are lost: nobody listened when they came.
        self._fail_all(PublishFailed("the connection to NATS was lost before the answer came"))
        self._replies_denied = ""
        self._denied_families.clear()
        if not self._closing:
            self._log.warning("nats.disconnected")

    async def _on_reconnected(self) -> None:
        self._told = ""
        self._troubles.clear_all()
        self._log.info("nats.reconnected")

    async def _on_nats_closed(self) -> None:
        if self._closing or not self._opened:
            return
        error = self.nc.last_error or self._last_error or Error()
        self._log.error("nats.closed", reason=explain(error, self._connect_timeout_s))
        if self._on_closed is not None:
            self._on_closed()

    def _fail_all(self, error: AgentActorsError) -> None:
        for _, future in tuple(self._waiting.values()):
            _settle(future, error)

    async def _flush_and_close(self) -> None:
        with contextlib.suppress(Error, OSError):
            if self.nc.is_connected:
                await self.nc.flush(timeout=CLOSE_TIMEOUT_S)
        with contextlib.suppress(Error, OSError):
            await self.nc.close()


def _denial(subject: str) -> str:
    return f'Permissions Violation for Publish to "{subject}"'


def _settle(
    future: "asyncio.Future[Msg | AgentActorsError]", outcome: Msg | AgentActorsError
) -> None:
    """Set the outcome; an error as a value, so that one nobody awaits any more is not logged."""
    if not future.done():
        future.set_result(outcome)


def _expire(
    future: "asyncio.Future[Msg | AgentActorsError]", subject: str, timeout_s: float
) -> None:
    _settle(future, PublishFailed(f"no answer on {subject} within {round(timeout_s, 3):g} s"))


def _no_room(subject: str, timeout_s: float) -> PublishFailed:
    return PublishFailed(
        f"{subject}: not sent, since NATS took nothing more within {round(timeout_s, 3):g} s"
    )


def _decoded(reply: bytes) -> PubReply:
    try:
        return _pub_reply.decode(reply)
    except msgspec.DecodeError:
        return PubReply()


def _cancel_requests() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _error_for(fault: Fault, subject: str) -> AgentActorsError:
    message = f"{subject}: {fault.description}"
    if fault.err_code in WRONG_LAST_SEQUENCE:
        return FencedOut(message)
    if fault.err_code in TOO_BIG:
        return PublishRefused(f"{message} ({fault.err_code})")
    if fault.err_code in {NO_STREAM, NO_CONSUMER}:
        missing = ConsumerMissing if fault.err_code == NO_CONSUMER else StreamMissing
        return missing(f"{message}: run `agent-actors provision`")
    return ApiError(f"{message} ({fault.err_code})", code=fault.code, err_code=fault.err_code)
