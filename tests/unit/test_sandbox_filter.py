"""What the filter of system calls says to a call: it is run here as the kernel would run it."""

import errno
import os
import platform
import re
import shutil
import struct
import subprocess
import termios
from typing import Any

import pytest

from agent_actors.tools.sandbox.launcher import seccomp

ALLOWED = "allowed"
KILLED = "killed"
X86_64 = 0xC000003E
I386 = 0x40000003
AARCH64 = 0xC00000B7
ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}

AF_UNIX, AF_INET, AF_PACKET, AF_VSOCK = 1, 2, 17, 40
SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_CLOEXEC = 1, 2, 3, 0o2000000
CLONE_THREAD_AND_MORE, CLONE_NEWUSER, CLONE_NEWNET = 0x3D0F00, 0x10000000, 0x40000000
SIGCHLD = 17

# Calls that no rule names, for telling that the rest goes on: read, write, execve, fork's clone.
UNNAMED = {"x86_64": (0, 1, 59, 231), "aarch64": (63, 64, 221, 94)}


def rules(**given: Any) -> Any:
    return {"families": (), "own_processes": False, "shares_user": True, "abi": 7} | given


def verdict(code: bytes, number: int, *arguments: int, architecture: int) -> str | int:
    """Run the filter on a call; return what becomes of it, or the error that it gets."""
    words = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *words)
    accumulator, counter = 0, 0
    while True:
        operation, then, otherwise, value = struct.unpack_from("<HBBI", code, 8 * counter)
        counter += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x06 if value >> 16 == 0x7FFF:
                return ALLOWED
            case 0x06 if value >> 16 == 0x8000:
                return KILLED
            case 0x06:
                assert value >> 16 == 0x0005
                return value & 0xFFFF
            case 0x15 | 0x35 | 0x45:
                holds = {
                    0x15: accumulator == value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }[operation]
                counter += then if holds else otherwise
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    return request.param


def asked(machine: str, name: str, *arguments: int, **given: Any) -> str | int:
    number = seccomp._CALLS[name][machine == "aarch64"]
    code = seccomp.program(rules(**given), machine)
    return verdict(code, number, *arguments, architecture=ARCHITECTURES[machine])


def test_ordinary_calls_go_on(machine: str):
    code = seccomp.program(rules(), machine)
    for number in UNNAMED[machine]:
        assert verdict(code, number, architecture=ARCHITECTURES[machine]) == ALLOWED


@pytest.mark.parametrize(
    "name", ["ptrace", "mount", "unshare", "setns", "keyctl", "bpf", "io_uring_setup", "kcmp"]
)
def test_what_no_command_needs_is_refused(machine: str, name: str):
    for given in ({}, {"families": (AF_INET,)}, {"own_processes": True}):
        assert asked(machine, name, **given) == errno.EPERM


def test_call_of_another_architecture_kills():
    code = seccomp.program(rules(), "x86_64")
    assert verdict(code, 20, architecture=I386) == KILLED
    assert verdict(code, 0x40000000 | 41, AF_INET, architecture=X86_64) == errno.EPERM


@pytest.mark.parametrize(
    ("families", "family", "expected"),
    [
        ((), AF_INET, errno.EPERM),
        ((), AF_UNIX, errno.EPERM),
        ((AF_INET,), AF_INET, ALLOWED),
        ((AF_INET,), AF_UNIX, errno.EPERM),
        ((AF_UNIX, AF_INET), AF_INET, ALLOWED),
        ((AF_UNIX, AF_INET), AF_PACKET, errno.EPERM),
        ((AF_UNIX, AF_INET), AF_VSOCK, errno.EPERM),
    ],
)
def test_sockets_are_of_the_allowed_families(
    machine: str, families: tuple[int, ...], family: int, expected: str | int
):
    assert asked(machine, "socket", family, SOCK_STREAM, families=families) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (SOCK_STREAM, ALLOWED),
        (SOCK_STREAM | SOCK_CLOEXEC, ALLOWED),
        (SOCK_DGRAM, errno.EPERM),
        (SOCK_DGRAM | SOCK_CLOEXEC, errno.EPERM),
        (SOCK_RAW, errno.EPERM),
    ],
)
def test_pair_of_sockets_cannot_be_turned_to_another(machine: str, kind: int, expected: str | int):
    assert asked(machine, "socketpair", AF_UNIX, kind) == expected
    assert asked(machine, "socketpair", AF_UNIX, kind, families=(AF_UNIX,)) == ALLOWED


