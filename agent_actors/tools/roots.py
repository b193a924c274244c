"""Where the workspaces of a pool are, and whether nobody else has a hand in that folder."""

import errno
import os
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from agent_actors.contract import task_key
from agent_actors.errors import WorkspaceUnavailable

log = structlog.get_logger()

PASSABLE = 0o711  # the commands' users may go through, but see and change nothing
REMEDIES = {
    errno.ENOSPC: "free some space there, or configure another root",
    errno.EDQUOT: "free some space there, or configure another root",
    errno.EROFS: "it is read-only: configure another root",
    errno.EACCES: "let the service's user write there, or configure another root",
    errno.EPERM: "let the service run as an ordinary user, or as root with the capabilities "
    "CHOWN, FOWNER, DAC_OVERRIDE, SETUID and SETGID",
    errno.EINVAL: "has this machine the user ids from tools.sandbox.first_uid on?",
    errno.ENOTDIR: "something on the way to it is no folder: configure another root",
}


class WorkspaceRoot:
    """The folder of a pool's workspaces under the configured root, or under one of our own."""

    def __init__(self, configured: str, pool_name: str) -> None:
        self._own = Path(tempfile.gettempdir()).absolute() / f"agent-actors-{os.geteuid()}"
        self._root = Path(configured) if configured else self._own / "workspaces"
        self.pool = self._root / task_key(pool_name)
        self.uid_folders = [self._own / "uids"]
        if configured:
            self.uid_folders.append(self._root / ".uids")
        self._is_warned = False

    def prepare(self) -> None:
        """Make the folders that are missing, and check that nobody else may write in them.

        Raises WorkspaceUnavailable, and OSError for `explained`.
        """
        _make_our_own(self._own)
        self._root.mkdir(PASSABLE, parents=True, exist_ok=True)
        for folder in (self.pool, *self.uid_folders):
            _make_our_own(folder)
        if os.geteuid() == 0 and not self._is_warned:
            _warn_of_what_bars_the_way(self.pool)
            self._is_warned = True

    def is_ours(self) -> bool:
        """Tell whether the pool's folder is there and passes the checks; make nothing."""
        try:
            for folder in (self._own, *self.uid_folders):
                with suppress(FileNotFoundError):  # of a machine that was started anew
                    check_our_own(folder)
            check_our_own(self.pool)
        except FileNotFoundError:
            return False
        except (WorkspaceUnavailable, OSError) as error:
            log.warning("workspace.root_refused", folder=str(self.pool), error=str(error))
            return False
        return True

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn the system's error into WorkspaceUnavailable, which names the remedy."""
        try:
            yield
        except OSError as error:
            remedy = REMEDIES.get(error.errno or 0, "see to it, or configure another root")
            raise WorkspaceUnavailable(
                f"no workspace can be made in {self.pool}: {error.strerror or error}; {remedy} "
                "(tools.workspace.root)"
            ) from error


def _make_our_own(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir(PASSABLE)
        folder.chmod(PASSABLE)  # whatever the umask
    check_our_own(folder)


def check_our_own(folder: Path) -> None:
    """Raise WorkspaceUnavailable unless it is a folder of ours that nobody else may write.

    Raises FileNotFoundError when it is not there.
    """
    status = folder.lstat()
    others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or others_may_write:
        raise WorkspaceUnavailable(
            f"{folder} must be a folder that belongs to the user {os.geteuid()} and that nobody "
            "else may write: remove it, or configure another root (tools.workspace.root)"
        )


def _warn_of_what_bars_the_way(pool: Path) -> None:
    """Commands run as users of their own, who must be able to get to their folder."""
    for folder in pool.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            log.warning(
                "workspace.root_is_closed", folder=str(folder), remedy=f"chmod o+x {folder}"
            )
