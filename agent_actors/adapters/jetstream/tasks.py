"""The queue of tasks: pulling deliveries, answering them, and asking whether one still waits.

nats-py's `fetch` waits for a whole batch, and its demand cannot grow while it waits. So the
pull requests are made here (NATS documentation, "JetStream wire API": CONSUMER.MSG.NEXT): what
is asked for adds up in `outstanding`, and every message goes to the callback as it comes.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error

from agent_actors.adapters.jetstream.connection import ApiError, Connection, ConsumerMissing
from agent_actors.contract import TASK_STREAM, peek_task_id
from agent_actors.errors import (
    AgentActorsError,
    PublishFailed,
    PublishRefused,
    StreamMissing,
)
from agent_actors.ledger import Source
from agent_actors.ports import Backlog, Delivery

EXPIRES_S = 30
IDLE_HEARTBEAT_S = 1.0
SILENCE_S = 3 * IDLE_HEARTBEAT_S
LOOK_EVERY_S = 2.0
ENDING_S = 2.0
REBIND_PAUSE_S = 0.25
NANOSECONDS = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

CONSUMER_MISSING = "consumer missing: run provision"
STREAM_MISSING = f"stream {TASK_STREAM} missing: run provision"

NO_MESSAGE = 10037  # nats-server's errors.json: no message found

HEARTBEAT, REQUEST_TIMEOUT = "100", "408"

# `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, with
# a domain and an account hash before the stream in newer servers (NATS ADR-15).
SHORT_ACK_TOKENS = 9

log = structlog.get_logger()


class PullConsumer:
    """A pool's durable consumer as a `TaskSource`; made by `PullConsumer.open`."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        on_delivery: Callable[[Delivery], None],
        on_idle: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._name = name
        self._on_delivery = on_delivery
        self._on_idle = on_idle
        self._outstanding = 0
        self._inbox = ""
        self._created = 0
        self._subscription: Subscription | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self._heard = 0.0
        self._asks_at = connection.api_subject(f"CONSUMER.MSG.NEXT.{TASK_STREAM}.{name}")
        self._denied = ""
        self._broken = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._closed = False
        self.trouble = ""

    @classmethod
    async def open(
        cls,
        connection: Connection,
        name: str,
        on_delivery: Callable[[Delivery], None],
        on_idle: Callable[[], None],
    ) -> "PullConsumer":
        """Return the consumer, ready to be pulled from.

        `on_idle` is called when less is outstanding though nothing came: what was asked for has
        expired, or was lost. Whoever still wants it pulls again.

        Raises StreamMissing when the consumer does not exist, PermissionDenied, PublishFailed.
        """
        consumer = cls(connection, name, on_delivery, on_idle)
        connection.on_denied(consumer._asks_at, consumer._on_denied)
        await consumer._bind()
        consumer._watch = asyncio.create_task(consumer._stay_bound())
        consumer._watch.add_done_callback(consumer._watch_ended)
        return consumer

    @property
    def outstanding(self) -> int:
        """Deliveries asked for that have not come."""
        return self._outstanding

    async def pull(self, count: int) -> None:
        """Ask for `count` more deliveries, within `EXPIRES_S`; for nothing once closed."""
        if self._closed:
            return
        if not self._outstanding:
            self._heard = asyncio.get_running_loop().time()
        self._outstanding += count
        await self._ask(count)

    def withdraw(self) -> None:
        """Ask for nothing more until the next `pull`; what is under way still comes.

        The server forgets what was asked for an inbox that nobody listens to any more.
        """
        if self._outstanding:
            self._broken.set()

    async def backlog(self) -> Backlog:
        """Return what waits. Raises StreamMissing, PublishFailed without an answer."""
        info = await self._info()
        return Backlog(pending=info["num_pending"], unacked=info["num_ack_pending"])

    async def close(self) -> None:
        """Ask for nothing more; what the server has sent still comes before this returns."""
        self._closed = True
        if self._watch:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        self._let_go()
        if self._endings:
            await asyncio.wait(self._endings)

    async def _bind(self) -> None:
        """Make sure the consumer is there, and start anew with an inbox nobody knows.

        What is under way to the old inbox still comes, beside what is asked for anew.
        """
        created = await self._ask_created()
        nc = self._connection.nc
        inbox = nc.new_inbox()
        subscription = await nc.hear(inbox, partial(self._on_message, inbox, created))
        self._let_go()
        self._inbox, self._subscription, self._created = inbox, subscription, created
        self._outstanding = 0
        self._broken.clear()

    def _let_go(self) -> None:
        """End the subscription in the background."""
        if self._subscription:
            ending = asyncio.create_task(self._connection.nc.end(self._subscription, ENDING_S))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        self._subscription = None

    async def _stay_bound(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_bound())
            group.create_task(self._look_for_another())

    async def _look_for_another(self) -> None:
        """Bind again to one that has taken this one's place while nothing was asked of it.

        The server tells nobody then. Taken for the old one's, deliveries of the new one would be
        stale to the ledger for ever once somebody else has begun a task from it.
        """
        while not self._closed:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                is_another = await self._ask_created() != self._created
            except StreamMissing:
                is_another = True
            except AgentActorsError:
                continue  # it will answer another time
            if is_another:
                self._broken.set()

    async def _keep_bound(self) -> None:
        """Bind again when the server says that the consumer is gone, or says nothing."""
        while not self._closed:
            try:
                async with asyncio.timeout(IDLE_HEARTBEAT_S):
                    await self._broken.wait()
            except TimeoutError:
                if not self._outstanding or not self._is_silent():
                    continue
            # While its leader is being elected a consumer refuses whatever it is asked.
            await asyncio.sleep(REBIND_PAUSE_S)
            try:
                await self._bind()
            except (AgentActorsError, Error, OSError) as error:
                self._broken.set()
                self.trouble = str(error)
                log.warning("consumer.lost", consumer=self._name, error=str(error))
                await asyncio.sleep(IDLE_HEARTBEAT_S)
            else:
                self.trouble = self._denied
                log.info("consumer.bound", consumer=self._name)
                self._on_idle()

    def _watch_ended(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled() and (bug := watch.exception()):
            log.error("consumer.crashed", consumer=self._name, exc_info=bug)
            self._connection.end(f"consumer {self._name}: {bug!r}")

    def _is_silent(self) -> bool:
        return asyncio.get_running_loop().time() - self._heard > SILENCE_S

    async def _ask(self, count: int) -> None:
        request = {
            "batch": count,
            "expires": EXPIRES_S * NANOSECONDS,
            "idle_heartbeat": int(IDLE_HEARTBEAT_S * NANOSECONDS),
        }
        try:
            await self._connection.send(self._asks_at, msgspec.json.encode(request), self._inbox)
        except PublishFailed as error:
            log.warning("consumer.not_asked", consumer=self._name, error=str(error))
            self._broken.set()

    def _on_denied(self, reason: str) -> None:
        self.trouble = self._denied = reason

    def _on_message(self, inbox: str, created: int, message: Msg) -> None:
        headers = message.headers or {}
        if message.reply:
            if inbox == self._inbox:
                self._hear()
                self._outstanding = max(0, self._outstanding - 1)
            self._on_delivery(_delivery(message, headers, created))
        elif inbox == self._inbox and "Status" in headers:
            self._hear()
            self._on_status(headers["Status"], headers)

    def _hear(self) -> None:
        """Take note that the server answers what it is asked here."""
        self._heard = asyncio.get_running_loop().time()
        if self._denied:
            self.trouble = self._denied = ""

    def _on_status(self, status: str, headers: dict[str, str]) -> None:
        if status == HEARTBEAT:
            return
        unfilled = int(headers.get("Nats-Pending-Messages", "0"))
        if status == REQUEST_TIMEOUT and unfilled:
            self._outstanding = max(0, self._outstanding - unfilled)
            self._on_idle()
        else:
            log.info("consumer.refused", consumer=self._name, headers=headers)
            self._broken.set()

    async def _ask_created(self) -> int:
        return _nanoseconds((await self._info())["created"])

    async def _info(self) -> dict[str, Any]:
        try:
            return await self._connection.api(f"CONSUMER.INFO.{TASK_STREAM}.{self._name}")
        except ConsumerMissing as error:
            raise StreamMissing(CONSUMER_MISSING) from error
        except StreamMissing as error:
            raise StreamMissing(STREAM_MISSING) from error


class JetStreamAcks:
    """The four answers to a delivery; whoever has a connection may give them.

    They are sent, not confirmed. One that is lost is mended by the next delivery, which
    `ack_wait` brings.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ack(self, delivery: Delivery) -> None:
        """Take the message off the queue."""
        await self._send(delivery, b"+ACK")

    async def nak(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        """Have the message handed out again, after `delay_s` seconds."""
        delay = f' {{"delay": {int(delay_s * NANOSECONDS)}}}' if delay_s > 0 else ""
        await self._send(delivery, b"-NAK" + delay.encode())

    async def term(self, delivery: Delivery) -> None:
        """Take the message off the queue as one that never was a task."""
        await self._send(delivery, b"+TERM")

    async def in_progress(self, deliveries: Sequence[Delivery]) -> None:
        """Start `ack_wait` anew for these."""
        for delivery in deliveries:
            await self._send(delivery, b"+WPI")

    async def _send(self, delivery: Delivery, answer: bytes) -> None:
        try:
            await self._connection.send(delivery.reply, answer)
        except (PublishFailed, PublishRefused) as error:
            log.warning("ack.lost", answer=answer.decode(), error=str(error))


class JetStreamTaskQueue:
    """The stream of tasks, asked of its leader."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def holds(self, stream_seq: int, task_id: str) -> bool:
        """Tell whether this task's message is still there.

        Raises PublishFailed without an answer.
        """
        request = msgspec.json.encode({"seq": stream_seq})
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.{TASK_STREAM}", request)
        except ApiError as error:
            if error.err_code != NO_MESSAGE:
                raise
            return False
        return peek_task_id(base64.b64decode(answer["message"].get("data", ""))) == task_id


def _delivery(message: Msg, headers: dict[str, str], created: int) -> Delivery:
    tokens = message.reply.split(".")
    at = 2 if len(tokens) == SHORT_ACK_TOKENS else 4
    stream, consumer, delivered, stream_seq = tokens[at : at + 4]
    return Delivery(
        subject=message.subject,
        reply=message.reply,
        payload=message.data,
        headers=dict(headers),
        stream=stream,
        source=Source(
            stream_seq=int(stream_seq),
            consumer=consumer,
            consumer_created=created,
            num_delivered=int(delivered),
        ),
    )


def _nanoseconds(rfc3339: str) -> int:
    """Return the time as nanoseconds since 1970; digits beyond microseconds do not count."""
    return (datetime.fromisoformat(rfc3339) - EPOCH) // timedelta(microseconds=1) * 1_000
