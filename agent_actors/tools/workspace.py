"""The folder that a task's agent works in: made for it alone, found again by who takes it over.

    <root>/<pool>/<task>/<random>/         ours; held by a lock on the file `lock` in it
                                 lock
                                 record    whose it is, and the token that proves it
                                 private/  for our own bookkeeping
                                 git/      between the workspace and remotes: `git.exchange`
                                 work/     the workspace: all that the agent sees

A lock ends with its process, so that what a dead one held can be taken over or swept away. On a
volume that nodes share it must hold between them, as it does on NFS 4.
"""

import asyncio
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import structlog
from msgspec import Struct

from agent_actors.config_tools import WorkspaceConfig
from agent_actors.contract import ResultStatus, task_key
from agent_actors.errors import ToolError, WorkspaceUnavailable
from agent_actors.tools.beneath import Beneath
from agent_actors.tools.changes import Changes
from agent_actors.tools.removal import remove_tree
from agent_actors.tools.roots import PASSABLE, WorkspaceRoot, check_our_own
from agent_actors.tools.stoppable import Work
from agent_actors.tools.threads import UPKEEP
from agent_actors.tools.uids import UidRegister

log = structlog.get_logger()

LOCK = "lock"
RECORD = "record"
PRIVATE = "private"
WORK = "work"
UNFINISHED = ".new-"
OURS = 0o700
RANDOM_BYTES = 8
MAX_KEY_CHARS = 100
MAX_SEARCHES = 2
TRIES = 10

T = TypeVar("T")
OpenedT = TypeVar("OpenedT", bound="Workspace | None")

_TASK_FOLDER = re.compile(r"[A-Za-z0-9_=-]+(\.[0-9a-f]{32})?")  # `_folder_name`
_FOLDER = re.compile(rf"({re.escape(UNFINISHED)})?[0-9a-f]{{{2 * RANDOM_BYTES}}}")


class WorkspaceId(Struct, frozen=True, kw_only=True):
    """What a journal keeps of a workspace: where it was, and the token that proves it the same."""

    path: str
    token: str


class WorkspaceRecord(Struct, frozen=True, kw_only=True):
    """What stands in a workspace's `record`."""

    task_id: str
    token: str
    uid: int | None


