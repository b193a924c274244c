"""The git tools that reach a remote: clone, pull, push. Only where the configuration allows."""

from typing import Annotated

from msgspec import Meta

from agent_actors.errors import ToolError
from agent_actors.tools.git.exchange import TRACKING, Exchange, RemoteRef
from agent_actors.tools.git.local import GROUP, head
from agent_actors.tools.git.names import ref_name
from agent_actors.tools.git.program import git, git_text, initialise, succeeded
from agent_actors.tools.git.remotes import Remote, allowed_remote
from agent_actors.tools.paths import shown
from agent_actors.tools.programs import text_of
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool

INITIAL_BRANCH = "main"
CONFLICT = "Automatic merge failed"

Url = Annotated[
    str,
    Meta(description="Address of the repository, https://…; empty: where this one came from."),
]


class GitClone(Arguments, frozen=True):
    """What to clone."""

    url: Annotated[str, Meta(description="Address of the repository, https://…")]
    ref: Annotated[
        str, Meta(description="A branch, tag or full commit id; empty: the default branch.")
    ] = ""


@tool(GROUP, reads=False, operation="clone")
async def git_clone(surroundings: Surroundings, arguments: GitClone) -> ToolOutput:
    """Clone a repository into the workspace, which must still be empty."""
    remote = allowed_remote(arguments.url, surroundings.settings.git.remotes)
    ref = ref_name(arguments.ref) if arguments.ref else ""
    commit = await clone(surroundings, remote, ref)
    return ToolOutput(
        text=f"cloned {remote.url} at {commit or 'no commit: it is empty'}",
        summary=f"cloned {remote.url}",
    )


async def clone(surroundings: Surroundings, remote: Remote, ref: str) -> str:
    """Fill the empty workspace from the remote; return the commit, empty of an empty repository.

    Raises ToolError, RefMissing.
    """
    exchange = Exchange(surroundings)
    present = {entry.name for entry in surroundings.workspace.path.iterdir()}
    if present - {".git"} or (present and (await head(surroundings))[0]):
        raise ToolError("the workspace is not empty: a repository is cloned into an empty one")
    found = await exchange.find(remote, ref)
    if found is None and ref:
        raise RefMissing(f"{remote.url} has no branch or tag {shown(ref)}")
    if found is not None:
        await exchange.fetch(remote, found)
    if ".git" not in present:
        await initialise(surroundings, INITIAL_BRANCH)
    await exchange.set_origin(remote)
    return await _check_out(surroundings, exchange, found) if found else ""


class RefMissing(ToolError):
    """The remote has no such branch or tag."""


async def _check_out(surroundings: Surroundings, exchange: Exchange, ref: RemoteRef) -> str:
    commit = await exchange.bring_in(ref)
    where = ("-B", ref.branch, "--no-track") if ref.branch else ("--detach",)
    await git_text(
        surroundings, "checkout", "--quiet", "--no-recurse-submodules", *where, commit, "--"
    )
    return commit


class GitPull(Arguments, frozen=True):
    """What to pull."""

    url: Url = ""
    branch: Annotated[str, Meta(description="The remote's branch; empty: the current one.")] = ""
    merge: Annotated[
        bool, Meta(description="Merge it into the current branch; false only fetches it.")
    ] = True


@tool(GROUP, reads=False, operation="pull")
async def git_pull(surroundings: Surroundings, arguments: GitPull) -> ToolOutput:
    """Fetch a branch of a remote as origin/<branch> and merge it; a conflict changes nothing."""
    exchange, remote = _exchange(surroundings, arguments.url)
    branch = await _branch(surroundings, arguments.branch)
    ref = await exchange.find(remote, branch)
    if ref is None or not ref.branch:
        raise RefMissing(f"{remote.url} has no branch {shown(branch)}")
    await exchange.fetch(remote, ref)
    commit = await exchange.bring_in(ref)
    fetched = f"fetched {remote.url} {branch} at {commit} as origin/{branch}"
    merged = await _merge(surroundings, branch) if arguments.merge else ""
    return ToolOutput(text=f"{fetched}\n{merged}".strip(), summary=f"pulled {branch}")


class GitPush(Arguments, frozen=True):
    """What to push."""

    url: Url = ""
    branch: Annotated[str, Meta(description="The branch here; empty: the current one.")] = ""
    to: Annotated[str, Meta(description="The remote's branch; empty: of the same name.")] = ""


@tool(GROUP, reads=False, operation="push")
async def git_push(surroundings: Surroundings, arguments: GitPush) -> ToolOutput:
    """Push a branch to a remote, which takes it only if it follows on what is there: no force."""
    exchange, remote = _exchange(surroundings, arguments.url)
    branch = await _branch(surroundings, arguments.branch)
    to = ref_name(arguments.to) if arguments.to else branch
    commit = await exchange.take_out(branch)
    said = await exchange.push(remote, commit, to)
    return ToolOutput(
        text=f"pushed {commit} to {to} of {remote.url}\n{said}",
        summary=f"pushed {commit[:12]} to {to}",
    )


def _exchange(surroundings: Surroundings, url: str) -> tuple[Exchange, Remote]:
    exchange = Exchange(surroundings)
    address = url or exchange.origin()
    if not address:
        raise ToolError("the workspace was not cloned: give the url")
    return exchange, allowed_remote(address, surroundings.settings.git.remotes)


async def _branch(surroundings: Surroundings, name: str) -> str:
    branch = ref_name(name) if name else (await head(surroundings))[1]
    if not branch:
        raise ToolError("no branch is checked out: name one")
    return branch


async def _merge(surroundings: Surroundings, branch: str) -> str:
    arguments = ("merge", "--no-edit", "--no-stat", "--no-verify", "--no-verify-signatures")
    finished = await git(surroundings, *arguments, "--no-gpg-sign", f"{TRACKING}{branch}")
    text = text_of(finished.output)
    if finished.exit_code and CONFLICT in text:
        await git_text(surroundings, "merge", "--abort")
        raise ToolError(
            f"origin/{branch} is fetched, but conflicts with the current branch, which is as it "
            f"was\n{text}"
        )
    return succeeded(finished, arguments)


REMOTE_TOOLS = (git_clone, git_pull, git_push)
