"""Try what no confined command may do, and print as JSON which of it succeeded.

Run inside of a sandbox by `probe`, as the text of `python -c`, with a plan as its argument.
"""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_TIMEOUT_S = 2.0


def main(plan: dict[str, Any]) -> None:
    """Make the attempts that the plan names; write a file in the workspace, which must succeed."""
    Path("written").write_text("inside")
    done: list[str] = []
    for name, attempt in _attempts(plan):
        with contextlib.suppress(OSError):
            attempt()
            done.append(name)
    print(json.dumps(done))  # noqa: T201 - its answer


def _attempts(plan: dict[str, Any]) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "read a file outside", lambda: Path(plan["secret"]).read_text()
    yield "write a file outside", lambda: Path(plan["outside"], "written").write_text("outside")
    yield "connect by TCP", lambda: _connect(socket.AF_INET, ("127.0.0.1", plan["tcp_port"]))
    yield "connect to a Unix socket", lambda: _connect(socket.AF_UNIX, plan["unix_path"])
    yield "connect to an abstract socket", lambda: _connect(socket.AF_UNIX, plan["abstract"])
    yield "see the service in /proc", lambda: _see_process(plan["pid"], plan["started"])
    if os.getppid() != 1:  # the first process of a namespace is safe from the others in it
        yield "send signals outside", lambda: os.kill(os.getppid(), 0)
    # Whether it arrives is for the planner to see.
    yield "", lambda: _send_datagram(plan["udp_port"])


def _connect(family: int, address: Any) -> None:  # noqa: ANN401 - as families have it
    with socket.socket(family) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(address)


def _send_datagram(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"trespassed", ("127.0.0.1", port))


def _see_process(pid: int, started: str) -> None:
    """Raise OSError unless that number is the process that started then."""
    if start_time(pid) != started:
        raise ProcessLookupError(pid)


def start_time(pid: int) -> str:
    """Return when a process started, in the kernel's ticks: no two of one number share it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
