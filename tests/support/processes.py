"""This test run's own processes, found by name: to kill one of them, and to see none is left.

And what a process uses: its memory, its descriptors.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path


def pids_named(title: str) -> list[int]:
    """Return the descendants of this process whose title begins so (`ray::AgentActor`)."""
    mine = {os.getpid()}
    parents = dict(_parents())
    return [pid for pid in parents if _title(pid).startswith(title) and _above(pid, parents) & mine]


def kill_one(title: str) -> int:
    """Kill one of them with SIGKILL; return its process id."""
    pid = pids_named(title)[0]
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
