"""What a task has changed, told at its end."""

import os
import subprocess
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.workspaces import workspaces_in

from agent_actors.tools import changes, shadow
from agent_actors.tools.stoppable import GivenUp, Stop
from agent_actors.tools.workspace import Workspace

HOSTILE_CONFIG = """[core]
    fsmonitor = touch {canary}
    hooksPath = .
    pager = touch {canary}
[diff "evil"]
    textconv = touch {canary}
    command = touch {canary}
[filter "evil"]
    clean = touch {canary}
    smudge = touch {canary}
"""


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    made = await workspaces_in(tmp_path).make("task-1")
    yield made
    made.close()


def run_git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def listed(artifacts: dict) -> list[tuple]:
    return [tuple(file.values()) for file in artifacts["files_changed"]]


async def test_an_untouched_workspace_has_no_changes(workspace: Workspace):
    assert await workspace.artifacts() == {"files_changed": [], "diff": ""}


async def test_what_a_task_makes_in_an_empty_workspace_is_added(workspace: Workspace):
    (workspace.path / "src").mkdir()
    (workspace.path / "src/a.py").write_text("x = 1\ny = 2\n")
    artifacts = await workspace.artifacts()
    assert listed(artifacts) == [("src/a.py", "added", 2, 0)]
    assert artifacts["diff"].splitlines()[-3:] == ["@@ -0,0 +1,2 @@", "+x = 1", "+y = 2"]
    assert "diff_notes" not in artifacts


async def test_changes_are_told_against_what_the_task_has_found(workspace: Workspace):
    for name in ("kept", "changed", "gone"):
        (workspace.path / name).write_text("one\ntwo\n")
    await workspace.mark_baseline()
    (workspace.path / "changed").write_text("one\n2\nthree\n")
    (workspace.path / "gone").unlink()
    (workspace.path / "new").write_text("x\n")
    artifacts = await workspace.artifacts()
    assert listed(artifacts) == [
        ("changed", "modified", 2, 1),
        ("gone", "deleted", 0, 2),
        ("new", "added", 1, 0),
    ]
    assert "-two\n+2\n+three\n" in artifacts["diff"]


async def test_a_file_that_was_only_touched_has_not_changed(workspace: Workspace):
    (workspace.path / "a").write_text("x")
    await workspace.mark_baseline()
    (workspace.path / "a").write_text("x")
    assert await workspace.artifacts() == {"files_changed": [], "diff": ""}


