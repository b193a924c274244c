"""Which cores processes run on, so that a model server keeps one that nobody else takes from it.

In production it has machines of its own. On this one, whatever the service uses it would lose, and
more: its threads wait for each other.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def on_the_last_core() -> Iterator[set[int]]:
    """Have what is started in the block run on the last core; give the others.

    With one core there is nothing to part.
    """
    everything = os.sched_getaffinity(0)
    last = {max(everything)}
    os.sched_setaffinity(0, last)
    try:
        yield everything - last or everything
    finally:
        os.sched_setaffinity(0, everything)


def keep_to(cores: Iterable[int], pids: Iterable[int]) -> None:
    """Have all threads of these processes, and what they start later, run on these cores."""
    for pid in pids:
        with suppress(FileNotFoundError):  # it has just ended
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cores)
