"""Workspaces on the disk: made, held, found again, removed."""

import asyncio
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path
from threading import Event
from typing import IO

import pytest
from msgspec.structs import replace
from support.until import until
from support.workspaces import FIRST_UID, names_in, workspaces_in

from agent_actors.errors import WorkspaceUnavailable
from agent_actors.tools import roots, uids
from agent_actors.tools import workspace as workspace_module
from agent_actors.tools.removal import remove_tree
from agent_actors.tools.uids import UidRegister
from agent_actors.tools.workspace import WorkspaceId

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root, to have user ids to give")

TESTS = Path(__file__).parents[2]
HOLD = """
import asyncio, sys
sys.path[:0] = [sys.argv[2]]
from pathlib import Path
from support.workspaces import workspaces_in
workspace = asyncio.run(workspaces_in(Path(sys.argv[1])).make("task-1"))
print(workspace.id.path, workspace.id.token, file=sys.stderr, flush=True)
sys.stdin.read()
"""


def workspaces_left(root: Path) -> list[Path]:
    return [path for path in root.glob("default/*/*") if path.is_dir()]


def age(root: Path, seconds: float) -> None:
    """Make everything there look older."""
    for path in [*root.glob("default/*/*"), *root.glob("default/*/*/*")]:
        status = path.stat()
        os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds))


