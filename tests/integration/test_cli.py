"""Commands as processes of their own, against a real NATS; a scripted service answers them."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from support.bench import Bench, a_result, working_bench
from support.commands import Ended, ended, start
from support.nats import NatsServer
from support.ready import free_port
from support.until import until

from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.cli import COMMANDS
from agent_actors.config import NatsConfig
from agent_actors.contract import (
    ActorStatus,
    CancelReply,
    CancelState,
    EndpointStatus,
    PoolStatus,
    ServiceStatus,
    TaskState,
    encode,
    utc_now,
)

# Twice what it is on a small machine that does other things besides.
QUICK_CPU_S = 0.5


@pytest.fixture
async def bench(nats_server: NatsServer) -> AsyncIterator[Bench]:
    async with working_bench(nats_server, NatsConfig(url=nats_server.url)) as bench:
        yield bench


async def run(url: str, *args: str) -> Ended:
    return await ended(await start(url, *args))


# How they start.


@contextmanager
def cpu_of_children() -> Iterator[list[float]]:
    spent: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield spent
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


@pytest.mark.parametrize(
    "args",
    [
        ("--help",),
        ("version",),
        ("schema",),
        ("config", "show"),
        *((name, "--help") for name in COMMANDS if name not in {"serve", "config"}),
    ],
    ids=" ".join,
)
def test_a_command_starts_quickly_and_without_ray(args: tuple[str, ...], tmp_path: Path):
    listing = tmp_path / "modules"
    script = (
        "import atexit, sys; from pathlib import Path; "
        f"atexit.register(lambda: Path({str(listing)!r}).write_text(' '.join(sys.modules))); "
        "from agent_actors.cli import main; main()"
    )
    with cpu_of_children() as spent:
        subprocess.run([sys.executable, "-c", script, *args], check=True, stdout=subprocess.DEVNULL)
    modules = listing.read_text().split()
    assert "agent_actors.cli" in modules
    assert "ray" not in modules
    assert spent[0] < QUICK_CPU_S


def test_the_module_and_the_program_are_the_same():
    program = Path(sys.executable).with_name("agent-actors")
    as_module = subprocess.run(
        [sys.executable, "-m", "agent_actors", "--help"], check=True, capture_output=True
    )
    assert b"Usage: agent-actors [OPTIONS]" in as_module.stdout
    if program.exists():
        as_program = subprocess.run([program, "--help"], check=True, capture_output=True)
        assert as_program.stdout == as_module.stdout


# Handing in.


@pytest.mark.nats
async def test_submit_prints_the_id_that_it_made_up(bench: Bench):
    ended = await run(bench.url, "submit", "write it")
    stored = json.loads((await bench.js.get_msg("AGENT_TASKS", 1)).data)
    assert ended == Ended(0, f"{stored['task_id']} submitted to agent.tasks.dev\n", "")
    assert stored["task_description"] == "write it"


@pytest.mark.nats
async def test_submit_tells_of_a_task_that_was_there_before(bench: Bench):
    args = ("submit", "write it", "--task-id", "t-1", "--json")
    first, again = await run(bench.url, *args), await run(bench.url, *args)
    task = {"task_id": "t-1", "subject": "agent.tasks.dev", "stream_seq": 1}
    assert json.loads(first.out) == {**task, "duplicate": False}
    assert json.loads(again.out) == {**task, "duplicate": True}
    assert "t-1 was submitted before" in again.err


@pytest.mark.nats
@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("failed", 1)])
async def test_submit_waits_and_ends_as_the_task_does(bench: Bench, state: TaskState, code: int):
    await bench.record("t-1", state)
    ended = await run(bench.url, "submit", "x", "--task-id", "t-1", "--wait")
    assert ended.code == code
    assert ended.out.startswith(f"t-1 {state}  (DEV on default-0")
    assert ended.err == "t-1 submitted to agent.tasks.dev\n"
    ended = await run(bench.url, "submit", "x", "--task-id", "t-1", "--wait", "--json")
    assert ended.code == code
    assert json.loads(ended.out)["status"] == state


@pytest.mark.nats
@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("cancel_requested", "t-1: cancel requested; it fails as Cancelled: at once if it runs, "),
        ("cancelled", "t-1: was cancelled before\n"),
        ("completed", "t-1: has completed already\n"),
        ("failed", "t-1: has failed already\n"),
    ],
)
async def test_cancel_says_what_it_came_to(bench: Bench, state: CancelState, said: str):
    asked: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        asked.append(request)
        return encode(CancelReply(task_id="t-1", state=state))

    await bench.serve({"cancel": answer})
    ended = await run(bench.url, "cancel", "t-1")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(said)
    ended = await run(bench.url, "cancel", "t-1", "--json")
    assert json.loads(ended.out) == {"task_id": "t-1", "state": state}
    assert asked == [b'{"task_id":"t-1"}'] * 2


@pytest.mark.nats
async def test_cancel_without_a_service_ends_with_3(bench: Bench):
    ended = await run(bench.url, "cancel", "t-1")
    assert (ended.code, ended.out) == (3, "")
    assert "no service answers" in ended.err
    assert (await run(bench.url, "cancel", "")).code == 2


@pytest.mark.nats
async def test_status_tells_of_a_cancel_that_is_not_done_yet(bench: Bench):
    await bench.record("t-1", "waiting", attempt=2, cancelled=True)
    ended = await run(bench.url, "status", "t-1")
    assert ended.out == "t-1 waiting  (after attempt 2, for the next, cancel requested)\n"


@pytest.mark.nats
async def test_a_wait_in_vain_ends_with_3_and_says_where_the_task_stands(bench: Bench):
    ended = await run(bench.url, "submit", "x", "--task-id", "t-1", "--wait", "--timeout", "0.1")
    assert ended.code == 3
    assert "Error: t-1 has no result after 0.1 s: no agent has begun it" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.nats
async def test_a_terminal_sees_how_the_task_fares(bench: Bench):
    ours, theirs = os.openpty()
    process = await start(
        bench.url, "submit", "x", "--task-id", "t-1", "--wait", stdout=PIPE, stderr=theirs
    )
    os.close(theirs)
    terminal = Terminal(ours)
    await until(lambda: terminal.shows("waiting for an agent"))

    async def shows_the_event() -> bool:
        await bench.tell("t-1", "started")  # again and again: an event may be missed
        return terminal.shows("running on default-0, attempt 1")

    await until(shows_the_event)
    await bench.record("t-1", "completed")
    out, _ = await process.communicate()
    assert out.startswith(b"t-1 completed")


@pytest.mark.nats
async def test_whoever_waits_sees_what_the_agent_does_from_the_first_event_on(bench: Bench):
    process = await start(bench.url, "submit", "x", "--task-id", "t-1", "--wait")
    assert process.stderr is not None
    assert process.stdout is not None
    assert await process.stderr.readline() == b"t-1 submitted to agent.tasks.dev\n"
    name = {"tool": "files", "operation": "read_file"}
    await bench.tell("t-1", "token", text="I will look.")
    await bench.tell("t-1", "tool_call", **name, params={"path": "a.py"})
    await bench.tell("t-1", "tool_result", **name, success=True, duration_ms=1, summary="3 lines")
    assert (await process.stderr.readline()).decode() == '→ files.read_file path="a.py"\n'
    assert (await process.stderr.readline()).decode() == "✓ files.read_file 3 lines (1 ms)\n"
    await bench.record("t-1", "completed")
    await bench.tell("t-1", "finished")
    assert (await process.stdout.readline()).startswith(b"t-1 completed")
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


@pytest.mark.nats
async def test_a_program_that_waits_reads_nothing_but_the_result(bench: Bench):
    process = await start(bench.url, "submit", "x", "--task-id", "t-1", "--wait", "--json")

    async def submitted() -> bool:
        return (await bench.js.stream_info("AGENT_TASKS")).state.messages == 1

    await until(submitted)
    await bench.tell("t-1", "tool_call", tool="files", operation="read_file", params={})
    await bench.record("t-1", "completed")
    out, err = await process.communicate()
    assert json.loads(out)["status"] == "completed"
    assert err == b""


class Terminal:
    """What a program shows on its terminal."""

    def __init__(self, descriptor: int) -> None:
        self._shown = ""
        self._descriptor = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def shows(self, words: str) -> bool:
        return words in self._shown

    def _read(self) -> None:
        try:
            self._shown += os.read(self._descriptor, 4096).decode()
        except OSError:  # the program has ended
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)


# Asking and looking on.


@pytest.mark.nats
@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        ("completed", 0, "t-1 completed  (DEV"),
        ("failed", 1, "t-1 failed  (DEV"),
        ("running", 0, "t-1 running  (attempt 2, on default-0)"),
        ("waiting", 0, "t-1 waiting  (after attempt 2, for the next)"),
        (None, 0, "t-1 unknown  (no agent has begun it, or there is no such task)"),
    ],
)
async def test_status_tells_where_a_task_stands(
    bench: Bench, state: TaskState | None, code: int, said: str
):
    if state:
        await bench.record("t-1", state, attempt=2, agent_id="default-0")
    ended = await run(bench.url, "status", "t-1")
    assert (ended.code, ended.err) == (code, "")
    assert ended.out.startswith(said)
    as_json = await run(bench.url, "status", "t-1", "--json")
    assert json.loads(as_json.out)["state"] == (state or "unknown")


PATCH = b"--- a/x\n+++ b/x\n-old\r\n+\xc3\xbc\x1b[0m\r\n"


@pytest.mark.nats
@pytest.mark.parametrize("where", ["in the result", "in the object store"])
async def test_status_prints_the_diff_of_a_task_byte_for_byte(bench: Bench, where: str):
    diff: object = PATCH.decode()
    if where == "in the object store":
        diff = await JetStreamArtifacts(bench.link).put("t-1/lease/diff", PATCH)
    await bench.record("t-1", "completed", result_with={"artifacts": {"diff": diff}})
    process = await start(bench.url, "status", "t-1", "--diff")
    assert await process.communicate() == (PATCH, b"")
    assert process.returncode == 0


@pytest.mark.nats
async def test_status_says_when_there_is_no_diff(bench: Bench):
    await bench.record("t-1", "completed")
    assert await run(bench.url, "status", "t-1", "--diff") == Ended(
        0, "", "t-1 is completed and has no diff\n"
    )
    assert (await run(bench.url, "status", "--diff")).code == 2


async def serve_pools(bench: Bench, *pools: PoolStatus) -> None:
    """Answer what the service does."""
    service = ServiceStatus(
        version="1",
        supervisor_id="ns/it",
        started=utc_now(),
        pools=list(pools),
        unserved={"agent.tasks.qa": 3} if pools[0].name == "default" else {},
        trouble="nats.url: restart the service" if pools[0].name == "default" else "",
    )

    async def status(_: bytes) -> bytes:
        return encode(service)

    await bench.serve({"status": status})


@pytest.mark.nats
async def test_pools_tell_what_confines_commands_and_shout_when_nothing_does(bench: Bench):
    def pool(name: str, *sandboxes: str) -> PoolStatus:
        actors = [
            ActorStatus(
                agent_id=f"{name}-{index}", state="running", slots=1, slots_used=0, sandbox=sandbox
            )
            for index, sandbox in enumerate(sandboxes)
        ]
        return PoolStatus(name=name, subjects=[], state="running", actors=actors)

    odd = "unavailable: no bwrap"
    await serve_pools(bench, pool("a", "bwrap", "bwrap"), pool("b", "none", odd), pool("c", ""))
    ended = await run(bench.url, "pools")
    assert ended.out.splitlines()[-3:] == [
        "a: sandbox bwrap",
        "b: sandbox none (commands are not confined) on b-0",
        "b: sandbox unavailable: no bwrap on b-1",
    ]
    as_json = json.loads((await run(bench.url, "pools", "--json")).out)
    assert as_json[1]["actors"][0]["sandbox"] == "none"


@pytest.mark.nats
async def test_pools_tell_how_much_is_asked_of_each_model_server(bench: Bench):
    def actor(number: int, *endpoints: EndpointStatus) -> ActorStatus:
        return ActorStatus(
            agent_id=f"a-{number}", state="running", slots=9, slots_used=0, endpoints=[*endpoints]
        )

    told = EndpointStatus(url="http://one", limit=40, in_flight=38, waiting=3)
    silent = EndpointStatus(url="http://other", limit=1_024, in_flight=2)
    actors = [actor(0, told, silent), actor(1, replace(told, in_flight=30, waiting=5))]
    await serve_pools(bench, PoolStatus(name="a", subjects=[], state="running", actors=actors))
    ended = await run(bench.url, "pools")
    assert ended.out.splitlines()[-2:] == [
        "a: http://one: 68 of at most 80 requests under way, 5 waiting there",
        "a: http://other: 2 of at most 1024 requests under way",
    ]
    as_json = json.loads((await run(bench.url, "pools", "--json")).out)
    assert as_json[0]["actors"][0]["endpoints"][0]["limit"] == 40


@pytest.mark.nats
async def test_pools_tell_what_nats_does_not_do_for_one_actor(bench: Bench):
    def actor(number: int, trouble: str) -> ActorStatus:
        return ActorStatus(
            agent_id=f"a-{number}", state="running", slots=1, slots_used=0, trouble=trouble
        )

    one = [actor(0, ""), actor(1, "no answer")]
    everywhere = [actor(0, "denied"), actor(1, "denied")]
    await serve_pools(
        bench,
        PoolStatus(name="a", subjects=[], state="running", actors=one),
        PoolStatus(name="b", subjects=[], state="stalled", reason="denied", actors=everywhere),
    )
    *_, first, second, below = (await run(bench.url, "pools")).out.splitlines()
    assert first.split()[:2] == ["a", "running"]
    assert second.split()[:3] == ["b", "stalled:", "denied"]
    assert below == "a: a-1: no answer"


@pytest.mark.nats
async def test_status_and_pools_tell_what_the_service_does(bench: Bench):
    actors = [
        ActorStatus(agent_id="default-0", state="running", slots=32, slots_used=5),
        ActorStatus(agent_id="default-1", state="starting", slots=0, slots_used=0),
    ]
    pool = PoolStatus(
        name="default",
        subjects=["agent.tasks.>"],
        state="stalled",
        reason="consumer missing",
        actors=actors,
        wanted=2,
        sized_by="hand",
        running=1,
        starting=1,
        slots=32,
        slots_used=5,
        settled=7,
        rate=2.5,
    )
    await serve_pools(bench, pool)
    of_service, of_pools = await run(bench.url, "status"), await run(bench.url, "pools")
    assert "agent-actors 1, supervisor ns/it, running since" in of_service.out
    row = of_pools.out.splitlines()[-3].split()
    assert of_pools.out.splitlines()[-2:] == [
        "agent.tasks.qa: no pool serves it; 3 tasks wait",
        "configuration: nats.url: restart the service",
    ]
    assert " ".join(row) == (
        "default stalled: consumer missing agent.tasks.> 1/2, 1 starting, by hand 5/32 ? ? 7 2.5/s"
    )
    assert of_pools.out in of_service.out
    assert json.loads((await run(bench.url, "pools", "--json")).out)[0]["settled"] == 7


@pytest.mark.nats
async def test_watch_prints_results_until_it_is_interrupted(bench: Bench):
    process = await start(bench.url, "watch", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"Watching" in await process.stderr.readline()
    for task_id in ("t-1", "t-2"):
        await bench.announce(a_result(task_id))
        assert json.loads(await process.stdout.readline())["task_id"] == task_id
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"", b"")


@pytest.mark.nats
async def test_watch_prints_a_line_for_people(bench: Bench):
    process = await start(bench.url, "watch", "--task-id", "t-2")
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"Watching" in await process.stderr.readline()
    await bench.announce(a_result("t-1"))
    await bench.announce(a_result("t-2", "failed"))
    assert (await process.stdout.readline()).decode().split()[1:4] == ["failed", "DEV", "t-2"]
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 0


# Streams.


@pytest.mark.nats
async def test_provision_makes_what_a_dry_run_only_tells(nats_server: NatsServer):
    planned = await run(nats_server.url, "provision", "--dry-run", "--json")
    made = await run(nats_server.url, "provision", "--json")
    again = await run(nats_server.url, "provision")
    assert json.loads(planned.out) == json.loads(made.out)
    assert {change["action"] for change in json.loads(made.out)} == {"created"}
    assert again.out.count("unchanged") == len(json.loads(made.out))


@pytest.mark.nats
async def test_a_change_that_would_lose_messages_ends_with_2(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    for _ in range(2):
        await bench.announce(a_result("t-1"))
    monkeypatch.setenv("AGENT_ACTORS_STREAMS_RESPONSES_MAX_BYTES", "1")
    ended = await run(bench.url, "provision")
    assert ended.code == 2
    assert "AGENT_RESPONSES" in ended.err


@pytest.mark.nats
async def test_without_streams_submit_names_the_remedy(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AGENT_ACTORS_NATS_REQUEST_TIMEOUT_S", "0.2")
    ended = await run(nats_server.url, "submit", "x")
    assert ended.code == 3
    assert "run `agent-actors provision`" in ended.err


# When nobody is there.


@pytest.mark.parametrize("command", ["status", "pools", "watch", "provision"])
async def test_without_nats_it_ends_with_3_and_says_where_it_looked(command: str):
    url = f"nats://127.0.0.1:{free_port()}"
    ended = await run(url, command)
    assert ended.code == 3
    assert ended.out == ""
    assert ended.err.startswith(f"Error: cannot connect to NATS at {url}: ")
    assert ended.err.count("\n") == 1


@pytest.mark.nats
async def test_without_a_service_status_ends_with_3(bench: Bench):
    ended = await run(bench.url, "status")
    assert ended.code == 3
    assert ended.err == (
        "Error: no service answers: start one with `agent-actors up` or `agent-actors serve`\n"
    )
