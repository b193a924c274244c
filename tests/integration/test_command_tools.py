"""The test tools with the real programs, in each sandbox that works here."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bare_sandbox import BareSandbox, bare_surroundings
from support.git_work import BARE, CONFINED, open_folder, surroundings_in, use

from agent_actors.errors import ToolError
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox import Command

TESTS = """
import os, sys
import pytest

def test_passes():
    assert not os.path.exists("never")

def test_fails():
    assert 1 == 2, "one is not two"

@pytest.mark.skip
def test_is_skipped():
    pass
"""
JAVASCRIPT = """
const { test } = require("node:test");
test("passes", () => {});
test("fails", () => { throw new Error("one is not two"); });
"""
RUST = """
#[test]
fn passes() {}
#[test]
fn fails() { assert_eq!(1, 2, "one is not two"); }
#[test]
#[ignore]
fn is_ignored() {}
"""
GO = """
package x

import "testing"

func TestPasses(t *testing.T) {}
func TestFails(t *testing.T)  { t.Error("one is not two") }
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path


@pytest.fixture(params=[BARE, *CONFINED])
async def around(request: pytest.FixtureRequest, folder: Path) -> Surroundings:
    """A workspace in each sandbox."""
    return await surroundings_in(request.param, folder)


@pytest.fixture
def bare(folder: Path) -> Surroundings:
    return bare_surroundings(folder)


def needs(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"there is no {program} on this machine")
    return path


def write(surroundings: Surroundings, **files: str) -> None:
    for name, text in files.items():
        path = surroundings.workspace.path / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.parent.chmod(0o777)


def counts(output) -> tuple[object, ...]:
    (entry,) = output.artifacts["tests"]
    return tuple(entry[name] for name in ("outcome", "passed", "failed", "errors", "skipped"))


async def test_pytest_tells_red_from_green(around: Surroundings):
    write(around, test_a_dot_py=TESTS)
    red = await use("pytest", around)
    assert counts(red) == ("failed", 1, 1, 0, 1)
    assert "one is not two" in red.text
    write(around, test_a_dot_py=TESTS.replace("1 == 2", "1 == 1"))
    green = await use("pytest", around)
    assert counts(green) == ("passed", 2, 0, 0, 1)
    assert {entry.name for entry in around.workspace.path.iterdir()} == {"test_a.py"}


async def test_pytest_runs_what_is_asked_for(bare: Surroundings):
    write(bare, test_a_dot_py=TESTS, sub__test_b_dot_py="def test_b(): assert 0\n" * 2)
    assert counts(await use("pytest", bare, keyword="passes or skipped"))[1:3] == (1, 0)
    assert counts(await use("pytest", bare, paths=["test_a.py::test_fails"]))[1:3] == (0, 1)
    assert counts(await use("pytest", bare, folder="sub"))[1:3] == (0, 1)
    limited = await use("pytest", bare, max_failures=1, verbosity=1)
    assert "stopping after 1 failures" in limited.text


async def test_a_test_that_cannot_be_collected_is_an_error(bare: Surroundings):
    write(bare, test_a_dot_py="def test_a(:\n")
    assert counts(await use("pytest", bare))[:4] == ("error", 0, 0, 1)


async def test_no_tests_are_no_success(bare: Surroundings):
    output = await use("pytest", bare)
    assert counts(output)[0] == "error"
    assert output.summary.startswith("pytest: no tests were run")


async def test_a_python_without_pytest_is_told_with_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """The interpreter of the sandbox's PATH stands in when this service's own has none."""
    (folder / "bin").mkdir()
    python = folder / "bin/python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sandbox = BareSandbox(environment={"PATH": f"{folder}/bin:/usr/bin:/bin"})
    with pytest.raises(ToolError, match=r"install agent-actors\[pytest\]"):
        await use("pytest", bare_surroundings(folder, sandbox=sandbox))
    assert sandbox.commands[0].argv[0] == "python3"


async def test_endless_tests_are_stopped(around: Surroundings):
    write(
        around, test_a_dot_py="def test_a():\n    print('begun', flush=True)\n    while True: pass"
    )
    output = await use("pytest", around, timeout_s=3)
    assert counts(output)[0] == "timeout"
    assert "at its time limit" in output.text


async def test_a_flood_of_output_is_cut_in_the_middle(bare: Surroundings):
    lines = "print('x' * 1000)\n    " * 200
    write(bare, test_a_dot_py=f"def test_a():\n    {lines}assert 0, 'the end'\n")
    output = await use("pytest", bare)
    assert len(output.text) < bare.settings.max_output_chars
    assert "test session starts" in output.text
    assert "characters left out" in output.text
    assert "the end" in output.text


async def test_make_runs_its_target(around: Surroundings):
    needs("make")
    write(around, Makefile="test:\n\t@echo '2 passed in 0.1s'\ncheck-unit:\n\t@exit 3\n")
    assert counts(await use("make_test", around)) == ("passed", 2, 0, 0, 0)
    output = await use("make_test", around, target="check-unit")
    assert counts(output) == ("failed", None, None, None, None)
    with pytest.raises(ToolError, match="no Makefile with this target"):
        await use("make_test", around, target="test-other")


async def test_npm_runs_the_script_of_the_package(around: Surroundings):
    needs("npm")
    with pytest.raises(ToolError, match=r"no package\.json with a test script"):
        await use("npm_test", around)
    write(
        around,
        package_dot_json='{"name": "x", "scripts": {"test": "node --test"}}',
        a_dot_test_dot_js=JAVASCRIPT,
    )
    output = await use("npm_test", around)
    assert counts(output) == ("failed", 1, 1, 0, 0)
    assert "one is not two" in output.text


async def test_cargo_runs_tests_offline(folder: Path):
    needs("cargo")
    sandbox = BareSandbox(environment={"CARGO_HOME": f"{folder}/cargo", "HOME": str(Path.home())})
    command = Command(argv=["cargo", "--version"], folder=folder, cwd=folder)
    if (await sandbox.run(command)).exit_code:
        pytest.skip("cargo has no toolchain in this home folder")
    around = bare_surroundings(folder, sandbox=sandbox)
    write(
        around,
        Cargo_dot_toml='[package]\nname = "x"\nversion = "0.1.0"\nedition = "2021"\n',
        src__lib_dot_rs=RUST,
    )
    output = await use("cargo_test", around)
    assert counts(output)[:3] == ("failed", 1, 1)
    assert "one is not two" in output.text
    assert counts(await use("cargo_test", around, name="passes"))[:3] == ("passed", 1, 0)
    write(around, src__lib_dot_rs="fn broken( {")
    assert counts(await use("cargo_test", around))[0] == "error"


async def test_go_runs_tests_offline(folder: Path):
    needs("go")
    sandbox = BareSandbox(environment={"HOME": str(folder)})
    around = bare_surroundings(folder, sandbox=sandbox)
    write(around, go_dot_mod="module x\n", x_test_dot_go=GO)
    output = await use("go_test", around)
    assert counts(output)[:3] == ("failed", 1, 1)
    assert "one is not two" in output.text


async def test_a_program_that_is_not_there_is_told(folder: Path):
    sandbox = BareSandbox(environment={"PATH": str(folder)})
    with pytest.raises(ToolError, match="go_test cannot run on this machine"):
        await use("go_test", bare_surroundings(folder, sandbox=sandbox))
