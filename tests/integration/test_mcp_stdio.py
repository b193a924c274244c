"""Servers that are programs: a real one, written with the SDK, in both eras of the protocol."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from support.until import until

pytest.importorskip("mcp", reason="the extra agent-actors[mcp] is not installed")

from structlog.testing import capture_logs
from support.mcp_servers.running import (
    NOWHERE,
    QUICK,
    as_program,
    call,
    connected,
    is_alive,
    tool,
)

from agent_actors.adapters.mcp.session import Pace
from agent_actors.config_tools import McpServerConfig
from agent_actors.config_types import Secret
from agent_actors.errors import ToolError

CANARY = "canary-7f3a9c1e5b"

both_eras = pytest.mark.parametrize("era", [(), ("legacy",)], ids=["modern", "legacy"])


@both_eras
async def test_tools_are_offered_and_called(era: tuple[str, ...]):
    async with connected({"shed": as_program(*era)}) as servers:
        add = await tool(servers, "shed__add")
        output = await add.call(NOWHERE, {"a": 19, "b": 23})
        assert (add.group, add.operation, add.reads) == ("shed", "add", True)
        assert add.offered.function.description == "Add two numbers."
        assert add.offered.function.parameters["required"] == ["a", "b"]
        assert output.text == "42"
        assert servers.states() == {"shed": "ready"}


async def test_a_tool_writes_unless_server_or_configuration_say_that_it_reads():
    async with connected({"shed": as_program(read_only_tools=("grow",))}) as servers:
        reads = {each.operation: each.reads for each in await servers.tools()}
        assert (reads["add"], reads["crash"], reads["grow"]) == (True, False, True)


async def test_starting_does_not_wait_for_a_server():
    async with connected({"shed": as_program()}) as servers:
        assert servers.states() == {"shed": "starting"}


@both_eras
async def test_the_list_of_tools_follows_the_server(era: tuple[str, ...]):
    async with connected({"shed": as_program(*era)}, pace=Pace()) as servers:
        await call(servers, "shed__grow", name="ladder")
        assert (await call(servers, "shed__ladder")).text == "grown"
        await call(servers, "shed__shrink", name="ladder")

        async def is_gone() -> bool:
            return "shed__ladder" not in {each.name for each in await servers.tools()}

        await until(is_gone)


async def test_a_killed_server_is_started_again():
    async with connected({"shed": as_program()}) as servers:
        first = int((await call(servers, "shed__pid")).text)
        with capture_logs() as logs:
            os.kill(first, signal.SIGKILL)
            await until(lambda: servers.states()["shed"].startswith("away"))
            assert await servers.tools() == []
            second = int((await call(servers, "shed__pid")).text)
        assert second != first
        away = [entry for entry in logs if entry["event"] == "mcp.away"]
        assert [(entry["log_level"], entry["reason"]) for entry in away] == [
            ("warning", "its process ended with exit code 137")
        ]


async def test_a_call_out_of_time_fails_and_is_cancelled():
    async with connected({"shed": as_program(timeout_s=0.5)}) as servers:
        with pytest.raises(ToolError, match=r"hang took longer than 0\.5 s and was given up"):
            await call(servers, "shed__hang", name="slow")
        assert (await call(servers, "shed__cancellations")).text == "slow"


@both_eras
async def test_a_cancelled_call_is_cancelled_at_the_server(era: tuple[str, ...]):
    async with connected({"shed": as_program(*era)}) as servers:
        hang = await tool(servers, "shed__hang")
        calling = asyncio.create_task(hang.call(NOWHERE, {"name": "unwanted"}))
        # The next answer proves that the server has the first call by now: they come in order.
        await call(servers, "shed__add", a=1, b=1)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

        async def is_told() -> bool:
            return (await call(servers, "shed__cancellations")).text == "unwanted"

        await until(is_told)


async def test_calls_run_side_by_side():
    async with connected({"shed": as_program()}) as servers:
        hang = await tool(servers, "shed__hang")
        hanging = [asyncio.create_task(hang.call(NOWHERE, {"name": f"{i}"})) for i in range(20)]
        assert (await call(servers, "shed__add", a=1, b=2)).text == "3"
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)


async def test_a_frozen_server_is_replaced():
    pace = Pace(ping_s=2, list_s=2, first_pause_s=0.05)
    # A legacy server, so that only the ping can find out.
    async with connected({"shed": as_program("legacy", timeout_s=1)}, pace=pace) as servers:
        frozen = int((await call(servers, "shed__pid")).text)
        with pytest.raises(ToolError, match="freeze took longer than 1 s"):
            await call(servers, "shed__freeze")
        await until(lambda: not is_alive(frozen))
        assert int((await call(servers, "shed__pid")).text) != frozen


async def test_a_writing_call_is_not_repeated_when_the_server_dies_in_it(tmp_path: Path):
    async with connected({"shed": as_program()}) as servers:
        with pytest.raises(ToolError) as failure:
            await call(servers, "shed__crash", marker=str(tmp_path / "calls"))
        assert str(failure.value) == (
            "the MCP server shed was lost during the call (its process ended with exit code 3: "
            "out of cheese); whether the call took effect is not known"
        )
        await call(servers, "shed__pid")
        assert (tmp_path / "calls").read_text() == "called\n"


async def test_a_reading_call_is_repeated_once_when_the_server_dies_in_it(tmp_path: Path):
    async with connected({"shed": as_program()}) as servers:
        output = await call(servers, "shed__crash_once", marker=str(tmp_path / "calls"))
        assert output.text == "survived"
        assert (tmp_path / "calls").read_text() == "called\n"


async def test_a_reading_call_that_kills_the_server_twice_fails(tmp_path: Path):
    config = as_program(read_only_tools=("crash",))
    async with connected({"shed": config}) as servers:
        with pytest.raises(ToolError, match="lost during the call, twice"):
            await call(servers, "shed__crash", marker=str(tmp_path / "calls"))
        assert (tmp_path / "calls").read_text() == "called\ncalled\n"


async def test_what_the_server_calls_an_error_is_told():
    async with connected({"shed": as_program()}) as servers:
        with pytest.raises(ToolError, match="the shed is locked"):
            await call(servers, "shed__fail")


async def test_wrong_arguments_do_not_reach_the_server(tmp_path: Path):
    async with connected({"shed": as_program()}) as servers:
        with pytest.raises(ToolError, match=r"wrong arguments for shed__crash: at \$.marker"):
            await call(servers, "shed__crash", marker=["no", "text"])
        assert servers.states() == {"shed": "ready"}


async def test_contents_of_all_kinds_become_text():
    async with connected({"shed": as_program()}) as servers:
        assert (await call(servers, "shed__media")).text.splitlines() == [
            "first",
            "[image of type image/png, 10 bytes]",
            "[audio of type audio/wav, 10 bytes]",
            "[link to the resource file:///log, type text/plain]",
            "a note",
            "[resource file:///blob of type application/zip, 10 bytes]",
        ]
        assert (await call(servers, "shed__structured")).text == '{"rows":[1,2]}'


async def test_a_big_answer_comes_whole_and_a_huge_one_fails_alone():
    async with connected({"shed": as_program()}) as servers:
        process = (await call(servers, "shed__pid")).text
        assert len((await call(servers, "shed__big", size=1_000_000)).text) == 1_000_000
        with pytest.raises(ToolError, match="more than 16777216 bytes: ask for less"):
            await call(servers, "shed__big", size=20_000_000)
        assert (await call(servers, "shed__pid")).text == process


async def test_a_server_gets_its_own_secrets_and_none_of_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", CANARY)
    monkeypatch.setenv("VLLM_API_KEY", CANARY)
    config = as_program(env={"SHED_TOKEN": Secret("${MINE}"), "MODE": Secret("quiet")})
    given = {"PATH": os.environ["PATH"], "HOME": "/home/x", "MINE": "own-secret-1", "OTHER": CANARY}
    async with connected({"shed": config}, environment=given) as servers:
        text = (await call(servers, "shed__environment")).text
    assert CANARY not in text
    own = json.loads(text)["own"]
    # LC_CTYPE is what Python sets itself where no LANG is given.
    assert set(own) - {"LC_CTYPE"} == {"PATH", "HOME", "SHED_TOKEN", "MODE"}
    assert own["MODE"] == "quiet"


async def test_the_secrets_of_a_server_are_in_no_output_and_no_log():
    config = as_program(env={"SHED_TOKEN": Secret("${SHED_TOKEN}")})
    given = {"PATH": os.environ["PATH"], "SHED_TOKEN": CANARY}
    with capture_logs() as logs:
        async with connected({"shed": config}, environment=given) as servers:
            assert CANARY not in (await call(servers, "shed__environment")).text
            await call(servers, "shed__complain", text=f"refused: {CANARY}")
            await until(lambda: any(entry["event"] == "mcp.stderr" for entry in logs))
    assert CANARY not in str(logs)
    assert {"event": "mcp.stderr", "line": "refused: ***"}.items() <= next(
        entry for entry in logs if entry["event"] == "mcp.stderr"
    ).items()


async def test_a_flood_on_stderr_is_read_and_cut():
    with capture_logs() as logs:
        async with connected({"shed": as_program()}) as servers:
            await call(servers, "shed__complain", text="y" * 1_000_000)
            await until(lambda: any(entry["event"] == "mcp.stderr" for entry in logs))
    assert max(len(str(entry)) for entry in logs) < 2_000


async def test_a_program_that_is_not_there_is_told_once_and_does_not_break_the_others():
    missing = McpServerConfig(command="no-such-program-here")
    with capture_logs() as logs:
        async with connected({"shed": as_program(), "gone": missing}) as servers:
            assert (await call(servers, "shed__add", a=1, b=2)).text == "3"
            assert servers.states()["gone"] == (
                "away: its process ended with exit code 127: cannot run no-such-program-here: "
                "No such file or directory"
            )
            tries = [entry for entry in logs if entry["event"] == "mcp.away"]
            await until(lambda: len(tries) < _count(logs, "mcp.away"))
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [(entry["event"], entry["server"]) for entry in warnings] == [("mcp.away", "gone")]


async def test_a_program_that_speaks_no_protocol_is_away():
    silent = McpServerConfig(command="cat")
    async with connected({"cat": silent}, pace=Pace(start_s=0.3)) as servers:
        await until(lambda: servers.states()["cat"].startswith("away"))


async def test_stray_output_is_no_harm():
    script = f"echo careless; echo '{{\"no\": 1}}'; exec {sys.executable} {as_program().args[0]}"
    config = McpServerConfig(command="sh", args=("-c", script))
    async with connected({"shed": config}) as servers:
        assert (await call(servers, "shed__add", a=1, b=2)).text == "3"


async def test_a_tool_with_a_broken_schema_is_left_out():
    config = McpServerConfig(
        command=sys.executable, args=(str(Path(as_program().args[0]).with_name("odd_tools.py")),)
    )
    with capture_logs() as logs:
        async with connected({"odd": config}) as servers:
            names = {each.name for each in await servers.tools()}
    assert names == {"odd__good", "odd__by_pattern"}
    reasons = {entry["tool"]: entry["reason"] for entry in logs if "reason" in entry}
    assert set(reasons) == {"no_schema", "remote", "endless", "huge"}
    assert "leads nowhere" in reasons["remote"]


async def test_closing_ends_a_stubborn_server_and_all_that_it_has_started():
    async with connected({"shed": as_program()}, pace=QUICK) as servers:
        pids = [int((await call(servers, f"shed__{name}")).text) for name in ("pid", "spawn")]
        await call(servers, "shed__stay")
        assert all(is_alive(pid) for pid in pids)
    assert not any(is_alive(pid) for pid in pids)


async def test_nothing_stays_when_this_process_is_killed():
    script = (
        "import asyncio\n"
        "from support.mcp_servers.running import as_program, call, connected\n"
        "async def main():\n"
        "    async with connected({'shed': as_program()}) as servers:\n"
        "        for name in ('pid', 'spawn'):\n"
        "            print((await call(servers, f'shed__{name}')).text, flush=True)\n"
        "        await call(servers, 'shed__stay')\n"
        "        print('done', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout
    said = [line async for line in _until_done(process.stdout)]
    pids = [int(line) for line in said]
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    await process.wait()
    await until(lambda: not any(is_alive(pid) for pid in pids))


async def _until_done(stream: asyncio.StreamReader):
    # Logs of the child come on the same stream.
    while (line := (await stream.readline()).decode().strip()) != "done":
        assert line, "the child has ended"
        if line.isdigit():
            yield line


def _count(logs: list, event: str) -> int:
    return sum(entry["event"] == event for entry in logs)
