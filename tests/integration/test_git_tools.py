"""The git tools on real repositories, in each sandbox; remotes are repositories on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bare_sandbox import BareSandbox, bare_surroundings
from support.git_work import (
    CONFINED,
    change,
    let_everybody_write,
    make_upstream,
    open_folder,
    run_git,
    said,
    surroundings_in,
    use,
)

from agent_actors.config_tools import GitConfig, ToolsConfig
from agent_actors.errors import InvalidTask, ToolError, ToolRefused, WorkspaceUnavailable
from agent_actors.tools.git import (
    GIT_TOOLS,
    RepositoryRequest,
    prepare_repository,
    repository_request,
)
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Command, Finished


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest.fixture
async def work(folder: Path) -> Surroundings:
    """A workspace with a fresh repository, and one file committed."""
    surroundings = bare_surroundings(folder)
    assert await prepare_repository(surroundings, None) == {"branch": "main"}
    (surroundings.workspace.path / "a.txt").write_text("one\n")
    await use("git_add", surroundings, all=True)
    await use("git_commit", surroundings, message="First")
    return surroundings


@pytest.fixture
def upstream(folder: Path) -> Path:
    return make_upstream(folder / "remotes" / "up")


@pytest.fixture
def allowed(folder: Path, upstream: Path) -> Surroundings:
    """An empty workspace from which the remotes of this test may be reached."""
    return bare_surroundings(folder, settings_for(folder))


def settings_for(folder: Path) -> ToolsConfig:
    return ToolsConfig(git=GitConfig(remotes=(f"file://{folder}/remotes/*",)))


async def test_a_commit_returns_its_id_and_notes_it_as_an_artifact(work: Surroundings):
    folder = work.workspace.path
    (folder / "b.txt").write_text("b\n")
    assert "b.txt" in await said("git_add", work, paths=["b.txt"])
    output = await use("git_commit", work, message="Second\n\nWith a body")
    commit = run_git(folder, "rev-parse", "HEAD")
    assert commit in output.text
    assert output.artifacts == {
        "commits": [{"commit": commit, "message": "Second\n\nWith a body", "branch": "main"}]
    }
    author = run_git(folder, "log", "-1", "--format=%an <%ae> %cn")
    assert author == "agent-actors <agent-actors@localhost> agent-actors"


async def test_all_stages_what_was_changed_and_deleted(work: Surroundings):
    (work.workspace.path / "a.txt").unlink()
    await use("git_commit", work, message="Remove a", all=True)
    assert run_git(work.workspace.path, "ls-files") == ""


async def test_nothing_to_commit_is_an_error_that_says_so(work: Surroundings):
    with pytest.raises(ToolError, match="nothing to commit: stage changes with git_add first"):
        await use("git_commit", work, message="Empty")
    (work.workspace.path / "new.txt").write_text("x")
    with pytest.raises(ToolError, match=r"(?s)nothing to commit.*new\.txt"):
        await use("git_commit", work, message="Unstaged")


async def test_status_tells_the_branch_and_the_files(work: Surroundings):
    assert "nothing has changed" in await said("git_status", work)
    (work.workspace.path / "ü b.txt").write_text("x")
    (work.workspace.path / "a.txt").write_text("changed\n")
    text = await said("git_status", work)
    assert text.splitlines() == ["## main", " M a.txt", '?? "ü b.txt"']


async def test_diff_compares_with_the_index_with_head_and_with_a_commit(work: Surroundings):
    folder = work.workspace.path
    (folder / "a.txt").write_text("two\n")
    assert "+two" in await said("git_diff", work)
    await use("git_add", work, paths=["a.txt"])
    assert "no differences" in await said("git_diff", work)
    assert "+two" in await said("git_diff", work, staged=True)
    await use("git_commit", work, message="Two")
    assert "-one\n+two" in await said("git_diff", work, ref="HEAD~1", paths=["a.txt"])
    assert "a.txt | 2 +-" in await said("git_diff", work, ref="HEAD~1", summary=True)


async def test_log_lists_ids_dates_authors_and_subjects_up_to_a_count(work: Surroundings):
    (work.workspace.path / "a.txt").write_text("two\n")
    await use("git_commit", work, message="Second", all=True)
    text = await said("git_log", work, max_count=1)
    commit = run_git(work.workspace.path, "rev-parse", "HEAD")
    assert text.startswith(f"{commit} 20")
    assert "agent-actors" in text
    assert "Second" in text
    assert "First" not in text
    with pytest.raises(ToolError, match="max_count"):
        await use("git_log", work, max_count=10_000)


async def test_a_repository_without_commits_says_so(folder: Path):
    surroundings = bare_surroundings(folder)
    await prepare_repository(surroundings, None)
    assert await said("git_log", surroundings) == "there are no commits yet"
    assert "no branches" in await said("git_branch", surroundings)
    assert "No commits yet on main" in await said("git_status", surroundings)


async def test_branches_are_created_listed_and_switched_to(work: Surroundings):
    await use("git_branch", work, name="feature/x")
    text = await said("git_branch", work)
    assert "* main" in text
    assert "feature/x" in text
    await use("git_checkout", work, ref="feature/x")
    await use("git_checkout", work, ref="another", create=True, start="main")
    assert run_git(work.workspace.path, "branch", "--show-current") == "another"


async def test_checkout_refuses_to_lose_changes(work: Surroundings):
    file = work.workspace.path / "a.txt"
    await use("git_checkout", work, ref="other", create=True)
    file.write_text("two\n")
    await use("git_commit", work, message="Two", all=True)
    file.write_text("not committed\n")
    with pytest.raises(ToolError, match="would lose changes: commit them first"):
        await use("git_checkout", work, ref="main")
    assert file.read_text() == "not committed\n"


async def test_checkout_refuses_to_overwrite_an_ignored_file(work: Surroundings):
    folder = work.workspace.path
    await use("git_checkout", work, ref="other", create=True)
    (folder / "build").write_text("tracked here\n")
    await use("git_add", work, all=True)
    await use("git_commit", work, message="Track build")
    await use("git_checkout", work, ref="main")
    (folder / ".git/info").mkdir(exist_ok=True)
    (folder / ".git/info/exclude").write_text("build\n")
    (folder / "build").write_text("mine\n")
    with pytest.raises(ToolError, match="would lose changes"):
        await use("git_checkout", work, ref="other")
    assert (folder / "build").read_text() == "mine\n"


async def test_reading_tools_are_those_that_write_nothing():
    reading = {tool.name for tool in GIT_TOOLS if tool.reads}
    assert reading == {"git_status", "git_diff", "git_log"}
    assert all(tool.name == f"git_{tool.operation}" for tool in GIT_TOOLS)


async def test_a_folder_without_a_repository_is_told(folder: Path):
    with pytest.raises(ToolError, match="the workspace is no git repository"):
        await use("git_status", bare_surroundings(folder))


async def test_without_a_sandbox_git_is_refused_with_the_remedy(folder: Path, work: Surroundings):
    surroundings = Surroundings(
        workspace=work.workspace,
        settings=settings_for(folder),
        web=None,
        no_sandbox="install bubblewrap",
    )
    with pytest.raises(ToolRefused, match="install bubblewrap"):
        await use("git_status", surroundings)
    assert await prepare_repository(surroundings, None) == {}
    with pytest.raises(WorkspaceUnavailable, match="install bubblewrap"):
        await prepare_repository(
            surroundings, RepositoryRequest(repo=f"file://{folder}/remotes/up")
        )


class Slow:
    """A sandbox in which a command has just taken too long."""

    name = "none"

    async def run(self, command: Command) -> Finished:
        return Finished(exit_code=-9, output=b"", duration_s=120.2, stopped="timeout")


async def test_a_slow_git_is_told_and_leaves_no_lock(work: Surroundings):
    lock = work.workspace.path / ".git/index.lock"
    lock.touch()
    slow = bare_surroundings(work.workspace.path.parent, sandbox=Slow())
    with pytest.raises(ToolError, match="git add was stopped after 120 s, its time limit"):
        await use("git_add", slow, all=True)
    assert not lock.exists()


async def test_a_clone_brings_the_default_branch(allowed: Surroundings, upstream: Path):
    text = await said("git_clone", allowed, url=f"file://{upstream}")
    assert run_git(upstream, "rev-parse", "HEAD") in text
    assert (allowed.workspace.path / "a.txt").read_text() == "two\n"
    assert run_git(allowed.workspace.path, "status", "--short", "--branch") == "## main"
    log = await said("git_log", allowed)
    assert "origin/main" in log
    assert "First" in log


@pytest.mark.parametrize(("ref", "branch"), [("old", "old"), ("v1", ""), ("commit", "")])
async def test_a_clone_brings_a_branch_a_tag_or_a_commit(
    allowed: Surroundings, upstream: Path, ref: str, branch: str
):
    wanted = run_git(upstream, "rev-parse", "old")
    await prepare_repository(allowed, None)  # a clone fills a fresh repository, too
    await use(
        "git_clone", allowed, url=f"file://{upstream}", ref=wanted if ref == "commit" else ref
    )
    assert run_git(allowed.workspace.path, "rev-parse", "HEAD") == wanted
    assert run_git(allowed.workspace.path, "branch", "--show-current") == branch
    assert (allowed.workspace.path / "a.txt").read_text() == "one\n"


async def test_a_remote_without_a_default_branch_is_cloned_at_its_commit(
    allowed: Surroundings, upstream: Path
):
    run_git(upstream, "checkout", "--quiet", "--detach", "old")
    let_everybody_write(upstream)
    await use("git_clone", allowed, url=f"file://{upstream}")
    commit = run_git(upstream, "rev-parse", "old")
    assert run_git(allowed.workspace.path, "rev-parse", "HEAD") == commit
    assert run_git(allowed.workspace.path, "branch", "--show-current") == ""


async def test_an_empty_repository_can_be_cloned_and_pushed_to(
    allowed: Surroundings, upstream: Path
):
    empty = upstream.parent / "empty.git"
    empty.mkdir()
    run_git(empty, "init", "--quiet", "--bare", "--initial-branch=main", ".")
    let_everybody_write(empty)
    assert "it is empty" in await said("git_clone", allowed, url=f"file://{empty}")
    (allowed.workspace.path / "a.txt").write_text("one\n")
    await use("git_add", allowed, all=True)
    await use("git_commit", allowed, message="First")
    await use("git_push", allowed)
    assert run_git(empty, "log", "--format=%s", "main") == "First"


async def test_a_workspace_with_files_is_not_cloned_over(allowed: Surroundings, upstream: Path):
    (allowed.workspace.path / "mine.txt").write_text("x")
    with pytest.raises(ToolError, match="the workspace is not empty"):
        await use("git_clone", allowed, url=f"file://{upstream}")


async def test_push_brings_commits_to_the_remote(allowed: Surroundings, upstream: Path):
    await use("git_clone", allowed, url=f"file://{upstream}")
    (allowed.workspace.path / "a.txt").write_text("three\n")
    commit = (await use("git_commit", allowed, message="Third", all=True)).artifacts["commits"][0]
    await use("git_push", allowed)
    assert run_git(upstream, "rev-parse", "main") == commit["commit"]
    await use("git_push", allowed, to="review")  # whose commits the exchange has by now
    assert run_git(upstream, "rev-parse", "review") == commit["commit"]
    await use("git_checkout", allowed, ref="mine", create=True)
    (allowed.workspace.path / "a.txt").write_text("four\n")
    await use("git_commit", allowed, message="Fourth", all=True)
    await use("git_push", allowed)
    assert run_git(upstream, "log", "-1", "--format=%s", "mine") == "Fourth"


async def test_a_push_that_would_lose_commits_is_refused(allowed: Surroundings, upstream: Path):
    await use("git_clone", allowed, url=f"file://{upstream}")
    change(upstream, "b.txt", "theirs\n")
    theirs = run_git(upstream, "rev-parse", "main")
    (allowed.workspace.path / "a.txt").write_text("ours\n")
    await use("git_commit", allowed, message="Ours", all=True)
    with pytest.raises(ToolError, match="git_pull first"):
        await use("git_push", allowed)
    assert run_git(upstream, "rev-parse", "main") == theirs
    assert "Merge" in await said("git_pull", allowed)
    await use("git_push", allowed)
    assert theirs in run_git(upstream, "log", "--format=%H", "main")


async def test_pull_brings_what_is_new(allowed: Surroundings, upstream: Path):
    await use("git_clone", allowed, url=f"file://{upstream}")
    assert "Already up to date" in await said("git_pull", allowed)
    change(upstream, "a.txt", "three\n")
    assert "Fast-forward" in await said("git_pull", allowed)
    assert (allowed.workspace.path / "a.txt").read_text() == "three\n"
    fetched = await said("git_pull", allowed, branch="old", merge=False)
    assert "as origin/old" in fetched
    await use("git_checkout", allowed, ref="old", create=True, start="origin/old")
    assert (allowed.workspace.path / "a.txt").read_text() == "one\n"


async def test_a_conflict_leaves_the_branch_as_it_was(allowed: Surroundings, upstream: Path):
    await use("git_clone", allowed, url=f"file://{upstream}")
    change(upstream, "a.txt", "theirs\n")
    (allowed.workspace.path / "a.txt").write_text("ours\n")
    await use("git_commit", allowed, message="Ours", all=True)
    with pytest.raises(ToolError, match=r"(?s)conflicts with the current branch.*a\.txt"):
        await use("git_pull", allowed)
    assert (allowed.workspace.path / "a.txt").read_text() == "ours\n"
    assert "nothing has changed" in await said("git_status", allowed)


async def test_without_an_origin_push_and_pull_want_an_address(folder: Path, work: Surroundings):
    for name in ("git_push", "git_pull"):
        with pytest.raises(ToolError, match="was not cloned: give the url"):
            await use(name, work)


async def test_a_task_gets_the_repository_that_it_names(allowed: Surroundings, upstream: Path):
    request = repository_request({"repo": f"file://{upstream}/", "ref": "old", "other": 1})
    assert await prepare_repository(allowed, request) == {
        "repo": f"file://{upstream}",
        "ref": "old",
        "commit": run_git(upstream, "rev-parse", "old"),
    }


async def test_a_task_that_names_what_is_not_there_is_invalid(
    allowed: Surroundings, upstream: Path
):
    request = RepositoryRequest(repo=f"file://{upstream}", ref="nowhere")
    with pytest.raises(InvalidTask, match=r"constraints\.workspace\.ref: .*nowhere"):
        await prepare_repository(allowed, request)
    with pytest.raises(InvalidTask, match=r"constraints\.workspace\.repo: .*allowed are file://"):
        await prepare_repository(allowed, RepositoryRequest(repo="https://example.org/x"))


async def test_a_remote_that_is_away_makes_the_workspace_unavailable(
    allowed: Surroundings, upstream: Path
):
    request = RepositoryRequest(repo=f"file://{upstream}-gone")
    with pytest.raises(WorkspaceUnavailable, match="cannot be cloned"):
        await prepare_repository(allowed, request)


async def test_the_network_and_the_workspace_never_meet(folder: Path, upstream: Path):
    """What reaches a remote cannot see the workspace; what works on it has no transport."""
    sandbox = BareSandbox()
    surroundings = bare_surroundings(folder, settings_for(folder), sandbox)
    workspace = surroundings.workspace.path
    await use("git_clone", surroundings, url=f"file://{upstream}")
    await use("git_push", surroundings, to="other")
    for command in sandbox.commands:
        on_workspace = command.folder == workspace
        assert not on_workspace or command.environment["GIT_ALLOW_PROTOCOL"] == "none"
        assert on_workspace or workspace not in [*command.read, *command.write]
        assert not command.network  # a remote of this machine needs none


@pytest.mark.parametrize("kind", CONFINED)
async def test_a_task_goes_its_way_in_each_sandbox(folder: Path, upstream: Path, kind: str):
    agent = await surroundings_in(kind, folder, settings_for(folder))
    request = RepositoryRequest(repo=f"file://{upstream}")
    assert (await prepare_repository(agent, request))["commit"] in run_git(upstream, "log")
    await use("git_checkout", agent, ref="work", create=True)
    (agent.workspace.path / "b.txt").write_text("mine\n")
    assert "?? b.txt" in await said("git_status", agent)
    await use("git_add", agent, paths=["b.txt"])
    assert "+mine" in await said("git_diff", agent, staged=True)
    await use("git_commit", agent, message="Mine")
    change(upstream, "c.txt", "theirs\n", "Theirs")
    await use("git_pull", agent, branch="main")
    await use("git_push", agent)
    assert {"Mine", "Theirs"} <= set(run_git(upstream, "log", "--format=%s", "work").splitlines())
    owner = agent.workspace.path.stat().st_uid
    files = (agent.workspace.path / ".git").rglob("*")
    assert {file.stat().st_uid for file in files} == {owner}
