"""What a command has in each sandbox that works here, how it ends, and how a sandbox is found."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import uvloop
from support.prey import IS_ROOT, UID, laid_out
from support.until import until

from agent_actors.config_tools import SandboxConfig
from agent_actors.errors import ToolError
from agent_actors.tools.sandbox import Command, Finished, Sandbox, find_sandbox, probe
from agent_actors.tools.sandbox.bwrap import BwrapSandbox
from agent_actors.tools.sandbox.landlock import LandlockSandbox
from agent_actors.tools.sandbox.unconfined import NoSandbox

CONFIG = SandboxConfig(environment={"TEAM": "ours"}, timeout_s=60)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A workspace; not below pytest's folder, which only its own user may enter."""
    with tempfile.TemporaryDirectory(prefix="agent-work-") as name:
        Path(name).chmod(0o755)
        work = Path(name, "work")
        work.mkdir()
        if UID:
            os.chown(work, UID, UID)
        yield work


@pytest.fixture(params=["bwrap", "landlock", "none"])
async def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return await made(request.param)


async def made(kind: str, config: SandboxConfig = CONFIG) -> Sandbox:
    sandbox, failure = await find_sandbox(msgspec.structs.replace(config, kind=kind))
    if sandbox is None:
        pytest.skip(failure)
    return sandbox


async def ran(sandbox: Sandbox, folder: Path, *argv: str, **more: Any) -> Finished:
    return await sandbox.run(Command(argv=argv, folder=folder, cwd=folder, uid=UID, **more))


async def output_of(sandbox: Sandbox, folder: Path, *argv: str, **more: Any) -> str:
    finished = await ran(sandbox, folder, *argv, **more)
    assert (finished.exit_code, finished.stopped) == (0, ""), finished.output.decode()
    return finished.output.decode()


# What a command has


async def test_both_streams_come_in_their_order(sandbox: Sandbox, folder: Path):
    script = "echo one; echo two >&2; echo three; exit 3"
    finished = await ran(sandbox, folder, "sh", "-c", script)
    assert (finished.exit_code, finished.output, finished.stopped) == (3, b"one\ntwo\nthree\n", "")


async def test_signal_is_told_as_a_negative_exit_code(sandbox: Sandbox, folder: Path):
    finished = await ran(sandbox, folder, "sh", "-c", "kill -TERM $$")
    assert finished.exit_code == -signal.SIGTERM


async def test_arguments_are_not_read_by_a_shell(sandbox: Sandbox, folder: Path):
    words = ["$HOME", "; id", "`id`", "*", "with space", "ü", "", "x" * 100_000]
    said = await output_of(sandbox, folder, "printf", "%s\\n", *words)
    assert said == "".join(f"{word}\n" for word in words)


