"""The git tools that need no remote: what has changed, commits, branches."""

from typing import Annotated

from msgspec import Meta

from agent_actors.errors import ToolError
from agent_actors.tools.git.names import commit_message, ref_name, revision
from agent_actors.tools.git.program import git, git_text, succeeded
from agent_actors.tools.paths import shown
from agent_actors.tools.programs import argument_path, text_of
from agent_actors.tools.registry import Arguments, Surroundings, ToolOutput, tool
from agent_actors.tools.sandbox.command import Finished

GROUP = "git"
NO_COMMITS = "does not have any commits yet"
NOTHING_TO_COMMIT = ("nothing to commit", "nothing added to commit", "no changes added to commit")
WOULD_LOSE = "would be overwritten by"

Paths = Annotated[
    tuple[str, ...],
    Meta(description="Files and folders, from the workspace, as they are named: no patterns."),
]
Revision = Annotated[
    str, Meta(description="A branch, a tag, a commit id, or one with ~1 after it, as HEAD~1.")
]


class GitStatus(Arguments, frozen=True):
    """Nothing to say."""


@tool(GROUP, reads=True, operation="status")
async def git_status(surroundings: Surroundings, arguments: GitStatus) -> ToolOutput:
    """Show the branch, and which files are staged, changed or untracked (`git status --short`)."""
    del arguments
    text = await git_text(
        surroundings,
        *("status", "--short", "--branch", "--untracked-files=all", "--ignore-submodules=dirty"),
        reads=True,
    )
    branch, *files = text.splitlines()
    told = text if files else f"{branch}\nnothing has changed since the last commit"
    return ToolOutput(text=told, summary=f"{len(files)} files changed")


class GitAdd(Arguments, frozen=True):
    """What to stage."""

    paths: Paths = ()
    all: Annotated[bool, Meta(description="Stage everything that has changed.")] = False


@tool(GROUP, reads=False, operation="add")
async def git_add(surroundings: Surroundings, arguments: GitAdd) -> ToolOutput:
    """Stage files for the next commit: new, changed and deleted ones."""
    paths = [argument_path(surroundings, path) for path in arguments.paths]
    if bool(paths) == arguments.all:
        raise ToolError("give either paths or all: true")
    await git_text(surroundings, "add", "--all", "--", *(paths or ["."]))
    text = await git_text(
        surroundings,
        *("diff", "--cached", "--name-status", "--no-ext-diff", "--no-textconv", "--no-renames"),
        *("--ignore-submodules=dirty", "--"),
        reads=True,
    )
    return ToolOutput(
        text=f"staged for the next commit:\n{text}" if text else "nothing is staged: no changes",
        summary=f"{len(text.splitlines())} files staged",
    )


class GitCommit(Arguments, frozen=True):
    """What to commit."""

    message: Annotated[str, Meta(description="The message; its first line is the subject.")]
    all: Annotated[
        bool, Meta(description="Stage changed and deleted files first, though no new ones.")
    ] = False


@tool(GROUP, reads=False, operation="commit")
async def git_commit(surroundings: Surroundings, arguments: GitCommit) -> ToolOutput:
    """Commit what is staged, and return the id of the commit."""
    message = commit_message(arguments.message)
    options = ("commit", "--no-verify", "--no-gpg-sign", "--cleanup=whitespace")
    staging = ("--all",) if arguments.all else ()
    finished = await git(surroundings, *options, *staging, f"--message={message}")
    text = text_of(finished.output)
    if finished.exit_code == 1 and any(words in text for words in NOTHING_TO_COMMIT):
        raise ToolError(f"nothing to commit: stage changes with git_add first\n{text}")
    succeeded(finished, options)
    commit, branch = await head(surroundings)
    artifact = {"commit": commit, "message": message, "branch": branch}
    return ToolOutput(
        text=f"committed {commit}\n{text}",
        summary=f"committed {commit[:12]}",
        artifacts={"commits": [artifact]},
    )


class GitDiff(Arguments, frozen=True):
    """What to compare."""

    ref: Revision = ""
    staged: Annotated[bool, Meta(description="Show what is staged, not the working tree.")] = False
    paths: Paths = ()
    summary: Annotated[bool, Meta(description="Only list files and how many lines differ.")] = False


