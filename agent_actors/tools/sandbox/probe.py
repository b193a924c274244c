"""Whether a sandbox holds: what it must prevent is tried in it, on things planted for that."""

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agent_actors.errors import ToolError
from agent_actors.tools.sandbox import trespass
from agent_actors.tools.sandbox.command import Command, Finished, Sandbox

_TIMEOUT_S = 20.0
_PROGRAM = Path(trespass.__file__).read_text()
_DATAGRAM = "send by UDP"


async def starts(sandbox: Sandbox, uid: int | None) -> str:
    """Return why the sandbox cannot run a command; empty: it can."""
    with _planted(uid) as trap:
        try:
            finished = await sandbox.run(_command(["true"], trap, uid))
        except ToolError as error:
            return str(error)
    return _failure(finished)


async def holds(sandbox: Sandbox, uid: int | None) -> str:
    """Return what the sandbox does not prevent, or why it does not work; empty: it holds."""
    with _planted(uid) as trap:
        plan = msgspec.json.encode(trap.plan).decode()
        argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, plan]
        try:
            finished = await sandbox.run(_command(argv, trap, uid))
        except ToolError as error:
            return str(error)
        if failed := _failure(finished):
            return failed
        try:
            done = msgspec.json.decode(finished.output, type=list[str])
        except msgspec.DecodeError:
            return f"the probe said: {_words(finished.output)}"
        succeeded = [*filter(None, done), *([_DATAGRAM] if trap.was_sent_to() else [])]
    return f"a command could {', '.join(succeeded)}" if succeeded else ""


class _Trap(Struct, frozen=True):
    """Things that a confined command must not reach, and the folder that it may."""

    folder: Path
    plan: dict[str, Any]
    datagrams: socket.socket

    def was_sent_to(self) -> bool:
        """Tell whether a datagram came."""
        try:
            return bool(self.datagrams.recv(64))
        except BlockingIOError:
            return False


@contextlib.contextmanager
def _planted(uid: int | None) -> Generator[_Trap]:
    """Lay out the trap; but for the sandbox, everybody on this machine might use all of it."""
    with (
        tempfile.TemporaryDirectory(prefix="agent-probe-") as name,
        contextlib.ExitStack() as opened,
    ):
        top = Path(name)
        outside, folder, secret = top / "outside", top / "inside", top / "secret"
        outside.mkdir()
        folder.mkdir()
        secret.write_text("planted")
        for path, mode in ((top, 0o755), (outside, 0o777), (secret, 0o644)):
            path.chmod(mode)
        if uid is not None:
            os.chown(folder, uid, uid)
        unix_path, abstract = str(top / "socket"), f"\0{name}"
        datagrams = opened.enter_context(_bound(("127.0.0.1", 0), kind=socket.SOCK_DGRAM))
        tcp = opened.enter_context(_bound(("127.0.0.1", 0)))
        for address in (unix_path, abstract):
            opened.enter_context(_bound(address, family=socket.AF_UNIX))
        Path(unix_path).chmod(0o777)
        yield _Trap(
            folder,
            {
                "secret": str(secret),
                "outside": str(outside),
                "tcp_port": tcp.getsockname()[1],
                "udp_port": datagrams.getsockname()[1],
                "unix_path": unix_path,
                "abstract": abstract,
                "pid": os.getpid(),
                "started": trespass.start_time(os.getpid()),
            },
            datagrams,
        )


def _bound(
    address: Any,  # noqa: ANN401 - as families have it
    *,
    family: socket.AddressFamily = socket.AF_INET,
    kind: socket.SocketKind = socket.SOCK_STREAM,
) -> socket.socket:
    bound = socket.socket(family, kind)
    bound.settimeout(0)
    bound.bind(address)
    if kind == socket.SOCK_STREAM:
        bound.listen()
    return bound


def _command(argv: list[str], trap: _Trap, uid: int | None) -> Command:
    return Command(argv=argv, folder=trap.folder, cwd=trap.folder, uid=uid, timeout_s=_TIMEOUT_S)


def _failure(finished: Finished) -> str:
    if finished.stopped or finished.exit_code:
        how = finished.stopped or f"exit code {finished.exit_code}"
        return f"a command ended with {how}: {_words(finished.output)}"
    return ""


def _words(output: bytes) -> str:
    return output.decode(errors="replace").strip()[-500:] or "nothing"
