"""What a service would do, done by hand: for tests of those who talk to one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import msgspec
from support.nats import NatsServer

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.control import serve_control
from agent_actors.adapters.jetstream.publishing import NATSEvents
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.config import Config, NatsConfig, StreamsConfig
from agent_actors.contract import (
    AgentResult,
    TaskEvent,
    TaskState,
    encode,
    response_subject,
    task_key,
    utc_now,
)
from agent_actors.ledger import Source, TaskRecord, status_of
from agent_actors.patience import until_answered

Answers = Mapping[str, Callable[[bytes], Awaitable[bytes]]]


class Bench:
    """What a service would do, done by hand: streams, ledger, events, results, answers."""

    def __init__(self, url: str, link: Connection) -> None:
        self.url = url
        self.link = link
        self.js = link.js
        self.ledger = JetStreamLedger(link)

    async def record(self, task_id: str, state: TaskState, **more) -> None:
        """Write the task's record; a terminal state brings a result."""
        if state in {"completed", "failed"}:
            result = a_result(task_id, state, **more.pop("result_with", {}))
            more["result"] = msgspec.Raw(encode(result))
        record = TaskRecord(
            task_id=task_id,
            state=state,
            source=Source(stream_seq=1, consumer="c", consumer_created=1, num_delivered=1),
            content="hash",
            updated=utc_now(),
            **more,
        )
        found = await until_answered(partial(self.ledger.read, task_key(task_id)))
        await self.ledger.write(task_key(task_id), record, found.revision)

    async def announce(self, result: AgentResult) -> None:
        await self.link.publish_stored(response_subject(result.status), encode(result))

    async def tell(self, task_id: str, kind: str, **detail) -> None:
        event = TaskEvent(
            task_id=task_id,
            kind=kind,
            time=utc_now(),
            agent_id="default-0",
            attempt=1,
            detail=detail,
        )
        await NATSEvents(self.link).emit(event)

    async def ledger_answer(self, request: bytes) -> bytes:
        """Answer `agent.control.result` as a service does."""
        task_id = msgspec.json.decode(request)["task_id"]
        stored = await self.ledger.read(task_key(task_id))
        return encode(status_of(task_id, stored.record))

    async def serve(self, answers: Answers) -> None:
        await serve_control(self.link, answers)
        await self.link.nc.flush()


def a_result(task_id: str, status: TaskState = "completed", **more) -> AgentResult:
    return AgentResult(
        task_id=task_id,
        agent_id="default-0",
        role="DEV",
        status=status,
        success=status == "completed",
        duration_ms=12.5,
        timestamp=datetime(2026, 1, 2, tzinfo=UTC),
        **more,
    )


@asynccontextmanager
async def working_bench(server: NatsServer, config: NatsConfig) -> AsyncIterator[Bench]:
    link = await connect(config, name="bench")
    await provision(link, Config(nats=config, streams=StreamsConfig(replicas=server.replicas)))
    yield Bench(server.url, link)
    await link.close()
