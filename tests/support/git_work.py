"""Workspaces for the git and test tools, in each kind of sandbox; repositories elsewhere."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from support.bare_sandbox import bare_surroundings

from agent_actors.config_tools import ToolsConfig, WorkspaceConfig
from agent_actors.tools.commands import TEST_TOOLS
from agent_actors.tools.git import GIT_TOOLS
from agent_actors.tools.registry import Surroundings, ToolOutput
from agent_actors.tools.sandbox.finding import find_sandbox
from agent_actors.tools.workspace import Workspaces

BARE = "bare"
CONFINED = ("bwrap", "landlock")
TOOLS = {tool.name: tool for tool in (*GIT_TOOLS, *TEST_TOOLS)}
PERSON = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Ann"), ("EMAIL", "ann@example.org"))
}


async def use(name: str, surroundings: Surroundings, /, **arguments: object) -> ToolOutput:
    """Call a tool as the loop does."""
    return await TOOLS[name].call(surroundings, arguments)


async def said(name: str, surroundings: Surroundings, /, **arguments: object) -> str:
    """Return what the model is told of a call."""
    return (await use(name, surroundings, **arguments)).text


async def surroundings_in(
    kind: str, folder: Path, settings: ToolsConfig | None = None
) -> Surroundings:
    """Return what tools work with in a new workspace; skip the test if its sandbox is missing."""
    settings = settings or ToolsConfig()
    if kind == BARE:
        return bare_surroundings(folder, settings)
    sandbox, failure = await find_sandbox(msgspec.structs.replace(settings.sandbox, kind=kind))
    if sandbox is None:
        pytest.skip(failure)
    workspaces = Workspaces(
        WorkspaceConfig(root=str(folder / "workspaces")),
        pool_name="default",
        first_uid=settings.sandbox.first_uid,
    )
    return Surroundings(
        workspace=await workspaces.make("task-1"), settings=settings, web=None, sandbox=sandbox
    )


@contextmanager
def open_folder() -> Iterator[Path]:
    """Give a folder that another user can reach, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="agent-actors-test-")).resolve()
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run_git(folder: Path, *arguments: str) -> str:
    """Run git as another person would, elsewhere, with nothing of this machine's settings."""
    return subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", folder, *arguments],
        env={
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            **PERSON,
        },
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def make_upstream(folder: Path) -> Path:
    """Make somebody's repository, with the branches `main` and `old` and the tag `v1`."""
    folder.mkdir(parents=True)
    run_git(folder, "init", "--quiet", "--initial-branch=main", "--template=", ".")
    run_git(folder, "config", "receive.denyCurrentBranch", "ignore")
    change(folder, "a.txt", "one\n", "First")
    run_git(folder, "branch", "old")
    run_git(folder, "tag", "v1")
    change(folder, "a.txt", "two\n", "Second")
    let_everybody_write(folder)
    return folder


def change(repository: Path, name: str, text: str, message: str = "Change") -> None:
    """Commit a file."""
    (repository / name).write_text(text)
    run_git(repository, "add", name)
    run_git(repository, "commit", "--quiet", f"--message={message}")
    let_everybody_write(repository)


def let_everybody_write(repository: Path) -> None:
    """As root, who talks with remotes is another user than the one who runs the tests."""
    if os.geteuid() == 0:
        subprocess.run(["chmod", "-R", "a+rwX", repository], check=True)
