"""Hostile commands against every sandbox that works here; see `support.attacks`.

They are bounded, and run as a user that is not root, so that a failing one does no harm.
"""

import contextlib
import inspect
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support import attacks
from support.prey import IS_ROOT, UID, Prey, laid_out

from agent_actors.config_tools import SandboxConfig
from agent_actors.tools.sandbox import Sandbox, find_sandbox
from agent_actors.tools.sandbox.bwrap import BwrapSandbox
from agent_actors.tools.sandbox.landlock import NEWEST_ABI, LandlockSandbox
from agent_actors.tools.sandbox.unconfined import NoSandbox

PATIENT_S = 30.0
MIB = 1024 * 1024
BOUNDS = SandboxConfig(
    timeout_s=PATIENT_S,
    max_cpu_s=2,
    max_memory_bytes=1024 * MIB,
    max_processes=40,
    max_file_bytes=MIB,
    max_output_bytes=MIB,
)

# They go on until they are stopped, each in a test of its own.
BOUNDED = {
    "calculate_without_end",
    "fork_and_fork_again",
    "fork_without_end",
    "let_a_child_keep_the_output",
    "make_folders_too_deep_to_remove",
    "open_too_many_files",
    "sleep_without_end",
    "stay_behind_as_a_daemon",
    "take_all_memory",
    "write_too_large_a_file",
    "write_too_large_a_file_in_memory",
    "write_without_end",
}

# They may succeed on something of their own; whether they reached anything else, the prey tells.
UNTOLD = {
    "leave_shared_memory_behind",
    "send_by_udp",
    "write_to_the_memory_of_the_machine",
    "write_to_the_temporary_folder_of_the_machine",
}

REFUSED = [
    name
    for name, function in vars(attacks).items()
    if inspect.isfunction(function) and [*inspect.signature(function).parameters] == ["prey"]
    if name not in BOUNDED
]

# With a user of its own for each workspace, an older landlock need not keep a command from what
# belongs to that user, which in production is nothing but its own.
OF_THE_SAME_USER = {
    "kill_another_process",
    "kill_another_process_by_descriptor",
    "truncate_a_file_outside",
    "truncate_a_file_outside_by_opening_it_to_read",
}

# The others are refused by the kernel itself, or on some machines.
SUCCEED_WITHOUT_A_SANDBOX = [
    "change_a_file_outside",
    "climb_out_with_dots",
    "connect_by_tcp",
    "connect_to_a_unix_socket",
    "connect_to_an_abstract_socket",
    "copy_the_memory_of_another_process",
    "delete_a_file_outside",
    "kill_another_process",
    "kill_another_process_by_descriptor",
    "leave_shared_memory_behind",
    "limit_another_process",
    "link_a_file_in_from_outside",
    "list_the_folder_of_all_workspaces",
    "look_for_the_secret_in_all_processes",
    "move_a_file_in_from_outside",
    "read_a_file_outside",
    "read_another_workspace",
    "read_the_environment_of_another_process",
    "read_the_memory_of_another_process",
    "read_the_token_of_ray",
    "read_through_a_planted_symlink",
    "read_through_an_own_symlink",
    "reopen_an_opened_place",
    "send_by_udp",
    "slow_another_process_down",
    "truncate_a_file_outside",
    "truncate_a_file_outside_by_opening_it_to_read",
    "turn_a_pair_of_sockets_to_a_service",
    "type_into_an_own_terminal",
    "write_a_file_outside",
    "write_through_an_own_symlink",
    "write_to_the_memory_of_the_machine",
    "write_to_the_temporary_folder_of_the_machine",
]


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[Sandbox | None, str]]:
    """What `find_sandbox` said of each kind: it says the same all the time."""
    return {}


@pytest.fixture(params=["bwrap", "landlock", "landlock of Linux 5.13"])
async def sandbox(
    request: pytest.FixtureRequest, found: dict[str, tuple[Sandbox | None, str]]
) -> Sandbox:
    """Each sandbox; also landlock as the oldest kernel has it, which leaves more to the filter."""
    kind, _, old = request.param.partition(" ")
    if kind not in found:
        found[kind] = await find_sandbox(SandboxConfig(kind=kind))
    if found[kind][0] is None:
        pytest.skip(found[kind][1])
    if kind == "bwrap":
        return BwrapSandbox(BOUNDS, shutil.which("bwrap") or "")
    return LandlockSandbox(BOUNDS, abi=1 if old else NEWEST_ABI)


@pytest.fixture
def prey(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prey]:
    with laid_out() as prey:
        for name in ("RAY_AUTH_TOKEN", "AGENT_ACTORS_NATS_PASSWORD", "VLLM_API_KEY"):
            monkeypatch.setenv(name, prey.canary)
        yield prey


