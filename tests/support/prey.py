"""What hostile commands are after: secrets, services and processes, laid out for the attacks.

All of it is open to every user of the machine, so that only a sandbox stands in between.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from support import attacks

from agent_actors.tools.sandbox import Command, Finished, Sandbox
from agent_actors.tools.sandbox.launcher import seccomp

IS_ROOT = os.geteuid() == 0
UID = 2_000_012_345 if IS_ROOT else None
TOO_LARGE_MIB = 16
TOO_MUCH_MEMORY = 3 * 1024**3

_ATTACKS = Path(attacks.__file__).read_text()
_SECRETS = ("RAY_AUTH_TOKEN", "AGENT_ACTORS_NATS_PASSWORD", "VLLM_API_KEY")


class Prey:
    """One lay-out: `plan` is what the attacks are told, `folder` the workspace."""

    def __init__(self, top: Path, opened: contextlib.ExitStack) -> None:
        self.canary = f"canary-{uuid4().hex}"
        self.mark = f"mark-{uuid4().hex}"
        self.folder = top / "workspaces" / "mine"
        self.outside = top / "outside"
        self.victim = self.outside / "victim"
        self._lay_out_files(top)
        self.decoy = opened.enter_context(_decoy(self.canary))
        self._udp = opened.enter_context(_bound(("127.0.0.1", 0), kind=socket.SOCK_DGRAM))
        self._unix_datagrams = opened.enter_context(
            _bound(str(top / "datagrams"), family=socket.AF_UNIX, kind=socket.SOCK_DGRAM)
        )
        tcp = opened.enter_context(_bound(("127.0.0.1", 0)))
        for address in (str(top / "stream"), f"\0{self.mark}"):
            opened.enter_context(_bound(address, family=socket.AF_UNIX))
        for name in ("datagrams", "stream"):
            (top / name).chmod(0o777)
        self.plan: dict[str, Any] = {
            "canary": self.canary,
            "mark": self.mark,
            "secret": str(self.outside / "secret"),
            "outside": str(self.outside),
            "victim": str(self.victim),
            "home": str(top / "home"),
            "neighbour": str(top / "workspaces" / "neighbour"),
            "handle": file_handle(self.outside / "secret").hex(),
            "pid": self.decoy.pid,
            "address": _stack_address(self.decoy.pid),
            "tcp_port": tcp.getsockname()[1],
            "udp_port": self._udp.getsockname()[1],
            "unix_path": str(top / "stream"),
            "unix_datagrams": str(top / "datagrams"),
            "abstract": self.mark,
            "disk": _disk(),
            "calls": _call_numbers(),
            "shared_memory_key": 0x7A000000 | os.getpid(),
            "too_large_mib": TOO_LARGE_MIB,
            "too_much_memory": TOO_MUCH_MEMORY,
        }

    def _lay_out_files(self, top: Path) -> None:
        neighbour, token = self.folder.with_name("neighbour"), top / "home/.ray"
        for folder in (self.folder, neighbour, self.outside, token):
            folder.mkdir(parents=True)
        for path in (self.outside / "secret", neighbour / "notes", token / "auth_token"):
            path.write_text(self.canary)
        self.victim.write_text("as it was")
        for folder in (top, self.folder.parent, top / "home", token):
            folder.chmod(0o755)
        for path in (self.outside, neighbour):
            path.chmod(0o777)
        for path in (self.outside / "secret", neighbour / "notes", token / "auth_token"):
            path.chmod(0o666)  # or the kernel would refuse links to it in any case
        self.victim.chmod(0o666)
        (self.folder / "planted").symlink_to(self.outside / "secret")
        if UID:
            for path in (self.folder, self.victim):
                os.chown(path, UID, UID)

    def harm(self) -> str:
        """Return what has happened to it that should not; empty: nothing."""
        harmed = {
            "a file was written outside": {path.name for path in self.outside.iterdir()}
            != {"secret", "victim"},
            "a file was changed outside": _text(self.victim) != "as it was",
            "a process was killed": self.decoy.poll() is not None,
            "a datagram arrived": _received(self._udp) or _received(self._unix_datagrams),
            "a file is in the machine's folders": any(
                Path(folder, self.mark).exists() for folder in ("/tmp", "/dev/shm")
            ),
            "shared memory was left": _shared_memory_stands(self.plan["shared_memory_key"]),
        }
        return ", ".join(what for what, happened in harmed.items() if happened)

    async def attacked_by(
        self, attack: str, sandbox: Sandbox, *, python: str = sys.executable, **more: Any
    ) -> Finished:
        """Run one of `support.attacks` in the sandbox."""
        plan = msgspec.json.encode(self.plan).decode()
        argv = [python, "-I", "-S", "-c", _ATTACKS, attack, plan]
        return await sandbox.run(
            Command(argv=argv, folder=self.folder, cwd=self.folder, uid=UID, **more)
        )


@contextlib.contextmanager
def laid_out() -> Iterator[Prey]:
    with contextlib.ExitStack() as opened:
        top = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="prey-")))
        yield Prey(top, opened)


@contextlib.contextmanager
def _decoy(canary: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the attacker's own user that has secrets in its environment."""
    environment = dict.fromkeys(_SECRETS, canary)
    decoy = subprocess.Popen(
        ["sleep", "300"], env=environment | {"PATH": "/usr/bin:/bin"}, user=UID, group=UID
    )
    try:
        yield decoy
    finally:
        decoy.send_signal(signal.SIGCONT)
        decoy.kill()
        decoy.wait()


def _bound(address: Any, *, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM):
    bound = socket.socket(family, kind)
    bound.settimeout(0)
    bound.bind(address)
    if kind == socket.SOCK_STREAM:
        bound.listen()
    return bound


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else "nothing"


def _received(bound: socket.socket) -> bool:
    try:
        return bool(bound.recv(64))
    except BlockingIOError:
        return False


def file_handle(path: Path) -> bytes:
    """Return what `open_by_handle_at` takes for the file, as `name_to_handle_at` gives it."""
    handle = ctypes.create_string_buffer((128).to_bytes(4, "little"), 8 + 128)
    mount = ctypes.c_int()
    number = {"x86_64": 303, "aarch64": 264}[os.uname().machine]
    where = os.fsencode(path)
    attacks.system_call(number, attacks.AT_FDCWD, where, handle, ctypes.byref(mount), 0)
    return handle.raw


def _stack_address(pid: int) -> int:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return int(next(line for line in lines if "[stack]" in line).split("-")[0], 16)


def _disk() -> str:
    """Return a disk of this machine, or the name of one that it might have."""
    names = sorted(path.name for path in Path("/sys/block").iterdir() if path.name[0] in "sv")
    return f"/dev/{(names or ['sda'])[0]}"


def _call_numbers() -> dict[str, int]:
    column = seccomp._MACHINES[os.uname().machine][1]
    return {name: numbers[column] for name, numbers in seccomp._CALLS.items()}


def _shared_memory_stands(key: int) -> bool:
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    found = [line.split()[1] for line in lines if int(line.split()[0]) == key]
    for number in found:
        subprocess.run(["ipcrm", "-m", number], check=True)
    return bool(found)