class Workspace:
    """A folder of one task. `uid` owns its files and runs its commands; None: the service's own.

    It is nobody else's until it is closed, or its process ends.
    """

    def __init__(
        self,
        workspace_id: WorkspaceId,
        *,
        uid: int | None = None,
        max_bytes: int = WorkspaceConfig().max_bytes,
        lock: IO[str] | None = None,
    ) -> None:
        self.id = workspace_id
        self.path = Path(workspace_id.path)
        self.uid = uid
        self._max_bytes = max_bytes
        self._lock = lock
        self._works: list[Work[Any]] = []
        self.searching = asyncio.Semaphore(MAX_SEARCHES)

    @property
    def private(self) -> Path:
        """A folder for what we note of the workspace, which no command can see or change."""
        folder = self.path.parent / PRIVATE
        folder.mkdir(OURS, exist_ok=True)
        return folder

    @cached_property
    def files(self) -> Beneath:
        """What is in the folder; its methods block, so call them in a thread."""
        return Beneath(self.path, scratch=self.private, uid=self.uid, max_bytes=self._max_bytes)

    async def mark_baseline(self) -> None:
        """Remember what is in the folder as what the task has found there.

        Raises WorkspaceUnavailable when it cannot be kept.
        """
        try:
            await self._compare(Changes.mark_baseline)
        except (ToolError, OSError) as error:
            raise WorkspaceUnavailable(f"{self.path}: {error}") from error

    async def artifacts(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return `files_changed` and `diff`: what differs from how the task found its folder.

        What is missing of them is said in `diff_notes`. The time counts from when a thread is
        free for it. Raises TimeoutError.
        """
        return await self._compare(Changes.artifacts, timeout_s)

    def close(self) -> None:
        """Let go of the folder, which stays: another attempt may take it up.

        Work that was given up and has not ended yet keeps it until it has.
        """
        running = next((work for work in self._works if not work.has_ended), None)
        if running:
            running.when_ended(self.close)
        elif self._lock and not self._lock.closed:
            with suppress(OSError):  # the folder is gone, or its volume
                os.utime(self._lock.fileno())  # its age counts from here
            self._lock.close()

    async def _compare(self, ask: Callable[[Changes], T], timeout_s: float | None = None) -> T:
        files, private = self.files, self.private
        work = Work(UPKEEP, lambda stop: ask(Changes(files, private, stop)))
        self._works.append(work)
        return await work.result(timeout_s)


class Workspaces:
    """Makes workspaces under the pool's root, finds them again, removes them."""

    def __init__(self, config: WorkspaceConfig, *, pool_name: str, first_uid: int) -> None:
        self._config = config
        self._root = WorkspaceRoot(config.root, pool_name)
        self._uids = UidRegister(self._root.uid_folders, first_uid) if os.geteuid() == 0 else None

    async def make(self, task_id: str) -> Workspace:
        """Return a new empty workspace. Raises WorkspaceUnavailable."""
        return await _opened_for(UPKEEP.start(self._make, task_id))

    async def reopen(self, known: WorkspaceId) -> Workspace | None:
        """Return the workspace if it is there and no other attempt holds it.

        A frozen owner holds it still, so its successor has to begin anew.
        """
        return await _opened_for(UPKEEP.start(self._reopen, known))

    async def clear_away(self, task_id: str, status: ResultStatus) -> None:
        """Remove the task's workspaces on this machine, unless they are to be kept."""
        if self._config.keep == "always" or (self._config.keep, status) == ("failed", "failed"):
            return
        await UPKEEP.see_to(self._clear_away, task_id)

    async def sweep(self) -> None:
        """Remove what is kept or abandoned for longer than configured."""
        await UPKEEP.see_to(self._sweep)

    def _make(self, task_id: str) -> Workspace:
        with self._root.explained():
            self._root.prepare()
            outer, lock = self._new_folder(self._root.pool / _folder_name(task_id))
            try:
                return self._furnish(outer, lock, task_id)
            except BaseException:
                self._remove(outer)
                lock.close()
                raise

    def _new_folder(self, parent: Path) -> tuple[Path, IO[str]]:
        """Return a folder that nobody has seen before it was locked."""
        for _ in range(TRIES):
            with suppress(FileExistsError):
                parent.mkdir(PASSABLE)
                parent.chmod(PASSABLE)
            name = secrets.token_hex(RANDOM_BYTES)
            unfinished = parent / f"{UNFINISHED}{name}"
            with suppress(FileNotFoundError):  # the last one of the task was just removed
                unfinished.mkdir(PASSABLE)
                unfinished.chmod(PASSABLE)
                lock = _locked(unfinished, create=True)
                if lock:
                    return unfinished.rename(parent / name), lock
        raise OSError(f"{parent} was removed {TRIES} times while it was made")

    def _furnish(self, outer: Path, lock: IO[str], task_id: str) -> Workspace:
        uid = self._uids.reserve(outer) if self._uids else None
        (outer / PRIVATE).mkdir(OURS)
        work = outer / WORK
        work.mkdir(OURS)
        if uid is not None:
            os.chown(work, uid, uid)
        record = WorkspaceRecord(task_id=task_id, token=secrets.token_urlsafe(24), uid=uid)
        _write_record(outer, record)
        known = WorkspaceId(path=str(work), token=record.token)
        return self._opened(known, uid, lock)

    def _opened(self, known: WorkspaceId, uid: int | None, lock: IO[str]) -> Workspace:
        workspace = Workspace(known, uid=uid, max_bytes=self._config.max_bytes, lock=lock)
        os.utime(lock.fileno())
        _ = workspace.files  # notes which folder this is, before an agent is let in
        return workspace

    def _reopen(self, known: WorkspaceId) -> Workspace | None:
        outer = Path(known.path).parent
        if outer.parent.parent != self._root.pool or Path(known.path).name != WORK:
            return None  # a journal from before the root was configured anew
        lock = None
        try:
            self._root.prepare()  # this machine may not have had a workspace yet
            check_our_own(outer)
            lock = _locked(outer)
            record = _read_record(outer) if lock else None
            if lock and record and self._is_same(record, known, outer):
                return self._opened(known, record.uid, lock)
        except FileNotFoundError:
            log.info("workspace.gone", folder=str(outer))
        except (WorkspaceUnavailable, OSError) as error:
            log.warning("workspace.not_reopened", folder=str(outer), error=str(error))
        if lock:
            lock.close()
        return None

    def _is_same(self, record: WorkspaceRecord, known: WorkspaceId, outer: Path) -> bool:
        if not hmac.compare_digest(record.token.encode(), known.token.encode()):
            return False
        if record.uid is None or self._uids is None:
            return record.uid is None and self._uids is None
        return self._uids.claim(record.uid, outer)

    def _clear_away(self, task_id: str) -> None:
        if self._root.is_ours():
            for outer in _folders(self._root.pool / _folder_name(task_id)):
                if not outer.name.startswith(UNFINISHED):
                    self._remove_unless_held(outer)

    def _sweep(self) -> None:
        if self._root.is_ours():
            for outer in _swept(self._root.pool):
                if _age_s(outer) > self._config.keep_for_s:
                    self._remove_unless_held(outer)

    def _remove_unless_held(self, outer: Path) -> None:
        try:
            lock = _locked(outer)
        except OSError as error:
            log.warning("workspace.not_removed", folder=str(outer), error=str(error))
            return
        if lock:
            self._remove(outer)
            lock.close()
        elif outer.name.startswith(UNFINISHED):
            with suppress(OSError):  # not empty: somebody has it
                outer.rmdir()
                outer.parent.rmdir()

    def _remove(self, outer: Path) -> None:
        """Remove a workspace whose lock we have: first its record, so that nobody reopens it."""
        try:
            record = _read_record(outer)
            (outer / RECORD).unlink(missing_ok=True)
            for folder in _folders_in(outer):
                remove_tree(folder)
            remove_tree(outer)  # the lock, by which a sweep knows the rest, comes last
        except OSError as error:
            log.warning("workspace.not_removed", folder=str(outer), error=str(error))
            return
        if record and record.uid is not None and self._uids:
            self._uids.release(record.uid, outer)
        with suppress(OSError):  # the task has others
            outer.parent.rmdir()


async def _opened_for(opening: Future[OpenedT]) -> OpenedT:
    """Return the workspace; when cancelled meanwhile, nobody holds it."""
    try:
        return await asyncio.wrap_future(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opening: Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None and (opened := opening.result()):
        opened.close()


def _folder_name(task_id: str) -> str:
    key = task_key(task_id)
    if len(key) <= MAX_KEY_CHARS:
        return key
    return f"{key[:MAX_KEY_CHARS]}.{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _locked(outer: Path, *, create: bool = False) -> IO[str] | None:
    """Return the file that locks the folder, or None when it has none or somebody else has it."""
    path = outer / LOCK
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        handle = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    lock = os.fdopen(handle, "r+")
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.lstat()):  # not one removed meanwhile
            return lock
    lock.close()
    return None


def _write_record(outer: Path, record: WorkspaceRecord) -> None:
    new = outer / PRIVATE / RECORD
    new.touch(0o600)
    new.write_bytes(msgspec.json.encode(record))
    new.rename(outer / RECORD)


def _read_record(outer: Path) -> WorkspaceRecord | None:
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode((outer / RECORD).read_bytes(), type=WorkspaceRecord)
    return None


def _swept(pool: Path) -> Iterator[Path]:
    """Yield the folders of workspaces; whatever else lies there is not ours to touch."""
    for task_folder in _folders_in(pool):
        if _TASK_FOLDER.fullmatch(task_folder.name):
            yield from _folders(task_folder)


def _folders(task_folder: Path) -> Iterator[Path]:
    """Yield the folders of a task's workspaces."""
    if _is_ours(task_folder):
        for outer in _folders_in(task_folder):
            if _FOLDER.fullmatch(outer.name) and _is_ours(outer):
                yield outer


def _folders_in(parent: Path) -> list[Path]:
    with suppress(OSError), os.scandir(parent) as entries:  # mostly, there is none
        return [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return []


def _is_ours(folder: Path) -> bool:
    with suppress(WorkspaceUnavailable, OSError):
        check_our_own(folder)
        return True
    return False


def _age_s(outer: Path) -> float:
    """Return how long ago the workspace was opened or closed."""
    times = [0.0]
    for path in (outer, outer / LOCK):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times)
