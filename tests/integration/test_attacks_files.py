"""Attacks on the file tools: nothing outside of the workspace is ever read or changed.

The agent's commands are played by the test, which plants what they could plant.
"""

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from support.workspaces import TOOLS, Agent, names_in, workspaces_in

from agent_actors.errors import ToolError
from agent_actors.tools import finding

CANARY = "canary-7f3a91"
ROUNDS = 150
SWAP = """
import ctypes, os, sys
HERE, EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
libc, (place, decoy), parent = ctypes.CDLL(None), map(os.fsencode, sys.argv[1:]), os.getppid()
print("swapping", flush=True)
while os.getppid() == parent:
    libc.renameat2(HERE, place, HERE, decoy, EXCHANGE)
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make what only root can")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What no agent may see or change: a folder with one file."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(f"{CANARY}\n")
    return folder


@pytest.fixture
async def agent(tmp_path: Path, outside: Path) -> AsyncIterator[Agent]:
    workspace = await workspaces_in(tmp_path / "ws").make("task-1")
    yield Agent(workspace)
    workspace.close()
    assert names_in(outside) == ["secret.txt"]
    assert (outside / "secret.txt").read_text() == f"{CANARY}\n"


def calls_on(path: str) -> list[tuple[str, dict[str, str | bool]]]:
    """Return a call of each tool on the path."""
    return [
        ("read_file", {"path": path}),
        ("write_file", {"path": path, "content": "overwritten"}),
        ("append_file", {"path": path, "content": "appended"}),
        ("edit_file", {"path": path, "old_text": CANARY, "new_text": "edited"}),
        ("list_files", {"path": path, "recursive": True}),
        ("search_in_files", {"path": path, "pattern": "canary"}),
        ("delete_file", {"path": path, "recursive": True}),
        ("mkdir", {"path": f"{path}/made"}),
        ("file_info", {"path": path}),
        ("diff_files", {"path": path, "other_text": ""}),
    ]


async def attack(agent: Agent, path: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Use every tool on the path; return why each refused."""
    reasons: list[str] = []
    for name, arguments in calls_on(path):
        if name not in but:
            with pytest.raises(ToolError) as refusal:
                await agent.use(name, **arguments)
            reasons.append(str(refusal.value))
    assert CANARY not in "".join(reasons)
    return reasons


def test_every_tool_takes_part_in_the_attacks():
    assert sorted(name for name, _ in calls_on("a")) == sorted(TOOLS)


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../outside/secret.txt",
        "a/../../outside/secret.txt",
        "./../outside/secret.txt",
        "../../../../../../../../etc/passwd",
        "a/..",
        "../",
        "../work-evil",
    ],
)
async def test_a_path_that_leads_upwards_is_refused(agent: Agent, path: str):
    (agent.path / "a").mkdir()
    for reason in await attack(agent, path):
        assert "leads upwards" in reason


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/",
        "//etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        "{work}-evil/a",
        "{work}x",
    ],
)
async def test_an_absolute_path_elsewhere_is_refused(agent: Agent, path: str):
    for reason in await attack(agent, path.format(work=agent.path)):
        assert "absolute path outside of the workspace" in reason


async def test_an_absolute_path_within_may_not_lead_upwards(agent: Agent):
    for reason in await attack(agent, f"{agent.path}/../private"):
        assert "leads upwards" in reason


async def test_another_tasks_workspace_is_out_of_reach(agent: Agent, tmp_path: Path):
    other = await workspaces_in(tmp_path / "ws").make("task-2")
    (other.path / "secret.txt").write_text(CANARY)
    await attack(agent, str(other.path / "secret.txt"))
    await attack(agent, f"../../../task-2/{other.path.parent.name}/{other.path.name}/secret.txt")
    assert (other.path / "secret.txt").read_text() == CANARY
    other.close()


async def test_our_own_bookkeeping_is_out_of_reach(agent: Agent):
    for name in ("record", "lock", "private"):
        await attack(agent, f"../{name}")
        await attack(agent, str(agent.path.parent / name))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("a\0b", "NUL character"),
        ("a//b", "empty name"),
        ("x" * 300, "longer than 255 bytes"),
        ("é" * 200, "longer than 255 bytes"),
        ("a/" * 3_000, "longer than 4096 characters"),
    ],
)
async def test_a_path_that_no_file_can_have_is_refused(agent: Agent, path: str, reason: str):
    for told in await attack(agent, path, but=("mkdir",)):
        assert reason in told


