"""Run a program, and end it with all that it started: `python guard.py PARENT_PID PROGRAM ARG...`.

A server is often started by a launcher (npx, uvx, docker run), so the process that has to end is
a grandchild of ours. This one stays between: the kernel tells it when its parent dies, by
kill -9 too, and hands it every process below that loses its own parent. A script of its own, run
with the standard library alone, so that it starts fast and stays small.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
NOT_FOUND = 127
SIGNALLED = 128

# From the polite request to end to the other one.
GRACE_S = 2.0
POLL_S = 0.02
ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
WATCHED = {*ENDING, signal.SIGCHLD}


def guarded(*command: str) -> list[str]:
    """Return the command line that runs `command` for as long as this process lives, or less.

    The kernel watches the thread that starts it: start it from one that lives as long.
    """
    return [sys.executable, "-ISE", __file__, str(os.getpid()), *command]


def main(parent_pid: int, command: list[str]) -> int:
    """Run the command to its end, or until we are told to end; return its exit code."""
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) or libc.prctl(PR_SET_CHILD_SUBREAPER, 1):
        sys.exit("the kernel does not take PR_SET_PDEATHSIG or PR_SET_CHILD_SUBREAPER")
    if os.getppid() != parent_pid:
        sys.exit("the parent died first")
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    program = _start(command, libc)
    _let_go_of_pipes()
    code = _wait_for(program)
    _kill_the_rest()
    return code


def _start(command: list[str], libc: ctypes.CDLL) -> int:
    """Start the program; should this process be killed, the kernel kills it too."""
    guard_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:
            os._exit(SIGNALLED)
        _become(command)
    return pid


def _become(command: list[str]) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    try:
        os.execvp(command[0], command)  # noqa: S606 - becoming the program is the point
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode(errors="replace"))
        os._exit(NOT_FOUND)


def _let_go_of_pipes() -> None:
    """Leave the program's input and output to the program: their ends are told by them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)


def _wait_for(program: int) -> int:
    """Return the program's exit code, once it has one or we are told to end it."""
    while True:
        received = signal.sigwaitinfo(WATCHED)
        if (code := _reap(program)) is not None:
            return code
        if received.si_signo in ENDING:
            return _end(program)


def _end(program: int) -> int:
    """Ask the program to end, and return its exit code when it does, or when it takes too long."""
    # All of the group, since a launcher need not pass it on; for ourselves it is blocked.
    os.killpg(0, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while (left_s := until - time.monotonic()) > 0:
        signal.sigtimedwait(WATCHED, left_s)
        if (code := _reap(program)) is not None:
            return code
    return SIGNALLED + signal.SIGKILL


def _reap(program: int = 0) -> int | None:
    """Bury who has ended; return the program's exit code if it is among them."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                code = os.waitstatus_to_exitcode(ended[1])
    return code if code is None or code >= 0 else SIGNALLED - code


def _kill_the_rest() -> None:
    """Kill our children until there are none: theirs become ours as they die."""
    until = time.monotonic() + GRACE_S
    while time.monotonic() < until and (left := list(_children())):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        signal.sigtimedwait(WATCHED, POLL_S)
        _reap()


def _children() -> Iterator[int]:
    me = os.getpid()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it may have ended by now
                stat = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(stat[1]) == me:
                    yield int(folder.name)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
