"""The nats-server that `up` starts, against the real program."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import nats
import pytest

from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.local.nats_server import LocalNats, find_nats_server


async def test_jetstream_answers_on_a_port_that_the_system_chose(tmp_path: Path):
    async with LocalNats(tmp_path) as server:
        client = await nats.connect(server.url)
        account = await client.jetstream().account_info()
        await client.close()
    assert server.port > 0
    assert account.streams == 0


async def test_streams_and_port_survive_a_restart(tmp_path: Path):
    server = LocalNats(tmp_path, sync_interval="always")
    await server.start()
    first = server.url
    client = await nats.connect(first)
    await client.jetstream().add_stream(name="KEEP", subjects=["keep"])
    await client.jetstream().publish("keep", b"this")
    await client.close()
    await server.stop()

    async with server:
        assert server.url == first
        client = await nats.connect(server.url)
        message = await client.jetstream().get_msg("KEEP", 1)
        await client.close()
    assert message.data == b"this"


async def test_a_port_in_use_is_told_in_the_servers_words(tmp_path: Path):
    async with LocalNats(tmp_path / "one") as first:
        second = LocalNats(tmp_path / "two", port=first.port)
        with pytest.raises(ServiceUnreachable, match=f"{first.port}.*address already in use"):
            await second.start()
    assert second.pid == 0


async def test_a_wrong_setting_is_told_in_the_servers_words(tmp_path: Path):
    server = LocalNats(tmp_path, settings="max_payload: lots")
    with pytest.raises(ServiceUnreachable, match=r"nats-server\.conf:3:"):
        await server.start()


async def test_a_data_folder_in_use_is_refused_and_left_alone(tmp_path: Path):
    async with LocalNats(tmp_path) as first:
        with pytest.raises(ConfigError, match=rf"{tmp_path} is in use .*process {first.pid}"):
            await LocalNats(tmp_path).start()
        client = await nats.connect(first.url)
        await client.close()
    async with LocalNats(tmp_path):
        pass


async def test_monitoring_listens_only_when_asked(tmp_path: Path):
    async with LocalNats(tmp_path / "off") as server:
        assert server.monitoring_url == ""
    async with LocalNats(tmp_path / "on", monitoring=True) as server:
        port = int(server.monitoring_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        writer.close()


async def test_stop_leaves_no_process(tmp_path: Path):
    server = LocalNats(tmp_path)
    await server.start()
    pid = server.pid
    await server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await server.stop()


async def test_stop_uses_force_on_a_server_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agent_actors.local.ending.STOP_TIMEOUT_S", 0.1)
    server = LocalNats(tmp_path)
    await server.start()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


PARENT = """
import asyncio, sys
from pathlib import Path
from agent_actors.local.nats_server import LocalNats
async def main():
    server = LocalNats(Path(sys.argv[1]))
    await server.start()
    print(server.pid, file=sys.stderr, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path):
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stderr=asyncio.subprocess.PIPE
    )
    assert parent.stderr is not None
    pid = int(await parent.stderr.readline())
    server = os.pidfd_open(pid)
    parent.kill()
    await parent.wait()
    with contextlib.closing(os.fdopen(server)):
        await asyncio.wait_for(_readable(server), 10)
    async with LocalNats(tmp_path):
        pass


async def _readable(descriptor: int) -> None:
    """Return when the process behind a pidfd has ended."""
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def test_the_program_of_the_package_is_found_wherever_path_points(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert os.access(find_nats_server(), os.X_OK)
