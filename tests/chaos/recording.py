"""Fills a history: publishes and writes down, watches while it lasts, and collects at the end."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec
from chaos.history import (
    Announced,
    Buried,
    CancelAsked,
    Leak,
    Leftovers,
    ModelRequest,
    Published,
    Record,
    Sample,
    SlotSample,
)
from chaos.load import Planned, task_id_in
from chaos.stage import POOL, Stage
from nats.aio.msg import Msg

from agent_actors.client import AgentClient
from agent_actors.contract import (
    CONTROL_GROUP,
    DEADLETTER_STREAM,
    LEDGER_BUCKET,
    MSG_ID_HEADER,
    REASON_HEADER,
    RESPONSE_STREAM,
    SOURCE_HEADER,
    TASK_ID_HEADER,
    TASK_STREAM,
    AgentResult,
    ServiceStatus,
    TaskEvent,
    utc_now,
)
from agent_actors.errors import AgentActorsError, PublishFailed, ServiceUnreachable
from agent_actors.ledger import TaskRecord
from agent_actors.patience import until_answered

EVERY_EVENT = "agent.events.>"
SAMPLE_EVERY_S = 2.0
STATUS_TIMEOUT_S = 1.0
PUBLISH_TIMEOUT_S = 2.0
POLL_S = 0.2
READ_TIMEOUT_S = 10.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

OnEvent = Callable[[TaskEvent], None]


class Progress(NamedTuple):
    """How much is left to do, and how often those that kill their actors have done so.

    The latter is bounded, and goes on for long before it makes less of what is left.
    """

    left: float
    deaths: int = 0

    def is_beyond(self, known: "Progress") -> bool:
        return self.left < known.left or (self.left == known.left and self.deaths > known.deaths)


async def publish(stage: Stage, planned: Planned) -> None:
    """Publish until JetStream has accepted it: by its message id it is stored once."""
    payload = planned.payload(utc_now())
    headers = {MSG_ID_HEADER: planned.message_id}
    ack = await until_answered(
        lambda: stage.link.publish_stored(planned.subject, payload, headers, PUBLISH_TIMEOUT_S)
    )
    stage.history.published.append(
        Published(
            at_s=stage.now(),
            order=stage.tap.next_order(),
            seq=ack.seq,
            task_id=planned.task_id,
            kind=planned.kind,
            content=_digest(planned.subject.encode() + payload),
        )
    )


async def cancel(stage: Stage, task_id: str) -> None:
    """Cancel until the service has answered."""
    client = AgentClient(stage.link)
    while True:
        try:
            reply = await client.cancel(task_id)
        except (ServiceUnreachable, PublishFailed):
            await asyncio.sleep(POLL_S)
        else:
            break
    stage.history.cancels.append(CancelAsked(at_s=stage.now(), task_id=task_id, answer=reply.state))


async def watch_events(stage: Stage, on_event: OnEvent = lambda _: None) -> None:
    """Subscribe to all events: look for secrets in them, and hand them on."""

    async def hear(message: Msg) -> None:
        _look_for_secrets(stage, message.data, f"an event, {message.subject}")
        on_event(msgspec.json.decode(message.data, type=TaskEvent))

    await stage.link.nc.subscribe(EVERY_EVENT, cb=hear)


async def watch_processes(stage: Stage) -> None:
    """Sample memory, descriptors and slots, until cancelled."""
    while True:
        await sample(stage)
        await asyncio.sleep(SAMPLE_EVERY_S)


async def sample(stage: Stage) -> None:
    """Write down what supervisor and actors use just now."""
    for who, pids in (("supervisor", stage.supervisor_pids()), ("actor", stage.actor_pids())):
        for pid in pids:
            with suppress(OSError):  # it has just ended
                stage.history.samples.append(_sampled(stage.now(), who, pid))
    await _slots_used(stage)


async def until_quiet(stage: Stage, patience_s: float) -> bool:
    """Wait until the queue is empty and no slot in use, as long as that comes nearer.

    Tells whether it came to that, or nothing was done for `patience_s`.
    """
    return await until_none_left(lambda: _progress(stage), patience_s)


async def until_none_left(look: Callable[[], Awaitable[Progress]], patience_s: float) -> bool:
    """Look again and again until nothing is left, or there was no progress for so long."""
    known = Progress(math.inf)
    with suppress(TimeoutError):
        while known.left:
            async with asyncio.timeout(patience_s):
                while not (seen := await look()).is_beyond(known):  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(POLL_S)
            known = seen
    return not known.left


async def collect(stage: Stage) -> None:
    """Read everything that is left to know: streams, ledger, requests, logs."""
    history = stage.history
    async for message in messages_in(stage, RESPONSE_STREAM):
        history.announced.append(_announced(stage, message))
        _look_for_secrets(stage, message.data, f"the result {message.metadata.sequence.stream}")
    async for message in messages_in(stage, DEADLETTER_STREAM):
        history.buried.append(_buried(stage, message))
        told = message.data + str(message.headers).encode()
        _look_for_secrets(stage, told, f"the dead letter {message.metadata.sequence.stream}")
    async for message in messages_in(stage, f"KV_{LEDGER_BUCKET}"):
        if message.data:
            history.records.append(_record(message.data))
    history.requests.extend(_requests(stage))
    history.leftovers = await _leftovers(stage)
    await sample(stage)
    for path in stage.logs:
        _look_for_secrets(stage, path.read_bytes(), f"the log {path.name}")


async def messages_in(stage: Stage, stream: str) -> AsyncIterator[Msg]:
    """Yield all that a stream holds."""
    state = (await stage.link.api(f"STREAM.INFO.{stream}"))["state"]
    subscription = await stage.link.js.subscribe(">", stream=stream, ordered_consumer=True)
    for _ in range(state["messages"]):
        yield await subscription.next_msg(timeout=READ_TIMEOUT_S)
    await subscription.unsubscribe()


def log_lines(stage: Stage, words: str) -> Iterable[tuple[Path, str]]:
    """Yield the lines of the service's logs that have these words in them."""
    for path in sorted(stage.logs):
        for line in path.read_text(errors="replace").splitlines():
            if words in line:
                yield path, line


