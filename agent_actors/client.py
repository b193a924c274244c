"""AgentClient: hands in tasks, waits for their results, looks on; for programs and the CLI.

A user may do all of it who can publish `agent.tasks.*`, request `agent.control.*`, and
subscribe to `agent.events.*.*`. What else is permitted makes it better: reading `agent_ledger`
lets it answer while no service runs, and creating a consumer on `AGENT_RESPONSES` makes `watch`
miss nothing. The user `client` of `deploy/nats/values.yaml` has neither.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.adapters.jetstream.connection import Connection, NoResponders, connect
from agent_actors.adapters.jetstream.deadletters import Choice, DeadLetters
from agent_actors.adapters.jetstream.feeds import Feed, LiveFeed, StoredFeed
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.replaying import ReplayDeadLetter
from agent_actors.config import Config, NatsConfig
from agent_actors.contract import (
    CONTROL_GROUP,
    EVENT_PREFIX,
    MSG_ID_HEADER,
    PAYLOAD_MARGIN_BYTES,
    RESPONSE_STREAM,
    TASK_STREAM,
    TRACE_HEADER,
    AgentResult,
    AgentTask,
    ArtifactRef,
    CancelReply,
    CancelRequest,
    ConfigReply,
    DeadLetter,
    DrainReply,
    DrainRequest,
    PoolStatus,
    Replay,
    ResultRequest,
    ScaleReply,
    ScaleRequest,
    ServiceStatus,
    TaskEvent,
    TaskStatus,
    check_task_id,
    decode_task,
    encode,
    event_subject,
    task_key,
    task_subject,
    utc_now,
)
from agent_actors.errors import (
    AgentActorsError,
    DeadLetterRefused,
    InvalidTask,
    PermissionDenied,
    PublishFailed,
    RequestRefused,
    ResultTimeout,
    ServiceUnreachable,
    StreamMissing,
)
from agent_actors.ledger import status_of
from agent_actors.observe.logs import keep_quiet

DEFAULT_URL = "nats://127.0.0.1:4222"
DEFAULT_WAIT_S = 600.0
ASK_AGAIN_S = 2.0
# How long the result of a task that has ended may take to be learnt.
LEARN_WITHIN_S = 30.0

RESPONSE_SUBJECTS = "agent.response.*"
EVERY_KIND = "*"
ALL_ENDS = f"{EVENT_PREFIX}*.finished"

# What a NATS micro service puts into an answer that is an error (NATS ADR-32).
SERVICE_ERROR = "Nats-Service-Error"
SERVICE_ERROR_CODE = "Nats-Service-Error-Code"
BAD_REQUEST = "400"

T = TypeVar("T")

log = structlog.get_logger()


class AgentClient:
    """A connection to NATS for handing in tasks; see `connect`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, to: str | NatsConfig | Config = DEFAULT_URL, *, name: str = "agent-actors-client"
    ) -> AsyncGenerator[Self]:
        """Give a client for as long as the `async with` lasts: by URL, or by configuration.

        Raises ConfigError, ServiceUnreachable, PermissionDenied.
        """
        keep_quiet()
        connection = await connect(_nats_config(to), name=name)
        try:
            yield cls(connection)
        finally:
            await connection.close()

    async def submit(self, task: AgentTask, *, traceparent: str = "") -> "SubmittedTask":
        """Return a handle on the task once JetStream has stored it.

        Submitting one id again is safe: JetStream drops the copy within its duplicate window
        (the handle's `duplicate` tells), and the ledger lets a later one run nothing. The
        first task of an id stands, also when the second one says something else.

        Raises InvalidTask with the words that the service would have for it, StreamMissing,
        PermissionDenied, and PublishFailed when the task may or may not be stored.
        """
        payload, subject = self._checked(task)
        headers = {MSG_ID_HEADER: task_key(task.task_id)}
        if traceparent:
            headers[TRACE_HEADER] = traceparent
        try:
            ack = await self._connection.publish_stored(subject, payload, headers)
        except NoResponders as error:
            raise StreamMissing(
                f"no stream takes {subject}: run `agent-actors provision`, or start the service"
            ) from error
        if ack.stream != TASK_STREAM:
            raise StreamMissing(
                f"{subject} went to the stream {ack.stream}, which the service does not read: "
                f"free the subject there, then run `agent-actors provision` for {TASK_STREAM}"
            )
        return SubmittedTask(self, task.task_id, duplicate=ack.duplicate, stream_seq=ack.seq)

    async def result(self, task_id: str, *, timeout_s: float = DEFAULT_WAIT_S) -> AgentResult:
        """Return the task's result, at once if there is one already.

        Raises ResultTimeout, which tells where the task stands, and PermissionDenied when it
        cannot be asked for. While NATS or the service are away it goes on waiting.
        """
        check_task_id(task_id)
        standing = "nothing could be learnt about it"
        try:
            async with asyncio.timeout(timeout_s), self._news_of(task_id) as news:
                while True:
                    try:
                        status = await self.status(task_id)
                    except (PublishFailed, ServiceUnreachable) as error:
                        standing = str(error)
                    else:
                        if status.result:
                            return status.result
                        standing = _standing(status)
                    await news(ASK_AGAIN_S)
        except TimeoutError as error:
            message = f"{task_id} has no result after {timeout_s:g} s: {standing}"
            raise ResultTimeout(message) from error

    async def status(self, task_id: str) -> TaskStatus:
        """Return where the task stands: the service knows, or the ledger when none runs.

        Raises ServiceUnreachable when neither can be asked, PublishFailed without an answer.
        """
        request = encode(ResultRequest(task_id=task_id))
        check_task_id(task_id)
        try:
            return msgspec.json.decode(await self._ask("result", request), type=TaskStatus)
        except ServiceUnreachable as nobody:
            try:
                stored = await JetStreamLedger(self._connection).read(task_key(task_id))
            except PermissionDenied:
                raise nobody from None
        return status_of(task_id, stored.record)

    async def cancel(self, task_id: str) -> CancelReply:
        """Have the task end as `Cancelled`, once, wherever it is; say what it has come to.

        A running one is stopped at once, one that waits fails when it is handed out, and an id
        that nobody has seen yet is kept for as long as the ledger keeps records. Asking twice
        does no harm; a task that has ended stays as it is.

        Raises ServiceUnreachable when no service runs, or when it has no answer of NATS itself;
        PublishFailed without an answer. Whether the task is cancelled is not known then: ask again.
        """
        check_task_id(task_id)
        request = encode(CancelRequest(task_id=task_id))
        return msgspec.json.decode(await self._ask("cancel", request), type=CancelReply)

    def watch(self, task_id: str | None = None) -> "Watch[AgentResult]":
        """Return results as they are announced from now on, of one task or of all.

        Misses nothing while the connection is lost, if a consumer on the stream of results may
        be created. Without that permission it sees what passes by: results, or else the events
        by which tasks end, and then it asks the service for each result.
        """

        def wanted(payload: bytes) -> AgentResult | None:
            result = _decoded(payload, AgentResult)
            return result if result and task_id in (None, result.task_id) else None

        return Watch(self._results, wanted)

    def events(self, task_id: str) -> "Watch[TaskEvent]":
        """Return the task's live events from now on; any of them may be missed.

        What `detail` has of an agent with tools: a `token` event the next words of the model in
        `text`, and an empty one voids those before; `tool_call` the `tool`, `operation` and
        `params`; `tool_result` the first two, `success`, `duration_ms`, and a `summary` or an
        `error`. Long texts are cut. The words are the model's and the tools': show them with care.
        """
        check_task_id(task_id)

        async def live() -> Feed:
            return await LiveFeed.open(self._connection, event_subject(task_id, EVERY_KIND))

        return Watch(live, lambda payload: _decoded(payload, TaskEvent))

    async def pools(self) -> list[PoolStatus]:
        """Return the pools of the service. Raises ServiceUnreachable, PublishFailed."""
        return msgspec.json.decode(await self._ask("pools"), type=list[PoolStatus])

    async def service_status(self) -> ServiceStatus:
        """Return what the service is doing. Raises ServiceUnreachable, PublishFailed."""
        return msgspec.json.decode(await self._ask("status"), type=ServiceStatus)

    async def drain(
        self, cluster: str, *, grace_s: float | None = None, only_ask: bool = False
    ) -> DrainReply:
        """Have the service of a cluster, by its `ray.namespace`, end its tasks and itself.

        Returns at once; `grace_s` is how long running tasks may take, else the pools' own
        `stop_grace_s`. With `only_ask` it only tells whether that is under way. Raises
        ServiceUnreachable when no service runs, PublishFailed when none of that cluster answers.
        """
        request = encode(DrainRequest(cluster=cluster, grace_s=grace_s, only_ask=only_ask))
        return msgspec.json.decode(await self._ask("drain", request), type=DrainReply)

    async def scale(self, cluster: str, pool: str, actors: int | None) -> ScaleReply:
        """Have a pool keep so many actors from now on; None gives it back to its configuration.

        `cluster` is the service's `ray.namespace`. It holds until the pool's `actors` are
        configured anew. Raises RequestRefused with the reason, ServiceUnreachable when no
        service runs, PublishFailed when none of that cluster answers.
        """
        request = encode(ScaleRequest(cluster=cluster, pool=pool, actors=actors))
        answer = await self._ask("scale", request, RequestRefused)
        return msgspec.json.decode(answer, type=ScaleReply)

    async def running_config(self) -> ConfigReply:
        """Return the configuration that the service runs, secrets masked.

        Raises ServiceUnreachable, PublishFailed.
        """
        return msgspec.json.decode(await self._ask("config"), type=ConfigReply)

    async def artifact(self, ref: ArtifactRef | dict[str, Any]) -> bytes:
        """Return a part of a result that was too big for it, checked against its SHA-256.

        `ref` is a value of the result's `artifacts` that has `object`, `size` and `sha256`.
        """
        wanted = ref if isinstance(ref, ArtifactRef) else msgspec.convert(ref, ArtifactRef)
        return await JetStreamArtifacts(self._connection).get(wanted)

    def dead_letters(
        self,
        *,
        role: str = "",
        reason: str = "",
        task_id: str = "",
        older_than_s: float | None = None,
        newer_than_s: float | None = None,
    ) -> AsyncGenerator[DeadLetter]:
        """Give the dead letters that all filters take, oldest first, as far as there are by now.

        `reason` is an `error_type`; of it and of the role the case does not matter. What the
        letters tell is the publisher's and the task's: show it with care. The rights needed for
        letters stand in `adapters.jetstream.deadletters` and `.replaying`.
        """
        choice = Choice(
            role=role,
            reason=reason,
            task_id=task_id,
            older_than_s=older_than_s,
            newer_than_s=newer_than_s,
        )
        return DeadLetters(self._connection).choose(choice, utc_now())

    async def dead_letter(self, stream_seq: int) -> DeadLetter:
        """Return one letter; `artifact(letter.object)` has a payload too big for a message.

        Raises DeadLetterMissing.
        """
        return await DeadLetters(self._connection).get(stream_seq)

    async def replay(self, letter: DeadLetter | int) -> Replay:
        """Have a letter's task run again under its id: its attempts anew, one result more.

        `letter` may be a `stream_seq`. The letter is gone afterwards; one that was replayed
        before is only removed. When a call fails half-way, repeat it: it goes on from there.

        Raises DeadLetterRefused when it could not succeed, DeadLetterMissing, PublishFailed.
        """
        return await ReplayDeadLetter(self._connection, utc_now)(await self._letter(letter))

    async def discard(self, letter: DeadLetter | int) -> None:
        """Delete a letter, and what it keeps in the object store.

        Raises DeadLetterRefused while its replay is half done, DeadLetterMissing, PublishFailed.
        """
        found = await self._letter(letter)
        if await ReplayDeadLetter(self._connection, utc_now).is_half_done(found):
            raise DeadLetterRefused(
                f"{found.task_id}: its replay was begun and not finished; replay it again"
            )
        await DeadLetters(self._connection).remove(found)

    async def _letter(self, letter: DeadLetter | int) -> DeadLetter:
        """Return the letter as it is in the stream."""
        return await self.dead_letter(letter if isinstance(letter, int) else letter.stream_seq)

    def _checked(self, task: AgentTask) -> tuple[bytes, str]:
        """Return what to publish and where, having read it as the service will."""
        subject = task_subject(task.role)
        if " " in subject:
            raise InvalidTask(f"role: is {task.role!r}, but a NATS subject has no spaces")
        try:
            payload = encode(task)
        except (TypeError, ValueError) as error:
            raise InvalidTask(f"constraints: cannot be written as JSON: {error}") from error
        max_bytes = self._connection.nc.max_payload - PAYLOAD_MARGIN_BYTES
        decode_task(payload, subject, max_bytes=max_bytes)
        return payload, subject

    async def _results(self) -> Feed:
        try:
            return await StoredFeed.open(self._connection, RESPONSE_STREAM)
        except PermissionDenied as error:
            log.debug("watch.live_only", reason=str(error))
        try:
            return await LiveFeed.open(self._connection, RESPONSE_SUBJECTS)
        except PermissionDenied as error:
            log.debug("watch.by_events", reason=str(error))
        try:
            return _EndedTasks(self, await LiveFeed.open(self._connection, ALL_ENDS))
        except PermissionDenied as error:
            raise PermissionDenied(
                f"{error}; to watch results a user has to be allowed to subscribe to it, or to "
                f"{RESPONSE_SUBJECTS}, or to publish $JS.API.CONSUMER.CREATE.{RESPONSE_STREAM}"
            ) from error

    async def _ask(
        self,
        endpoint: str,
        request: bytes = b"",
        refusal: type[AgentActorsError] = InvalidTask,
    ) -> bytes:
        """Return what the control service answers."""
        subject = f"{CONTROL_GROUP}.{endpoint}"
        try:
            answer = await self._connection.request(subject, request)
        except NoResponders as error:
            raise ServiceUnreachable(
                "no service answers: start one with `agent-actors up` or `agent-actors serve`"
            ) from error
        headers = answer.headers or {}
        if code := headers.get(SERVICE_ERROR_CODE):
            said = headers.get(SERVICE_ERROR, "")
            raise refusal(said) if code == BAD_REQUEST else ServiceUnreachable(said)
        return answer.data

    @asynccontextmanager
    async def _news_of(self, task_id: str) -> AsyncGenerator[Callable[[float], Awaitable[None]]]:
        """Give a way to wait until the task is said to have ended, or for some seconds."""
        try:
            feed = await LiveFeed.open(self._connection, event_subject(task_id, "finished"))
        except (PermissionDenied, PublishFailed) as error:
            log.debug("events.missed", task_id=task_id, reason=str(error))
            yield asyncio.sleep
            return

        async def wait(longest_s: float) -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(longest_s):
                    await feed.next()

        try:
            yield wait
        finally:
            await feed.close()