async def test_each_workspace_is_empty_and_a_folder_of_its_own(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    first, second = await workspaces.make("task-1"), await workspaces.make("task-1")
    assert first.path != second.path
    assert names_in(first.path) == names_in(second.path) == []
    assert first.id.token != second.id.token
    first.close()
    second.close()


async def test_nobody_but_its_user_may_look_into_a_workspace(tmp_path: Path):
    workspace = await workspaces_in(tmp_path).make("task-1")
    outer = workspace.path.parent
    owner = workspace.uid if IS_ROOT else os.geteuid()
    assert (workspace.path.stat().st_uid, stat.S_IMODE(workspace.path.stat().st_mode)) == (
        owner,
        0o700,
    )
    for path, mode in ((outer, 0o711), (workspace.private, 0o700), (outer / "record", 0o600)):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (os.geteuid(), mode)
    workspace.close()


@needs_root
async def test_as_root_each_workspace_has_a_user_of_its_own(tmp_path: Path):
    several = [workspaces_in(tmp_path, pool_name=f"pool-{number}") for number in range(4)]
    made = await asyncio.gather(*(workspaces.make("task-1") for workspaces in several * 5))
    given_away = {workspace.uid for workspace in made}
    assert len(given_away) == 20
    assert min(given_away) >= FIRST_UID
    for workspace in made:
        workspace.close()
    for workspaces in several:
        await workspaces.clear_away("task-1", "completed")
    assert names_in(tmp_path / ".uids") == ["lock"]


@needs_root
async def test_a_user_id_is_free_again_once_its_workspace_is_removed(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    link = tmp_path / ".uids" / str(workspace.uid)
    assert link.readlink() == workspace.path.parent
    workspace.close()
    await workspaces.clear_away("task-1", "completed")
    assert not link.is_symlink()


def test_a_user_id_is_given_to_one_workspace_only(tmp_path: Path):
    register = UidRegister([tmp_path], 1)
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    assert register.claim(7, one)
    assert not register.claim(7, other)
    assert register.claim(7, one)
    register.release(7, other)
    assert not register.claim(7, other)


def test_the_user_id_of_a_workspace_that_is_gone_is_free(tmp_path: Path):
    register = UidRegister([tmp_path], 1)
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    assert register.claim(7, one)
    one.rmdir()
    assert register.claim(7, other)
    assert not register.claim(7, one)


def test_a_user_id_that_a_register_refuses_is_given_back_to_the_others(tmp_path, monkeypatch):
    machine, volume, theirs = tmp_path / "machine", tmp_path / "volume", tmp_path / "theirs"
    for folder in (machine, volume, theirs):
        folder.mkdir()
    (volume / "8").symlink_to(theirs)
    monkeypatch.setattr(uids, "UIDS", 2)  # the first one is git's
    with pytest.raises(OSError, match="user ids from 7 on was free"):
        UidRegister([machine, volume], 7).reserve(tmp_path / "ours")
    assert names_in(machine) == ["lock"]


async def test_a_workspace_is_found_again_once_it_is_let_go(tmp_path: Path):
    workspace = await workspaces_in(tmp_path).make("task-1")
    (workspace.path / "a.txt").write_text("kept")
    workspace.close()
    again = await workspaces_in(tmp_path).reopen(workspace.id)
    assert again is not None
    assert (again.path / "a.txt").read_text() == "kept"
    assert again.uid == workspace.uid
    again.close()


async def test_a_workspace_that_is_held_is_not_found_again(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    assert await workspaces.reopen(workspace.id) is None
    workspace.close()


async def test_a_workspace_is_free_when_the_process_that_held_it_was_killed(tmp_path: Path):
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLD, tmp_path, TESTS),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    workspaces = workspaces_in(tmp_path)
    try:
        path, token = (await holder.stderr.readline()).decode().split()
        known = WorkspaceId(path=path, token=token)
        assert await workspaces.reopen(known) is None
    finally:
        holder.kill()
        await holder.wait()
    again = await workspaces.reopen(known)
    assert again is not None
    again.close()


async def test_a_wrong_token_opens_nothing(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    workspace.close()
    assert await workspaces.reopen(replace(workspace.id, token="guessed")) is None
    again = await workspaces.reopen(workspace.id)
    assert again is not None
    again.close()


async def test_a_folder_outside_of_the_pool_is_never_reopened(tmp_path: Path):
    stranger = workspaces_in(tmp_path, pool_name="other")
    workspace = await stranger.make("task-1")
    workspace.close()
    assert await workspaces_in(tmp_path).reopen(workspace.id) is None
    assert await workspaces_in(tmp_path / "elsewhere").reopen(workspace.id) is None


async def test_a_workspace_that_is_gone_is_not_found_again(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    workspace.close()
    await workspaces.clear_away("task-1", "completed")
    assert await workspaces.reopen(workspace.id) is None


@pytest.mark.parametrize(
    ("keep", "status", "is_kept"),
    [
        ("never", "completed", False),
        ("never", "failed", False),
        ("failed", "completed", False),
        ("failed", "failed", True),
        ("always", "completed", True),
    ],
)
async def test_a_workspace_is_kept_as_configured(tmp_path: Path, keep, status, is_kept):
    workspaces = workspaces_in(tmp_path, keep=keep)
    (await workspaces.make("task-1")).close()
    await workspaces.clear_away("task-1", status)
    assert bool(workspaces_left(tmp_path)) is is_kept


async def test_all_of_a_tasks_workspaces_are_cleared_away_and_no_other(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    for task_id in ("task-1", "task-1", "task-10"):
        (await workspaces.make(task_id)).close()
    await workspaces.clear_away("task-1", "completed")
    (left,) = workspaces_left(tmp_path)
    assert left.parent.name == "task-10"
    assert not (tmp_path / "default" / "task-1").exists()


async def test_a_workspace_that_is_held_is_not_cleared_away(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    await workspaces.clear_away("task-1", "completed")
    assert workspace.path.is_dir()
    workspace.close()


async def test_clearing_away_where_there_is_nothing_does_nothing(tmp_path: Path):
    await workspaces_in(tmp_path / "missing").clear_away("task-1", "completed")
    assert names_in(tmp_path) == []


async def test_sweeping_removes_what_is_old_and_free(tmp_path: Path):
    workspaces = workspaces_in(tmp_path, keep_for_s=100.0)
    (await workspaces.make("old")).close()
    held = await workspaces.make("held")
    unfinished = ".new-0123456789abcdef"  # of a process that died at the wrong moment
    (tmp_path / "default/old" / unfinished).mkdir()
    age(tmp_path, 200)
    (await workspaces.make("new")).close()
    await workspaces.sweep()
    assert {path.parent.name for path in workspaces_left(tmp_path)} == {"held", "new"}
    held.close()


async def test_a_workspace_whose_removal_was_cut_off_is_swept(tmp_path: Path, monkeypatch):
    def cut_off(_folder: Path) -> None:
        raise OSError(5, "Input/output error")

    workspaces = workspaces_in(tmp_path, keep_for_s=100.0)
    (await workspaces.make("task-1")).close()
    age(tmp_path, 200)
    with monkeypatch.context() as broken:
        broken.setattr("agent_actors.tools.workspace.remove_tree", cut_off)
        await workspaces.sweep()
    (left,) = workspaces_left(tmp_path)
    assert "record" not in names_in(left)
    age(tmp_path, 200)
    await workspaces.sweep()
    assert workspaces_left(tmp_path) == []


async def test_the_lock_of_a_workspace_goes_after_all_else_in_it(tmp_path: Path, monkeypatch):
    seen: list[tuple[str, bool]] = []

    def watched(folder: Path) -> None:
        outer = folder if (folder / "lock").exists() else folder.parent
        seen.append((folder.name, (outer / "lock").exists()))
        remove_tree(folder)

    monkeypatch.setattr("agent_actors.tools.workspace.remove_tree", watched)
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    workspace.close()
    await workspaces.clear_away("task-1", "completed")
    *within, last = seen
    assert {("work", True), ("private", True)} == set(within)
    assert last == (workspace.path.parent.name, True)


def somebodys_folders(root: Path) -> list[Path]:
    """Make folders that a person may have there; they look very old."""
    key = "0123456789abcdef"
    names = ("proj/src", "proj/empty", f"proj/{key}", f"a b/{key}", "alone", "proj/.new-x")
    made = [root / "default" / name for name in names]
    for folder in made:
        folder.mkdir(parents=True)
    (root / "default/proj/src/lock").write_text("kept")
    (root / "default/a b" / key / "lock").write_text("kept")
    for folder in made:
        os.utime(folder, (0, 0))
    return made


async def test_sweeping_leaves_all_alone_that_is_no_workspace(tmp_path: Path):
    theirs = somebodys_folders(tmp_path)
    await workspaces_in(tmp_path, keep_for_s=1.0).sweep()
    assert [folder for folder in theirs if not folder.is_dir()] == []
    assert (tmp_path / "default/proj/src/lock").read_text() == "kept"


async def test_clearing_away_leaves_all_alone_that_is_no_workspace(tmp_path: Path):
    theirs = somebodys_folders(tmp_path)
    await workspaces_in(tmp_path).clear_away("proj", "completed")
    assert [folder for folder in theirs if not folder.is_dir()] == []


async def planted(root: Path, where: str) -> tuple[WorkspaceId, Path]:
    """Have a real workspace elsewhere, which the pool's or the task's folder links to."""
    there = workspaces_in(root / "elsewhere")
    workspace = await there.make("task-1")
    workspace.close()
    age(root / "elsewhere", 200_000)
    link = root / "ws" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(root / "elsewhere" / where)
    outer = root / "ws/default/task-1" / workspace.path.parent.name
    return WorkspaceId(path=str(outer / "work"), token=workspace.id.token), workspace.path


@pytest.mark.parametrize("where", ["default", "default/task-1"])
async def test_what_a_planted_link_leads_to_is_never_removed(tmp_path: Path, where: str):
    _, theirs = await planted(tmp_path, where)
    workspaces = workspaces_in(tmp_path / "ws")
    await workspaces.sweep()
    await workspaces.clear_away("task-1", "completed")
    assert names_in(theirs.parent) == ["lock", "private", "record", "work"]


async def test_nothing_is_reopened_by_way_of_a_planted_link(tmp_path: Path):
    known, theirs = await planted(tmp_path, "default")
    assert await workspaces_in(tmp_path / "ws").reopen(known) is None
    again = await workspaces_in(tmp_path / "elsewhere").reopen(
        WorkspaceId(path=str(theirs), token=known.token)
    )
    assert again is not None  # so it was the link that was refused
    again.close()


async def test_nothing_is_removed_where_others_may_write(tmp_path: Path, capsys):
    workspaces = workspaces_in(tmp_path, keep_for_s=100.0)
    workspace = await workspaces.make("task-1")
    workspace.close()
    age(tmp_path, 200)
    (tmp_path / "default").chmod(0o777)
    await workspaces.sweep()
    assert workspace.path.is_dir()
    assert capsys.readouterr().out.count("workspace.root_refused") == 1
    (tmp_path / "default").chmod(0o711)
    await workspaces.sweep()
    assert not workspace.path.is_dir()


async def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path):
    workspaces = workspaces_in(tmp_path, keep_for_s=100.0)
    workspace = await workspaces.make("task-1")
    workspace.close()
    lock = workspace.path.parent / "lock"
    lock.rename(tmp_path / "elsewhere")
    lock.symlink_to(tmp_path / "elsewhere")
    assert await workspaces.reopen(workspace.id) is None
    await workspaces.clear_away("task-1", "completed")
    assert workspace.path.is_dir()


async def test_a_machine_that_had_no_workspace_yet_takes_one_over(tmp_path: Path):
    workspace = await workspaces_in(tmp_path / "volume").make("task-1")
    workspace.close()
    remove_tree(tmp_path / f"agent-actors-{os.geteuid()}")  # what each machine has for itself
    again = await workspaces_in(tmp_path / "volume").reopen(workspace.id)
    assert again is not None
    again.close()


async def test_several_sweep_and_clear_away_side_by_side(tmp_path: Path):
    several = [workspaces_in(tmp_path, keep_for_s=100.0) for _ in range(4)]
    for number in range(20):
        (await several[0].make(f"task-{number}")).close()
    age(tmp_path, 200)
    async with asyncio.TaskGroup() as group:
        for workspaces in several:
            group.create_task(workspaces.sweep())
            group.create_task(workspaces.clear_away("task-7", "completed"))
    assert workspaces_left(tmp_path) == []


async def test_a_task_may_begin_anew_while_its_old_workspace_is_removed(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    for _ in range(20):
        (await workspaces.make("task-1")).close()
        made, _ = await asyncio.gather(
            workspaces.make("task-1"), workspaces.clear_away("task-1", "completed")
        )
        assert made.path.is_dir()
        made.close()


@pytest.mark.parametrize("is_made_anew", [False, True])
async def test_a_folder_removed_while_its_lock_was_taken_is_not_opened(
    tmp_path: Path, monkeypatch, *, is_made_anew: bool
):
    workspaces = workspaces_in(tmp_path)
    workspace = await workspaces.make("task-1")
    workspace.close()
    outer, flock = workspace.path.parent, fcntl.flock

    def flock_too_late(lock: IO[str], operation: int) -> None:
        (outer / "lock").unlink()
        if is_made_anew:
            (outer / "lock").touch()
        flock(lock, operation)

    monkeypatch.setattr("agent_actors.tools.workspace.fcntl.flock", flock_too_late)
    assert await workspaces.reopen(workspace.id) is None


async def test_a_cancelled_make_holds_nothing(tmp_path: Path, monkeypatch):
    begun, go_on = Event(), Event()
    write_record = workspace_module._write_record

    def write_record_later(*args: object) -> None:
        begun.set()
        go_on.wait()
        write_record(*args)

    monkeypatch.setattr(workspace_module, "_write_record", write_record_later)
    workspaces = workspaces_in(tmp_path)
    making = asyncio.create_task(workspaces.make("task-1"))
    await until(begun.is_set)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    go_on.set()
    await until(lambda: bool([*tmp_path.glob("default/task-1/*/record")]))

    async def is_cleared_away() -> bool:
        await workspaces.clear_away("task-1", "completed")
        return not workspaces_left(tmp_path)

    await until(is_cleared_away)


async def test_a_long_task_id_has_a_folder_of_its_own(tmp_path: Path):
    workspaces = workspaces_in(tmp_path)
    made = [await workspaces.make("ü" * 127 + last) for last in "ab"]
    assert made[0].path.parents[1] != made[1].path.parents[1]
    for workspace in made:
        workspace.close()


async def test_a_root_that_cannot_be_written_is_told_with_its_remedy(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceUnavailable, match=r"file/ws/default: .*another root"):
        await workspaces_in(tmp_path / "file" / "ws").make("task-1")


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
async def test_a_root_of_somebody_elses_is_told(tmp_path: Path):
    with pytest.raises(WorkspaceUnavailable, match="let the service's user write there"):
        await workspaces_in(Path("/etc/workspaces")).make("task-1")


async def test_a_pool_folder_that_others_may_write_is_refused(tmp_path: Path):
    (tmp_path / "default").mkdir()
    (tmp_path / "default").chmod(0o777)
    with pytest.raises(WorkspaceUnavailable, match="that nobody else may write"):
        await workspaces_in(tmp_path).make("task-1")


async def test_a_planted_link_in_the_place_of_the_pool_folder_is_refused(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws/default").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceUnavailable, match="must be a folder"):
        await workspaces_in(tmp_path / "ws").make("task-1")
    assert names_in(tmp_path / "elsewhere") == []


async def test_a_full_disk_is_told_with_its_remedy(tmp_path: Path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    workspaces = workspaces_in(tmp_path)
    monkeypatch.setattr("agent_actors.tools.workspace._write_record", full)
    with pytest.raises(WorkspaceUnavailable, match="No space left on device; free some space"):
        await workspaces.make("task-1")
    assert workspaces_left(tmp_path) == []


async def test_without_a_root_the_machines_temporary_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(roots.tempfile, "gettempdir", lambda: str(tmp_path))
    pool = roots.WorkspaceRoot("", "default")
    pool.prepare()
    own = tmp_path / f"agent-actors-{os.geteuid()}"
    assert pool.pool == own / "workspaces/default"
    assert stat.S_IMODE(own.stat().st_mode) == 0o711


def test_a_tree_of_thousands_of_levels_is_removed(tmp_path: Path):
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    here = os.open(doomed, os.O_RDONLY)
    for _ in range(5_000):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.close(here)
    remove_tree(doomed)
    assert names_in(tmp_path) == []


def test_a_tree_is_removed_whatever_its_permissions_and_links_stay_unfollowed(tmp_path: Path):
    outside, doomed = tmp_path / "outside", tmp_path / "doomed"
    outside.mkdir()
    (outside / "kept").write_text("")
    (doomed / "a/b/c").mkdir(parents=True)
    (doomed / "a/b/c/file").write_text("")
    (doomed / "a/link").symlink_to(outside)
    os.mkfifo(doomed / "a/b/pipe")
    for path, mode in (("a/b/c", 0o000), ("a/b", 0o000), ("a", 0o500)):
        (doomed / path).chmod(mode)
    remove_tree(doomed)
    assert names_in(tmp_path) == ["outside"]
    assert names_in(outside) == ["kept"]
    assert outside.stat().st_mode & 0o777 != 0o700
