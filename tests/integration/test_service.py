"""The main job on the real parts: NATS, Ray, a model server over HTTP."""

import asyncio
import os
import signal
from collections import Counter

import msgspec
import pytest
from support.nats import NatsServer
from support.processes import kill_one, pids_named
from support.service import RunningService, running_service
from support.until import until

from agent_actors.contract import AgentResult
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

SUPERVISOR, ACTOR = "ray::Supervisor", "ray::AgentActor"
SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=100)))


async def test_any_json_on_a_task_subject_comes_back_as_a_result(nats_server: NatsServer):
    async with (
        running_model_server(ModelServerSettings()) as model,
        running_service(nats_server, model.url) as running,
    ):
        await running.publish_raw(
            b'{"task_id": "job/\xc3\xbc", "task_description": "Write a haiku", "extra": 1,'
            b' "constraints": {"language": "python", "timeout": 30}}',
            "agent.tasks.qa",
        )
        (result,) = await running.results(1)
        assert result.status == "completed"
        assert result.success
        assert result.task_id == "job/ü"
        assert result.role == "QA"
        assert result.constraints == {"language": "python", "timeout": 30}
        assert result.proposal is not None
        assert "haiku" in result.proposal.content
        assert result.usage.total_tokens > 0
        message = await running.js.get_msg("AGENT_RESPONSES", 1)
        assert message.headers is not None
        assert message.headers["Nats-Msg-Id"] == "job=2F=C3=BC"
        await running.until_queue_is_empty()


async def test_bad_messages_fail_by_name_and_leave_the_queue(nats_server: NatsServer):
    bad = {
        "not JSON": b"{oops",
        "not an object": b"[1, 2]",
        "invalid UTF-8": b'{"task_id": "u", "task_description": "\xff"}',
        "no id": b'{"task_description": "x"}',
        "a wrong type": b'{"task_id": 5, "task_description": "x"}',
        "no description": b'{"task_id": "no-description"}',
        "an empty description": b'{"task_id": "empty", "task_description": "  "}',
        "an over-long id": msgspec.json.encode({"task_id": "x" * 129, "task_description": "x"}),
        "another role": b'{"task_id": "role", "task_description": "x", "role": "QA"}',
        "deep nesting": b'{"task_id": "deep", "task_description": "x", "constraints": {"a": '
        + b"[" * 5_000
        + b"]" * 5_000
        + b"}}",
        "a huge number": b'{"task_id": "huge", "task_description": "x",'
        b' "constraints": {"n": 1e999}}',
        "too many bytes": msgspec.json.encode(
            {"task_id": "big", "task_description": "x" * (1024 * 1024 - 100)}
        ),
    }
    async with (
        running_model_server(ModelServerSettings()) as model,
        running_service(nats_server, model.url) as running,
    ):
        for payload in bad.values():
            await running.publish_raw(payload)
        await running.publish("good")
        results = {result.task_id: result for result in await running.results(len(bad) + 1)}
        assert results.pop("good").status == "completed"
        assert len(results) == len(bad)
        assert {result.error_type for result in results.values()} == {"InvalidTask"}
        assert results["no-description"].error == "task_description: is missing"
        assert (results["role"].error or "").startswith("role: ")
        assert "unknown:AGENT_TASKS:1" in results
        await running.until_queue_is_empty()
        letters = await running.dead_letters()
        kept = [letter.data for letter in letters if letter.data]
        in_store = [letter for letter in letters if not letter.data]
        assert sorted(kept) == sorted(set(bad.values()) - {bad["too many bytes"]})
        assert len(in_store) == 1


async def test_a_thousand_tasks_outlive_a_killed_actor_and_a_killed_supervisor(
    nats_server: NatsServer,
):
    good = [f"task-{number}" for number in range(997)]
    async with (
        running_model_server(SLOW) as model,
        running_service(nats_server, model.url, actors=2, slots=32, ack_wait_s=4) as running,
    ):
        publishes = [running.publish(task_id) for task_id in good]
        publishes += [running.publish(f"invalid-{number}", "") for number in range(3)]
        await asyncio.gather(*publishes)
        await running.results(200)
        kill_one(ACTOR)
        await running.results(600)
        kill_one(SUPERVISOR)
        await running.results(1_000)
        expected = Counter(good) + Counter(f"invalid-{number}" for number in range(3))
        assert await running.announced() == expected
        outcomes = Counter(result.status for result in await running.results(1_000))
        assert outcomes == {"completed": 997, "failed": 3}


async def test_stopping_leaves_no_actor_behind(nats_server: NatsServer):
    async with running_model_server(ModelServerSettings()) as model:
        async with running_service(nats_server, model.url):
            assert len(pids_named(SUPERVISOR)) == 1
            assert len(pids_named(ACTOR)) == 2
        await until(lambda: not pids_named(SUPERVISOR) and not pids_named(ACTOR))


async def test_an_attempt_that_slept_through_its_takeover_changes_nothing(nats_server: NatsServer):
    """A frozen actor loses its task by `ack_wait`; woken up, it finds that it lost it."""
    async with (
        running_model_server(SLOW) as model,
        running_service(nats_server, model.url, actors=2, slots=1, ack_wait_s=1) as running,
    ):
        events = await running.link.nc.subscribe("agent.events.frozen.started")
        await running.publish("frozen")
        first = msgspec.json.decode((await events.next_msg(timeout=10)).data)["agent_id"]
        pid = await pid_of(running, first)
        os.kill(pid, signal.SIGSTOP)
        try:
            second = msgspec.json.decode((await events.next_msg(timeout=20)).data)["agent_id"]
            assert second != first
            (result,) = await running.results(1)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert result.agent_id == second
        await running.publish("afterwards-1")
        await running.publish("afterwards-2")
        await running.results(3)
        assert await running.announced() == {"frozen": 1, "afterwards-1": 1, "afterwards-2": 1}
        committed = msgspec.json.decode((await running.record("frozen")).result, type=AgentResult)
        assert committed == result


async def pid_of(running: RunningService, agent_id: str) -> int:
    status = await asyncio.to_thread(running.service.status)
    return next(a.pid for pool in status.pools for a in pool.actors if a.agent_id == agent_id)
