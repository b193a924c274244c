"""How commits travel between a workspace and a remote: by way of a repository of our own.

The network and the workspace's configuration never meet. Git with a network, and with the login,
runs on a bare repository beside the workspace that no command of a task can write; git on the
workspace has no transport. Between them go bundles, which are plain data (git-bundle(1)):

    remote ⇄ private/git/exchange.git ── handover/incoming ──► work/.git
                                      ◄── handover/outgoing ──
"""

import asyncio
import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from agent_actors.errors import ToolError, ToolRefused
from agent_actors.tools.git.names import COMMIT_ID
from agent_actors.tools.git.program import GIT, environment, git, in_time, succeeded
from agent_actors.tools.git.remotes import FILE, HTTPS, Remote
from agent_actors.tools.paths import shown
from agent_actors.tools.programs import sandbox_of, text_of
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Command, Finished

BRANCHES = "refs/heads/"
TAGS = "refs/tags/"
COMMITS = "refs/commits/"
TRACKING = "refs/remotes/origin/"
PASSABLE = 0o711
READABLE = 0o644
READABLE_BY_OTHERS = 0o004
STALLED_S = "30"

_ADVERTISED = re.compile(r"^([0-9a-f]{40}|[0-9a-f]{64})\t(\S+)$", re.MULTILINE)
_DEFAULT_BRANCH = re.compile(r"^ref: refs/heads/(\S+)\tHEAD$", re.MULTILINE)


class RemoteRef(Struct, frozen=True, kw_only=True):
    """A branch, tag or commit of a remote, with its full name in the exchange."""

    name: str
    commit: str

    @property
    def branch(self) -> str:
        """The name of the branch; empty when it is none."""
        return self.name.removeprefix(BRANCHES) if self.name.startswith(BRANCHES) else ""