@tool(GROUP, reads=True, operation="diff")
async def git_diff(surroundings: Surroundings, arguments: GitDiff) -> ToolOutput:
    """Show what differs: the working tree from what is staged, or from the commit `ref`."""
    options = ["diff", "--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=dirty"]
    options += ["--stat"] if arguments.summary else []
    options += ["--cached"] if arguments.staged else []
    options += [revision(arguments.ref)] if arguments.ref else []
    paths = [argument_path(surroundings, path) for path in arguments.paths]
    finished = await git(surroundings, *options, "--", *paths, reads=True)
    if finished.stopped:
        cut = "\n[… the diff is too long and ends here: name paths, or ask for the summary …]"
        return ToolOutput(text=text_of(finished.output) + cut, summary="a diff too long to show")
    text = succeeded(finished, options)
    return ToolOutput(
        text=text or "no differences (untracked files are not compared: see git_status)",
        summary=f"{len(text.splitlines())} lines of differences",
    )


class GitLog(Arguments, frozen=True):
    """Which commits."""

    ref: Revision = "HEAD"
    max_count: Annotated[int, Meta(ge=1, le=200, description="How many, the newest first.")] = 20
    paths: Paths = ()


@tool(GROUP, reads=True, operation="log")
async def git_log(surroundings: Surroundings, arguments: GitLog) -> ToolOutput:
    """List commits, newest first: id, date, author, names that point to it, subject."""
    options = ("log", f"--max-count={arguments.max_count}", "--date=iso-strict", "--no-color")
    shape = "--format=%H %ad %an%d%n    %s"
    paths = [argument_path(surroundings, path) for path in arguments.paths]
    ref = revision(arguments.ref)
    finished = await git(surroundings, *options, shape, ref, "--", *paths, reads=True)
    if finished.exit_code and (await head(surroundings))[0] == "":
        return ToolOutput(text="there are no commits yet", summary="0 commits")
    text = succeeded(finished, options)
    count = len(text.splitlines()) // 2
    return ToolOutput(text=text or "no commit touches these paths", summary=f"{count} commits")


class GitBranch(Arguments, frozen=True):
    """Which branch."""

    name: Annotated[str, Meta(description="The branch to create; empty: list all.")] = ""
    start: Annotated[str, Meta(description="Where it begins: a branch, tag or commit.")] = "HEAD"


@tool(GROUP, reads=False, operation="branch")
async def git_branch(surroundings: Surroundings, arguments: GitBranch) -> ToolOutput:
    """List the branches, or create one without switching to it (git_checkout switches)."""
    if arguments.name:
        name, start = ref_name(arguments.name), revision(arguments.start)
        await git_text(surroundings, "branch", "--no-track", "--no-color", "--", name, start)
        return ToolOutput(text=f"created branch {name}", summary=f"created branch {name}")
    text = await git_text(
        surroundings,
        *("for-each-ref", "--format=%(HEAD) %(refname:short) %(objectname:short) %(subject)"),
        *("--", "refs/heads", "refs/remotes"),
        reads=True,
    )
    return ToolOutput(
        text=text or "there are no branches: nothing has been committed yet",
        summary=f"{len(text.splitlines())} branches",
    )


class GitCheckout(Arguments, frozen=True):
    """What to switch to."""

    ref: Annotated[str, Meta(description="The branch to switch to; or a tag or commit id.")]
    create: Annotated[bool, Meta(description="Create the branch `ref`, and switch to it.")] = False
    start: Annotated[str, Meta(description="Where a created branch begins.")] = "HEAD"


@tool(GROUP, reads=False, operation="checkout")
async def git_checkout(surroundings: Surroundings, arguments: GitCheckout) -> ToolOutput:
    """Switch to a branch, or create one and switch to it. Refused if it would lose changes."""
    options = ["checkout", "--no-recurse-submodules", "--no-overwrite-ignore", "--no-guess"]
    if arguments.create:
        name = ref_name(arguments.ref)
        unborn = (await head(surroundings))[0] == "" and arguments.start == "HEAD"
        where = [] if unborn else [revision(arguments.start)]
        options += ["--no-track", "-b", name, *where]
    else:
        options += [revision(arguments.ref)]
    finished = await git(surroundings, *options, "--")
    text = text_of(finished.output)
    if finished.exit_code and WOULD_LOSE in text:
        raise ToolError(f"refused, for it would lose changes: commit them first\n{text}")
    text = succeeded(finished, options)
    return ToolOutput(text=text, summary=f"switched to {shown(arguments.ref)}")


async def head(surroundings: Surroundings) -> tuple[str, str]:
    """Return the id of the current commit, empty without one, and its branch, empty without one."""
    commit = await git(surroundings, "rev-parse", "--verify", "--quiet", "HEAD", reads=True)
    branch = await git(surroundings, "symbolic-ref", "--quiet", "--short", "HEAD", reads=True)
    return _answer(commit), _answer(branch)


def _answer(finished: Finished) -> str:
    return text_of(finished.output).strip() if finished.exit_code == 0 else ""


LOCAL_TOOLS = (git_status, git_add, git_commit, git_diff, git_log, git_branch, git_checkout)