@pytest.mark.parametrize("attack", REFUSED)
async def test_attack_comes_to_nothing(
    sandbox: Sandbox, prey: Prey, attack: str, request: pytest.FixtureRequest
):
    if IS_ROOT and attack in OF_THE_SAME_USER and "5.13" in request.node.name:
        pytest.skip("only matters where the service is not root")
    finished = await prey.attacked_by(attack, sandbox)
    output = finished.output.decode()
    assert output.startswith(("REFUSED", "BREACHED") if attack in UNTOLD else "REFUSED"), output
    assert prey.canary not in output
    assert prey.harm() == ""


@pytest.mark.parametrize("attack", SUCCEED_WITHOUT_A_SANDBOX)
async def test_attack_succeeds_without_a_sandbox(prey: Prey, attack: str):
    finished = await prey.attacked_by(attack, NoSandbox(BOUNDS), python=python_for_all())
    harm = prey.harm()
    assert finished.output.startswith(b"BREACHED") or harm, finished.output.decode()


async def test_processes_stay_within_their_number(sandbox: Sandbox, prey: Prey):
    finished = await prey.attacked_by("fork_without_end", sandbox)
    started = msgspec.json.decode(finished.output.splitlines()[0])["started"]
    assert 0 < started < 2 * BOUNDS.max_processes
    assert left_of(prey) == []


async def test_processes_that_fork_and_leave_are_all_found(sandbox: Sandbox, prey: Prey):
    finished = await prey.attacked_by("fork_and_fork_again", sandbox, timeout_s=1)
    assert (finished.stopped, finished.output) == ("timeout", b"forking\n")
    assert left_of(prey) == []


async def test_memory_is_bounded(sandbox: Sandbox, prey: Prey):
    finished = await prey.attacked_by("take_all_memory", sandbox)
    assert finished.output.startswith(b"REFUSED")


async def test_time_of_the_processor_is_bounded(sandbox: Sandbox, prey: Prey):
    finished = await prey.attacked_by("calculate_without_end", sandbox)
    assert (finished.exit_code, finished.stopped) == (-signal.SIGKILL, "")


async def test_endless_output_is_cut_and_its_writer_killed(sandbox: Sandbox, prey: Prey):
    finished = await prey.attacked_by("write_without_end", sandbox)
    assert (finished.stopped, len(finished.output)) == ("output", BOUNDS.max_output_bytes)
    assert left_of(prey) == []


async def test_command_that_never_ends_is_killed_in_time(sandbox: Sandbox, prey: Prey):
    finished = await prey.attacked_by("sleep_without_end", sandbox, timeout_s=0.5)
    assert (finished.exit_code, finished.stopped) == (-signal.SIGKILL, "timeout")
    assert finished.duration_s < PATIENT_S / 2
    assert left_of(prey) == []


@pytest.mark.parametrize("attack", ["stay_behind_as_a_daemon", "let_a_child_keep_the_output"])
async def test_nothing_stays_behind(sandbox: Sandbox, prey: Prey, attack: str):
    finished = await prey.attacked_by(attack, sandbox)
    assert (finished.exit_code, finished.output) == (0, b"BREACHED left\n")
    assert finished.duration_s < PATIENT_S / 2
    assert left_of(prey) == []


@pytest.mark.parametrize(
    "attack", ["write_too_large_a_file", "write_too_large_a_file_in_memory", "open_too_many_files"]
)
async def test_files_are_bounded(sandbox: Sandbox, prey: Prey, attack: str):
    finished = await prey.attacked_by(attack, sandbox)
    assert finished.output.startswith(b"REFUSED")
    assert all(path.lstat().st_size <= BOUNDS.max_file_bytes for path in prey.folder.iterdir())


async def test_private_folder_is_removed_however_deep(
    sandbox: Sandbox, prey: Prey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(prey.outside))
    finished = await prey.attacked_by("make_folders_too_deep_to_remove", sandbox)
    assert finished.output == b"BREACHED left\n"
    assert prey.harm() == ""


def left_of(prey: Prey) -> list[str]:
    """Return the attacker's processes that are still there, by the plan in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if prey.mark in path.read_text(errors="replace"):
                found.append(str(path))
    return found


def python_for_all() -> str:
    """Return a Python that the attacker's user can reach."""
    for python in (sys.executable, "/usr/bin/python3"):
        if not IS_ROOT or can_reach(python):
            return python
    pytest.skip(f"user {UID} can reach no Python here")


def can_reach(python: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([python, "-c", ""], user=UID, group=UID, check=False).returncode == 0
    return False