class Exchange:
    """The repository of our own beside a workspace.

    All methods raise ToolError when git fails, ToolRefused without a sandbox.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._workspace = surroundings.workspace
        self._settings = surroundings.settings.git
        self._sandbox = sandbox_of(surroundings)
        self._home = self._workspace.private / "git"
        self._repository = self._home / "exchange.git"
        handover = self._workspace.path.parent / "handover"  # where the workspace's user may go
        self._incoming = handover / "incoming"
        self._outgoing = handover / "outgoing"
        self._origin = self._home / "origin"

    def origin(self) -> str:
        """Return the address that the workspace was cloned from; empty when it was not."""
        return self._origin.read_text() if self._origin.is_file() else ""

    async def set_origin(self, remote: Remote) -> None:
        """Keep the address that the workspace was cloned from, out of reach of its tests."""
        await self._open()
        self._origin.write_text(remote.url)

    async def find(self, remote: Remote, ref: str) -> RemoteRef | None:
        """Ask the remote for a branch, a tag, a commit id; empty: for its default branch."""
        await self._open()
        if COMMIT_ID.match(ref):
            return RemoteRef(name=f"{COMMITS}{ref}", commit=ref)
        names = (f"{BRANCHES}{ref}", f"{TAGS}{ref}") if ref else ("HEAD",)
        text = await self._with_remote(remote, "ls-remote", "--symref", "--", remote.url, *names)
        found = {name: commit for commit, name in _ADVERTISED.findall(text)}
        default = _DEFAULT_BRANCH.search(text)
        if not ref and default:
            names, found = (f"{BRANCHES}{default[1]}",), {f"{BRANCHES}{default[1]}": found["HEAD"]}
        return next(
            (RemoteRef(name=name, commit=found[name]) for name in names if name in found), None
        )

    async def fetch(self, remote: Remote, ref: RemoteRef) -> None:
        """Bring the commits of a ref from the remote into the exchange."""
        wanted = ref.commit if ref.name.startswith(COMMITS) else ref.name
        await self._with_remote(
            remote,
            *("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"),
            *("--upload-pack=git-upload-pack", "--", remote.url, f"+{wanted}:{ref.name}"),
        )

    async def bring_in(self, ref: RemoteRef) -> str:
        """Hand a fetched ref over to the workspace; return its commit there."""
        commit = await self._commit_of(ref.name)
        tracking = f"{TRACKING}{ref.branch}"
        known = ""
        if ref.branch:
            arguments = ("rev-parse", "--verify", "--quiet", tracking)
            known = text_of((await git(self._surroundings, *arguments)).output).strip()
        if known != commit:
            await self._hand_in(ref.name, known)
        if ref.branch:
            await self._in_workspace("update-ref", tracking, commit)
        return commit

    async def take_out(self, branch: str) -> str:
        """Hand a branch of the workspace over to the exchange; return its commit."""
        await self._open()
        name = f"{BRANCHES}{branch}"
        answer = await git(self._surroundings, "rev-parse", "--verify", "--quiet", name)
        commit = text_of(answer.output).strip()
        if not COMMIT_ID.match(commit):
            raise ToolError(f"there is no branch {shown(branch)} with a commit here")
        if await self._has(commit):
            return commit
        await self._hand_out(name)
        return commit

    async def push(self, remote: Remote, commit: str, branch: str) -> str:
        """Make the commit the remote's branch, if it follows on it; return what the remote said."""
        text = await self._with_remote(
            remote,
            *("push", "--porcelain", "--no-verify", "--no-signed", "--recurse-submodules=no"),
            *("--receive-pack=git-receive-pack", "--", remote.url),
            f"{commit}:{BRANCHES}{branch}",
            writes=True,
        )
        await self._in_workspace("update-ref", f"{TRACKING}{branch}", commit)
        return text

    async def _open(self) -> None:
        """Make the folders and the repository, once a workspace."""
        self._home.mkdir(mode=0o700, exist_ok=True)
        for folder in (self._incoming, self._outgoing):
            folder.mkdir(parents=True, exist_ok=True)
            folder.parent.chmod(PASSABLE)
            folder.chmod(PASSABLE)
        if self._workspace.uid is not None:
            os.chown(self._outgoing, self._workspace.uid, -1)
        if not (self._repository / "HEAD").exists():
            self._repository.mkdir(exist_ok=True)
            await self._alone("init", "--quiet", "--bare", "--template=")

    async def _hand_in(self, name: str, known: str) -> None:
        """Bring what a ref has beyond the known commit into the workspace."""
        packed, bundle = _bundle_in(self._home), _bundle_in(self._incoming)
        less = (f"^{known}",) if COMMIT_ID.match(known) and await self._has(known) else ()
        try:
            await self._alone("bundle", "create", "--quiet", str(packed), name, *less)
            packed.chmod(READABLE)
            packed.rename(bundle)
            arguments = ("bundle", "unbundle", str(bundle))
            succeeded(await git(self._surroundings, *arguments, read=[bundle]), arguments)
        finally:
            packed.unlink(missing_ok=True)
            bundle.unlink(missing_ok=True)

    async def _hand_out(self, name: str) -> None:
        """Bring what a branch has beyond the remote's into the exchange."""
        bundle, received = _bundle_in(self._outgoing), _bundle_in(self._home)
        arguments = ("bundle", "create", "--quiet", str(bundle), name, "--not", "--remotes=origin")
        try:
            finished = await git(self._surroundings, *arguments, write=[self._outgoing])
            succeeded(finished, arguments)
            await asyncio.to_thread(_receive, bundle, received)
            await self._alone("bundle", "unbundle", str(received))
        finally:
            bundle.unlink(missing_ok=True)
            received.unlink(missing_ok=True)

    async def _in_workspace(self, *arguments: str) -> None:
        succeeded(await git(self._surroundings, *arguments), arguments)

    async def _commit_of(self, name: str) -> str:
        return (await self._alone("rev-parse", "--verify", f"{name}^{{commit}}")).strip()

    async def _has(self, commit: str) -> bool:
        arguments = ("cat-file", "-e", f"{commit}^{{commit}}")
        return (await self._run(arguments)).exit_code == 0

    async def _alone(self, *arguments: str) -> str:
        """Run git on the exchange, without a remote."""
        return succeeded(await self._run(arguments), arguments)

    async def _with_remote(self, remote: Remote, *arguments: str, writes: bool = False) -> str:
        """Run git on the exchange with the one remote that is meant, and its login if it has one.

        A remote on this machine is reached by its path alone, without a network; its own hooks
        run, as they do for everybody who pushes there.
        """
        finished = await self._run(arguments, remote, writes=writes)
        try:
            return succeeded(finished, arguments)
        except ToolError as error:
            raise ToolError(f"{error}{_remedy(text_of(finished.output))}") from None

    async def _run(
        self, arguments: Sequence[str], remote: Remote | None = None, *, writes: bool = False
    ) -> Finished:
        local = [Path(remote.path)] if remote and remote.scheme == FILE else []
        secret = self._login_file() if remote and remote.scheme == HTTPS else None
        finished = await self._sandbox.run(
            Command(
                argv=(GIT, *arguments),
                folder=self._home,
                cwd=self._repository,
                read=[*([] if writes else local), *([secret] if secret else [])],
                write=local if writes else [],
                network=remote is not None and remote.scheme == HTTPS,
                environment={
                    **environment(
                        self._settings,
                        _network_settings(secret),
                        protocol=remote.scheme if remote else "none",
                    ),
                    "GIT_DIR": str(self._repository),
                    **self._trust(local),
                },
            )
        )
        return in_time(finished, arguments)

    def _trust(self, local: Sequence[Path]) -> dict[str, str]:
        """Have git serve a repository of another owner here, since the configuration names it.

        A file, since git forgets all else when it starts itself for the other side.
        """
        if not local:
            return {}
        file = self._home / "trusting.config"
        file.write_text("[safe]\n\tdirectory = *\n")
        return {"GIT_CONFIG_GLOBAL": str(file)}

    def _login_file(self) -> Path | None:
        if not self._settings.credentials_file:
            return None
        file = Path(self._settings.credentials_file)
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise ToolRefused(
                f"tools.git.credentials_file cannot be read: {error.strerror}"
            ) from None
        if mode & READABLE_BY_OTHERS:
            raise ToolRefused("tools.git.credentials_file is readable by everyone: chmod o-r it")
        return file


