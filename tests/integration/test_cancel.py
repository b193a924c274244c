"""A cancel on the real parts: NATS, Ray, a model server that sees who hangs up, a sandbox."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.nats import NatsServer
from support.processes import pids_named
from support.service import RunningService, running_service
from support.until import until

from agent_actors.client import AgentClient
from agent_actors.config_tools import SandboxConfig, ToolsConfig, WorkspaceConfig
from agent_actors.contract import AgentResult, AgentTask, CancelReply, cancel_subject
from agent_actors.local.model_server.script import Rule, Script, ScriptedCall, ScriptedReply, When
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings
from agent_actors.tools.sandbox.finding import find_sandbox

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

# Longer than a test may take, so that nothing ends by itself.
FOR_EVER_MS = 600_000
ACK_WAIT_S = 100
# One second is promised; a machine that does other things besides gets more.
AT_ONCE_S = 5.0

# A test that runs a program of its own, which is a grandchild of the tool's.
CHILD = "sleep 600.25"
SLEEPER = f"""
import subprocess

def test_for_ever():
    subprocess.run({CHILD.split()!r})
"""

SLOW = Script(
    rules=(
        Rule(when=When(task="slow"), reply=ScriptedReply(delay_ms=FOR_EVER_MS)),
        Rule(when=When(task="away"), reply=ScriptedReply(status=503)),
    )
)


@asynccontextmanager
async def running(
    server: NatsServer, script: Script = SLOW, **pool: Any
) -> AsyncIterator[tuple[RunningService, RunningModelServer, AgentClient]]:
    async with (
        running_model_server(ModelServerSettings(script=script)) as model,
        running_service(server, model.url, ack_wait_s=ACK_WAIT_S, **pool) as service,
        AgentClient.connect(server.url) as client,
    ):
        yield service, model, client


def task(task_id: str, description: str = "be slow", **more: Any) -> AgentTask:
    return AgentTask(task_id=task_id, task_description=description, role="DEV", **more)


@contextmanager
def at_once() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < AT_ONCE_S


async def is_begun(model: RunningModelServer, count: int = 1) -> None:
    async with asyncio.timeout(30):
        await model.requests.until(lambda seen: seen.total >= count)


async def ended_cancelled(service: RunningService, task_id: str) -> AgentResult:
    """Return the result of a task that has ended once, as cancelled, and left no dead letter."""
    assert (await service.announced())[task_id] == 1
    results = await service.results(sum((await service.announced()).values()))
    (result,) = (each for each in results if each.task_id == task_id)
    assert (result.status, result.error_type) == ("failed", "Cancelled")
    assert (await service.record(task_id)).state == "failed"
    assert not await service.dead_letters()
    return result


async def test_a_running_task_is_stopped_at_once_and_its_model_request_is_closed(
    nats_server: NatsServer,
):
    async with running(nats_server) as (service, model, client):
        submitted = await client.submit(task("running"))
        await is_begun(model)
        with at_once():
            reply = await submitted.cancel()
            assert reply == CancelReply(task_id="running", state="cancel_requested")
            result = await submitted.result(timeout_s=30)
            await model.requests.until(lambda seen: seen[0].aborted)
        assert result.error_type == "Cancelled"
        await ended_cancelled(service, "running")
        assert model.requests.total == 1


async def test_a_queued_task_never_starts(nats_server: NatsServer):
    async with running(nats_server, actors=1, slots=1) as (service, model, client):
        await client.submit(task("first"))
        await is_begun(model)
        await client.submit(task("queued"))
        assert (await client.cancel("queued")).state == "cancel_requested"
        await client.cancel("first")
        await ended_cancelled(service, "first")
        await ended_cancelled(service, "queued")
        assert model.requests.total == 1


async def test_an_id_that_nobody_has_seen_fails_when_its_task_comes(nats_server: NatsServer):
    async with running(nats_server) as (service, model, client):
        assert (await client.cancel("job/ü")).state == "cancel_requested"
        assert (await client.status("job/ü")).state == "unknown"
        assert (await client.status("job/ü")).cancel_requested
        submitted = await client.submit(task("job/ü"))
        assert (await submitted.result(timeout_s=30)).error_type == "Cancelled"
        await ended_cancelled(service, "job/ü")
        assert model.requests.total == 0


async def test_a_finished_task_says_so_and_stays_as_it_is(nats_server: NatsServer):
    async with running(nats_server) as (service, model, client):
        done = await client.submit(task("done", "be quick"))
        before = await done.result(timeout_s=30)
        assert (await done.cancel()).state == "completed"
        await client.submit(task("stopped"))
        await is_begun(model, 2)
        await client.cancel("stopped")
        await ended_cancelled(service, "stopped")
        assert (await client.cancel("stopped")).state == "cancelled"
        assert await done.result(timeout_s=30) == before


async def test_two_cancels_at_once_end_the_task_once(nats_server: NatsServer):
    async with running(nats_server) as (service, model, client):
        await client.submit(task("twice"))
        await is_begun(model)
        replies = await asyncio.gather(client.cancel("twice"), client.cancel("twice"))
        assert {reply.state for reply in replies} <= {"cancel_requested", "cancelled"}
        await ended_cancelled(service, "twice")


async def test_a_task_that_waits_for_its_retry_does_not_start_again(nats_server: NatsServer):
    pool = {"retry_base_s": 3.0, "retry_cap_s": 3.0}
    async with running(nats_server, **pool) as (service, model, client):
        await client.submit(task("waiting", "the model is away"))

        async def waits() -> bool:
            return (await client.status("waiting")).state == "waiting"

        await until(waits)
        asked = model.requests.total
        assert (await client.cancel("waiting")).state == "cancel_requested"
        await ended_cancelled(service, "waiting")
        assert model.requests.total == asked


async def test_a_task_whose_actor_dies_right_after_the_cancel_ends_as_cancelled(
    nats_server: NatsServer,
):
    async with running(nats_server, actors=2) as (service, model, client):
        submitted = await client.submit(task("orphan"))
        await is_begun(model)
        status = await submitted.status()
        (pool,) = (await asyncio.to_thread(service.service.status)).pools
        (pid,) = (each.pid for each in pool.actors if each.agent_id == status.agent_id)
        os.kill(pid, signal.SIGSTOP)  # it hears nothing any more
        try:
            await submitted.cancel()
        finally:
            os.kill(pid, signal.SIGKILL)
        assert (await submitted.result(timeout_s=60)).error_type == "Cancelled"
        await ended_cancelled(service, "orphan")
        assert model.requests.total == 1


async def test_a_task_said_to_be_cancelled_by_somebody_who_may_not_goes_on(
    nats_server: NatsServer,
):
    script = Script(default=ScriptedReply(delay_ms=1_000))
    async with running(nats_server, script) as (service, model, client):
        submitted = await client.submit(task("going-on"))
        await is_begun(model)
        await service.link.send(cancel_subject("going-on"), b"")
        assert (await submitted.result(timeout_s=30)).status == "completed"
        assert model.requests.total == 1


async def test_the_command_of_a_running_agent_is_killed(nats_server: NatsServer, tmp_path: Path):
    sandbox, reason = await find_sandbox(SandboxConfig())
    if sandbox is None:
        pytest.skip(f"no sandbox works here: {reason}")
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    write = ScriptedCall(name="write_file", arguments={"path": "test_slow.py", "content": SLEEPER})
    run = ScriptedCall(name="pytest", arguments={})
    script = Script(replies=tuple(ScriptedReply(tool_calls=(each,)) for each in (write, run)))
    tools = ToolsConfig(workspace=WorkspaceConfig(root=str(tmp_path), keep="always"))
    async with running(nats_server, script, tools=tools) as (service, _, client):
        submitted = await client.submit(task("with-tools", enable_tools=True))
        await until(lambda: bool(pids_named(CHILD)))
        with at_once():
            await submitted.cancel()
            await until(lambda: not pids_named(CHILD))
        result = await submitted.result(timeout_s=30)
        assert [each.operation for each in result.operations] == ["write_file", "pytest"]
        assert [each.success for each in result.operations] == [True, False]
        assert result.usage.total_tokens > 0
        await ended_cancelled(service, "with-tools")