@pytest.mark.parametrize(
    "path",
    [
        ".git",
        ".git/hooks/pre-commit",
        ".GIT/config",
        ".Git",
        "sub/.git/config",
        "sub/.gIt",
        ".g\u200cit/config",
        ".git./config",
        "git~1/config",
        "GIT~1",
    ],
)
async def test_what_is_gits_is_not_for_the_file_tools(agent: Agent, path: str):
    for name in (".git/hooks", "sub/.git", ".GIT"):
        (agent.path / name).mkdir(parents=True)
    (agent.path / ".git/config").write_text(CANARY)
    for reason in await attack(agent, path):
        assert "git's own folder" in reason
    assert names_in(agent.path / ".git") == ["config", "hooks"]


async def test_a_folder_with_a_repository_in_it_is_not_deleted(agent: Agent):
    (agent.path / "sub/deep/.git").mkdir(parents=True)
    with pytest.raises(ToolError, match=r"has a \.git in it"):
        await agent.use("delete_file", path="sub", recursive=True)
    assert (agent.path / "sub/deep/.git").is_dir()


async def test_neither_listing_nor_searching_shows_what_is_gits(agent: Agent):
    for folder in (".git", "sub/.GIT"):
        (agent.path / folder).mkdir(parents=True)
        (agent.path / folder / "config").write_text(CANARY)
    assert "config" not in await agent.use("list_files", recursive=True)
    assert CANARY not in await agent.use("search_in_files", pattern="canary")


@pytest.mark.parametrize(
    "target",
    [
        "{outside}/secret.txt",
        "../../../../../outside/secret.txt",
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/fd/0",
        "/dev/stdin",
        "{outside}/dangling",
        "link",
    ],
)
async def test_a_planted_link_to_a_file_is_not_followed(agent: Agent, outside: Path, target: str):
    (agent.path / "link").symlink_to(target.format(outside=outside))
    reasons = await attack(agent, "link", but=("file_info", "delete_file"))
    assert all("is a symbolic link to" in reason for reason in reasons)
    assert "symbolic link" in await agent.use("file_info", path="link")
    assert (agent.path / "link").is_symlink()


@pytest.mark.parametrize("target", ["{outside}", "/", "/proc/self", "..", "chain"])
async def test_a_planted_link_to_a_folder_leads_nowhere(agent: Agent, outside: Path, target: str):
    (agent.path / "chain").symlink_to(outside)
    (agent.path / "link").symlink_to(target.format(outside=outside))
    for path in ("link/secret.txt", "link/environ", "link/etc/passwd", "link/new/file"):
        for reason in await attack(agent, path):
            assert "is a symbolic link to" in reason


async def test_a_link_in_the_middle_of_a_new_path_makes_nothing_elsewhere(agent, outside: Path):
    (agent.path / "a").mkdir()
    (agent.path / "a/link").symlink_to(outside)
    for name, arguments in (("write_file", {"content": "x"}), ("mkdir", {})):
        with pytest.raises(ToolError, match="a/link is a symbolic link"):
            await agent.use(name, path="a/link/b/c", **arguments)


async def test_walking_does_not_follow_links(agent: Agent, outside: Path):
    (agent.path / "folder").symlink_to(outside)
    (agent.path / "file.txt").symlink_to(outside / "secret.txt")
    (agent.path / "loop").symlink_to(".")
    assert CANARY not in await agent.use("search_in_files", pattern=".")
    listing = await agent.use("list_files", recursive=True)
    assert "secret.txt\n" not in listing
    assert len(listing.splitlines()) == 4


async def test_deleting_a_tree_does_not_follow_links(agent: Agent, outside: Path):
    (agent.path / "a/b").mkdir(parents=True)
    (agent.path / "a/b/folder").symlink_to(outside)
    (agent.path / "a/file").symlink_to(outside / "secret.txt")
    await agent.use("delete_file", path="a", recursive=True)
    assert names_in(agent.path) == []


@asynccontextmanager
async def swapped(place: Path, decoy: Path) -> AsyncIterator[None]:
    """Exchange the two over and over beside the block; what is there is always one of them."""
    swapper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SWAP, place, decoy), stdout=subprocess.PIPE
    )
    try:
        assert await swapper.stdout.readline() == b"swapping\n"
        yield
    finally:
        swapper.kill()
        await swapper.wait()


