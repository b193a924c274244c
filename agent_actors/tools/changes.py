"""What a task has changed in its folder, compared with how it found it.

A manifest says what each file was like; those that look the same since are not read again. The
contents are kept in a repository beside the workspace (`shadow`).
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from agent_actors.errors import ToolError
from agent_actors.tools.beneath import Beneath, Entry
from agent_actors.tools.shadow import ChangedFile, Content, GitFailed, ShadowRepository
from agent_actors.tools.stoppable import Stop

log = structlog.get_logger()

MANIFEST = "baseline"
MAX_FILES = 200_000
MAX_PATH_BYTES = 4_000
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_BASE_BYTES = 256 * 1024 * 1024
MAX_NOW_BYTES = 64 * 1024 * 1024
MAX_DIFF_BYTES = 4 * 1024 * 1024
MAX_IGNORE_BYTES = 256 * 1024
MAX_IGNORE_FILES = 1_000
MAX_ALL_IGNORE_BYTES = 8 * 1024 * 1024
IGNORE_FILE = ".gitignore"
LEFT_BY_PYTHON = "__pycache__"  # after each run of a test; nobody wants to see it

LINK = "120000"
PROGRAM = "100755"
TEXT = "100644"


class Seen(Struct, frozen=True, array_like=True):
    """What tells a file that was changed since: only root can set a file's ctime back."""

    mode: int
    size: int
    ctime_ns: int
    inode: int


Manifest = dict[bytes, Seen]


class Scan(Struct, frozen=True):
    """The files and links in the workspace; `is_cut` when there are more."""

    entries: dict[bytes, Entry]
    is_cut: bool

    def seen(self) -> Manifest:
        """Return what the manifest notes of them."""
        return {path: _seen(entry) for path, entry in self.entries.items()}


