"""The client against a real NATS; where it meets the service, a scripted one answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import pytest
from support.bench import Bench, a_result, working_bench
from support.nats import NatsServer, StartNats

from agent_actors import client as client_module
from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.client import AgentClient
from agent_actors.config import NatsConfig
from agent_actors.config_types import Secret
from agent_actors.contract import (
    AgentResult,
    AgentTask,
    PoolStatus,
    ServiceStatus,
    TaskState,
    TaskStatus,
    decode_task,
    encode,
    response_subject,
    utc_now,
)
from agent_actors.errors import (
    InvalidTask,
    PermissionDenied,
    PublishFailed,
    ResultTimeout,
    ServiceUnreachable,
    StreamMissing,
)
from agent_actors.patience import until_answered

pytestmark = pytest.mark.nats

TASK = AgentTask(task_id="t-1", task_description="do it", role="DEV")


@pytest.fixture
async def bench(nats_server: NatsServer) -> AsyncIterator[Bench]:
    async with working_bench(nats_server, NatsConfig(url=nats_server.url)) as bench:
        yield bench


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[AgentClient]:
    async with AgentClient.connect(bench.url) as client:
        yield client


# Handing in.


async def test_a_task_arrives_as_any_client_would_write_it(bench: Bench, client: AgentClient):
    task = AgentTask(
        task_id="job/ü", task_description="x", role="QA", constraints={"language": "python"}
    )
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    submitted = await client.submit(task, traceparent=traceparent)
    message = await bench.js.get_msg("AGENT_TASKS", submitted.stream_seq)
    assert message.subject == "agent.tasks.qa"
    assert message.headers["Nats-Msg-Id"] == "job=2F=C3=BC"
    assert message.headers["traceparent"] == traceparent
    assert decode_task(message.data, message.subject, max_bytes=10_000)[0] == task
    assert not submitted.duplicate


async def test_a_task_submitted_twice_is_queued_once_and_the_caller_hears_of_it(
    bench: Bench, client: AgentClient
):
    first = await client.submit(TASK)
    again = await client.submit(TASK)
    other = await client.submit(msgspec.structs.replace(TASK, task_description="something else"))
    assert (first.duplicate, again.duplicate, other.duplicate) == (False, True, True)
    assert {first.stream_seq, again.stream_seq, other.stream_seq} == {1}
    assert (await bench.js.stream_info("AGENT_TASKS")).state.messages == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task_id": ""}, "task_id: is empty"),
        ({"task_id": "x" * 129}, "task_id: has 129 characters"),
        ({"task_description": " "}, "task_description: is empty"),
        ({"temperature": 9}, "temperature: expected `float` <= 2.0"),
        ({"constraints": {"timeout": "soon"}}, r"constraints\.timeout: expected `float"),
        ({"constraints": {"self": object()}}, "constraints: cannot be written as JSON"),
        ({"constraints": {"n": 2**70}}, "constraints: .*64 bits"),
        ({"role": "de v"}, "role: is 'de v', but a NATS subject has no spaces"),
        ({"role": ">"}, "subject: its role '>' must be printable, without wildcards"),
        ({"role": "a.b"}, "subject: is agent.tasks.a.b, must be"),
        ({"task_description": "x" * 1024 * 1024}, "payload: is .* bytes, may be at most"),
    ],
)
async def test_what_is_no_task_is_refused_in_the_services_words_and_not_published(
    bench: Bench, client: AgentClient, wrong: dict[str, object], said: str
):
    with pytest.raises(InvalidTask, match=said):
        await client.submit(msgspec.structs.replace(TASK, **wrong))
    assert (await bench.js.stream_info("AGENT_TASKS")).state.messages == 0


async def test_without_streams_the_remedy_is_named(nats_server: NatsServer):
    config = NatsConfig(url=nats_server.url, request_timeout_s=0.1)
    async with AgentClient.connect(config) as client:
        with pytest.raises(StreamMissing, match="agent-actors provision"):
            await client.submit(TASK)


async def test_a_task_that_lands_in_somebody_elses_stream_is_no_success(nats_server: NatsServer):
    async with AgentClient.connect(nats_server.url) as client:
        js = client._connection.js
        await js.add_stream(name="THEIRS", subjects=["agent.>"], no_ack=False)
        with pytest.raises(StreamMissing, match="went to the stream THEIRS"):
            await client.submit(TASK)


async def test_a_silent_server_fails_the_submit(nats_server: NatsServer, bench: Bench):
    config = NatsConfig(url=nats_server.url, request_timeout_s=0.2)
    async with AgentClient.connect(config) as client:
        await nats_server.pause()
        with pytest.raises(PublishFailed, match=r"agent\.tasks\.dev within 0\.2 s"):
            await client.submit(TASK)
        await nats_server.resume()


# Waiting.


async def test_a_result_from_before_the_wait_is_there_at_once(bench: Bench, client: AgentClient):
    await bench.record("t-1", "completed")
    assert await client.result("t-1", timeout_s=5) == a_result("t-1")


async def test_the_event_ends_the_wait(
    bench: Bench, client: AgentClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 1_000)
    asked = asyncio.Event()

    async def answer(_: bytes) -> bytes:
        state = "completed" if asked.is_set() else "running"
        asked.set()
        result = a_result("t-1") if state == "completed" else None
        return encode(TaskStatus(task_id="t-1", state=state, result=result))

    await bench.serve({"result": answer})
    task = await client.submit(TASK)
    waiting = asyncio.create_task(task.result(timeout_s=30))
    await asked.wait()
    await bench.tell("t-1", "finished")
    assert (await waiting).success


async def test_a_missed_event_only_delays_the_result(
    bench: Bench, client: AgentClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 0.05)
    waiting = asyncio.create_task(client.result("t-1", timeout_s=30))
    await bench.record("t-1", "running")
    await bench.record("t-1", "failed")
    assert (await waiting).status == "failed"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "no agent has begun it"),
        ("running", "it is running, attempt 2, on default-0"),
        ("waiting", "attempt 2 ended without an answer"),
    ],
)
async def test_a_wait_that_takes_too_long_tells_where_the_task_stands(
    bench: Bench, client: AgentClient, state: TaskState | None, said: str
):
    if state:
        await bench.record("t-1", state, attempt=2, agent_id="default-0")
    with pytest.raises(ResultTimeout, match=rf"t-1 has no result after 0\.3 s: {said}"):
        await client.result("t-1", timeout_s=0.3)


async def test_a_wait_outlives_a_restart_of_nats(
    nats_server: NatsServer,
    bench: Bench,
    client: AgentClient,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 0.05)
    waiting = asyncio.create_task(client.result("t-1", timeout_s=60))
    await bench.record("t-1", "running")
    await nats_server.restart()
    await until_answered(partial(bench.link.api, "INFO"))
    await bench.record("t-1", "completed")
    assert (await waiting).success


async def test_the_service_is_asked_before_the_ledger(bench: Bench, client: AgentClient):
    await bench.record("t-1", "waiting")
    asked: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        asked.append(request)
        return encode(TaskStatus(task_id="t-1", state="running", attempt=3))

    await bench.serve({"result": answer})
    assert (await client.status("t-1")).attempt == 3
    assert asked == [b'{"task_id":"t-1"}']


async def test_without_a_service_the_ledger_answers(bench: Bench, client: AgentClient):
    await bench.record("t/1", "waiting", attempt=2)
    assert await client.status("t/1") == TaskStatus(task_id="t/1", state="waiting", attempt=2)
    assert (await client.status("other")).state == "unknown"


async def test_what_the_service_refuses_keeps_its_words(bench: Bench, client: AgentClient):
    async def refuse(_: bytes) -> bytes:
        raise PublishFailed("the ledger does not answer")

    async def misread(_: bytes) -> bytes:
        raise InvalidTask("task_id: is odd")

    await bench.serve({"result": misread, "status": refuse})
    with pytest.raises(ServiceUnreachable, match="the ledger does not answer"):
        await client.service_status()
    with pytest.raises(InvalidTask, match="task_id: is odd"):
        await client.status("t-1")


# Looking on.


async def test_results_come_in_order_and_by_task(bench: Bench, client: AgentClient):
    await bench.announce(a_result("before"))
    async with client.watch() as all_results, client.watch("t-2") as of_one:
        await bench.link.publish_stored("agent.response.completed", b'{"not": "ours"}')
        for task_id in ("t-1", "t-2", "t-3"):
            await bench.announce(a_result(task_id))
        seen = [(await anext(all_results)).task_id for _ in range(3)]
        assert seen == ["t-1", "t-2", "t-3"]
        assert await anext(of_one) == a_result("t-2")


async def test_watching_misses_nothing_over_a_restart_and_shows_nothing_old(
    nats_server: NatsServer, bench: Bench, client: AgentClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agent_actors.adapters.jetstream.feeds.SILENCE_S", 2.5)
    await bench.announce(a_result("old"))
    async with client.watch() as results:
        await nats_server.restart()
        await asyncio.wait_for(until_stored(bench, a_result("first")), 30)
        assert (await asyncio.wait_for(anext(results), 30)).task_id == "first"
        await nats_server.restart()
        await asyncio.wait_for(until_stored(bench, a_result("second")), 30)
        assert (await asyncio.wait_for(anext(results), 30)).task_id == "second"


async def until_stored(bench: Bench, result: AgentResult) -> None:
    """Announce once NATS takes it, and only once, even if an answer is lost."""
    subject, headers = response_subject(result.status), {"Nats-Msg-Id": result.task_id}
    await until_answered(
        partial(bench.link.publish_stored, subject, encode(result), headers, timeout_s=1)
    )


@pytest.mark.parametrize("more_follow", [True, False], ids=["more follow", "silence follows"])
async def test_what_a_slow_reader_let_drop_is_fetched_again(
    bench: Bench, client: AgentClient, *, more_follow: bool
):
    async with client.watch() as results:
        room_for_few_bytes = 2_000
        results._feed._subscription._pending_bytes_limit = room_for_few_bytes
        numbers = iter(range(20))
        for number in range(20):
            if more_follow and number == 19:
                assert (await anext(results)).attempt == next(numbers)
            await bench.announce(msgspec.structs.replace(a_result("t"), attempt=number))
            await client._connection.nc.flush()
        left = list(numbers)
        assert [(await anext(results)).attempt for _ in left] == left


async def test_more_results_than_the_server_sends_ahead_all_come(bench: Bench, client: AgentClient):
    big = msgspec.structs.replace(a_result("t"), error="x" * 100_000)
    async with client.watch() as results:
        for number in range(400):
            await bench.announce(msgspec.structs.replace(big, attempt=number))
        seen = [(await anext(results)).attempt for _ in range(400)]
    assert seen == list(range(400))


async def test_events_are_those_of_the_task(bench: Bench, client: AgentClient):
    async with client.events("t-1") as events:
        await bench.tell("t-2", "started")
        await bench.tell("t-1", "started")
        await bench.tell("t-1", "finished")
        assert [(await anext(events)).kind for _ in range(2)] == ["started", "finished"]


async def test_events_tell_what_an_agent_says_and_does(bench: Bench, client: AgentClient):
    name = {"tool": "files", "operation": "read_file"}
    task = await client.submit(TASK)
    async with task.events() as events:
        await bench.tell(task.task_id, "token", text="I will look.")
        await bench.tell(task.task_id, "tool_call", **name, params={"path": "a.py"})
        await bench.tell(task.task_id, "tool_result", **name, success=True, duration_ms=1.5)
        assert [
            (event.kind, event.detail) for event in [await anext(events) for _ in range(3)]
        ] == [
            ("token", {"text": "I will look."}),
            ("tool_call", {**name, "params": {"path": "a.py"}}),
            ("tool_result", {**name, "success": True, "duration_ms": 1.5}),
        ]


async def test_closing_the_client_ends_a_watch_with_an_error(bench: Bench):
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AgentClient.connect(bench.url))
        watch = client.watch()
        await watch.__aenter__()
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
    with pytest.raises(ServiceUnreachable, match="connection to NATS was closed"):
        await waiting


async def test_the_service_tells_of_its_pools(bench: Bench, client: AgentClient):
    pool = PoolStatus(name="default", subjects=["agent.tasks.>"], state="running", slots=64)
    status = ServiceStatus(version="1", supervisor_id="s", started=utc_now(), pools=[pool])

    async def answer_status(_: bytes) -> bytes:
        return encode(status)

    async def answer_pools(_: bytes) -> bytes:
        return encode([pool])

    await bench.serve({"status": answer_status, "pools": answer_pools})
    assert await client.service_status() == status
    assert await client.pools() == [pool]


async def test_without_a_service_the_remedy_is_named(client: AgentClient):
    with pytest.raises(ServiceUnreachable, match="agent-actors up"):
        await client.pools()


async def test_a_part_in_the_object_store_is_fetched_by_its_reference(
    bench: Bench, client: AgentClient
):
    ref = await JetStreamArtifacts(bench.link).put("t-1/proposal.content", b"big" * 100_000)
    assert await client.artifact(ref) == b"big" * 100_000
    assert await client.artifact(msgspec.to_builtins(ref)) == b"big" * 100_000


# With as few rights as possible.

USERS = """
authorization { users: [
  {user: admin, password: a}
  {user: least, password: l, permissions: {
    publish: {allow: ["agent.tasks.*", "agent.control.*"]}
    subscribe: {allow: ["_INBOX_least.>", "agent.events.>", "agent.response.*"]}
  }}
  {user: hearer, password: h, permissions: {
    publish: {allow: ["agent.control.result"]}
    subscribe: {allow: ["_INBOX_least.>", "agent.events.>"]}
  }}
  {user: blind, password: b, permissions: {
    publish: {allow: ["agent.tasks.*", "agent.control.*"]}
    subscribe: {allow: ["_INBOX_least.>"]}
  }}
]}
"""


@pytest.fixture
async def guarded(start_nats: StartNats) -> AsyncIterator[Bench]:
    server = await start_nats(USERS)
    admin = NatsConfig(url=server.url, user="admin", password=Secret("a"))
    async with working_bench(server, admin) as bench:
        yield bench


def user(bench: Bench, name: str) -> NatsConfig:
    password = Secret(name[0])
    return NatsConfig(url=bench.url, user=name, password=password, inbox_prefix="_INBOX_least")


async def test_a_user_with_the_least_rights_can_do_it_all(guarded: Bench):
    await guarded.record("t-1", "completed")
    await guarded.serve({"result": guarded.ledger_answer})
    async with (
        AgentClient.connect(user(guarded, "least")) as client,
        client.watch() as results,
        client.events("t-1") as events,
    ):
        task = await client.submit(TASK)
        assert (await task.result(timeout_s=10)).success
        await guarded.announce(a_result("t-1"))
        await guarded.tell("t-1", "finished")
        assert (await anext(results)).task_id == "t-1"
        assert (await anext(events)).kind == "finished"


async def test_whoever_hears_only_that_tasks_end_asks_for_their_results(guarded: Bench):
    await guarded.serve({"result": guarded.ledger_answer})
    await guarded.record("t-1", "completed")
    await guarded.record("t-2", "failed")
    async with (
        AgentClient.connect(user(guarded, "hearer")) as client,
        client.watch() as everything,
        client.watch("t-2") as one,
    ):
        await guarded.link.nc.publish("agent.events.t-0.finished", b"not ours")
        await guarded.tell("t-1", "finished")
        await guarded.tell("t-2", "started")
        await guarded.tell("t-2", "finished")
        assert [(await anext(everything)).task_id for _ in range(2)] == ["t-1", "t-2"]
        assert (await anext(one)).status == "failed"


async def test_whoever_may_not_look_on_is_told_so_and_still_gets_results(
    guarded: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client_module, "ASK_AGAIN_S", 0.05)
    await guarded.serve({"result": guarded.ledger_answer})
    async with AgentClient.connect(user(guarded, "blind")) as client:
        what = r'"agent\.events\.\*\.finished".* agent\.response\.\*.*CREATE\.AGENT_RESPONSES'
        with pytest.raises(PermissionDenied, match=what):
            await client.watch().__aenter__()
        with pytest.raises(PermissionDenied, match=r"agent\.events\.t-1"):
            await client.events("t-1").__aenter__()
        waiting = asyncio.create_task(client.result("t-1", timeout_s=30))
        await guarded.record("t-1", "completed")
        assert (await waiting).success


async def test_with_the_least_rights_and_no_service_it_is_the_service_that_is_missing(
    guarded: Bench,
):
    async with AgentClient.connect(user(guarded, "least")) as client:
        with pytest.raises(ServiceUnreachable, match="no service answers"):
            await client.status("t-1")
