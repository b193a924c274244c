"""How git is run: without a network, prompts, hooks, or programs that a repository asks for.

See git-config(1), "SECURITY" in git(1), and githooks(5) for what a repository can ask for.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from agent_actors.config_tools import GitConfig
from agent_actors.errors import ToolError, ToolRefused
from agent_actors.tools.programs import run_program, text_of
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Finished

GIT = "git"
NO_PROTOCOL = "none"
TOLD_CHARS = 2_000

# These stand above every configuration file, as `git -c` would. `true` and `false` are the
# programs: one that answers nothing, and one that fails.
SETTINGS: Sequence[tuple[str, str]] = (
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.sshCommand", "false"),
    ("core.gitProxy", "false"),
    ("core.alternateRefsCommand", "true"),
    ("core.askPass", "true"),
    ("core.editor", "true"),
    ("sequence.editor", "true"),
    ("core.pager", "cat"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.quotePath", "false"),
    ("credential.helper", ""),
    ("protocol.allow", "never"),
    ("gpg.program", "false"),
    ("gpg.ssh.program", "false"),
    ("gpg.x509.program", "false"),
    ("commit.gpgSign", "false"),
    ("log.showSignature", "false"),
    ("merge.verifySignatures", "false"),
    ("push.gpgSign", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("push.recurseSubmodules", "no"),
    ("status.submoduleSummary", "false"),
    ("diff.ignoreSubmodules", "dirty"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("color.ui", "false"),
)

# Settings of these sections run programs under names that only the repository knows, so that
# nothing could stand above them: filters, merge drivers, and files with more of the like.
_RUNS_PROGRAMS = re.compile(
    rb"\[\s*(?:(include|includeif|filter)\b|(merge)\s*[\".])", re.IGNORECASE
)
_CONFIG_FILES = ("config", "config.worktree")
MAX_CONFIG_BYTES = 1024 * 1024


async def git(
    surroundings: Surroundings,
    *arguments: str,
    reads: bool = False,
    read: Sequence[Path] = (),
    write: Sequence[Path] = (),
) -> Finished:
    """Run git on the workspace's repository, as its user. It has no transport there at all.

    Raises ToolError when there is no repository or git takes too long, ToolRefused without a
    sandbox or when the repository's own configuration would run programs.
    """
    workspace = surroundings.workspace.path
    with_git_folder(workspace, _check_configuration)
    repository = str(workspace / ".git")
    finished = await run_program(
        surroundings,
        (GIT, *arguments),
        read=read,
        write=write,
        environment={
            **environment(surroundings.settings.git),
            "GIT_DIR": repository,
            "GIT_COMMON_DIR": repository,
            "GIT_WORK_TREE": str(workspace),
            **({"GIT_OPTIONAL_LOCKS": "0"} if reads else {}),
        },
    )
    if finished.stopped == "timeout":
        with_git_folder(workspace, _unlock_index)
    return in_time(finished, arguments)


async def git_text(surroundings: Surroundings, *arguments: str, reads: bool = False) -> str:
    """Run git as `git` does and return what it wrote. Raises ToolError when it fails, too."""
    return succeeded(await git(surroundings, *arguments, reads=reads), arguments)


async def initialise(surroundings: Surroundings, branch: str) -> None:
    """Make the workspace a repository without a commit. Raises ToolError."""
    arguments = ("init", "--quiet", "--template=", f"--initial-branch={branch}")
    finished = await run_program(
        surroundings, (GIT, *arguments), environment=environment(surroundings.settings.git)
    )
    succeeded(in_time(finished, arguments), arguments)


def environment(
    config: GitConfig, more: Iterable[tuple[str, str]] = (), *, protocol: str = NO_PROTOCOL
) -> Mapping[str, str]:
    """Return what every git here is run with. The last of several settings of a name counts."""
    settings = {
        name: value
        for number, (key, setting) in enumerate((*SETTINGS, *more))
        for name, value in (
            (f"GIT_CONFIG_KEY_{number}", key),
            (f"GIT_CONFIG_VALUE_{number}", setting),
        )
    }
    return {
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": protocol,
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_EDITOR": "true",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_AUTHOR_NAME": config.author_name,
        "GIT_AUTHOR_EMAIL": config.author_email,
        "GIT_COMMITTER_NAME": config.author_name,
        "GIT_COMMITTER_EMAIL": config.author_email,
        **settings,
        "GIT_CONFIG_COUNT": str(len(settings) // 2),
    }


def in_time(finished: Finished, arguments: Sequence[str]) -> Finished:
    """Return it as it came. Raises ToolError when it was stopped for the time that it took."""
    if finished.stopped == "timeout":
        raise ToolError(
            f"git {arguments[0]} was stopped after {finished.duration_s:.0f} s, its time limit "
            "(tools.sandbox.timeout_s)"
        )
    return finished


def succeeded(finished: Finished, arguments: Sequence[str]) -> str:
    """Return what git wrote. Raises ToolError, with git's own words, when it failed."""
    text = text_of(finished.output)
    if finished.exit_code == 0:
        return text
    if finished.stopped:
        raise ToolError(f"git {arguments[0]} was stopped: it wrote too much")
    words = text.strip()[-TOLD_CHARS:]
    raise ToolError(f"git {arguments[0]} failed (exit code {finished.exit_code}): {words}")


def with_git_folder(workspace: Path, act: Callable[[int], None]) -> None:
    """Act on the descriptor of the workspace's `.git`. Raises ToolError, ToolRefused.

    A link or a file in its place would have git work on what lies elsewhere.
    """
    try:
        folder = os.open(workspace / ".git", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise ToolError(
            "the workspace is no git repository: it has no folder .git (git_clone makes one, "
            "where remotes are allowed)"
        ) from None
    except OSError:
        raise ToolRefused("refused: .git is not a folder here, but something else") from None
    try:
        act(folder)
    finally:
        os.close(folder)


def _check_configuration(git_folder: int) -> None:
    for name in _CONFIG_FILES:
        content = _read_own(git_folder, name)
        if found := _RUNS_PROGRAMS.search(content):
            section = (found[1] or found[2]).decode().lower()
            raise ToolRefused(
                f"refused: .git/{name} has a section [{section} …], by which a repository can run "
                "programs; take it out to use git here"
            )


def _read_own(git_folder: int, name: str) -> bytes:
    """Return a file of the folder; empty when there is none. Raises ToolRefused for a link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=git_folder)
    except FileNotFoundError:
        return b""
    except OSError:
        raise ToolRefused(f"refused: .git/{name} is not a readable file of its own") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONFIG_BYTES:
            raise ToolRefused(f"refused: .git/{name} is not a file of reasonable size")
        return file.read(MAX_CONFIG_BYTES)


def _unlock_index(git_folder: int) -> None:
    """Remove what a killed git leaves behind, by which the next ones would not start."""
    try:
        os.unlink("index.lock", dir_fd=git_folder)
    except FileNotFoundError:
        return