class SubmittedTask:
    """A task that was handed in.

    `duplicate` tells that JetStream had a task of this id within its duplicate window already
    and dropped this one, whatever it says; `stream_seq` is where the one that counts is queued.
    """

    def __init__(
        self, client: AgentClient, task_id: str, *, duplicate: bool, stream_seq: int
    ) -> None:
        self._client = client
        self.task_id = task_id
        self.duplicate = duplicate
        self.stream_seq = stream_seq

    async def result(self, *, timeout_s: float = DEFAULT_WAIT_S) -> AgentResult:
        """Return the task's result, as `AgentClient.result` does."""
        return await self._client.result(self.task_id, timeout_s=timeout_s)

    async def status(self) -> TaskStatus:
        """Return where the task stands, as `AgentClient.status` does."""
        return await self._client.status(self.task_id)

    async def cancel(self) -> CancelReply:
        """Have the task end as `Cancelled`, as `AgentClient.cancel` does."""
        return await self._client.cancel(self.task_id)

    def events(self) -> "Watch[TaskEvent]":
        """Return the task's live events from now on, as `AgentClient.events` does."""
        return self._client.events(self.task_id)


class Watch(Generic[T]):
    """What comes from now on: `async for` over it ends only when left, or by an error.

    "Now" is when `async with` is entered; without one, when the first is waited for. Raises
    PermissionDenied, StreamMissing, ServiceUnreachable once the connection is closed.
    """

    def __init__(
        self, open_feed: Callable[[], Awaitable[Feed]], decode: Callable[[bytes], T | None]
    ) -> None:
        self._open_feed = open_feed
        self._decode = decode
        self._feed: Feed | None = None

    async def __aenter__(self) -> Self:
        self._feed = self._feed or await self._open_feed()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._feed:
            await self._feed.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        feed = self._feed = self._feed or await self._open_feed()
        while True:
            value = self._decode(await feed.next())
            if value is not None:
                return value