async def rounds(agent: Agent, path: str, *, but: tuple[str, ...], hear: tuple[str, ...]) -> str:
    """Use the tools on the path over and over, until all this was heard; return what was told."""
    told, missing, number = list[str](), set(hear), 0
    async with asyncio.timeout(60):
        while missing or number < ROUNDS:
            number += 1
            for name, arguments in calls_on(path):
                if name not in but:
                    try:
                        told.append(await agent.use(name, **arguments))
                    except ToolError as error:
                        told.append(str(error))
                    missing = {words for words in missing if words not in told[-1]}
    return "\n".join(told)


WRITING = ("delete_file", "write_file", "append_file")  # else nothing of the two would be left


async def test_a_folder_swapped_for_a_link_during_the_call_leads_nowhere(agent, outside: Path):
    (agent.path / "a").mkdir()
    (agent.path / "a/secret.txt").write_text("mine\n")
    (agent.path / "decoy").symlink_to(outside)
    refused = "a is a symbolic link"
    async with swapped(agent.path / "a", agent.path / "decoy"):
        told = await rounds(
            agent, "a/secret.txt", but=("delete_file",), hear=(refused, "a/secret.txt: lines")
        )
        told += await rounds(agent, "a", but=("delete_file",), hear=(refused, "entries"))
        told += await rounds(
            agent, "a/new/file", but=("delete_file", "mkdir"), hear=(refused, "created")
        )
    assert CANARY not in told


async def test_a_file_swapped_for_a_link_during_the_call_is_not_followed(agent, outside: Path):
    (agent.path / "a.txt").write_text("mine\n")
    (agent.path / "decoy").symlink_to(outside / "secret.txt")
    async with swapped(agent.path / "a.txt", agent.path / "decoy"):
        told = await rounds(
            agent, "a.txt", but=WRITING, hear=("a.txt: lines", "a.txt is a symbolic link")
        )
    assert CANARY not in told


async def test_a_file_swapped_for_a_hard_link_during_the_call_is_not_read(agent, outside: Path):
    (agent.path / "a.txt").write_text("mine\n")
    os.link(outside / "secret.txt", agent.path / "decoy")
    async with swapped(agent.path / "a.txt", agent.path / "decoy"):
        told = await rounds(
            agent, "a.txt", but=WRITING, hear=("a.txt: lines", "a.txt is a hard link")
        )
    assert CANARY not in told


async def test_a_link_that_comes_while_a_file_is_written_is_not_followed(agent, outside: Path):
    place, decoy = agent.path / "a.txt", agent.path / "decoy"
    async with swapped(place, decoy):
        for _ in range(ROUNDS):
            place.write_text("mine\n")
            decoy.symlink_to(outside / "secret.txt")
            for name in ("write_file", "append_file"):
                with suppress(ToolError):
                    await agent.use(name, path="a.txt", content="x")
            place.unlink()
            decoy.unlink()


async def test_a_folder_swapped_for_a_link_while_it_is_deleted_leads_nowhere(agent, outside: Path):
    place, decoy = agent.path / "a/b", agent.path / "decoy"
    async with swapped(place, decoy):
        for _ in range(ROUNDS):
            place.mkdir(parents=True)
            (place / "secret.txt").write_text("mine\n")
            decoy.symlink_to(outside)
            with suppress(ToolError):
                await agent.use("delete_file", path="a/b", recursive=True)
            for name in names_in(agent.path):
                await agent.use("delete_file", path=name, recursive=True)


async def test_a_file_swapped_for_a_pipe_during_the_call_does_not_block(agent: Agent):
    (agent.path / "a.txt").write_text("mine\n")
    os.mkfifo(agent.path / "decoy")
    async with swapped(agent.path / "a.txt", agent.path / "decoy"):
        hear = ("a.txt: lines", "a.txt is a named pipe")
        await rounds(agent, "a.txt", but=WRITING, hear=hear)


async def test_a_pipe_is_refused_and_does_not_block(agent: Agent):
    os.mkfifo(agent.path / "pipe")
    async with asyncio.timeout(10):
        for reason in await attack(agent, "pipe", but=("file_info", "delete_file", "mkdir")):
            assert "pipe is a named pipe" in reason
        assert "kind: named pipe" in await agent.use("file_info", path="pipe")
        assert "0 matching lines" in await agent.use("search_in_files", pattern=".")


async def test_a_socket_is_refused(agent: Agent, monkeypatch):
    monkeypatch.chdir(agent.path)  # its path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for reason in await attack(agent, "socket", but=("file_info", "delete_file", "mkdir")):
            assert "socket is a socket" in reason


