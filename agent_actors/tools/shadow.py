"""A repository of our own, in which what a task found is compared with what it left.

Git never looks at the workspace: contents reach it as a stream (`git fast-import`), so neither a
configuration, a hook, a filter nor a nested repository of the agent's has any say.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from msgspec import Struct

from agent_actors.tools.removal import remove_tree
from agent_actors.tools.stoppable import Stop

BASE = "refs/heads/base"
NOW = "refs/heads/now"
HERE = b"./"  # so that a colon at the beginning of a name has no meaning
TIMEOUT_S = 60.0
SUCCESS = {"check-ignore": {0, 1}}  # 1: none of them is ignored
ENVIRONMENT = {
    "PATH": os.defpath,
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    "core.protectNTFS": "false",  # else names that only Windows minds stop the import
    "core.protectHFS": "false",
    "pack.compression": "1",
}


class GitFailed(Exception):
    """Git is not there, took too long or refused; the message says so."""


class Content(Struct, frozen=True):
    """What a commit has at a path: `mode` as git writes it."""

    mode: str
    data: bytes


class ChangedFile(Struct, frozen=True):
    """One difference; None lines: the file is binary."""

    path: bytes
    change: str
    added: int | None
    deleted: int | None


class ShadowRepository:
    """Two commits: the folder as it was found, and as it is.

    All methods raise GitFailed, and GivenUp once `stop` is set, which kills git.
    """

    def __init__(self, private: Path, stop: Stop) -> None:
        self._private = private
        self._stop = stop
        self._folder = private / "shadow.git"

    @property
    def has_base(self) -> bool:
        """Whether the first commit was made."""
        return (self._folder / BASE).exists()

    def import_base(self, contents: Iterable[tuple[bytes, Content]]) -> None:
        """Make the commit that the other one is compared with."""
        self._import(BASE, "", (), contents)

    def import_now(
        self, deleted: Iterable[bytes], contents: Iterable[tuple[bytes, Content]]
    ) -> None:
        """Make the other commit, as a change of the first one, which is made if there is none."""
        if not self.has_base:
            self.import_base(())
        self._import(NOW, BASE, deleted, contents)

    def changed(self) -> list[ChangedFile]:
        """Return what differs between the two."""
        listing, _ = self._git(
            "diff-tree", "-r", "-z", "--no-renames", "--raw", "--numstat", BASE, NOW
        )
        return _parsed(listing)

    def diff(self, max_bytes: int) -> tuple[bytes, int]:
        """Return the beginning of the unified diff, and how many bytes it has in all."""
        options = ("-p", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")
        return self._git("diff-tree", "-r", *options, BASE, NOW, max_bytes=max_bytes)

    def ignored(
        self, paths: Sequence[bytes], ignore_files: Mapping[bytes, bytes]
    ) -> frozenset[bytes]:
        """Return which of the paths the given .gitignore files tell git to leave out.

        They are all that git finds in the folder that it takes for the workspace.
        """
        tree = Path(tempfile.mkdtemp(dir=self._private))
        try:
            for path, data in ignore_files.items():
                with suppress(OSError):  # too deep for a path
                    file = tree / os.fsdecode(path)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(data)
            with tempfile.TemporaryFile(dir=self._private) as asked:
                asked.write(b"".join(HERE + path + b"\0" for path in paths))
                found, _ = self._git(
                    "check-ignore", "--no-index", "-z", "--stdin", stdin=asked, tree=tree
                )
        finally:
            remove_tree(tree)
        return frozenset(path.removeprefix(HERE) for path in found.split(b"\0")[:-1])

    def _import(
        self,
        ref: str,
        parent: str,
        deleted: Iterable[bytes],
        contents: Iterable[tuple[bytes, Content]],
    ) -> None:
        with tempfile.TemporaryFile(dir=self._private) as stream:
            stream.write(f"commit {ref}\ncommitter agent-actors <> 0 +0000\ndata 0\n".encode())
            if parent:
                stream.write(f"from {parent}^0\n".encode())
            for path in deleted:
                stream.write(b"D %s\n" % _quoted(path))
            for path, content in contents:
                stream.write(b"M %s inline %s\n" % (content.mode.encode(), _quoted(path)))
                stream.write(b"data %d\n%s\n" % (len(content.data), content.data))
            self._git("fast-import", "--quiet", "--force", stdin=stream)

    def _git(
        self,
        *arguments: str,
        stdin: IO[bytes] | None = None,
        tree: Path | None = None,
        max_bytes: int = -1,
    ) -> tuple[bytes, int]:
        """Return the beginning of what git prints, and how many bytes that was in all."""
        if not self._folder.exists() and arguments[0] != "init":
            self._git("init", "--quiet", "--bare", "--template=")
        if stdin:
            stdin.seek(0)
        environment = ENVIRONMENT | {"GIT_DIR": str(self._folder)}
        if tree:
            environment["GIT_WORK_TREE"] = str(tree)
        with tempfile.TemporaryFile(dir=self._private) as output:
            self._run(arguments, stdin, output, tree or self._private, environment)
            total = output.seek(0, os.SEEK_END)
            output.seek(0)
            return output.read(max_bytes), total

    def _run(
        self,
        arguments: Sequence[str],
        stdin: IO[bytes] | None,
        stdout: IO[bytes],
        cwd: Path,
        environment: Mapping[str, str],
    ) -> None:
        program = shutil.which("git")
        if program is None:
            raise GitFailed("there is no program git on this machine")
        settings = [word for item in SETTINGS.items() for word in ("-c", "=".join(item))]
        try:
            process = subprocess.Popen(  # noqa: S603 - a fixed program, the arguments our own
                [program, *settings, *arguments],
                stdin=stdin or subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=environment,
            )
            with process, self._stop.kills(process):
                errors = _ended(process)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GitFailed(f"git {arguments[0]}: {error}") from error
        if process.returncode not in SUCCESS.get(arguments[0], {0}):
            raise GitFailed(f"git {arguments[0]}: {errors[-500:].decode(errors='replace')}")


def _ended(process: subprocess.Popen[bytes]) -> bytes:
    """Return what the program told of errors; kill it when it takes longer than TIMEOUT_S."""
    try:
        return process.communicate(timeout=TIMEOUT_S)[1]
    except BaseException:
        process.kill()
        raise


def _quoted(path: bytes) -> bytes:
    """Return the path as a string of C, in which any byte may stand."""
    return b'"%s"' % b"".join(
        b"\\%03o" % byte if byte in b'\\"\n' else bytes([byte]) for byte in path
    )


def _parsed(listing: bytes) -> list[ChangedFile]:
    """Read `--raw --numstat -z`: `:modes ids A` and a path; later its line counts and the path."""
    changes: dict[bytes, str] = {}
    files: list[ChangedFile] = []
    words = iter(listing.split(b"\0")[:-1])
    for word in words:
        if word.startswith(b":"):
            changes[next(words)] = {"A": "added", "D": "deleted"}.get(chr(word[-1]), "modified")
        else:
            added, deleted, path = word.split(b"\t", 2)
            files.append(ChangedFile(path, changes[path], _count(added), _count(deleted)))
    return files


def _count(word: bytes) -> int | None:
    return None if word == b"-" else int(word)