async def test_a_change_is_seen_though_size_and_time_are_as_before(workspace: Workspace):
    (workspace.path / "a").write_text("x")
    await workspace.mark_baseline()
    before = (workspace.path / "a").stat()
    (workspace.path / "a").write_text("y")
    os.utime(workspace.path / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert listed(await workspace.artifacts()) == [("a", "modified", 1, 1)]


async def test_a_comparison_that_is_given_up_ends(workspace: Workspace):
    (workspace.path / "a").write_text("x")
    await workspace.mark_baseline()
    stop = Stop()
    comparison = changes.Changes(workspace.files, workspace.private, stop)
    assert comparison.artifacts()["files_changed"] == []
    stop.set()
    with pytest.raises(GivenUp):
        comparison.artifacts()


async def test_changes_can_be_asked_for_again(workspace: Workspace):
    (workspace.path / "a").write_text("x\n")
    first = await workspace.artifacts()
    assert await workspace.artifacts() == first
    (workspace.path / "a").unlink()
    assert await workspace.artifacts() == {"files_changed": [], "diff": ""}


async def test_the_baseline_outlives_who_marked_it(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    first = await workspaces.make("task-1")
    (first.path / "a").write_text("1\n")
    await first.mark_baseline()
    first.close()
    second = await workspaces.reopen(first.id)
    (second.path / "a").write_text("2\n")
    assert listed(await second.artifacts()) == [("a", "modified", 1, 1)]
    second.close()


async def test_what_gitignore_names_is_left_out_and_so_is_git(workspace: Workspace):
    run_git(workspace.path, "init", "--quiet")
    (workspace.path / ".gitignore").write_text("*.log\nbuild/\n!kept.log\n")
    (workspace.path / "sub").mkdir()
    (workspace.path / "sub/.gitignore").write_text("/local\n")
    (workspace.path / "build").mkdir()
    (workspace.path / "__pycache__").mkdir()
    for name in ("a.log", "kept.log", "build/x", "sub/local", ":!colon", "__pycache__/a.pyc"):
        (workspace.path / name).write_text("x\n")
    paths = [file[0] for file in listed(await workspace.artifacts())]
    assert paths == [".gitignore", ":!colon", "kept.log", "sub/.gitignore"]


async def test_a_file_the_task_has_found_is_told_of_though_it_is_ignored(workspace: Workspace):
    (workspace.path / "a.log").write_text("x\n")
    await workspace.mark_baseline()
    (workspace.path / ".gitignore").write_text("*\n")
    (workspace.path / "a.log").write_text("y\n")
    assert listed(await workspace.artifacts()) == [("a.log", "modified", 1, 1)]


async def test_it_works_when_the_agent_has_wrecked_its_own_repository(workspace: Workspace):
    run_git(workspace.path, "init", "--quiet")
    (workspace.path / "a").write_text("x\n")
    await workspace.mark_baseline()
    (workspace.path / ".git/HEAD").write_text("nonsense")
    (workspace.path / ".git/config").unlink()
    (workspace.path / "a").write_text("y\n")
    assert listed(await workspace.artifacts()) == [("a", "modified", 1, 1)]


async def test_nothing_of_the_workspaces_is_ever_executed(workspace: Workspace, tmp_path: Path):
    canary = tmp_path / "canary"
    for folder in (workspace.path, workspace.path / "nested"):
        folder.mkdir(exist_ok=True)
        run_git(folder, "init", "--quiet")
        (folder / "a.txt").write_text("x\n")
        run_git(folder, "add", ".")
        run_git(folder, "commit", "--quiet", "--message=x")
        (folder / ".gitattributes").write_text("* diff=evil filter=evil\n")
        (folder / ".git/config").write_text(HOSTILE_CONFIG.format(canary=canary))
        for hook in ("post-index-change", "pre-commit", "fsmonitor-watchman"):
            for place in (folder, folder / ".git/hooks"):
                (place / hook).write_text(f"#!/bin/sh\ntouch {canary}\n")
                (place / hook).chmod(0o755)
    await workspace.mark_baseline()
    (workspace.path / "nested/a.txt").write_text("y\n")
    assert listed(await workspace.artifacts()) == [("nested/a.txt", "modified", 1, 1)]
    assert not canary.exists()


async def test_what_looks_like_a_bare_repository_is_only_files(workspace: Workspace, tmp_path):
    canary = tmp_path / "canary"
    run_git(tmp_path, "init", "--quiet", "--bare", str(workspace.path))
    (workspace.path / "config").write_text(HOSTILE_CONFIG.format(canary=canary))
    paths = [file[0] for file in listed(await workspace.artifacts())]
    assert {"HEAD", "config"} <= set(paths)
    assert not canary.exists()


async def test_hostile_names_do_no_harm(workspace: Workspace):
    names = [
        b"a\nb",
        b"--output=x",
        b"\xff\xfe",
        b'"quoted"',
        b":(top)x",
        b"tab\tb",
        b"back\\slash",
    ]
    for name in names:
        (workspace.path / os.fsdecode(name)).write_bytes(b"x\n")
    artifacts = await workspace.artifacts()
    assert {file["path"] for file in artifacts["files_changed"]} == {
        name.decode(errors="backslashreplace") for name in names
    }
    assert "\na\nb" not in artifacts["diff"]
    assert artifacts["diff"].encode()


async def test_a_link_is_told_as_a_link_and_not_followed(workspace: Workspace, tmp_path: Path):
    (tmp_path / "secret").write_text("CANARY")
    (workspace.path / "link").symlink_to(tmp_path / "secret")
    (workspace.path / ".gitmodules").symlink_to(tmp_path / "secret")
    (workspace.path / "folder").symlink_to(tmp_path)
    os.mkfifo(workspace.path / "pipe")
    artifacts = await workspace.artifacts()
    assert [file[0] for file in listed(artifacts)] == [".gitmodules", "folder", "link"]
    assert "CANARY" not in artifacts["diff"]


async def test_a_file_that_became_a_folder_and_one_that_became_a_link(workspace: Workspace):
    (workspace.path / "a").write_text("x\n")
    (workspace.path / "b").mkdir()
    (workspace.path / "b/c").write_text("x\n")
    await workspace.mark_baseline()
    (workspace.path / "a").unlink()
    (workspace.path / "a").mkdir()
    (workspace.path / "a/c").write_text("y\n")
    (workspace.path / "b/c").unlink()
    (workspace.path / "b").rmdir()
    (workspace.path / "b").symlink_to("a")
    assert listed(await workspace.artifacts()) == [
        ("a", "deleted", 0, 1),
        ("a/c", "added", 1, 0),
        ("b", "added", 1, 0),
        ("b/c", "deleted", 0, 1),
    ]


@pytest.mark.parametrize(("limit", "value"), [("MAX_IGNORE_FILES", 2), ("MAX_ALL_IGNORE_BYTES", 9)])
async def test_only_so_much_of_gitignore_is_heeded_and_that_is_said(
    workspace: Workspace, monkeypatch, limit: str, value: int
):
    for folder in ("z", "a/deep", "."):
        (workspace.path / folder).mkdir(parents=True, exist_ok=True)
        (workspace.path / folder / ".gitignore").write_text("*.o\n")
    (workspace.path / "a/deep/.gitignore").write_text("*.log\n")
    for name in ("z/b.o", "a/deep/c.o", "a/deep/d.log"):
        (workspace.path / name).write_text("x\n")
    assert "diff_notes" not in await workspace.artifacts()
    monkeypatch.setattr(changes, limit, value)
    artifacts = await workspace.artifacts()
    assert [file[0] for file in listed(artifacts)] == [
        ".gitignore",
        "a/deep/.gitignore",
        "a/deep/d.log",
        "z/.gitignore",
    ]
    (note,) = artifacts["diff_notes"]
    assert note.startswith("only 2 of 3 .gitignore files were heeded")


async def test_very_many_sparse_gitignore_files_cost_little_memory(workspace: Workspace):
    for number in range(200):
        (workspace.path / str(number)).mkdir()
        with (workspace.path / f"{number}/.gitignore").open("wb") as file:
            file.truncate(256 * 1024)
    tracemalloc.start()
    try:
        artifacts = await workspace.artifacts()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "only 32 of 200" in artifacts["diff_notes"][0]
    assert peak_bytes < 32 * 1024 * 1024


async def test_big_and_binary_files_are_only_named(workspace: Workspace):
    (workspace.path / "binary").write_bytes(b"\0\1\2")
    with (workspace.path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    artifacts = await workspace.artifacts()
    assert listed(artifacts) == [("binary", "added", 0, 0), ("sparse", "added", 0, 0)]
    assert artifacts["diff"].count("Binary files") == 2


async def test_a_long_diff_is_cut_and_says_how_much_is_missing(workspace, monkeypatch):
    monkeypatch.setattr(changes, "MAX_DIFF_BYTES", 500)
    (workspace.path / "a").write_text("0123456789\n" * 1_000)
    diff = (await workspace.artifacts())["diff"]
    assert len(diff) < 600
    *whole, last = diff.splitlines()
    assert whole[-1] == "+0123456789"
    left_out, total = (int(word) for word in last.strip("[]").split() if word.isdigit())
    assert total - left_out == len("\n".join(whole)) + 1


async def test_without_git_the_changed_files_are_told_and_what_is_missing(workspace, monkeypatch):
    monkeypatch.setattr(shadow.shutil, "which", lambda _: None)
    (workspace.path / "b").write_text("x\n")
    (workspace.path / "a").symlink_to("b")
    artifacts = await workspace.artifacts()
    assert listed(artifacts) == [("a", "added", 0, 0), ("b", "added", 0, 0)]
    assert artifacts["diff"] == ""
    assert "no program git" in artifacts["diff_notes"][0]


async def test_a_baseline_that_could_not_be_kept_is_said_and_not_made_up(workspace, monkeypatch):
    (workspace.path / "a").write_text("x\n")
    with monkeypatch.context() as without_git:
        without_git.setattr(shadow.shutil, "which", lambda _: None)
        await workspace.mark_baseline()
    (workspace.path / "a").write_text("y\n")
    artifacts = await workspace.artifacts()
    assert listed(artifacts) == [("a", "modified", 0, 0)]
    assert "could not be kept" in artifacts["diff_notes"][0]


async def test_a_workspace_that_is_gone_costs_only_its_artifacts(workspace: Workspace):
    _ = workspace.files
    workspace.path.rmdir()
    artifacts = await workspace.artifacts()
    assert (artifacts["files_changed"], artifacts["diff"]) == ([], "")
    assert "cannot be told: .: No such file" in artifacts["diff_notes"][0]


async def test_a_full_disk_costs_only_the_artifacts(workspace: Workspace, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (workspace.path / "a").write_text("x\n")
    monkeypatch.setattr(shadow.tempfile, "TemporaryFile", full)
    assert "No space left" in (await workspace.artifacts())["diff_notes"][0]
