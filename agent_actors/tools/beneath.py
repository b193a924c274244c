"""Reaching what lies beneath a folder without ever leaving it, whatever an agent has put there.

Each name of a path is opened from the descriptor of the folder before it, and no symbolic link
is followed, so that neither a planted link nor one swapped in at the wrong moment leads out.
Everything here blocks: call it in a thread.
"""

import errno
import os
import secrets
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from agent_actors.errors import ToolError
from agent_actors.tools.paths import Parts, is_git_name, joined, parts_of, shown
from agent_actors.tools.quota import Quota
from agent_actors.tools.removal import FOLDER_FLAGS, remove_tree

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_MODE = 0o644
FOLDER_MODE = 0o755
PERMISSIONS = 0o777
MAX_DEPTH = 128
HINTS = {
    errno.ENOTEMPTY: ": say recursive to delete all in it, too",
    errno.ENOSPC: ": the disk is full, delete what is not needed",
    errno.ENAMETOOLONG: ": choose a shorter name",
}
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Entry(Struct, frozen=True):
    """Something in a folder: where it is, what it is; `target` is where a link points."""

    parts: Parts
    status: os.stat_result
    target: str = ""

    @property
    def kind(self) -> str:
        """`file`, `folder`, `symbolic link`, `named pipe`, `socket` or `device`."""
        return KINDS[stat.S_IFMT(self.status.st_mode)]


class Beneath:
    """What lies beneath `root`, which is made by us in a folder that no agent can write.

    `uid` owns what is made in it; None: ourselves. `scratch` is a folder of ours on the same
    file system. All methods raise ToolError, in words for the model.
    """

    def __init__(self, root: Path, *, scratch: Path, uid: int | None, max_bytes: int) -> None:
        self._root = root
        self._identity = _identity(os.lstat(root))
        self._scratch = scratch
        self._uid = uid
        self._quota = Quota(max_bytes, self._used_bytes)

    def parts(self, path: str) -> Parts:
        """Return the names that lead to a path of the model's."""
        return parts_of(path, self._root)

    def look(self, parts: Parts) -> Entry:
        """Return what is there."""
        if not parts:
            with self._folder(()) as folder:
                return Entry(parts, os.fstat(folder))
        with self._folder(parts[:-1]) as folder, _explained(parts):
            entry = _entry(folder, parts)
        if entry is None:
            raise _missing(parts)
        return entry

    def entries(self, parts: Parts) -> Iterator[Entry]:
        """Yield what is in a folder, sorted by name, without what is git's."""
        with self._folder(parts) as folder:
            yield from (entry for entry in _entries(folder, parts) if not _is_gits(entry))

    def walk(
        self, parts: Parts = (), *, max_depth: int = MAX_DEPTH, with_gits: bool = False
    ) -> Iterator[Entry]:
        """Yield what is in a folder and in those in it, one folder after the other.

        At most `max_depth` folders down; what vanishes meanwhile is left out. Each folder is
        opened from the root: more system calls, but one descriptor at a time.
        """
        with self._folder(parts):
            waiting = [parts]
        while waiting:
            current = waiting.pop()
            with suppress(ToolError), self._folder(current) as folder:
                for entry in _entries(folder, current):
                    if _is_gits(entry) and not with_gits:
                        continue
                    if entry.kind == "folder" and len(current) - len(parts) < max_depth:
                        waiting.append(entry.parts)
                    yield entry

    @contextmanager
    def opened(self, parts: Parts) -> Generator[BinaryIO]:
        """Give a regular file to read."""
        if not parts:
            raise ToolError(". is the workspace itself, not a file")
        with self._folder(parts[:-1]) as folder, _explained(parts):
            entry = _entry(folder, parts)
            if entry is None:
                raise _missing(parts)
            self._check_readable(entry)
            handle = os.open(parts[-1], READ_FLAGS, dir_fd=folder)
        with os.fdopen(handle, "rb") as file, _explained(parts):
            self._check_readable(Entry(parts, os.fstat(handle)))  # it may be another one by now
            yield file

    def read(self, parts: Parts, max_bytes: int) -> bytes:
        """Return the beginning of a file, at most this much."""
        with self.opened(parts) as file:
            return file.read(max_bytes)

    def write(self, parts: Parts, data: bytes) -> Entry | None:
        """Put a file there, whole or not at all; return what it replaces.

        Missing folders are made. The permissions of the replaced file stay.
        """
        if not parts:
            raise ToolError(". is the workspace itself, not a file")
        with self._folder(parts[:-1], create=True) as folder, _explained(parts):
            old = _entry(folder, parts)
            if old is not None:
                self._check_writable(old)
            self._quota.take(len(data) - (_disk_bytes(old) if old else 0))
            new = self._scratch / secrets.token_hex(8)
            try:
                self._fill(new, data, old)
                os.rename(new, parts[-1], dst_dir_fd=folder)
            finally:
                new.unlink(missing_ok=True)
        return old

    def make_folder(self, parts: Parts) -> bool:
        """Make a folder, and those that lead to it; tell whether it was not there before."""
        with suppress(ToolError), self._folder(parts):
            return False
        with self._folder(parts, create=True):
            return True

    def delete(self, parts: Parts, *, recursive: bool) -> Entry:
        """Delete a file, a link, an empty folder, or any folder; return what it was."""
        if not parts:
            raise ToolError("the workspace itself cannot be deleted")
        with self._folder(parts[:-1]) as folder, _explained(parts):
            entry = _entry(folder, parts)
            if entry is None:
                raise _missing(parts)
            self._check_owner(entry)
            if entry.kind != "folder":
                os.unlink(parts[-1], dir_fd=folder)
            elif recursive:
                self._delete_tree(folder, parts)
            else:
                os.rmdir(parts[-1], dir_fd=folder)
        return entry

    def _delete_tree(self, folder: int, parts: Parts) -> None:
        if any(map(_is_gits, self.walk(parts, with_gits=True))):
            raise ToolError(f"{joined(parts)} has a .git in it, which is not for the file tools")
        doomed = self._scratch / secrets.token_hex(8)
        os.rename(parts[-1], doomed, src_dir_fd=folder)
        try:
            remove_tree(doomed)
        except NotADirectoryError:  # it was swapped since it was looked at
            doomed.unlink()

    @contextmanager
    def _folder(self, parts: Parts, *, create: bool = False) -> Generator[int]:
        folder = self._open_root()
        try:
            for depth, name in enumerate(parts, start=1):
                inner = self._open_inner(folder, name, parts[:depth], create=create)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _open_root(self) -> int:
        with _explained(()):
            root = os.open(self._root, FOLDER_FLAGS)
        if _identity(os.fstat(root)) != self._identity:
            os.close(root)
            raise ToolError("the workspace is gone: another folder is in its place")
        return root

    def _open_inner(self, folder: int, name: str, parts: Parts, *, create: bool) -> int:
        with _explained(parts):
            made = create and _made(folder, name)
            entry = _entry(folder, parts)
            if entry is None:
                raise _missing(parts)
            if entry.kind != "folder":
                raise _unfit(entry, "folder")
            inner = os.open(name, FOLDER_FLAGS, dir_fd=folder)
        if made:
            self._give_away(inner)
        return inner

    def _fill(self, new: Path, data: bytes, old: Entry | None) -> None:
        with os.fdopen(os.open(new, CREATE_FLAGS, FILE_MODE), "wb") as file:
            self._give_away(file.fileno())
            mode = stat.S_IMODE(old.status.st_mode) & PERMISSIONS if old else FILE_MODE
            os.fchmod(file.fileno(), mode)
            file.write(data)

    def _give_away(self, handle: int) -> None:
        if self._uid is not None and os.fstat(handle).st_uid == os.geteuid():
            os.fchown(handle, self._uid, self._uid)

    def _check_readable(self, entry: Entry) -> None:
        if entry.kind != "file":
            raise _unfit(entry, "file")
        if entry.status.st_nlink > 1 and not self._is_the_tasks(entry):
            raise ToolError(
                f"{joined(entry.parts)} is a hard link: it may be a file from elsewhere, so it "
                "is not opened"
            )

    def _check_writable(self, entry: Entry) -> None:
        if entry.kind != "file":
            raise _unfit(entry, "file")
        self._check_owner(entry)

    def _check_owner(self, entry: Entry) -> None:
        if entry.status.st_uid not in {self._uid, os.geteuid()}:
            raise ToolError(f"{joined(entry.parts)} belongs to another user")

    def _is_the_tasks(self, entry: Entry) -> bool:
        """Tell whether a file can only be the task's: with a user id of its own, the owner says."""
        return self._uid is not None and entry.status.st_uid == self._uid

    def _used_bytes(self) -> int:
        """Return what is used on the disk, git's included, deeper than MAX_DEPTH not."""
        return sum(_disk_bytes(entry) for entry in self.walk(with_gits=True))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _disk_bytes(entry: Entry) -> int:
    """Return what is used on the disk: much less than its size for a file with holes."""
    return entry.status.st_blocks * 512


