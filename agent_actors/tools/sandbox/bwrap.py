"""The stronger sandbox: bubblewrap, with namespaces of its own for files, processes and network.

The launcher runs inside, as the first process of the namespace. As root, bubblewrap is started as
root and the launcher changes the user: so a Python below a folder of root's can be reached, and
the files in the workspace belong to who they should. Otherwise bubblewrap makes a user namespace.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent_actors.config_tools import SandboxConfig
from agent_actors.tools.sandbox import places
from agent_actors.tools.sandbox.command import Command, Finished
from agent_actors.tools.sandbox.places import PrivateFolder
from agent_actors.tools.sandbox.running import LAUNCHER, launch, launcher

if TYPE_CHECKING:
    from agent_actors.tools.sandbox.launcher.spec import Spec

# An option of bubblewrap, and its source and target.
Mount = tuple[str, str, str]

_HOME = "/home/agent"
_TEMPORARY = "/tmp"  # noqa: S108 - the sandbox's own
_USERS = {"passwd": "agent:x:{uid}:{uid}:agent:{home}:/bin/sh\n", "group": "agent:x:{uid}:\n"}
_AS_ROOT = (
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--cap-drop", "ALL"),
    # For the launcher to become the user; it passes none of them on.
    *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"),
)


class BwrapSandbox:
    """Confines commands with the program at `bwrap`."""

    name = "bwrap"

    def __init__(self, config: SandboxConfig, bwrap: str) -> None:
        self._config = config
        self._bwrap = bwrap

    async def run(self, command: Command) -> Finished:
        """Run the command to its end; see `Sandbox.run`."""
        uid = places.user_of(command)
        async with places.private_folder(uid) as private:
            _write_users(private.path, os.getuid() if uid is None else uid)
            return await launch(
                [self._bwrap, *self._arguments(command, private), "--", *launcher()],
                self._spec(command, uid),
                timeout_s=places.timeout_s(self._config, command),
                max_output_bytes=self._config.max_output_bytes,
            )

    def _arguments(self, command: Command, private: PrivateFolder) -> Iterator[str]:
        yield from _namespaces(network=command.network)
        yield from ("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv")
        yield from ("--proc", "/proc", "--dev", "/dev")
        made = {Path("/")}
        for option, source, target in self._mounts(command, private):
            yield from _folders_above(Path(target), made)
            yield from (option, source, target)
        # What bubblewrap itself made, in memory, is not for writing.
        yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/")

    def _mounts(self, command: Command, private: PrivateFolder) -> Iterator[Mount]:
        """Yield what to show where; a later one covers an earlier one."""
        yield "--bind", str(private.memory), "/dev/shm"  # noqa: S108 - the sandbox's own
        yield "--bind", str(private.temporary), _TEMPORARY
        yield "--bind", str(private.home), _HOME
        for path in (*places.readable(self._config, command), str(LAUNCHER)):
            if path in places.SYSTEM and Path(path).is_symlink():
                yield "--symlink", str(Path(path).readlink()), path
            elif Path(path).exists():
                yield "--ro-bind", path, path
        for name in _USERS:
            yield "--ro-bind", str(private.path / name), f"/etc/{name}"
        for path in (command.folder, *command.write):
            yield "--bind", str(path), str(path)

    def _spec(self, command: Command, uid: int | None) -> "Spec":
        families = places.INTERNET if command.network else (socket.AF_UNIX, *places.INTERNET)
        return {
            "argv": command.argv,
            "cwd": str(command.cwd),
            "environment": places.environment(
                self._config, command, home=_HOME, temporary=_TEMPORARY
            ),
            "uid": uid,
            "limits": places.limits(self._config),
            "own_processes": True,
            "files": None,
            "calls": {
                "families": families,
                "own_processes": True,
                "shares_user": uid is None,
                "abi": 0,
            },
        }


def _namespaces(*, network: bool) -> Iterator[str]:
    if os.geteuid() == 0:
        yield from (word for word in _AS_ROOT if word != "--unshare-net" or not network)
        return
    yield "--unshare-all"
    if network:
        yield "--share-net"


def _folders_above(target: Path, made: set[Path]) -> Iterator[str]:
    """Yield how to make the folders that lead to a mount and are not made yet, for all to pass.

    Left to bubblewrap, some would be closed to the user that the launcher becomes.
    """
    for folder in reversed(target.parents):
        if folder not in made:
            yield from ("--perms", "0755", "--dir", str(folder))
            made.add(folder)


def _write_users(folder: Path, uid: int) -> None:
    """Write who there is: programs look up the name of their user, and need no other."""
    for name, line in _USERS.items():
        (folder / name).write_text(line.format(uid=uid, home=_HOME))
        (folder / name).chmod(0o644)
