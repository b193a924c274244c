"""The keeper: it starts the command, waits for it, and leaves no descendant of it alive.

Descriptor 0 brings the spec and then stays open: when it closes, the service has died or wants the
command ended. 1 is the command's output. 2 tells how it went, in one line of JSON:
`{"exit_code": 0}`, negative for a signal, or `{"error": "…"}` when it could not be started.
"""

import json
import os
import select
import signal
import time

from .child import STATUS, run_command
from .seccomp import UnknownMachineError
from .system import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .spec import Spec

_SWEEP_PAUSE_S = 0.001


def main() -> None:
    """Run the command that the spec names."""
    line = _read_line()
    if not line:
        return  # the service was gone before it said what to run
    spec: Spec = json.loads(line)
    prctl(PR_SET_DUMPABLE, 0)
    if not spec["own_processes"]:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    bell = _ring_when_a_child_ends()
    child = os.fork()
    if child == 0:
        _become_command(spec)
    os.close(1)
    exit_code = _wait(child, bell)
    # In a process namespace the kernel ends all others when we, its first, are gone.
    if not spec["own_processes"]:
        _sweep()
    os.write(2, json.dumps({"exit_code": exit_code}).encode())
    os._exit(0)  # there is nothing to tidy up, and Python would take a while over it


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65_536)
        if not part:
            return b""
        line += part
    return line


def _ring_when_a_child_ends() -> int:
    """Return a descriptor that becomes readable then."""
    bell, rope = os.pipe()
    for end in (bell, rope):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(rope, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _take_note)
    return bell


def _take_note(_number: int, _frame: object) -> None:
    """Do nothing: signals without a handler of Python's do not ring."""


def _become_command(spec: "Spec") -> None:
    try:
        run_command(spec)
    except (OSError, ValueError, UnknownMachineError) as error:
        os.write(STATUS, json.dumps({"error": str(error)}).encode() + b"\n")
    finally:
        os._exit(127)


def _wait(child: int, bell: int) -> int:
    """Return the child's exit code, that of being killed when the service let go of us first."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(bell, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if bell in ready:
            os.read(bell, 512)
            status = _reap(child)
            if status is not None:
                return os.waitstatus_to_exitcode(status)
        if 0 in ready:
            return -signal.SIGKILL


def _reap(child: int) -> int | None:
    """Bury who has died, orphans of the command too; return the child's status, if it has."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = code


def _sweep() -> None:
    """Kill all descendants, also those that left the session, until there are none."""
    while _has_children():
        for pid in _stopped_descendants():
            _send(pid, signal.SIGKILL)
        time.sleep(_SWEEP_PAUSE_S)


def _has_children() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _stopped_descendants() -> set[int]:
    """Stop all descendants, and return them: who is stopped starts no other while we count."""
    stopped: set[int] = set()
    while found := _descendants() - stopped:
        for pid in found:
            _send(pid, signal.SIGSTOP)
        stopped |= found
    return stopped


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _descendants() -> set[int]:
    parents = dict(_parents())
    found: set[int] = set()
    above = {os.getpid()}
    while above := {pid for pid, parent in parents.items() if parent in above} - found:
        found |= above
    return found


def _parents() -> "Iterator[tuple[int, int]]":
    """Yield each living process and its parent."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes long to import
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - likewise
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:  # it has just ended
                continue
            if state not in b"ZX":
                yield int(name), int(parent)
