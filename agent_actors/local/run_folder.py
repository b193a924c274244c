"""A folder for what must not outlive this process: files of its children, and they themselves.

Ray's own processes die with their parent, but for two agents of the raylet that go on for a
minute, looking for somebody to report its death to. So whoever works in the folder is killed
in the end; and if this process is killed, by a second one that waits for that:
`python run_folder.py FOLDER`, its standard input a pipe from here.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

# Ray's sockets lie 80 characters below the parent, and the kernel takes 107 in all.
LONGEST_PARENT_CHARS = 27
POLL_S = 0.1


@contextmanager
def run_folder(variable: str, keep_after: type[Exception]) -> Generator[Path]:
    """Give a new folder with a short path, which `variable` names to the processes started here.

    When the block ends, or this process is killed, they are killed and it is removed; after
    this kind of error it stays, for its logs.
    """
    parent = tempfile.gettempdir()
    if len(parent) > LONGEST_PARENT_CHARS:
        parent = "/tmp"  # noqa: S108 - the folder below it is ours alone
    folder = Path(tempfile.mkdtemp(prefix="aa-", dir=parent))
    os.environ[variable] = str(folder)
    sweeper = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-ISE", __file__, str(folder)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C on the terminal is not meant for it
    )
    keep = False
    try:
        yield folder
    except keep_after:
        keep = True
        raise
    finally:
        sweeper.kill()
        sweeper.wait()
        sweep(folder)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Kill every process that works in the folder, and return when none is left."""
    while pids := [pid for pid in _others() if _works_in(folder, pid)]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _others() -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid()]


def _works_in(folder: Path, pid: int) -> bool:
    """Tell whether the process was told of the folder or has a file of it open for writing.

    The first is known from its start, but lost when it gives itself a title, as Ray's do.
    Somebody who reads a log is not meant.
    """
    proc = Path("/proc", str(pid))
    with suppress(OSError):  # it has ended, or is somebody else's
        if str(folder).encode() in (proc / "environ").read_bytes():
            return True
        return any(
            _target(link).startswith(f"{folder}/") and _is_for_writing(proc / "fdinfo" / link.name)
            for link in (proc / "fd").iterdir()
        )
    return False


def _is_for_writing(info: Path) -> bool:
    """Read a descriptor's flags, in octal (proc(5), /proc/pid/fdinfo)."""
    flags = dict(line.split(":", 1) for line in info.read_text().splitlines())["flags"]
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # closed just now
        return ""


def main(folder: Path) -> None:
    """Wait until the other end of standard input is closed, then sweep and remove the folder."""
    sys.stdin.read()
    sweep(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
