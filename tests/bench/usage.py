"""What processes use, as /proc tells it: CPU time, and memory that is theirs."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct
from support.processes import descendants, pids_named

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KIB = 1024

Groups = Mapping[str, list[int]]


class Usage(Struct, frozen=True, kw_only=True):
    """CPU time by group of processes, in seconds since each of them began."""

    cpu_s: dict[str, float]

    def since(self, earlier: "Usage") -> dict[str, float]:
        """Return what has been used in between, by group."""
        return {name: self.cpu_s[name] - earlier.cpu_s.get(name, 0.0) for name in self.cpu_s}


def usage(groups: Groups) -> Usage:
    return Usage(cpu_s={name: sum(map(cpu_s, pids)) for name, pids in groups.items()})


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads of a process, those that ended too; 0 when it is gone."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def machine_busy_s() -> float:
    """Return the CPU time that everybody on this machine has used since it began."""
    user, nice, system, _, _, *rest = map(int, _read("/proc/stat").split("\n")[0].split()[1:])
    interrupts = sum(rest[:2])
    return (user + nice + system + interrupts) / TICKS_PER_S


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of these processes, what they share with others counted in part."""
    return sum(_rollup(pid, "Pss:") for pid in pids)


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *descendants(pid)]


def with_word(word: str) -> list[int]:
    """Return the processes below this one that have the word in their command line."""
    return [pid for pid in descendants() if word in _read(f"/proc/{pid}/cmdline").lower()]


def ray_daemons(own: Groups) -> list[int]:
    """Return Ray's own processes below this one: those that are not the contestant's."""
    of_ray = {*with_word("/ray/"), *pids_named("ray::")}
    return sorted(of_ray.difference(*own.values()))


def _rollup(pid: int, field: str) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * KIB
    return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has just ended
        return ""
