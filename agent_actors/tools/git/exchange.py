"""How commits travel between a workspace and a remote: by way of a repository of our own.

The network and the workspace's configuration never meet. Git with a network, and with the login,
runs on a bare repository beside the workspace, as a user of its own, and no command of a task
can write there; git on the workspace has no transport. Between them go bundles, which are plain
data (git-bundle(1)):

    remote ⇄ git/exchange/repository.git ── git/incoming ──► work/.git
                                         ◄── git/outgoing ──
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from agent_actors.errors import ToolError
from agent_actors.tools.git.login import LOGIN_HELPER, login
from agent_actors.tools.git.names import COMMIT_ID
from agent_actors.tools.git.program import GIT, NO_PROTOCOL, environment, git, in_time, succeeded
from agent_actors.tools.git.remotes import FILE, HTTPS, Remote
from agent_actors.tools.paths import shown
from agent_actors.tools.programs import sandbox_of, text_of
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Command, Finished
from agent_actors.tools.threads import TOOLS

BRANCHES = "refs/heads/"
TAGS = "refs/tags/"
COMMITS = "refs/commits/"
TRACKING = "refs/remotes/origin/"
PASSABLE = 0o711
READABLE = 0o644
OWN = 0o700

SETTINGS: Sequence[tuple[str, str]] = (
    # A redirect could lead out of what the configuration allows, and take the login along.
    ("http.followRedirects", "false"),
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "30"),
    ("transfer.bundleURI", "false"),
    LOGIN_HELPER,
)

_ADVERTISED = re.compile(r"^([0-9a-f]{40}|[0-9a-f]{64})\t(\S+)$", re.MULTILINE)
_DEFAULT_BRANCH = re.compile(r"^ref: refs/heads/(\S+)\tHEAD$", re.MULTILINE)

_REDIRECTED = re.compile(r"returned error: 30\d|redirect")


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
        self._uid = _exchange_uid(surroundings)
        self._origin = self._workspace.private / "origin"
        self._home = self._workspace.path.parent / "git"
        self._incoming = self._home / "incoming"
        self._outgoing = self._home / "outgoing"
        self._folder = self._home / "exchange"
        self._repository = self._folder / "repository.git"

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
        commits = {name: commit for commit, name in _ADVERTISED.findall(text)}
        name = next((name for name in names if name in commits), None)
        if name is None:
            return None
        if name == "HEAD":
            default = _DEFAULT_BRANCH.search(text)
            full = f"{BRANCHES}{default[1]}" if default else f"{COMMITS}{commits[name]}"
            return RemoteRef(name=full, commit=commits[name])
        return RemoteRef(name=name, commit=commits[name])

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
        _make_folder(self._home, PASSABLE, None)
        _make_folder(self._incoming, PASSABLE, None)
        _make_folder(self._outgoing, OWN, self._workspace.uid)
        _make_folder(self._folder, OWN, self._uid)
        if not (self._repository / "HEAD").exists():
            _make_folder(self._repository, OWN, self._uid)
            await self._alone("init", "--quiet", "--bare", "--template=")

    async def _hand_in(self, name: str, known: str) -> None:
        """Bring what a ref has beyond the known commit into the workspace."""
        packed, bundle = _bundle_in(self._folder), _bundle_in(self._incoming)
        less = (f"^{known}",) if COMMIT_ID.match(known) and await self._has(known) else ()
        try:
            await self._alone("bundle", "create", "--quiet", str(packed), name, *less)
            await TOOLS.run(_carry, packed, bundle)
            arguments = ("bundle", "unbundle", str(bundle))
            succeeded(await git(self._surroundings, *arguments, read=[bundle]), arguments)
        finally:
            packed.unlink(missing_ok=True)
            bundle.unlink(missing_ok=True)

    async def _hand_out(self, name: str) -> None:
        """Bring what a branch has beyond the remote's into the exchange."""
        packed, bundle = _bundle_in(self._outgoing), _bundle_in(self._incoming)
        arguments = ("bundle", "create", "--quiet", str(packed), name, "--not", "--remotes=origin")
        try:
            finished = await git(self._surroundings, *arguments, write=[self._outgoing])
            succeeded(finished, arguments)
            await TOOLS.run(_carry, packed, bundle)
            await self._alone("bundle", "unbundle", str(bundle), read=[bundle])
        finally:
            packed.unlink(missing_ok=True)
            bundle.unlink(missing_ok=True)

    async def _in_workspace(self, *arguments: str) -> None:
        succeeded(await git(self._surroundings, *arguments), arguments)

    async def _commit_of(self, name: str) -> str:
        return (await self._alone("rev-parse", "--verify", f"{name}^{{commit}}")).strip()

    async def _has(self, commit: str) -> bool:
        arguments = ("cat-file", "-e", f"{commit}^{{commit}}")
        return (await self._run(arguments)).exit_code == 0

    async def _alone(self, *arguments: str, read: Sequence[Path] = ()) -> str:
        """Run git on the exchange, without a remote."""
        return succeeded(await self._run(arguments, read=read), arguments)

    async def _with_remote(self, remote: Remote, *arguments: str, writes: bool = False) -> str:
        """Run git on the exchange with the one remote that is meant, and its login if it has one.

        A remote on this machine is reached by its path alone, without a network; its own hooks
        run, as they do for everybody who pushes there.
        """
        if remote.scheme == FILE:
            path, trusting = Path(remote.path), self._trusting()
            finished = await self._run(
                arguments,
                read=[trusting] if writes else [trusting, path],
                write=[path] if writes else [],
                protocol=FILE,
                more={"GIT_CONFIG_GLOBAL": str(trusting)},
            )
        else:
            known = login(remote, self._settings.credentials_file)
            finished = await self._run(arguments, network=True, protocol=HTTPS, more=known)
        try:
            return succeeded(finished, arguments)
        except ToolError as error:
            raise ToolError(f"{error}{_remedy(text_of(finished.output))}") from None

    async def _run(
        self,
        arguments: Sequence[str],
        *,
        read: Sequence[Path] = (),
        write: Sequence[Path] = (),
        network: bool = False,
        protocol: str = NO_PROTOCOL,
        more: Mapping[str, str] | None = None,
    ) -> Finished:
        finished = await self._sandbox.run(
            Command(
                argv=(GIT, *arguments),
                folder=self._folder,
                cwd=self._repository,
                uid=self._uid,
                read=read,
                write=write,
                network=network,
                environment={
                    **environment(self._settings, SETTINGS, protocol=protocol),
                    "GIT_DIR": str(self._repository),
                    **(more or {}),
                },
            )
        )
        return in_time(finished, arguments)

    def _trusting(self) -> Path:
        """Return a configuration by which git serves a repository of another owner.

        In a file, since git forgets all else when it starts itself for the other side. Which
        repositories that may be, is said by `tools.git.remotes`.
        """
        file = self._home / "trusting.config"
        file.write_text("[safe]\n\tdirectory = *\n")
        file.chmod(READABLE)
        return file