async def test_environment_is_made_from_nothing(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary")
    said = await output_of(sandbox, folder, "env", environment={"LANG": "C", "MORE": "yes"})
    variables = dict(line.split("=", 1) for line in said.splitlines())
    for name in ("PWD", "GIT_CONFIG_NOSYSTEM", "NPM_CONFIG_GLOBALCONFIG", "PIP_CONFIG_FILE"):
        variables.pop(name, None)
    assert set(variables) == {"PATH", "HOME", "TMPDIR", "LANG", "TEAM", "MORE"}
    assert (variables["LANG"], variables["TEAM"], variables["MORE"]) == ("C", "ours", "yes")


async def test_home_and_temporary_folder_are_private_and_gone_afterwards(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    private = folder.with_name("private")
    private.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    script = 'echo a > "$HOME/a" && echo b > "$TMPDIR/b" && ls "$HOME" "$TMPDIR" && pwd'
    said = await output_of(sandbox, folder, "sh", "-c", script)
    assert [line for line in said.splitlines() if line in {"a", "b"}] == ["a", "b"]
    assert said.endswith(f"{folder}\n")
    assert contents(folder, private) == []


async def test_output_can_be_opened_again_by_its_name(sandbox: Sandbox, folder: Path):
    script = "echo one > /dev/stdout; echo two > /dev/stderr"
    assert await output_of(sandbox, folder, "sh", "-c", script) == "one\ntwo\n"


async def test_standard_input_is_empty(sandbox: Sandbox, folder: Path):
    assert await output_of(sandbox, folder, "cat") == ""


async def test_files_belong_to_the_user_of_the_workspace(sandbox: Sandbox, folder: Path):
    said = await output_of(sandbox, folder, "sh", "-c", "touch made && id -u && id -G")
    expected = UID or os.getuid()
    assert owner_and_mode(folder / "made") == (expected, 0o644)
    assert said.split()[0] == str(expected)
    if UID:
        assert said.split()[1:] == [str(UID)]


def contents(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.iterdir()]


def owner_and_mode(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_mode & 0o777


async def test_programs_are_looked_for_in_the_path_of_the_command(sandbox: Sandbox, folder: Path):
    tool = folder / "tools" / "mine"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho mine\n")
    for path in (tool, tool.parent):
        path.chmod(0o755)
    path = f"/nonexistent:{tool.parent}:/usr/bin:/bin"
    assert await output_of(sandbox, folder, "mine", environment={"PATH": path}) == "mine\n"


async def test_unknown_program_is_told(sandbox: Sandbox, folder: Path):
    with pytest.raises(ToolError, match=r"cannot start nonesuch: .*No such program"):
        await ran(sandbox, folder, "nonesuch")


@pytest.mark.parametrize("word", ["a\0b", "\udcff", "x" * 200_000])
async def test_argument_that_no_program_can_have_is_told(sandbox: Sandbox, folder: Path, word: str):
    with pytest.raises(ToolError, match=r"cannot start .?echo"):
        await ran(sandbox, folder, "echo", word)


async def test_missing_folder_is_told(sandbox: Sandbox, folder: Path):
    with pytest.raises(ToolError, match="nowhere"):
        await sandbox.run(Command(argv=["true"], folder=folder, cwd=folder / "nowhere", uid=UID))


async def test_git_works(sandbox: Sandbox, folder: Path):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    await ran(sandbox, folder, "git", "init", "-q")
    await ran(sandbox, folder, "sh", "-c", "echo x > file; git add file")
    await output_of(sandbox, folder, "git", *who, "commit", "-qm", "first")
    assert (await output_of(sandbox, folder, "git", "log", "--format=%s")) == "first\n"


async def test_many_commands_run_side_by_side(sandbox: Sandbox, folder: Path):
    said = await asyncio.gather(
        *(output_of(sandbox, folder, "sh", "-c", f"sleep 0.2; echo {n}") for n in range(8))
    )
    assert said == [f"{n}\n" for n in range(8)]


@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
async def test_this_python_and_its_packages_are_there(kind: str, folder: Path):
    if not Path(pytest.__file__).is_relative_to(sys.prefix):
        pytest.skip("pytest is not among the packages of this Python")
    (folder / "test_it.py").write_text("def test_it():\n    assert 1 + 1 == 2\n")
    said = await output_of(
        await made(kind), folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"
    )
    assert "1 passed" in said


@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
async def test_what_it_may_read_and_write_beside_is_there(kind: str, folder: Path):
    read, write, configured = (folder.with_name(name) for name in ("read", "write", "configured"))
    for place in (read, write, configured):
        place.mkdir()
        place.chmod(0o777)
        (place / "file").write_text(f"{place.name}\n")
    sandbox = await made(kind, SandboxConfig(read_paths=(str(configured),)))
    allowed = {"read": [read], "write": [write]}
    files = [str(place / "file") for place in (read, write, configured)]
    assert await output_of(sandbox, folder, "cat", *files, **allowed) == "read\nwrite\nconfigured\n"
    for place, code in ((read, 1), (configured, 1), (write, 0)):
        finished = await ran(sandbox, folder, "touch", str(place / "new"), **allowed)
        assert (finished.exit_code, (place / "new").exists()) == (code, code == 0)


@pytest.mark.parametrize("kind", ["bwrap", "landlock"])
async def test_network_is_there_when_it_is_asked_for(kind: str):
    sandbox = await made(kind)
    with laid_out() as prey:
        finished = await prey.attacked_by("connect_by_tcp", sandbox, network=True)
        assert finished.output.startswith(b"BREACHED")
        for attack in ("connect_to_a_unix_socket", "connect_to_an_abstract_socket"):
            finished = await prey.attacked_by(attack, sandbox, network=True)
            assert finished.output.startswith(b"REFUSED")


async def test_bwrap_leaves_a_network_of_its_own(folder: Path):
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "socket.create_connection(s.getsockname()); print('connected')"
    )
    sandbox = await made("bwrap")
    assert await output_of(sandbox, folder, sys.executable, "-c", script) == "connected\n"


@pytest.mark.skipif(not IS_ROOT, reason="only root could run a command as root")
async def test_nothing_runs_as_root(sandbox: Sandbox, folder: Path):
    for uid in (None, 0):
        with pytest.raises(ToolError, match="no command runs as root"):
            await sandbox.run(Command(argv=["true"], folder=folder, cwd=folder, uid=uid))


# How it ends


async def test_cancelled_it_leaves_nothing(sandbox: Sandbox, folder: Path):
    mark = f"mark-{uuid4().hex}"
    running = asyncio.create_task(ran(sandbox, folder, *lingering(mark)))
    await until((folder / "begun").exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert with_argument(mark) == []


async def test_killed_with_sigkill_we_leave_nothing(sandbox: Sandbox, folder: Path):
    """What we have started sees that we are gone; nobody else is there to end it."""
    program = (
        "import asyncio, sys; from pathlib import Path;"
        "from agent_actors.config_tools import SandboxConfig;"
        "from agent_actors.tools.sandbox import Command, find_sandbox;"
        "folder = Path(sys.argv[2]); uid = int(sys.argv[3]) or None;"
        "command = Command(argv=sys.argv[4:], folder=folder, cwd=folder, uid=uid);"
        "find = find_sandbox(SandboxConfig(kind=sys.argv[1]));"
        "asyncio.run(asyncio.run(find)[0].run(command))"
    )
    mark = f"mark-{uuid4().hex}"
    arguments = [sandbox.name, str(folder), str(UID or 0), *lingering(mark)]
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, cwd=ROOT
    )
    await until((folder / "begun").exists)
    service.kill()
    await service.wait()
    await until(lambda: with_argument(mark) == [])


async def test_it_works_under_uvloop_in_a_thread_as_in_an_actor(sandbox: Sandbox, folder: Path):
    def in_a_thread() -> Finished:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            timed = runner.run(ran(sandbox, folder, "sleep", "60", timeout_s=0.3))
            assert timed.stopped == "timeout"
            return runner.run(ran(sandbox, folder, "sh", "-c", "echo out; echo err >&2"))

    assert (await asyncio.to_thread(in_a_thread)).output == b"out\nerr\n"


async def test_no_descriptor_of_ours_is_lost(sandbox: Sandbox, folder: Path):
    await ran(sandbox, folder, "true")
    await asyncio.sleep(0)  # transports close one step after they are told to
    before = open_descriptors()
    for _ in range(3):
        await ran(sandbox, folder, "true")
        with contextlib.suppress(ToolError):
            await ran(sandbox, folder, "nonesuch")
    await until(lambda: open_descriptors() <= before)


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def lingering(mark: str) -> list[str]:
    """Return a command that leaves a child in another session, says so, and stays."""
    return ["sh", "-c", 'setsid sh -c "sleep 3600; :" "$0" & touch begun; wait', mark]


def with_argument(argument: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


# How it is found


class Leaky(LandlockSandbox):
    """Landlock with a part of its rules left out."""

    def __init__(self, part: str, **replaced: Any) -> None:
        super().__init__(SandboxConfig())
        self._part = part
        self._replaced = replaced

    def _spec(self, *arguments: Any) -> Any:
        spec = super()._spec(*arguments)
        return spec | {self._part: spec[self._part] | self._replaced}


@pytest.mark.parametrize(
    ("leak", "found"),
    [
        (Leaky("files", write=["/tmp"]), ["read a file outside", "write a file outside"]),
        (Leaky("files", read=["/"]), ["read a file outside", "see the service in /proc"]),
        (
            Leaky("calls", families=[socket.AF_INET, socket.AF_INET6]),
            ["connect by TCP", "send by UDP"],
        ),
        (Leaky("calls", families=[socket.AF_UNIX]), ["connect to a Unix socket"]),
    ],
)
async def test_probe_finds_a_leak(leak: Sandbox, found: list[str]):
    await made("landlock")
    said = await probe.holds(leak, UID)
    assert said == f"a command could {', '.join(found)}"


async def test_bwrap_that_confines_nothing_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A wrapper in its place that only starts the program, say."""
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    await made("landlock")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sandbox, said = await find_sandbox(SandboxConfig(kind="bwrap"))
    assert sandbox is None
    assert said.startswith("no sandbox works here (bwrap: ")
    sandbox, _ = await find_sandbox(SandboxConfig())
    assert sandbox
    assert sandbox.name == "landlock"


async def test_bwrap_comes_before_landlock():
    await made("bwrap")
    sandbox, said = await find_sandbox(SandboxConfig())
    assert (type(sandbox), said) == (BwrapSandbox, "")


async def test_named_kind_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    sandbox, said = await find_sandbox(SandboxConfig(kind="bwrap"))
    assert sandbox is None
    assert "bubblewrap is not installed" in said
    assert "apt-get install bubblewrap" in said


async def test_without_any_the_remedy_is_told_and_none_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr("agent_actors.tools.sandbox.finding.landlock.version", lambda: 0)
    sandbox, said = await find_sandbox(SandboxConfig())
    assert sandbox is None
    for words in ("bwrap: bubblewrap is not installed", "landlock: the kernel has none", "none"):
        assert words in said


async def test_none_is_found_when_it_is_named():
    sandbox, said = await find_sandbox(SandboxConfig(kind="none"))
    assert (type(sandbox), said) == (NoSandbox, "")


# What it rests on


def run_python(program: str, *arguments: str) -> str:
    script = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_process_can_close_itself_to_others_of_its_user():
    program = """
import ctypes
from agent_actors.tools.sandbox import make_undumpable
make_undumpable()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    assert run_python(program) == "0\n"


@pytest.mark.skipif(not IS_ROOT, reason="only root has capabilities to give up")
@pytest.mark.parametrize(("mode", "kept"), [(0o755, 0), (0o700, 1 << 2)])
def test_capability_to_read_is_kept_only_where_nothing_else_helps(
    folder: Path, mode: int, kept: int
):
    place = folder.with_name("closed")
    place.mkdir()
    place.chmod(mode)
    program = f"""
from agent_actors.tools.sandbox.launcher import user
user.become({UID}, [{str(place)!r}])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")])
"""
    own = f"{kept:016x}"
    assert run_python(program) == f"{[own, own, own, '0' * 16, own]}\n"


@pytest.mark.skipif(not IS_ROOT, reason="only root can reach what is closed to all others")
async def test_git_works_below_a_folder_that_is_closed_to_its_user(folder: Path):
    landlock = await made("landlock")
    folder.parent.chmod(0o700)
    finished = await ran(landlock, folder, "git", "init", "-q", ".")
    again = await ran(landlock, folder, "git", "status", "--short", "--branch")
    assert (finished.exit_code, finished.output) == (0, b"")
    assert again.exit_code == 0, again.output


HANDLE_PROGRAM = """
import json
from agent_actors.tools.sandbox.launcher import landlock, user
from agent_actors.tools.sandbox.launcher.system import PR_SET_NO_NEW_PRIVS, prctl
from support import attacks
plan, place, uid = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rules = {"abi": 7, "read": [place], "write": [], "devices": [], "reach": []}
descriptor = landlock.ruleset(rules, network=False)
user.become(uid, [place])
def tried(attack):
    try:
        return bool(attack(plan))
    except OSError:
        return False
prctl(PR_SET_NO_NEW_PRIVS, 1)
before = [tried(attacks.open_by_handle), tried(attacks.read_a_file_outside)]
landlock.restrict(descriptor)
after = [tried(attacks.open_by_handle), tried(attacks.read_a_file_outside)]
print(before, after, open(place + "/file").read())
"""


@pytest.mark.skipif(not IS_ROOT, reason="only root can keep the capability")
async def test_landlock_bounds_what_that_capability_opens(folder: Path):
    """By itself, without the filter, which refuses to open by handle in any case."""
    await made("landlock")
    place = folder.with_name("closed")
    place.mkdir(mode=0o700)
    (place / "file").write_text("allowed")
    with laid_out() as prey:
        (prey.outside / "secret").chmod(0o600)
        plan = msgspec.json.encode(prey.plan).decode()
        said = run_python(HANDLE_PROGRAM, plan, str(place), str(UID))
    assert said == "[True, True] [False, False] allowed\n"
