"""Which workspace has which user id, when the service runs as root."""

import fcntl
import os
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

UIDS = 65_536  # what a container's range of user ids usually has
TRIES = 200


class UidRegister:
    """A user id is taken by a symbolic link of its name to the folder that has it.

    Made at once and whole, it needs no cleaning up after a crash: a link whose folder is gone
    means nothing. There is a register for the machine, since the kernel knows a user by the id
    alone, and one for the root of the workspaces, which other machines may share.
    """

    def __init__(self, folders: Sequence[Path], first_uid: int) -> None:
        self._folders = folders
        self._first_uid = first_uid

    def reserve(self, workspace: Path) -> int:
        """Return an id that no other workspace and no process has. Raises OSError."""
        for _ in range(TRIES):
            # The first one is git's, where it talks with remotes (`git.exchange`).
            uid = self._first_uid + 1 + secrets.randbelow(UIDS - 1)
            if not _has_processes(uid) and self.claim(uid, workspace):
                return uid
            self.release(uid, workspace)
        raise OSError(f"none of {TRIES} user ids from {self._first_uid} on was free")

    def claim(self, uid: int, workspace: Path) -> bool:
        """Take this id in all registers, as far as no other workspace has it; tell if ours."""
        for folder in self._folders:
            with _locked(folder):
                if not _linked(folder / str(uid), workspace):
                    return False
        return True

    def release(self, uid: int, workspace: Path) -> None:
        """Give the id back, if the workspace has it."""
        for folder in self._folders:
            link = folder / str(uid)
            with suppress(FileNotFoundError):
                if link.readlink() == workspace:
                    link.unlink()


def _linked(link: Path, workspace: Path) -> bool:
    with suppress(FileExistsError):
        link.symlink_to(workspace)
        return True
    holder = link.readlink()
    if holder != workspace and not holder.exists():
        link.unlink()
        link.symlink_to(workspace)
        return True
    return holder == workspace


def _has_processes(uid: int) -> bool:
    """Tell whether somebody's left-over process still runs under this id."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                if entry.stat().st_uid == uid:
                    return True
    return False


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