def _exchange_uid(surroundings: Surroundings) -> int | None:
    """Return the user of all exchanges, which no workspace has; None when we are not root."""
    is_root = surroundings.workspace.uid is not None
    return surroundings.settings.sandbox.first_uid if is_root else None


def _make_folder(path: Path, mode: int, uid: int | None) -> None:
    try:
        path.mkdir(mode=OWN, exist_ok=True)
        if uid is not None:
            os.chown(path, uid, -1, follow_symlinks=False)
        path.chmod(mode)
    except OSError as error:
        raise ToolError(f"there is no place to meet remotes at: {error.strerror}") from error


def _remedy(text: str) -> str:
    """Return what may help, for the failures that a configuration can mend."""
    if _REDIRECTED.search(text):
        return " (redirects are not followed: give the address that it leads to)"
    if "terminal prompts disabled" in text or "Authentication failed" in text:
        return " (logins come from tools.git.credentials_file)"
    if "signal 25" in text or "File too large" in text:
        return " (bigger than tools.sandbox.max_file_bytes)"
    if "unable to create temporary object directory" in text or "ermission denied" in text:
        return " (as root, the service talks with remotes as the user tools.sandbox.first_uid)"
    if "fetch first" in text or "non-fast-forward" in text:
        return " (the remote's branch has moved on: git_pull first)"
    return ""


def _bundle_in(folder: Path) -> Path:
    """Return a new name, which nothing in the workspace can have foreseen."""
    return folder / f"{secrets.token_hex(16)}.bundle"


def _carry(source: Path, target: Path) -> None:
    """Copy what a command wrote to where the other side may read it: a plain file, or nothing."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(source, flags), "rb") as file, target.open("xb") as copy:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ToolError("the commits cannot be handed over: they are in no plain file")
            shutil.copyfileobj(file, copy)
        target.chmod(READABLE)
    except OSError as error:
        raise ToolError(f"the commits cannot be handed over: {error.strerror}") from error
