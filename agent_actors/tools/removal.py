"""Removing what an agent has left: folders of any depth, any size and any permission."""

import errno
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
BATCH = 10_000
SWAPPED = (FileNotFoundError, NotADirectoryError)  # a process of the agent's is still at work


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours and all in it; links in it are removed, never followed.

    A folder in it that is not empty is moved to the top, where its turn comes, so that a depth
    of thousands costs neither stack nor descriptors. Raises OSError.
    """
    with _opened(folder) as top:
        while names := _some_names(top):
            for name in names:
                with suppress(*SWAPPED):
                    if not _removed(name, top):
                        with _opened(name, top) as inner:
                            _empty(inner, top)
                        _removed(name, top)
    folder.rmdir()


def _empty(folder: int, top: int) -> None:
    while names := _some_names(folder):
        for name in names:
            with suppress(*SWAPPED):
                if not _removed(name, folder):
                    _move_up(name, folder, top)


def _some_names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, BATCH)]


def _removed(name: str, folder: int) -> bool:
    """Remove a file or an empty folder; tell whether it is gone."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return False
    return True


def _move_up(name: str, folder: int, top: int) -> None:
    os.close(_open(name, folder))  # its owner cannot move a folder that it may not write
    os.rename(name, secrets.token_hex(8), src_dir_fd=folder, dst_dir_fd=top)


@contextmanager
def _opened(name: str | Path, parent: int | None = None) -> Generator[int]:
    folder = _open(name, parent)
    try:
        yield folder
    finally:
        os.close(folder)


def _open(name: str | Path, parent: int | None) -> int:
    """Open a folder, after its owner may do with it as it pleases."""
    handle = os.open(name, os.O_PATH | FOLDER_FLAGS, dir_fd=parent)
    try:
        if os.fstat(handle).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            Path(f"/proc/self/fd/{handle}").chmod(stat.S_IRWXU)
        return os.open(".", FOLDER_FLAGS, dir_fd=handle)
    finally:
        os.close(handle)