class _EndedTasks:
    """The results of tasks that are said to have ended, each asked for: a `Feed`."""

    def __init__(self, client: AgentClient, ends: Feed) -> None:
        self._client = client
        self._ends = ends

    async def next(self) -> bytes:
        while True:
            event = _decoded(await self._ends.next(), TaskEvent)
            if event is None:
                continue
            try:
                result = await self._client.result(event.task_id, timeout_s=LEARN_WITHIN_S)
            except (InvalidTask, ResultTimeout) as error:
                log.warning("result.missed", task_id=event.task_id, reason=str(error))
            else:
                return encode(result)

    async def close(self) -> None:
        await self._ends.close()


def _nats_config(to: str | NatsConfig | Config) -> NatsConfig:
    if isinstance(to, str):
        return NatsConfig(url=to)
    config = to.nats if isinstance(to, Config) else to
    return config if config.url else replace(config, url=DEFAULT_URL)


def _decoded(payload: bytes, kind: type[T]) -> T | None:
    """Return what the payload says; nothing, when somebody else published it."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("message.not_ours", expected=kind.__name__, error=str(error))
        return None


def _standing(status: TaskStatus) -> str:
    match status.state:
        case "unknown" if status.cancel_requested:
            return "it is cancelled, and fails as such once it is handed out"
        case "unknown":
            return "no agent has begun it; `agent-actors status` tells whether the service runs"
        case "waiting" if not status.attempt:
            return "it waits for an agent"
        case "waiting":
            return f"attempt {status.attempt} ended without an answer, it waits for the next"
        case _:
            return f"it is {status.state}, attempt {status.attempt}, on {status.agent_id}"
