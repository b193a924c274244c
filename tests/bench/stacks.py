"""Where the time goes, out of the stacks that py-spy has sampled: pure."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

# "function (path.py:12)", and without a line with --function.
FRAME = re.compile(r"^(?P<name>.*?) \((?P<file>.*?)(?::\d+)?\)$")
# With --threads each stack begins so, with the thread's number for the kernel.
THREAD = re.compile(r"^thread \((?P<number>\d+)\): (?P<name>.*)$")
# Ray's name for the thread of an async actor's event loop.
LOOP = "AsyncIO Thread: default"
IN_C = "uvloop, in C, its waiting too"


class Share(Struct, frozen=True, kw_only=True):
    """A function or a module, and the part of all samples that were in it."""

    name: str
    share: float


class Profile(Struct, frozen=True, kw_only=True):
    """Where samples of an event loop's thread were.

    In a function itself (`own`), in it and what it calls, in a package's own code. What runs in C
    counts for the Python function that called it; that of the loop itself is uvloop's.
    """

    samples: int
    own: list[Share]
    inclusive: list[Share]
    packages: list[Share]


def loop_thread(lines: Iterable[str]) -> int:
    """Return the number of the thread that has Ray's event loop; 0 when there is none."""
    for line in lines:
        found = THREAD.match(line.partition(";")[0])
        if found and found["name"].startswith(LOOP):
            return int(found["number"])
    return 0


def profile_of(lines: Iterable[str], top: int = 25) -> Profile:
    """Read collapsed stacks, `thread;frame;frame count`, the innermost frame last."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    packages: Counter[str] = Counter()
    for frames, count in _stacks(lines):
        own[frames[-1]] += count
        packages[package_of(frames[-1])] += count
        for frame in set(frames):
            inclusive[frame] += count
    total = sum(own.values())
    return Profile(
        samples=total,
        own=_shares(own, total, top),
        inclusive=_shares(inclusive, total, top),
        packages=_shares(packages, total, top),
    )


def package_of(frame: str) -> str:
    """Return the package a frame is of; of ours, the module."""
    path = frame.rpartition("(")[2].rstrip(")")
    parts = path.removesuffix(".py").split("/")
    if "agent_actors" in parts:
        return ".".join(parts[parts.index("agent_actors") :])
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return parts[-2] if len(parts) > 1 and not parts[-2].startswith("python3") else parts[-1]


def _stacks(lines: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    for line in lines:
        stack, _, count = line.rstrip().rpartition(" ")
        thread, *frames = stack.split(";")
        found = THREAD.match(thread)
        if frames and found and found["name"].startswith(LOOP):
            yield [_short(frame) for frame in frames], int(count)


def _short(frame: str) -> str:
    found = FRAME.match(frame)
    if found and found["name"] == "Thread.run":
        return IN_C
    return f"{found['name']} ({_tail(found['file'])})" if found else frame


def _tail(path: str) -> str:
    for mark in ("site-packages/", "/agent_actors/"):
        if mark in path:
            keep = "" if mark == "site-packages/" else "agent_actors/"
            return ("site-packages/" if not keep else "") + keep + path.rpartition(mark)[2]
    return "/".join(path.split("/")[-2:])


def _shares(counts: Mapping[str, int], total: int, top: int) -> list[Share]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]
    return [Share(name=name, share=round(count / total, 4)) for name, count in ordered]