class Changes:
    """Compares a workspace with its baseline; what it needs is kept in `private`.

    Its methods block, and raise GivenUp once `stop` is set.
    """

    def __init__(self, files: Beneath, private: Path, stop: Stop) -> None:
        self._files = files
        self._stop = stop
        self._manifest = private / MANIFEST
        self._shadow = ShadowRepository(private, stop)

    def mark_baseline(self) -> None:
        """Keep what is in the folder now, for the comparison. Raises OSError, ToolError."""
        scan = self._scan()
        try:
            if scan.entries:
                self._shadow.import_base(self._contents(scan.entries.values(), MAX_BASE_BYTES))
        except GitFailed as error:  # the artifacts will say so, too
            log.warning("workspace.baseline_not_kept", error=str(error))
        self._manifest.write_bytes(msgspec.msgpack.encode(list(scan.seen().items())))

    def artifacts(self) -> dict[str, Any]:
        """Return `files_changed` and `diff`, and `diff_notes` when they do not tell all."""
        try:
            return self._artifacts()
        except (ToolError, OSError) as error:  # the folder is gone, the disk full
            return _artifacts([], "", [f"the changes cannot be told: {error}"])

    def _artifacts(self) -> dict[str, Any]:
        scan, before = self._scan(), self._baseline()
        changed = [path for path, seen in scan.seen().items() if before.get(path) != seen]
        deleted = [] if scan.is_cut else [path for path in before if path not in scan.entries]
        notes = [f"only the first {MAX_FILES} files were compared"] if scan.is_cut else []
        if not changed and not deleted:
            return _artifacts([], "", notes)
        try:
            return self._compared(scan, before, changed, deleted, notes)
        except GitFailed as error:
            notes.append(f"no diff, and ignored files are listed: {error}")
            return _artifacts(_guessed(before, changed, deleted), "", notes)

    def _compared(
        self,
        scan: Scan,
        before: Manifest,
        changed: list[bytes],
        deleted: list[bytes],
        notes: list[str],
    ) -> dict[str, Any]:
        if before and not self._shadow.has_base:
            raise GitFailed("what the task has found could not be kept for comparison")
        ignored = self._ignored(scan, [path for path in changed if path not in before], notes)
        wanted = [scan.entries[path] for path in changed if path not in ignored]
        self._shadow.import_now(deleted, self._contents(wanted, MAX_NOW_BYTES))
        diff, total_bytes = self._shadow.diff(MAX_DIFF_BYTES)
        return _artifacts(self._shadow.changed(), _told(diff, total_bytes), notes)

    def _scan(self) -> Scan:
        found = (
            (path, entry)
            for entry in self._while_wanted(self._files.walk())
            if entry.kind in {"file", "symbolic link"}
            and LEFT_BY_PYTHON not in entry.parts
            and len(path := os.fsencode("/".join(entry.parts))) <= MAX_PATH_BYTES
        )
        entries = dict(islice(found, MAX_FILES + 1))
        is_cut = len(entries) > MAX_FILES
        if is_cut:
            entries.popitem()
        return Scan(entries, is_cut)

    def _baseline(self) -> Manifest:
        """Return what the folder was like; a new one was empty."""
        try:
            data = self._manifest.read_bytes()
        except FileNotFoundError:
            return {}
        return dict(msgspec.msgpack.decode(data, type=list[tuple[bytes, Seen]]))

    def _ignored(self, scan: Scan, new: list[bytes], notes: list[str]) -> frozenset[bytes]:
        """Return which of the new files the agent's .gitignore files leave out."""
        found = [
            (path, entry)
            for path, entry in scan.entries.items()
            if entry.parts[-1] == IGNORE_FILE and entry.kind == "file"
        ]
        ignore_files = self._ignore_files(found)
        if len(ignore_files) < len(found):
            notes.append(
                f"only {len(ignore_files)} of {len(found)} .gitignore files were heeded, those "
                f"nearest the top: at most {MAX_IGNORE_FILES}, and {MAX_ALL_IGNORE_BYTES} bytes"
            )
        return self._shadow.ignored(new, ignore_files) if new and ignore_files else frozenset()

    def _ignore_files(self, found: list[tuple[bytes, Entry]]) -> dict[bytes, bytes]:
        """Return what stands in them, as far as there is room: an agent can write very many."""
        contents: dict[bytes, bytes] = {}
        room = MAX_ALL_IGNORE_BYTES
        found.sort(key=lambda item: len(item[1].parts))
        for path, entry in found[:MAX_IGNORE_FILES]:
            self._stop.check()
            if min(entry.status.st_size, MAX_IGNORE_BYTES) > room:
                break
            contents[path] = self._read(entry, min(room, MAX_IGNORE_BYTES))
            room -= len(contents[path])
        return contents

    def _contents(self, entries: Iterable[Entry], budget: int) -> Iterator[tuple[bytes, Content]]:
        """Yield what is in the files, as far as the budget goes: then, only that they changed."""
        for entry in self._while_wanted(entries):
            path = os.fsencode("/".join(entry.parts))
            size = entry.status.st_size
            if entry.kind == "symbolic link":
                yield path, _link(entry)
                continue
            data = b""
            if size <= min(MAX_FILE_BYTES, budget):
                data = self._read(entry, size)
                budget -= len(data)
            is_program = entry.status.st_mode & stat.S_IXUSR
            yield (
                path,
                Content(
                    PROGRAM if is_program else TEXT, data if len(data) == size else _stand_in(entry)
                ),
            )

    def _while_wanted(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self._stop.check()
            yield entry

    def _read(self, entry: Entry, max_bytes: int) -> bytes:
        with suppress(ToolError):  # it went away, or may not be read
            return self._files.read(entry.parts, max_bytes)
        return b""


def _seen(entry: Entry) -> Seen:
    status = entry.status
    return Seen(status.st_mode, status.st_size, status.st_ctime_ns, status.st_ino)


def _link(entry: Entry) -> Content:
    target = os.fsencode(entry.target)
    if entry.parts[-1].casefold().startswith(".git"):  # git refuses links with its own names
        return Content(TEXT, b"a symbolic link to " + target)
    return Content(LINK, target)


def _stand_in(entry: Entry) -> bytes:
    """Return what git takes for a binary file, another one when the file has changed."""
    return b"\0 %d bytes, of %d" % (entry.status.st_size, entry.status.st_mtime_ns)


def _guessed(before: Manifest, changed: list[bytes], deleted: list[bytes]) -> list[ChangedFile]:
    """Return the changes without git, from what the files look like."""
    kinds = {path: "modified" if path in before else "added" for path in changed}
    kinds |= dict.fromkeys(deleted, "deleted")
    return [ChangedFile(path, kind, 0, 0) for path, kind in sorted(kinds.items())]


def _artifacts(files: list[ChangedFile], diff: str, notes: list[str]) -> dict[str, Any]:
    listed = [
        {
            "path": file.path.decode(errors="backslashreplace"),
            "change": file.change,
            "added": file.added or 0,
            "deleted": file.deleted or 0,
        }
        for file in files
    ]
    return {"files_changed": listed, "diff": diff} | ({"diff_notes": notes} if notes else {})


def _told(diff: bytes, total_bytes: int) -> str:
    """Return the diff as text, whole lines of it, and how much is missing."""
    if len(diff) == total_bytes:
        return diff.decode(errors="replace")
    whole = diff[: diff.rfind(b"\n") + 1] or diff
    left_out = total_bytes - len(whole)
    return whole.decode(errors="replace") + f"[{left_out} of {total_bytes} bytes are left out]\n"