@needs_root
@pytest.mark.parametrize(("major", "minor"), [(1, 5), (1, 3), (1, 8)])
async def test_a_device_is_refused(agent: Agent, major: int, minor: int):
    try:
        os.mknod(agent.path / "device", 0o666 | stat.S_IFCHR, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("devices cannot be made here")
    async with asyncio.timeout(10):
        for reason in await attack(agent, "device", but=("file_info", "delete_file", "mkdir")):
            assert "device is a device" in reason


async def test_a_hard_link_to_a_file_outside_is_not_read_nor_changed(agent, outside: Path):
    os.link(outside / "secret.txt", agent.path / "linked")
    for name in ("read_file", "append_file", "edit_file", "diff_files"):
        with pytest.raises(ToolError, match="linked is a hard link"):
            await agent.use(name, **dict(calls_on("linked"))[name])
    assert CANARY not in await agent.use("search_in_files", pattern="canary")
    assert CANARY not in (await agent.workspace.artifacts())["diff"]
    await agent.use("write_file", path="linked", content="mine")  # another file from now on
    assert (agent.path / "linked").stat().st_nlink == 1


@needs_root
async def test_a_file_of_another_user_is_not_written(agent: Agent):
    (agent.path / "theirs").write_text("x")
    os.chown(agent.path / "theirs", 12_345, 12_345)
    for name in ("write_file", "append_file", "delete_file"):
        with pytest.raises(ToolError, match="belongs to another user"):
            await agent.use(name, **dict(calls_on("theirs"))[name])
    assert (agent.path / "theirs").read_text() == "x"


@needs_root
async def test_no_file_is_left_with_the_rights_of_another_user(agent: Agent):
    (agent.path / "a").write_text("x")
    (agent.path / "a").chmod(0o6755)
    await agent.use("write_file", path="a", content="y")
    status = (agent.path / "a").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (agent.workspace.uid, 0o755)


async def test_a_huge_sparse_file_costs_no_memory(agent: Agent):
    with (agent.path / "huge").open("wb") as file:
        file.truncate(1 << 42)
    async with asyncio.timeout(20):
        with pytest.raises(ToolError, match="huge is not text: binary data, 4398046511104 bytes"):
            await agent.use("read_file", path="huge")
        assert "1 files too big" in await agent.use("search_in_files", pattern=".")
        assert "content: binary data" in await agent.use("file_info", path="huge")
        assert (await agent.workspace.artifacts())["files_changed"][0]["path"] == "huge"


async def test_a_huge_text_is_read_only_in_its_beginning(agent: Agent):
    with (agent.path / "huge").open("wb") as file:
        file.write(b"line\n" * 4_000_000)
    text = await agent.use("read_file", path="huge", end_line=2)
    assert text.startswith("huge: lines 1 to 2 of at least ")
    assert "only the first 8388608 of its 20000000 bytes can be read" in text
    with pytest.raises(ToolError, match="more than 8388608"):
        await agent.use("append_file", path="huge", content="x")


async def test_a_folder_with_very_many_files_is_listed_in_part(agent: Agent):
    (agent.path / "many").mkdir()
    folder = os.open(agent.path / "many", os.O_RDONLY)
    for number in range(20_000):
        os.close(os.open(f"{number:05}", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    lines = (await agent.use("list_files", path="many")).splitlines()
    assert lines[0] == "many: 20000 entries, the first 1000 of them"
    assert (len(lines), lines[1]) == (1_001, "many/00000 (0 bytes)")
    await agent.use("delete_file", path="many", recursive=True)
    assert names_in(agent.path) == []


async def test_folders_five_hundred_deep_break_nothing(agent: Agent, tmp_path: Path):
    here = os.open(agent.path, os.O_RDONLY)
    for _ in range(500):
        os.mkdir("deep", dir_fd=here)
        inner = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file.txt", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert ": 32 entries" in await agent.use("list_files", recursive=True, max_depth=32)
    assert "0 matching lines" in await agent.use("search_in_files", pattern="x")
    assert (await agent.workspace.artifacts())["files_changed"] == []
    await agent.use("delete_file", path="deep", recursive=True)
    agent.workspace.close()
    await workspaces_in(tmp_path / "ws").clear_away("task-1", "completed")
    assert names_in(tmp_path / "ws/default") == []


@pytest.mark.parametrize(
    "name",
    [
        "a\nb.txt (3 bytes)",
        "\x1b[2Jcleared",
        "\u202egpj.exe",
        "\r.: 0 entries",
        "\u2028line",
    ],
)
async def test_a_name_cannot_forge_what_the_model_is_told(agent: Agent, name: str):
    (agent.path / name).write_text("needle\n")
    for text in (
        await agent.use("list_files"),
        await agent.use("search_in_files", pattern="needle"),
        await agent.use("file_info", path=name),
        await agent.use("read_file", path=name),
    ):
        assert name not in text
        assert ascii(name) in text


@pytest.mark.parametrize("name", [" leading", "trailing ", "'quoted'", '"quoted"'])
async def test_a_name_that_could_be_misread_is_quoted(agent: Agent, name: str):
    (agent.path / name).write_text("needle\n")
    for text in (
        await agent.use("list_files"),
        await agent.use("search_in_files", pattern="needle"),
    ):
        assert ascii(name) in text


async def test_a_name_that_is_no_text_is_shown_and_can_be_sent(agent: Agent):
    (agent.path / os.fsdecode(b"\xff\xfe")).write_text("needle")
    for name, arguments in (("list_files", {}), ("search_in_files", {"pattern": "needle"})):
        assert r"'\udcff\udcfe'" in (await agent.use(name, **arguments)).encode().decode()


async def test_a_link_target_cannot_forge_what_the_model_is_told(agent: Agent):
    (agent.path / "link").symlink_to("x\n.: 0 entries\x1b[2J")
    assert r"'x\n.: 0 entries\x1b[2J'" in await agent.use("list_files")


async def test_a_found_line_moves_no_cursor(agent: Agent):
    (agent.path / "a.txt").write_text("needle\x1b[2J\u202e\x08\r\n")
    assert (await agent.use("search_in_files", pattern="needle")).endswith(
        r"a.txt:1: needle\x1b[2J\u202e\x08"
    )


async def test_a_search_that_explodes_is_stopped(agent: Agent, monkeypatch):
    monkeypatch.setattr(finding, "SEARCH_TIME_S", 0.3)
    (agent.path / "a.txt").write_text("a" * 5_000 + "!")
    async with asyncio.timeout(10):
        assert "stopped after" in await agent.use("search_in_files", pattern=r"(a|aa)+$|(.*)*\2x")


async def test_the_tools_write_no_more_than_the_workspace_may_hold(tmp_path: Path, outside: Path):
    workspace = await workspaces_in(tmp_path / "small", max_bytes=100_000).make("task-1")
    agent = Agent(workspace)
    for number in range(9):
        await agent.use("write_file", path=str(number), content="x" * 8_192)
    (workspace.path / "by a command").write_bytes(b"x" * 20_000)
    with pytest.raises(ToolError, match="may hold 100000 bytes"):
        await agent.use("write_file", path="too much", content="x" * 30_000)
    with pytest.raises(ToolError, match="delete what is not needed"):
        await agent.use("append_file", path="8", content="x" * 30_000)
    assert "too much" not in names_in(workspace.path)
    (workspace.path / "by a command").unlink()
    await agent.use("write_file", path="fits again", content="x" * 20_000)
    workspace.close()


async def test_replacing_a_file_with_holes_makes_no_room(tmp_path: Path, outside: Path):
    workspace = await workspaces_in(tmp_path / "small", max_bytes=100_000).make("task-1")
    with (workspace.path / "holes").open("wb") as file:
        file.truncate(1 << 40)
    agent = Agent(workspace)
    await agent.use("write_file", path="holes", content="x")
    with pytest.raises(ToolError, match="may hold 100000 bytes"):
        await agent.use("write_file", path="a", content="x" * 200_000)
    workspace.close()


async def test_a_link_in_the_place_of_the_workspace_is_not_followed(agent: Agent, outside: Path):
    agent.path.rename(agent.path.with_name("moved"))
    agent.path.symlink_to(outside)
    await attack(agent, "secret.txt")
    agent.path.unlink()
    agent.path.with_name("moved").rename(agent.path)


async def test_another_folder_in_the_place_of_the_workspace_is_not_taken_for_it(agent: Agent):
    agent.path.rename(agent.path.with_name("moved"))
    agent.path.mkdir()
    (agent.path / "secret.txt").write_text(CANARY)
    for reason in await attack(agent, "secret.txt"):
        assert "another folder is in its place" in reason


async def test_a_cancelled_write_is_over_when_its_caller_hears_of_it(agent: Agent):
    for _ in range(20):
        call = asyncio.create_task(agent.use("write_file", path="a", content="x" * 1_000_000))
        await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        before = [(path.name, path.stat().st_mtime_ns) for path in agent.path.iterdir()]
        await agent.use("list_files")
        assert [(path.name, path.stat().st_mtime_ns) for path in agent.path.iterdir()] == before
