"""`agent-actors up` as a newcomer has it: everything embedded, from the first line to the last."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from support.processes import pids_named
from support.until import until

from agent_actors.client import AgentClient
from agent_actors.contract import AgentTask

pytestmark = [pytest.mark.ray, pytest.mark.nats]

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "points": {"type": "integer"}},
    "required": ["title", "points"],
}


async def command(*args: str, url: str = "") -> Process:
    """Start a command with a home that does not exist, and nothing said about Ray's token."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    env |= {"HOME": "/nonexistent", "AGENT_ACTORS_NATS_URL": url, "AGENT_ACTORS_VLLM_API_KEY": ""}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent_actors", *args), env=env, stdout=PIPE, stderr=PIPE
    )


async def output(*args: str, url: str) -> tuple[int | None, bytes]:
    process = await command(*args, url=url)
    out, _ = await process.communicate()
    return process.returncode, out


@asynccontextmanager
async def running_up(data_dir: Path) -> AsyncIterator[tuple[Process, dict]]:
    up = await command("up", "--port", "0", "--data-dir", str(data_dir), "--json")
    assert up.stdout is not None
    assert up.stderr is not None
    try:
        line = await up.stdout.readline()
        assert line, (await up.stderr.read()).decode()
        yield up, json.loads(line)
    finally:
        if up.returncode is None:
            up.kill()
            await up.wait()


async def test_up_does_the_whole_job_and_leaves_nothing_behind(tmp_path: Path):
    before = set(pids_named(""))
    async with running_up(tmp_path) as (up, ready):
        url, folder = ready["nats_url"], Path(ready["logs"])
        assert ready["simulated"]
        assert ready["pools"] == {"default": 2}

        watch = await command("watch", "--json", url=url)
        assert watch.stderr is not None
        assert watch.stdout is not None
        await watch.stderr.readline()

        code, out = await output("submit", "Write a haiku", "--wait", "--json", url=url)
        plain = json.loads(out)
        assert (code, plain["status"], plain["role"]) == (0, "completed", "DEV")
        assert "haiku" in plain["proposal"]["content"]
        assert json.loads(await watch.stdout.readline()) == plain

        async with AgentClient.connect(url) as client:
            response_format = {
                "type": "json_schema",
                "json_schema": {"name": "plan", "schema": SCHEMA},
            }
            task = AgentTask(
                task_id="with-schema",
                task_description="Plan the next sprint",
                constraints={"response_format": response_format},
            )
            result = await (await client.submit(task)).result(timeout_s=30)
            assert result.proposal is not None
            answer = json.loads(result.proposal.content)
            assert isinstance(answer["title"], str)
            assert isinstance(answer["points"], int)

        raw = await nats.connect(url)
        await raw.publish("agent.tasks.dev", b'{"task_id": "bad", "task_description": 5}')
        await raw.flush()
        await raw.close()
        results = [json.loads(await watch.stdout.readline()) for _ in range(2)]
        assert (results[1]["task_id"], results[1]["error_type"]) == ("bad", "InvalidTask")
        code, out = await output("status", "bad", url=url)
        assert (code, b"InvalidTask: task_description: " in out) == (1, True)

        code, out = await output("pools", "--json", url=url)
        (pool,) = json.loads(out)
        assert (code, pool["state"], pool["settled"], pool["pending"]) == (0, "running", 3, 0)

        watch.send_signal(signal.SIGINT)
        assert await watch.wait() == 0
        started = set(pids_named("")) - before - {up.pid}
        up.terminate()
        out, err = await up.communicate()
        assert (up.returncode, out) == (0, b""), err.decode()
        assert b"Stopped." in err
        await until(lambda: not any(is_alive(pid) for pid in started), timeout_s=5)
    assert not os.access(folder, os.F_OK)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
