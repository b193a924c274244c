"""What `up` starts and cleans up, without Ray: real processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.until import until

from agent_actors.config import Config, NatsConfig, VllmConfig
from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.local.run_folder import run_folder
from agent_actors.local.up import LocalParts

ELSEWHERE = Config(
    nats=NatsConfig(url="nats://127.0.0.1:1"), vllm=VllmConfig(urls=("http://127.0.0.1:2",))
)
ELSEWHERE_BUT_NATS = Config(vllm=ELSEWHERE.vllm)


@contextlib.asynccontextmanager
async def local_parts(folder: Path, config: Config, port: int = 0) -> AsyncIterator[LocalParts]:
    parts = LocalParts(config, data_dir=folder / "data", run_dir=folder, port=port)
    try:
        await parts.start()
        yield parts
    finally:
        await parts.stop()


@pytest.fixture(autouse=True)
def no_model_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AGENT_ACTORS_VLLM_API_KEY", raising=False)


async def test_what_is_not_configured_is_started(tmp_path: Path):
    async with local_parts(tmp_path, Config()) as parts:
        config = await parts.ready()
        assert config.nats.url.startswith("nats://127.0.0.1:")
        (model,) = config.vllm.urls
        with await asyncio.to_thread(urllib.request.urlopen, f"{model}/health") as answer:
            assert answer.status == 200
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, f"{model}/health")


async def test_what_is_configured_is_left_alone(tmp_path: Path):
    async with local_parts(tmp_path, ELSEWHERE) as parts:
        assert await parts.ready() == ELSEWHERE
    assert not await asyncio.to_thread(os.listdir, tmp_path)


async def test_a_port_that_is_taken_is_told_with_what_to_do(tmp_path: Path):
    async with local_parts(tmp_path / "one", ELSEWHERE_BUT_NATS) as first:
        port = int((await first.ready()).nats.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=rf"port {port}: Address already in use.*--port"):
            await LocalParts(
                ELSEWHERE_BUT_NATS, data_dir=tmp_path / "two", run_dir=tmp_path, port=port
            ).start()


async def test_a_folder_that_cannot_be_written_is_told_with_what_to_do(tmp_path: Path):
    (tmp_path / "data").touch()
    with pytest.raises(ConfigError, match=rf"{tmp_path}/data: .*--data-dir"):
        async with local_parts(tmp_path, ELSEWHERE_BUT_NATS):
            pass


async def test_a_model_server_that_does_not_start_has_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AGENT_ACTORS_LOG_LEVEL", "nonsense")
    async with local_parts(tmp_path, Config(nats=ELSEWHERE.nats)) as parts:
        with pytest.raises(ServiceUnreachable, match=r"model server did not start: .*nonsense"):
            await parts.ready()


async def test_it_is_noticed_when_a_part_ends_by_itself(tmp_path: Path):
    async with local_parts(tmp_path, Config()) as parts:
        await parts.ready()
        watching = asyncio.create_task(parts.watch())
        nats_pid = int((tmp_path / "data/nats/lock").read_text())
        os.kill(nats_pid, signal.SIGKILL)
        with pytest.raises(ServiceUnreachable, match="nats-server has ended"):
            await watching


# The folder that takes everybody with it.

VARIABLE = "AGENT_ACTORS_TEST_FOLDER"


@pytest.fixture(autouse=True)
def own_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "")


def test_whoever_was_told_of_the_folder_or_works_in_it_ends_with_it():
    with run_folder(VARIABLE, keep_after=ServiceUnreachable) as folder:
        told = subprocess.Popen(["sleep", "600"])
        log = (folder / "log").open("w")
        works = subprocess.Popen(["sleep", "600"], stdout=log, env={})
        other = subprocess.Popen(["sleep", "600"], env={})
        log.close()
    assert told.wait() == works.wait() == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()
    assert not folder.exists()


@pytest.mark.parametrize("other", [KeyboardInterrupt, ConfigError])
def test_the_folder_is_kept_after_one_kind_of_error_only(other: type[BaseException]):
    with (
        pytest.raises(ServiceUnreachable),
        run_folder(VARIABLE, keep_after=ServiceUnreachable) as kept,
    ):
        raise ServiceUnreachable
    assert kept.exists()
    kept.rmdir()
    with pytest.raises(other), run_folder(VARIABLE, keep_after=ServiceUnreachable) as gone:
        raise other
    assert not gone.exists()


def test_a_long_temporary_path_is_avoided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with run_folder(VARIABLE, keep_after=ServiceUnreachable) as folder:
        assert len(str(folder)) < 40


PARENT = f"""
import subprocess, sys, time
from agent_actors.local.run_folder import run_folder
with run_folder({VARIABLE!r}, keep_after=OSError) as folder:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(child.pid, folder, flush=True)
    time.sleep(600)
"""


async def test_they_end_with_the_folder_too_when_its_owner_is_killed():
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    pid, folder = (await owner.stdout.readline()).decode().split()
    child = os.pidfd_open(int(pid))
    owner.kill()
    await owner.wait()
    await until(lambda: not Path(folder).exists())
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(child, ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    asyncio.get_running_loop().remove_reader(child)
    os.close(child)