def _sampled(at_s: float, who: str, pid: int) -> Sample:
    proc = Path("/proc", str(pid))
    pages = int((proc / "statm").read_text().split()[1])
    try:
        descriptors = sum(1 for _ in (proc / "fd").iterdir())
    except PermissionError:  # of a process that may not be dumped only root may see them
        descriptors = -1
    return Sample(
        at_s=at_s, who=who, pid=pid, rss_bytes=pages * PAGE_BYTES, descriptors=descriptors
    )


async def _slots_used(stage: Stage) -> int:
    """Return how many slots are in use, and write it down; -1 when nobody tells."""
    try:
        answer = await stage.link.request(f"{CONTROL_GROUP}.status", timeout_s=STATUS_TIMEOUT_S)
    except AgentActorsError:
        return -1
    (pool,) = msgspec.json.decode(answer.data, type=ServiceStatus).pools
    state = f"{pool.state}: {pool.reason}" if pool.reason else pool.state
    told = SlotSample(at_s=stage.now(), slots=pool.slots, used=pool.slots_used, state=state)
    stage.history.slots.append(told)
    return told.used


async def _progress(stage: Stage) -> Progress:
    used = await _slots_used(stage)
    try:
        stream = await stage.link.api(f"STREAM.INFO.{TASK_STREAM}", timeout_s=PUBLISH_TIMEOUT_S)
        consumer = await stage.link.api(
            f"CONSUMER.INFO.{TASK_STREAM}.{POOL}", timeout_s=PUBLISH_TIMEOUT_S
        )
    except AgentActorsError:
        return Progress(math.inf)
    is_busy = bool(used or consumer["num_pending"] or consumer["num_ack_pending"])
    deaths = {each.task_id: each.deaths for each in stage.history.ledger_writes}
    return Progress(stream["state"]["messages"] + is_busy, sum(deaths.values()))


def _announced(stage: Stage, message: Msg) -> Announced:
    result = msgspec.json.decode(message.data, type=AgentResult)
    return Announced(
        at_s=_since_begin(stage, message),
        seq=message.metadata.sequence.stream,
        msg_id=(message.headers or {}).get(MSG_ID_HEADER, ""),
        task_id=result.task_id,
        status=result.status,
        digest=_digest(message.data),
        error_type=result.error_type or "",
        error=(result.error or "")[:200],
        attempt=result.attempt,
        agent_id=result.agent_id,
    )


def _buried(stage: Stage, message: Msg) -> Buried:
    headers = message.headers or {}
    return Buried(
        at_s=_since_begin(stage, message),
        seq=message.metadata.sequence.stream,
        msg_id=headers.get(MSG_ID_HEADER, ""),
        task_id=headers.get(TASK_ID_HEADER, ""),
        reason=headers.get(REASON_HEADER, ""),
        error=headers.get("Agent-Actors-Error", "")[:200],
        source_seq=int(headers.get(SOURCE_HEADER, ":0").rpartition(":")[2]),
    )


def _record(payload: bytes) -> Record:
    record = msgspec.json.decode(payload, type=TaskRecord)
    return Record(
        task_id=record.task_id,
        state=record.state,
        attempt=record.attempt,
        digest=_digest(bytes(record.result)) if record.is_terminal else "",
    )


def _requests(stage: Stage) -> Iterable[ModelRequest]:
    for seen in stage.model.requests:
        if seen.chat is not None:
            yield ModelRequest(
                at_s=stage.request_times[seen.number],
                task_id=task_id_in(seen.task),
                conversation=seen.conversation,
                status=seen.status or 0,
                fault=seen.fault or "",
                aborted=seen.aborted,
            )


async def _leftovers(stage: Stage) -> Leftovers:
    consumer = await stage.link.api(f"CONSUMER.INFO.{TASK_STREAM}.{POOL}")
    return Leftovers(
        queued_seqs=[seq async for seq in _queued(stage)],
        pending=consumer["num_pending"],
        unacked=consumer["num_ack_pending"],
    )


async def _queued(stage: Stage) -> AsyncIterator[int]:
    """Yield what the work queue holds, without a second consumer, which it does not allow."""
    state = (await stage.link.api(f"STREAM.INFO.{TASK_STREAM}"))["state"]
    seq = state["first_seq"]
    while state["messages"] and seq <= state["last_seq"]:
        with suppress(AgentActorsError):
            await stage.link.api(f"STREAM.MSG.GET.{TASK_STREAM}", msgspec.json.encode({"seq": seq}))
            yield seq
        seq += 1


def _since_begin(stage: Stage, message: Msg) -> float:
    stored: datetime = message.metadata.timestamp
    return stored.timestamp() - stage.began_wall_s


def _look_for_secrets(stage: Stage, data: bytes, where: str) -> None:
    for kind, secret in stage.secrets.items():
        if secret.encode() in data:
            stage.history.leaks.append(Leak(secret=kind, where=where))


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()
