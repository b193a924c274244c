"""Looking on: what passes on a subject, or what a stream stores, from now on.

The stream is read through a push consumer of our own making, and not nats-py's ordered one:
made to deliver what is new, that one begins with the stream's oldest message when it has to be
made anew before any has come.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error
from nats.errors import TimeoutError as NatsTimeoutError

from agent_actors.adapters.jetstream.connection import DENIED, Connection
from agent_actors.errors import PermissionDenied, PublishFailed, ServiceUnreachable
from agent_actors.patience import until_answered

NANOSECONDS = 1_000_000_000
IDLE_HEARTBEAT_S = 2.0
SILENCE_S = 3 * IDLE_HEARTBEAT_S
FORGOTTEN_AFTER_S = 30.0

# On heartbeats: what the consumer has sent so far, and where it waits for an answer to its flow
# control (NATS ADR-15).
LAST_SENT_HEADER = "Nats-Last-Consumer"
STALLED_HEADER = "Nats-Consumer-Stalled"

OnMessage = Callable[[Msg], Awaitable[None]]

log = structlog.get_logger()


class Feed(Protocol):
    """Payloads as they come."""

    async def next(self) -> bytes:
        """Wait for the next payload. Raises ServiceUnreachable once the connection is closed."""
        ...

    async def close(self) -> None:
        """Receive nothing more."""
        ...


class LiveFeed:
    """What is published on a subject; what comes while there is no connection is missed."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    @classmethod
    async def open(cls, connection: Connection, subject: str) -> "LiveFeed":
        """Return once the server has the subscription. Raises PermissionDenied, PublishFailed."""
        return cls(await subscribe(connection, subject))

    async def next(self) -> bytes:
        """Wait for the next payload."""
        return (await _next(self._subscription)).data

    async def close(self) -> None:
        """Receive nothing more."""
        await _unsubscribe(self._subscription)


class StoredFeed:
    """What a stream stores, in order and without gaps, whatever befalls the connection.

    Its consumer lives in the server's memory; it is made anew, from the next message on, when
    the server has fallen silent or a message is missing.
    """

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        self._next_in_stream = 0
        self._next_in_consumer = 1
        self._subscription: Subscription | None = None

    @classmethod
    async def open(cls, connection: Connection, stream: str) -> "StoredFeed":
        """Return once the consumer stands.

        Raises StreamMissing, PermissionDenied, PublishFailed.
        """
        feed = cls(connection, stream)
        feed._subscription = await feed._bind()
        return feed

    async def next(self) -> bytes:
        """Wait for the next payload. Raises StreamMissing when the stream is gone."""
        while True:
            if self._subscription is None:
                self._subscription = await until_answered(self._bind)
            try:
                message = await _next(self._subscription, SILENCE_S)
            except NatsTimeoutError:
                await self._unbind("silent")
                continue
            if "Status" in (message.headers or {}):
                await self._on_status(message)
            elif message.metadata.sequence.consumer != self._next_in_consumer:
                await self._unbind("gap")
            else:
                self._next_in_consumer += 1
                self._next_in_stream = message.metadata.sequence.stream + 1
                return message.data

    async def close(self) -> None:
        """Receive nothing more; the server forgets the consumer by itself."""
        if self._subscription is not None:
            await _unsubscribe(self._subscription)

    async def _bind(self) -> Subscription:
        """Make a consumer; the first one tells where "from now on" begins."""
        inbox = self._connection.nc.new_inbox()
        subscription = await subscribe(self._connection, inbox)
        start = (
            {"deliver_policy": "by_start_sequence", "opt_start_seq": self._next_in_stream}
            if self._next_in_stream
            else {"deliver_policy": "new"}
        )
        request = {
            "stream_name": self._stream,
            "config": start
            | {
                "deliver_subject": inbox,
                "ack_policy": "none",
                "flow_control": True,
                "idle_heartbeat": int(IDLE_HEARTBEAT_S * NANOSECONDS),
                "inactive_threshold": int(FORGOTTEN_AFTER_S * NANOSECONDS),
                "mem_storage": True,
                "num_replicas": 1,
            },
        }
        try:
            info = await self._connection.api(
                f"CONSUMER.CREATE.{self._stream}", msgspec.json.encode(request)
            )
        except BaseException:
            await _unsubscribe(subscription)
            raise
        self._next_in_stream = self._next_in_stream or info["delivered"]["stream_seq"] + 1
        self._next_in_consumer = 1
        return subscription

    async def _unbind(self, reason: str) -> None:
        log.info("feed.lost", stream=self._stream, reason=reason, resume_at=self._next_in_stream)
        if self._subscription is not None:
            await _unsubscribe(self._subscription)
        self._subscription = None

    async def _on_status(self, status: Msg) -> None:
        """Answer flow control, now that all before it is read; see whether a heartbeat fits."""
        headers = status.headers or {}
        if reply := status.reply or headers.get(STALLED_HEADER):
            await self._connection.nc.publish(reply)
        if int(headers.get(LAST_SENT_HEADER, "0")) >= self._next_in_consumer:
            await self._unbind("gap")


async def subscribe(
    connection: Connection, subject: str, cb: OnMessage | None = None
) -> Subscription:
    """Return once the server has the subscription. Raises PermissionDenied, PublishFailed."""
    nc = connection.nc
    try:
        subscription = await nc.subscribe(subject, cb=cb)  # pyright: ignore[reportUnknownMemberType] - nats-py's cb is untyped
    except Error as error:
        raise PublishFailed(f"cannot subscribe to {subject}: {error}") from error
    try:
        # The answer to this ping comes after a denial of the subscription, if there is one.
        await nc.flush()
    except Error as error:
        await _unsubscribe(subscription)
        raise PublishFailed(f"cannot subscribe to {subject}: {error}") from error
    denied = DENIED.search(str(nc.last_error))
    if denied is not None and denied.groups() == ("subscription", subject.lower()):
        await _unsubscribe(subscription)
        raise PermissionDenied(f'Permissions Violation for Subscription to "{subject}"')
    return subscription


async def _next(subscription: Subscription, timeout_s: float | None = None) -> Msg:
    try:
        return await subscription.next_msg(timeout_s)
    except NatsTimeoutError:
        raise
    except Error as error:
        raise ServiceUnreachable("the connection to NATS was closed") from error


async def _unsubscribe(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except Error as error:
        log.debug("feed.not_unsubscribed", error=str(error))  # the connection is closed
