"""Processes on the same machine: the kernel tells at once when one ends.

A process says who it is with `this_process`; whoever sees the same process ids may watch it
(pidfd_open(2), Linux 5.3). What is said holds a process's time of start, so that another one
that got its id later is never taken for it.
"""

import asyncio
import os
import signal
from pathlib import Path

PROC = Path("/proc")
# In /proc/<pid>/stat, counted after the name in parentheses (proc_pid_stat(5), field 22).
STARTED_FIELD = 19


def this_process() -> str:
    """Return who this process is; empty where there is no /proc."""
    pid = os.getpid()
    place = _place()
    return f"{place} {pid} {_started(pid)}" if place else ""


class WatchedProcess:
    """Another process of this machine. `ended` is done once it has ended; `close` lets go."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self.ended = self._loop.create_future()
        self._loop.add_reader(pidfd, self._end)

    @classmethod
    def find(cls, said: str) -> "WatchedProcess | None":
        """Return the process that said this of itself; None when it cannot be seen from here."""
        place, _, known = said.rpartition(" ")[0].rpartition(" ")
        if not said or place != _place():
            return None
        try:
            pidfd = os.pidfd_open(int(known))
        except (OSError, AttributeError):  # it has ended, or the system has no such thing
            return None
        if said != f"{place} {known} {_started(int(known))}":
            os.close(pidfd)
            return None
        return cls(pidfd)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if not self.ended.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Watch it no longer."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.ended.set_result(None)


def _place() -> str:
    """Return what tells those apart who do not see the same process ids."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; empty when it has ended."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[STARTED_FIELD]
