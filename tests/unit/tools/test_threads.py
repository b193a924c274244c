"""What blocks has threads of its own, and can be given up."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from support.until import until
from support.workspaces import Agent, workspaces_in

from agent_actors.tools import finding, shadow, stoppable
from agent_actors.tools.beneath import Beneath
from agent_actors.tools.changes import Changes
from agent_actors.tools.registry import ToolOutput
from agent_actors.tools.stoppable import GivenUp, Stop, Work
from agent_actors.tools.threads import Threads
from agent_actors.tools.workspace import MAX_SEARCHES, Workspace

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def free() -> Iterator[Event]:
    """What blocked threads wait for."""
    event = Event()
    yield event
    event.set()


class Untouched(ThreadPoolExecutor):
    """The threads of the event loop, which nothing may use."""

    def submit(self, fn: Callable, /, *_args: object, **_kwargs: object) -> Future:
        raise AssertionError(f"{fn} would run in a thread of the event loop")


async def test_the_threads_of_the_event_loop_are_left_to_others(tmp_path: Path):
    asyncio.get_running_loop().set_default_executor(Untouched())
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    await workspace.mark_baseline()
    agent = Agent(workspace)
    await agent.use("write_file", path="a/b", content="x\n")
    await agent.use("append_file", path="a/b", content="y\n")
    await agent.use("edit_file", path="a/b", old_text="y", new_text="z")
    await agent.use("read_file", path="a/b")
    await agent.use("mkdir", path="c")
    await agent.use("list_files")
    await agent.use("search_in_files", pattern="z")
    await agent.use("file_info", path="a/b")
    await agent.use("diff_files", path="a/b", other_text="")
    await agent.use("delete_file", path="c")
    assert (await workspace.artifacts())["files_changed"]
    workspace.close()
    again = await workspaces.reopen(workspace.id)
    assert again is not None
    again.close()
    await workspaces.clear_away("task-1", "completed")
    await workspaces.sweep()


@pytest.fixture
def begun(free: Event, monkeypatch) -> list[str]:
    """Searches for "slow" go on until they are freed; what has begun is told here."""
    search, begun = finding._search, list[str]()

    def search_slowly(files: Beneath, arguments: finding.SearchInFiles) -> ToolOutput:
        if arguments.pattern == "slow":
            begun.append(arguments.path)
            free.wait()
        return search(files, arguments)

    monkeypatch.setattr(finding, "_search", search_slowly)
    return begun


async def test_slow_searches_of_one_task_hold_up_no_other_task(
    tmp_path: Path, begun: list[str], free: Event
):
    workspaces = workspaces_in(tmp_path)
    slow, other = [Agent(await workspaces.make(task)) for task in ("slow", "other")]
    searches = asyncio.gather(*(slow.use("search_in_files", pattern="slow") for _ in range(20)))
    await until(lambda: len(begun) == MAX_SEARCHES)
    async with asyncio.timeout(30):
        await other.use("write_file", path="a.txt", content="needle\n")
        assert "needle" in await other.use("search_in_files", pattern="needle")
        assert "needle" in (await other.workspace.artifacts())["diff"]
        assert "0 entries" in await slow.use("list_files")
    assert len(begun) == MAX_SEARCHES
    free.set()
    assert len(await searches) == 20
    for agent in (slow, other):
        agent.workspace.close()


async def test_slow_searches_of_many_tasks_hold_up_only_searches(
    tmp_path: Path, begun: list[str], free: Event
):
    workspaces = workspaces_in(tmp_path)
    *many, other = [Agent(await workspaces.make(f"task-{number}")) for number in range(13)]
    calls = [agent.use("search_in_files", pattern="slow") for agent in many * MAX_SEARCHES]
    searches = asyncio.gather(*calls)
    await until(lambda: len(begun) >= 8)
    async with asyncio.timeout(30):
        await other.use("write_file", path="a.txt", content="needle\n")
        assert "needle" in (await other.workspace.artifacts())["diff"]
    free.set()
    assert len(await searches) == 24
    for agent in (*many, other):
        agent.workspace.close()


async def test_the_time_of_work_counts_from_its_beginning(free: Event):
    threads = Threads("test", 1)
    in_the_way = threads.start(free.wait)
    waiting = asyncio.ensure_future(Work(threads, lambda _: "done").result(timeout_s=0.1))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    free.set()
    assert await waiting == "done"
    assert in_the_way.done()


async def test_work_that_finds_no_thread_is_never_begun(free: Event, monkeypatch):
    monkeypatch.setattr(stoppable, "START_WITHIN_S", 0.05)
    threads, begun = Threads("test", 1), Event()
    threads.start(free.wait)
    work = Work(threads, lambda _: begun.set())
    with pytest.raises(TimeoutError, match="no thread was free"):
        await work.result()
    assert work.has_ended
    free.set()
    await threads.run(lambda: None)
    assert not begun.is_set()


async def test_work_that_takes_too_long_is_told_to_stop():
    def endless(stop: Stop) -> None:
        while True:
            stop.check()

    work = Work(Threads("test", 1), endless)
    with pytest.raises(TimeoutError, match=r"longer than 0\.1 s"):
        await work.result(timeout_s=0.1)
    assert work.has_ended


async def test_the_error_of_work_is_passed_on():
    def fail(_stop: Stop) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await Work(Threads("test", 1), fail).result(timeout_s=10)


@pytest.mark.parametrize("is_set_before", [False, True])
async def test_the_program_of_work_that_is_given_up_is_killed(*, is_set_before: bool):
    stop, started = Stop(), Event()

    def run() -> int:
        with subprocess.Popen(SLEEP) as program:
            try:
                with stop.kills(program):
                    started.set()
                    program.wait(60)
            except GivenUp:
                return program.wait(60)
        raise AssertionError("nobody gave it up")

    if is_set_before:
        stop.set()
    threads = Threads("test", 2)
    running = asyncio.ensure_future(threads.run(run))
    await threads.run(started.wait, 60)
    if not is_set_before:
        stop.set()
    assert await running == -9


async def test_what_is_to_be_seen_to_is_done_although_its_caller_was_cancelled(free: Event):
    threads, done = Threads("test", 1), Event()
    threads.start(free.wait)
    caller = asyncio.ensure_future(threads.see_to(done.set))
    await asyncio.sleep(0)  # into the queue
    caller.cancel()
    await asyncio.wait([caller])
    free.set()
    await threads.run(lambda: None)
    assert done.is_set()


async def test_git_is_killed_and_the_workspace_free_once_artifacts_are_given_up(
    tmp_path: Path, monkeypatch
):
    workspaces = workspaces_in(tmp_path / "ws")
    workspace = await workspaces.make("task-1")
    (workspace.path / "a").write_text("x")
    git, pid = tmp_path / "git", tmp_path / "pid"
    git.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600\n")
    git.chmod(0o700)
    monkeypatch.setattr(shadow.shutil, "which", lambda _: str(git))
    asking = asyncio.ensure_future(workspace.artifacts())
    await until(pid.exists)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    workspace.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    again = await workspaces.reopen(workspace.id)
    assert again is not None
    again.close()


@pytest.mark.parametrize("asked", ["artifacts", "mark_baseline"])
async def test_a_workspace_is_held_until_work_that_was_given_up_has_ended(
    tmp_path: Path, free: Event, monkeypatch, asked: str
):
    begun = Event()

    def deaf(_changes: Changes) -> None:
        begun.set()
        free.wait()

    monkeypatch.setattr(stoppable, "STOP_WITHIN_S", 0.01)
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    with monkeypatch.context() as slow:
        slow.setattr(Changes, asked, deaf)
        asking = asyncio.ensure_future(getattr(workspace, asked)())
        await until(begun.is_set)
        asking.cancel()
        await asyncio.wait([asking])
    await workspace.artifacts()  # which ends, while the other goes on
    workspace.close()
    workspace.close()
    assert await workspaces.reopen(workspace.id) is None
    free.set()
    kept: list[Workspace] = []

    async def is_reopened() -> bool:
        if again := await workspaces.reopen(workspace.id):
            kept.append(again)
        return bool(kept)

    await until(is_reopened)
    kept[0].close()