def test_new_processes_share_our_namespaces(machine: str):
    for flags in (SIGCHLD, CLONE_THREAD_AND_MORE):
        assert asked(machine, "clone", flags) == ALLOWED
    for flags in (CLONE_NEWUSER | SIGCHLD, CLONE_NEWNET):
        assert asked(machine, "clone", flags) == errno.EPERM
    assert asked(machine, "clone3") == errno.ENOSYS


def test_nothing_is_typed_into_a_terminal(machine: str):
    assert asked(machine, "ioctl", 0, termios.TIOCSTI) == errno.EPERM
    assert asked(machine, "ioctl", 0, 1 << 32 | termios.TIOCSTI) == errno.EPERM
    assert asked(machine, "ioctl", 0, termios.TCGETS) == ALLOWED


def test_other_processes_are_left_alone_where_they_can_be_seen(machine: str):
    assert asked(machine, "prlimit64", 0) == ALLOWED
    assert asked(machine, "prlimit64", 77) == errno.EPERM
    assert asked(machine, "setpriority", 0, 77) == errno.EPERM
    assert asked(machine, "prlimit64", 77, own_processes=True) == ALLOWED


def test_older_landlock_leaves_signals_and_truncation_to_the_filter(machine: str):
    for abi, expected in ((7, ALLOWED), (6, ALLOWED), (5, errno.EPERM), (1, errno.EPERM)):
        assert asked(machine, "kill", 77, abi=abi) == expected
        assert asked(machine, "tgkill", 77, 77, abi=abi) == expected
        assert asked(machine, "kill", 0, abi=abi) == ALLOWED
    for abi, expected in ((3, ALLOWED), (2, errno.EPERM)):
        assert asked(machine, "truncate", abi=abi) == expected
        assert asked(machine, "openat", 0, 0, os.O_TRUNC, abi=abi) == expected
        assert asked(machine, "openat", 0, 0, os.O_TRUNC | os.O_WRONLY, abi=abi) == ALLOWED
    assert asked(machine, "kill", 77, abi=1, shares_user=False) == ALLOWED


def test_unknown_machine_is_told():
    with pytest.raises(seccomp.UnknownMachineError, match="x86_64 and aarch64, not riscv64"):
        seccomp.program(rules(), "riscv64")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_are_those_of_the_kernel(machine: str):
    """As far as this machine has its headers; on x86_64, those of both machines."""
    numbers = kernel_numbers(machine)
    column = machine == "aarch64"
    known = {name: each[column] for name, each in seccomp._CALLS.items() if each[column] >= 0}
    newer_than_some_headers = {"open_tree_attr"} - numbers.keys()
    for name in known.keys() - newer_than_some_headers:
        assert known[name] == numbers[name], name


def kernel_numbers(machine: str) -> dict[str, int]:
    header = "asm-generic/unistd.h" if machine == "aarch64" else "asm/unistd_64.h"
    if machine == "x86_64" != platform.machine() or not shutil.which("cc"):
        pytest.skip("needs a C compiler, and the headers of this kind of machine")
    done = subprocess.run(
        ["cc", "-E", "-dM", "-D__ARCH_WANT_SYS_CLONE3", "-include", header, "-xc", "/dev/null"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("needs the headers of the kernel")
    lines = re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", done.stdout, re.MULTILINE)
    return {name: int(number) for name, number in lines}
