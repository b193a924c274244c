"""The file tools, on files as agents meet them."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.workspaces import Agent, names_in, workspaces_in

from agent_actors.config_tools import ToolsConfig
from agent_actors.errors import ToolError
from agent_actors.tools import finding


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    workspace = await workspaces_in(tmp_path).make("task-1")
    yield Agent(workspace)
    workspace.close()


async def test_a_file_is_written_and_read_back_with_its_number_of_lines(agent: Agent):
    told = await agent.use("write_file", path="src/a.py", content="x = 1\ny = 2\n")
    assert told == "created src/a.py: 12 bytes, 2 lines"
    assert await agent.use("read_file", path="src/a.py") == (
        "src/a.py: lines 1 to 2 of 2\nx = 1\ny = 2\n"
    )


async def test_writing_says_what_was_replaced_and_keeps_the_mode(agent: Agent):
    await agent.use("write_file", path="run.sh", content="old")
    (agent.path / "run.sh").chmod(0o755)
    told = await agent.use("write_file", path="run.sh", content="newer")
    assert told == "replaced 3 bytes of run.sh: 5 bytes, 1 lines"
    assert (agent.path / "run.sh").stat().st_mode & 0o7777 == 0o755


async def test_what_is_written_belongs_to_the_workspaces_user(agent: Agent):
    await agent.use("write_file", path="a/b/c.txt", content="x")
    owner = os.geteuid() if agent.workspace.uid is None else agent.workspace.uid
    for path in ("a", "a/b", "a/b/c.txt"):
        assert (agent.path / path).stat().st_uid == owner


async def test_a_failed_write_leaves_the_old_file_and_nothing_else(agent: Agent):
    await agent.use("write_file", path="a.txt", content="old")
    (agent.path / "folder").mkdir()
    with pytest.raises(ToolError, match="folder is a folder, not a file"):
        await agent.use("write_file", path="folder", content="x")
    assert names_in(agent.path) == ["a.txt", "folder"]
    assert names_in(agent.workspace.private) == []


@pytest.mark.parametrize(
    ("first", "last", "header", "body"),
    [
        (2, 3, "lines 2 to 3 of 4", "two\nthree\n"),
        (4, None, "lines 4 to 4 of 4", "four\n"),
        (1, 99, "lines 1 to 4 of 4", "one\ntwo\nthree\nfour\n"),
    ],
)
async def test_a_range_of_lines_is_read(agent: Agent, first, last, header, body):
    (agent.path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    text = await agent.use("read_file", path="a.txt", start_line=first, end_line=last)
    assert text == f"a.txt: {header}\n{body}"


@pytest.mark.parametrize(("first", "last"), [(5, None), (3, 2)])
async def test_lines_that_are_not_there_are_refused_with_the_number_there_is(agent, first, last):
    (agent.path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    with pytest.raises(ToolError, match="has 4 lines"):
        await agent.use("read_file", path="a.txt", start_line=first, end_line=last)


async def test_a_long_file_is_read_in_pieces_of_whole_lines(agent: Agent):
    agent = Agent(agent.workspace, ToolsConfig(max_output_chars=2_000))
    (agent.path / "a.txt").write_text("".join(f"line {n:04}\n" for n in range(1, 301)))
    text = await agent.use("read_file", path="a.txt")
    assert text.startswith("a.txt: lines 1 to 100 of 300; go on with start_line=101\nline 0001\n")
    assert text.endswith("line 0100\n")


async def test_a_line_too_long_to_show_is_cut_and_the_header_says_so(agent: Agent):
    agent = Agent(agent.workspace, ToolsConfig(max_output_chars=2_000))
    (agent.path / "a.txt").write_text("x" * 5_000)
    header, body = (await agent.use("read_file", path="a.txt")).split("\n")
    assert "line 1 is cut, 4000 characters are left out" in header
    assert body == "x" * 1_000


async def test_cr_lf_stays_and_is_told(agent: Agent):
    (agent.path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    text = await agent.use("read_file", path="a.txt")
    assert text == "a.txt: lines 1 to 2 of 2; lines end with CR LF\none\r\ntwo\r\n"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n123", "a PNG image"),
        (b"a\0b", "binary data"),
        ("Grüße".encode("latin-1"), "not UTF-8"),
        ("Hi".encode("utf-16"), "UTF-16 text"),
    ],
)
async def test_a_binary_file_is_named_as_such_and_not_shown(agent: Agent, data, kind):
    (agent.path / "a.bin").write_bytes(data)
    with pytest.raises(ToolError, match=f"a.bin is not text: {kind}, {len(data)} bytes"):
        await agent.use("read_file", path="a.bin")


async def test_an_edit_replaces_the_one_occurrence(agent: Agent):
    (agent.path / "a.py").write_text("a = 1\nb = 2\nc = 3\n")
    await agent.use("edit_file", path="a.py", old_text="b = 2", new_text="b = 5")
    assert (agent.path / "a.py").read_text() == "a = 1\nb = 5\nc = 3\n"


async def test_an_edit_of_what_occurs_twice_says_where(agent: Agent):
    (agent.path / "a.py").write_text("x\ny\nx\n")
    with pytest.raises(ToolError, match=r"occurs 2 times in a.py \(lines 1, 3\)"):
        await agent.use("edit_file", path="a.py", old_text="x", new_text="z")
    assert (agent.path / "a.py").read_text() == "x\ny\nx\n"


async def test_overlapping_occurrences_are_ambiguous(agent: Agent):
    (agent.path / "a.py").write_text("aaa")
    with pytest.raises(ToolError, match="occurs 2 times"):
        await agent.use("edit_file", path="a.py", old_text="aa", new_text="b")


async def test_an_edit_that_finds_nothing_shows_the_line_most_like_it(agent: Agent):
    (agent.path / "a.py").write_text("import os\n\n\ndef solve(values):\n    return 1\n")
    with pytest.raises(ToolError, match=r"line 4: 'def solve\(values\):'"):
        await agent.use("edit_file", path="a.py", old_text="def solve(value):", new_text="")


async def test_an_edit_with_plain_line_feeds_keeps_cr_lf(agent: Agent):
    (agent.path / "a.txt").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    await agent.use("edit_file", path="a.txt", old_text="one\ntwo\n", new_text="1\n2\n")
    assert (agent.path / "a.txt").read_bytes() == b"1\r\n2\r\nthree\r\n"


async def test_appending_makes_the_file_then_adds_to_it(agent: Agent):
    await agent.use("append_file", path="log/a.txt", content="one\n")
    told = await agent.use("append_file", path="log/a.txt", content="two\n")
    assert told == "appended 4 bytes to log/a.txt, which has 2 lines now"
    assert (agent.path / "log/a.txt").read_text() == "one\ntwo\n"


async def test_a_listing_is_sorted_and_shows_kinds_and_sizes(agent: Agent):
    await agent.use("write_file", path="src/b.py", content="12345")
    await agent.use("write_file", path="a.txt", content="")
    (agent.path / "link").symlink_to("src")
    (agent.path / ".git").mkdir()
    assert await agent.use("list_files") == (
        ".: 3 entries\na.txt (0 bytes)\nlink (symbolic link to src, not followed)\nsrc/"
    )
    assert (await agent.use("list_files", recursive=True)).endswith("src/\nsrc/b.py (5 bytes)")


async def test_a_listing_goes_as_deep_as_it_is_asked_to(agent: Agent):
    (agent.path / "a/b/c/d").mkdir(parents=True)
    text = await agent.use("list_files", recursive=True, max_depth=2)
    assert text == ".: 2 entries\na/\na/b/"


async def test_a_search_gives_path_line_number_and_line(agent: Agent):
    await agent.use("write_file", path="src/a.py", content="import os\n\nprint(os.name)\n")
    await agent.use("write_file", path="b.txt", content="os\n")
    (agent.path / "c.bin").write_bytes(b"os\0")
    text = await agent.use("search_in_files", pattern=r"\bos\b")
    assert text.splitlines() == [
        "3 matching lines in 2 files; 1 files binary",
        "b.txt:1: os",
        "src/a.py:1: import os",
        "src/a.py:3: print(os.name)",
    ]


@pytest.mark.parametrize(
    ("glob", "found"),
    [
        ("*.py", ["a.py", "src/b.py", "src/x/c.py"]),
        ("src/*.py", ["src/b.py", "src/x/c.py"]),
        ("src/**/*.py", ["src/b.py", "src/x/c.py"]),
        ("**/*.txt", ["d.txt"]),
    ],
)
async def test_a_glob_chooses_the_files_to_search(agent: Agent, glob, found):
    for path in ("a.py", "src/b.py", "src/x/c.py", "d.txt"):
        await agent.use("write_file", path=path, content="here")
    text = await agent.use("search_in_files", pattern="here", glob=glob)
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == found


async def test_a_search_for_plain_text_takes_no_pattern(agent: Agent):
    await agent.use("write_file", path="a.txt", content="f(x)\nfx\n")
    text = await agent.use("search_in_files", pattern="F(X)", plain_text=True, ignore_case=True)
    assert text.splitlines()[1:] == ["a.txt:1: f(x)"]


async def test_a_broken_pattern_is_told(agent: Agent):
    with pytest.raises(ToolError, match="is no regular expression: missing"):
        await agent.use("search_in_files", pattern="(")


async def test_a_pattern_that_would_take_for_ever_is_stopped(agent: Agent, monkeypatch):
    monkeypatch.setattr(finding, "SEARCH_TIME_S", 0.3)
    await agent.use("write_file", path="a.txt", content="a" * 60 + "b")
    text = await agent.use(
        "search_in_files", pattern=r"^(a|aa|a*)+\1*$(?<=c)|^(?:a?){40}a{61}$|(a*)*c"
    )
    assert "stopped after 0.3 s" in text


async def test_only_as_many_matches_are_shown_as_are_asked_for(agent: Agent):
    await agent.use("write_file", path="a.txt", content="x\n" * 10)
    await agent.use("write_file", path="b.txt", content="x\n")
    text = await agent.use("search_in_files", pattern="x", max_matches=3)
    assert "there may be more" in text.splitlines()[0]
    assert len(text.splitlines()) == 4


async def test_a_folder_that_is_not_empty_is_deleted_only_on_request(agent: Agent):
    await agent.use("write_file", path="a/b/c.txt", content="x")
    with pytest.raises(ToolError, match="say recursive"):
        await agent.use("delete_file", path="a")
    assert await agent.use("delete_file", path="a", recursive=True) == "deleted the folder a"
    assert names_in(agent.path) == []


async def test_deleting_a_link_leaves_what_it_points_to(agent: Agent):
    await agent.use("write_file", path="a.txt", content="x")
    (agent.path / "link").symlink_to("a.txt")
    assert await agent.use("delete_file", path="link") == "deleted the symbolic link link"
    assert names_in(agent.path) == ["a.txt"]


async def test_mkdir_makes_what_leads_there_and_may_be_repeated(agent: Agent):
    assert await agent.use("mkdir", path="a/b") == "made the folder a/b"
    assert await agent.use("mkdir", path="a/b/") == "a/b was there already"
    assert (agent.path / "a/b").is_dir()


async def test_mkdir_says_what_is_in_the_way(agent: Agent):
    await agent.use("write_file", path="a", content="x")
    with pytest.raises(ToolError, match="a is a file, not a folder"):
        await agent.use("mkdir", path="a")


async def test_file_info_tells_kind_size_lines_time_and_encoding(agent: Agent):
    (agent.path / "a.txt").write_bytes("\ufeffGrüße\r\n".encode())
    os.utime(agent.path / "a.txt", (0, 86_400))
    (agent.path / "a.txt").chmod(0o640)
    assert (await agent.use("file_info", path="a.txt")).splitlines() == [
        "a.txt",
        "kind: file",
        "size: 12 bytes",
        "mode: -rw-r-----",
        "modified: 1970-01-02T00:00:00Z",
        "content: text, UTF-8 with a byte order mark, lines end with CR LF",
        "lines: 1",
    ]


async def test_two_files_are_compared(agent: Agent):
    await agent.use("write_file", path="a.txt", content="one\ntwo\n")
    await agent.use("write_file", path="b.txt", content="one\n2")
    assert (await agent.use("diff_files", path="a.txt", other_path="b.txt")).splitlines() == [
        "--- a.txt",
        "+++ b.txt",
        "@@ -1,2 +1,2 @@",
        " one",
        "-two",
        "+2",
        "\\ No newline at end of file",
    ]
    assert "the same" in await agent.use("diff_files", path="a.txt", other_text="one\ntwo\n")


async def test_a_comparison_needs_exactly_one_other(agent: Agent):
    await agent.use("write_file", path="a.txt", content="")
    with pytest.raises(ToolError, match="either other_path or other_text"):
        await agent.use("diff_files", path="a.txt")


async def test_an_absolute_path_within_the_workspace_will_do(agent: Agent):
    await agent.use("write_file", path=f"{agent.path}/a.txt", content="x")
    assert await agent.use("list_files", path=str(agent.path)) == ".: 1 entries\na.txt (1 bytes)"


async def test_a_missing_file_is_told_as_such(agent: Agent):
    (agent.path / "src").mkdir()
    with pytest.raises(ToolError, match=r"there is no src/a\.py: list_files shows"):
        await agent.use("read_file", path="src/a.py")
