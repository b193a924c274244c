"""The folder of a run: who works in it ends with it, who only looks on does not."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_actors.local.run_folder import sweep

HOLD = "import sys; file = open(sys.argv[1], sys.argv[2]); print('open', flush=True); input()"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "a.log"
    file.write_text("a line\n")
    return file


def holding(file: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(file), mode]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


@pytest.fixture
def writer(log: Path) -> Iterator[subprocess.Popen[str]]:
    yield from holding(log, "a")


@pytest.fixture
def reader(log: Path) -> Iterator[subprocess.Popen[str]]:
    yield from holding(log, "r")


def test_who_writes_there_ends_and_who_reads_goes_on(
    tmp_path: Path, writer: subprocess.Popen[str], reader: subprocess.Popen[str]
):
    sweep(tmp_path)
    assert writer.wait(5) == -9
    assert reader.poll() is None
