"""What every command gets to see, the same in each sandbox, and nothing secret among it."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import structlog
from msgspec import Struct

from agent_actors.config_tools import SandboxConfig
from agent_actors.errors import ToolError
from agent_actors.tools.sandbox.command import Command
from agent_actors.tools.threads import UPKEEP

log = structlog.get_logger()

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

# Of /etc only what programs need to run at all; tokens lie in others (pip.conf, npmrc, gitconfig).
SETTINGS = tuple(
    f"/etc/{name}"
    for name in (
        "alternatives",
        "ca-certificates",
        "crypto-policies",
        "group",
        "hosts",
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "localtime",
        "mime.types",
        "nsswitch.conf",
        "passwd",
        "pki/ca-trust",
        "pki/tls/certs",
        "protocols",
        "services",
        "ssl/certs",
        "ssl/openssl.cnf",
        "timezone",
    )
)
NETWORK_SETTINGS = ("/etc/resolv.conf", "/etc/host.conf", "/etc/gai.conf")
# What a command with network may use. No Unix sockets: they lead to services of the host.
INTERNET = (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
MAX_OPEN_FILES = 1_024
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class PrivateFolder(Struct, frozen=True, kw_only=True):
    """What a command has for itself alone, and is removed after it; no part of the workspace.

    `memory` stands for /dev/shm, on disk, since what lies in memory counts against nobody.
    """

    path: Path
    home: Path
    temporary: Path
    memory: Path


@contextlib.asynccontextmanager
async def private_folder(uid: int | None) -> AsyncGenerator[PrivateFolder]:
    """Make a private folder, of that user's; remove it at the end."""
    path = Path(tempfile.mkdtemp(prefix="agent-command-"))
    folders = path / "home", path / "tmp", path / "shm"
    try:
        for folder in folders:
            folder.mkdir()
            folder.chmod(0o755)  # for the launcher; the folder above keeps others out
        if uid is not None:
            for folder in (path, *folders):
                os.chown(folder, uid, uid)
        yield PrivateFolder(path=path, home=folders[0], temporary=folders[1], memory=folders[2])
    finally:
        await UPKEEP.see_to(_remove, path)


def user_of(command: Command) -> int | None:
    """Return the user to become; None: stay who we are. Raises ToolError, since root we never are.

    Limits on processes do not bind root.
    """
    if os.geteuid() != 0:
        return None
    if not command.uid:
        raise ToolError("no command runs as root: its workspace has no user of its own")
    return command.uid


def readable(config: SandboxConfig, command: Command) -> list[str]:
    """Return what the command may read, as it is named; some of it may not be there."""
    settings = SETTINGS + (NETWORK_SETTINGS if command.network else ())
    return [*SYSTEM, *settings, *needed(config, command)]


def needed(config: SandboxConfig, command: Command) -> list[str]:
    """Return what the command must be able to read, beside the system."""
    paths = {Path(path) for path in (*_python(), *config.read_paths, *command.read)}
    return [str(path) for path in sorted(paths) if paths.isdisjoint(path.parents)]


def environment(
    config: SandboxConfig, command: Command, *, home: str, temporary: str
) -> dict[str, str]:
    """Return all of the command's environment: of ours it gets nothing."""
    return {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": temporary,
        "LANG": "C.UTF-8",
        **config.environment,
        **command.environment,
    }


def limits(config: SandboxConfig) -> dict[str, int]:
    """Return the limits of each process, by their names in `resource`."""
    return {
        "RLIMIT_AS": config.max_memory_bytes,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": config.max_cpu_s,
        "RLIMIT_FSIZE": config.max_file_bytes,
        "RLIMIT_NOFILE": MAX_OPEN_FILES,
        "RLIMIT_NPROC": config.max_processes,
    }


def timeout_s(config: SandboxConfig, command: Command) -> float:
    """Return how long the command may take."""
    return min(config.timeout_s, command.timeout_s or config.timeout_s)


def _python() -> Iterator[str]:
    """Yield where this Python is: its folders, and the links that lead to its program."""
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix):
        yield prefix
        yield os.path.realpath(prefix)
    program = Path(sys.executable)
    while program.is_symlink():
        yield str(program)
        program = program.parent / program.readlink()
    yield str(program)


def _remove(path: Path) -> None:
    """Remove the folder, however deep, and whatever its owner has forbidden himself in it."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            subprocess.run([*command, "--", path], check=False, capture_output=True)  # noqa: S603 - our own folder
    if path.exists():
        log.warning("sandbox.private_folder_stays", path=str(path))