def _made(folder: int, name: str) -> bool:
    try:
        os.mkdir(name, FOLDER_MODE, dir_fd=folder)
    except FileExistsError:
        return False
    return True


def _entries(folder: int, parts: Parts) -> Iterator[Entry]:
    with _explained(parts):
        names = sorted(os.listdir(folder))
    for name in names:
        with suppress(OSError):  # what cannot be looked at is left out
            if entry := _entry(folder, (*parts, name)):
                yield entry


def _entry(folder: int, parts: Parts) -> Entry | None:
    """Return what the last name is in its folder."""
    try:
        status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        is_link = stat.S_ISLNK(status.st_mode)
        return Entry(parts, status, os.readlink(parts[-1], dir_fd=folder) if is_link else "")
    except FileNotFoundError:
        return None


def _is_gits(entry: Entry) -> bool:
    return is_git_name(entry.parts[-1])


def _missing(parts: Parts) -> ToolError:
    return ToolError(f"there is no {joined(parts)}: list_files shows what there is")


def _unfit(entry: Entry, wanted: str) -> ToolError:
    name = joined(entry.parts)
    if entry.kind == "symbolic link":
        return ToolError(
            f"{name} is a symbolic link to {shown(entry.target)}; links are not followed, so "
            "name the place itself"
        )
    return ToolError(f"{name} is a {entry.kind}, not a {wanted}")


@contextmanager
def _explained(parts: Parts) -> Generator[None]:
    """Turn the system's error into one for the model."""
    try:
        yield
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "")
        raise ToolError(f"{joined(parts)}: {error.strerror or error}{hint}") from error
