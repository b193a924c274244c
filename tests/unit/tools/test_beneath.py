"""What the file tools stand on: paths, names, walking, and how much may be written."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.workspaces import names_in

from agent_actors.errors import ToolError
from agent_actors.tools import quota
from agent_actors.tools.beneath import Beneath
from agent_actors.tools.paths import is_git_name, joined, parts_of, shown
from agent_actors.tools.quota import Quota

ROOT = Path("/ws/work")


@pytest.fixture
def beneath(tmp_path: Path) -> Beneath:
    for name in ("root", "scratch"):
        (tmp_path / name).mkdir()
    return Beneath(tmp_path / "root", scratch=tmp_path / "scratch", uid=None, max_bytes=1_000_000)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (".", ()),
        ("./", ()),
        ("a", ("a",)),
        ("./a/./b/", ("a", "b")),
        ("/ws/work", ()),
        ("/ws/work/", ()),
        ("/ws/work/a/b", ("a", "b")),
        ("..a/b..", ("..a", "b..")),
        (".gitignore", (".gitignore",)),
        (".github/workflows", (".github", "workflows")),
        (" ", (" ",)),
    ],
)
def test_a_path_is_taken_apart(path: str, parts: tuple[str, ...]):
    assert parts_of(path, ROOT) == parts


@pytest.mark.parametrize(
    "path", ["", "/", "/ws", "/ws/worker", "//", "a/../b", "..", "a//b", "a\0", ".git", "a/.GIT/b"]
)
def test_a_path_that_will_not_do_is_refused(path: str):
    with pytest.raises(ToolError):
        parts_of(path, ROOT)


@given(
    st.lists(
        st.sampled_from(
            ["..", ".", "", "a", "\0", ".git", ".GiT", "/", "/ws/work", "é\u200c", "\ud800"]
        )
        | st.text(max_size=3)
    ).map("/".join)
)
def test_no_path_that_is_taken_leads_elsewhere(path: str):
    with suppress(ToolError):
        for name in parts_of(path, ROOT):
            assert name not in {"", ".", ".."}
            assert not {"/", "\0"} & set(name)
            assert not is_git_name(name)
            assert len(os.fsencode(name)) <= 255


@pytest.mark.parametrize("name", [".git", ".GIT", ".Git", ".git.", ".git ", "git~1", ".g\u200dit"])
def test_what_some_file_system_takes_for_git_is_gits(name: str):
    assert is_git_name(name)


@pytest.mark.parametrize("name", ["git", ".gitignore", ".git2", ".gitt", "x.git", "..git", "git~2"])
def test_what_only_looks_like_git_is_not(name: str):
    assert not is_git_name(name)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("a b-ü.txt", "a b-ü.txt"),
        ("a\nb", r"'a\nb'"),
        ("\udcff", r"'\udcff'"),
        ("", "''"),
        ("a'b", "a'b"),
        ("'a", '"\'a"'),
    ],
)
def test_only_a_plain_name_is_shown_as_it_is(name: str, seen: str):
    assert shown(name) == seen


def test_the_workspace_itself_is_shown_as_a_dot():
    assert joined(()) == "."


def test_walking_comes_past_everything_but_git_down_to_a_depth(beneath: Beneath, tmp_path: Path):
    (tmp_path / "root/a/b/c").mkdir(parents=True)
    (tmp_path / "root/a/.git").mkdir()
    (tmp_path / "root/a/file").write_text("")

    def found(**options: object) -> set[str]:
        return {joined(entry.parts) for entry in beneath.walk(**options)}

    assert found() == {"a", "a/b", "a/b/c", "a/file"}
    assert found(max_depth=1) == {"a", "a/b", "a/file"}
    assert "a/.git" in found(with_gits=True)


def test_walking_where_there_is_nothing_is_told(beneath: Beneath):
    with pytest.raises(ToolError, match="there is no a"):
        list(beneath.walk(("a",)))


def test_a_walk_keeps_few_descriptors_open(beneath: Beneath, tmp_path: Path):
    (tmp_path / "root" / "/".join("d" * 60)).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough
    assert max(len(os.listdir("/proc/self/fd")) for _ in beneath.walk()) <= before + 1  # noqa: PTH208


def test_an_error_of_the_system_is_told_and_leaves_no_descriptor_open(beneath, tmp_path: Path):
    before = names_in(Path("/proc/self/fd"))
    for parts in (("missing",), ("missing", "a"), ("x" * 300,)):
        with pytest.raises(ToolError):
            beneath.read(parts, 10)
    (tmp_path / "root/folder").mkdir()
    with pytest.raises(ToolError, match="folder is a folder, not a file"):
        beneath.read(("folder",), 10)
    assert names_in(Path("/proc/self/fd")) == before


def test_a_write_that_fails_in_the_middle_leaves_nothing(beneath, tmp_path, monkeypatch):
    beneath.write(("a",), b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent_actors.tools.beneath.os.rename", fail)
    with pytest.raises(ToolError, match="No space left on device: the disk is full"):
        beneath.write(("a",), b"new")
    assert (tmp_path / "root/a").read_bytes() == b"old"
    assert names_in(tmp_path / "scratch") == []


def test_the_quota_is_measured_anew_before_anything_is_refused():
    measured = [90, 50]
    limit = Quota(100, lambda: measured.pop(0))
    limit.take(10)
    limit.take(50)
    assert measured == []


def test_the_quota_counts_what_is_written_between_two_measurements(monkeypatch):
    monkeypatch.setattr(quota, "MEASURED_FOR_S", 1_000)
    measurements = iter([0, 100])
    limit = Quota(100, lambda: next(measurements))
    limit.take(60)
    limit.take(40)
    with pytest.raises(ToolError, match="may hold 100 bytes, 100 are used, and 1 more"):
        limit.take(1)


def test_making_a_file_smaller_is_never_refused():
    limit = Quota(100, lambda: 500)
    limit.take(-10)
    with pytest.raises(ToolError):
        limit.take(1)
