"""This test run's own processes, found by name: to kill one of them, and to see none is left.

And what a process uses: its memory, its descriptors.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

FOUND_WITHIN_S = 2.0
POLL_S = 0.01


def pids_named(title: str, *, below: int = 0) -> list[int]:
    """Return the descendants of a process, or of this one, whose title begins so.

    Ray's begin with `ray::`, as in `ray::AgentActor`.
    """
    return [pid for pid in descendants(below) if _title(pid).startswith(title)]


def pids_running(program: str, *, below: int = 0) -> list[int]:
    """Return the descendants of a process, or of this one, that run a program of this name."""
    return [pid for pid in descendants(below) if Path(_title(pid).split(" ")[0]).name == program]


def descendants(of: int = 0) -> list[int]:
    parents = dict(_parents())
    return [pid for pid in parents if (of or os.getpid()) in _above(pid, parents)]


def children_of(pid: int) -> list[int]:
    return [child for child, parent in _parents() if parent == pid]


def kill_one(title: str, *, below: int = 0) -> int:
    """Kill one of them with SIGKILL; return its process id. Raises LookupError.

    A title that is just being changed cannot be read: it is looked for again for a while.
    """
    deadline = time.monotonic() + FOUND_WITHIN_S
    while not (pids := pids_named(title, below=below)):
        if time.monotonic() > deadline:
            raise LookupError(f"no process is named {title}")
        time.sleep(POLL_S)
    pid = pids[0]
    os.kill(pid, signal.SIGKILL)
    return pid


def forget_peak(pid: int) -> int:
    """Have the peak of its memory counted from now on; return what it uses, in bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_bytes(pid)


def peak_bytes(pid: int) -> int:
    """Return the most memory that the process has used."""
    (line,) = (line for line in _read(Path(f"/proc/{pid}/status")).splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


def descriptors(pid: int) -> int:
    """Return how many files and sockets the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            stat = _read(folder / "stat")
            if stat:
                yield int(folder.name), int(stat.rpartition(")")[2].split()[1])


def _above(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while (pid := parents.get(pid, 0)) > 1:
        found.add(pid)
    return found


def _title(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has just ended
        return ""
