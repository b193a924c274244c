"""Run a program that ends when its parent does: `python tied.py PARENT_PID PROGRAM ARG...`.

It becomes the program, so the process id stays. A script of its own, and not a `preexec_fn`,
since running Python between fork and exec can hang in a process with threads.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def tied(program: Path, *args: str) -> list[str]:
    """Return the command line that runs `program` for as long as this process lives.

    The kernel watches the thread that starts it: start it from one that lives as long.
    """
    return [sys.executable, "-ISE", __file__, str(os.getpid()), str(program), *args]


def main(parent_pid: int, command: list[str]) -> None:
    """Have the kernel send SIGTERM when the parent dies, then become the command."""
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.exit("the kernel does not take PR_SET_PDEATHSIG")
    if os.getppid() != parent_pid:
        sys.exit("the parent died first")
    os.execv(command[0], command)  # noqa: S606 - becoming the program is the point


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