def _network_settings(secret: Path | None) -> Sequence[tuple[str, str]]:
    settings = [
        # A redirect could lead out of what the configuration allows, and take the login along.
        ("http.followRedirects", "false"),
        ("http.lowSpeedLimit", "1"),
        ("http.lowSpeedTime", STALLED_S),
        ("transfer.bundleURI", "false"),
    ]
    if secret is not None:
        # Only `get`: git would otherwise erase a login that a server has refused once.
        helper = f"git credential-store --file={shlex.quote(str(secret))} get"
        settings.append(("credential.helper", f'!f() {{ test "$1" = get && {helper}; }}; f'))
    return settings


def _remedy(text: str) -> str:
    """Return what may help, for the failures that a configuration can mend."""
    if "redirect" in text:
        return " (redirects are not followed: give the address that it leads to)"
    if "terminal prompts disabled" in text or "Authentication failed" in text:
        return " (logins come from tools.git.credentials_file)"
    if "signal 25" in text or "File too large" in text:
        return " (bigger than tools.sandbox.max_file_bytes)"
    if "fetch first" in text or "non-fast-forward" in text:
        return " (the remote's branch has moved on: git_pull first)"
    return ""


def _bundle_in(folder: Path) -> Path:
    """Return a new name, which nothing in the workspace can have foreseen."""
    return folder / f"{secrets.token_hex(16)}.bundle"


def _receive(source: Path, target: Path) -> None:
    """Copy what a command of the workspace wrote: a plain file, or nothing."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file, target.open("xb") as copy:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ToolError("the bundle of the branch is not a file")
        shutil.copyfileobj(file, copy)
