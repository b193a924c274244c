"""A NATS with JetStream for each test: out of the wheel, in a container, or three as a cluster.

`AGENT_ACTORS_TEST_NATS` chooses: `wheel`, `container`, `cluster`, or `auto` (a container when an
engine answers, the wheel otherwise); the head of pytest's report tells which it was. Subjects and
streams have fixed names, so each test gets a server of its own: that takes 0.1 s with the wheel,
0.5 s with a cluster and 0.7 s with a container.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Protocol

import pytest
from support.containers import IMAGE, ContainerNats, find_engine
from support.ready import free_port, until_healthy

from agent_actors.local.nats_server import PACKAGE, LocalNats

VARIABLE = "AGENT_ACTORS_TEST_NATS"
CLUSTER_SIZE = 3


class NatsServer(Protocol):
    """NATS as its clients see it, and what may befall it.

    Address and streams outlive `kill`, `start` and `restart`. After `kill` the sockets are
    closed; while paused they stay open and nothing answers. A cluster does all of it in whole:
    take one of its `nodes` for a part.
    """

    @property
    def url(self) -> str:
        """One address, from which a client learns the others of a cluster."""
        ...

    @property
    def urls(self) -> tuple[str, ...]: ...

    @property
    def replicas(self) -> int:
        """How many copies a stream can have here."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def kill(self) -> None: ...

    async def restart(self) -> None: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...


StartNats = Callable[..., Awaitable[NatsServer]]


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """The NATS of this test."""
    async with running_nats(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def start_nats(tmp_path: Path) -> AsyncIterator[StartNats]:
    """Start further ones, with lines of nats-server's configuration such as users or limits."""
    async with AsyncExitStack() as stack:
        number = 0

        async def start(settings: str = "") -> NatsServer:
            nonlocal number
            number += 1
            folder = tmp_path / f"nats-{number}"
            return await stack.enter_async_context(running_nats(folder, settings))

        yield start


@asynccontextmanager
async def running_nats(
    folder: Path, settings: str = "", kind: str | None = None
) -> AsyncIterator[NatsServer]:
    """Run a NATS of the chosen kind, with its files in `folder`."""
    server: NatsServer
    match kind or chosen_kind():
        case "container":
            server = ContainerNats(settings)
        case "cluster":
            server = NatsCluster(folder, settings)
        case _:
            server = WheelNats(folder, settings)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


def pytest_report_header() -> str:
    version = metadata.version(PACKAGE)
    match chosen_kind():
        case "container":
            return f"nats: testcontainers ({find_engine().name}), image {IMAGE}"
        case "cluster":
            return f"nats: a cluster of {CLUSTER_SIZE} nats-servers {version} from the wheel"
        case _:
            return f"nats: nats-server {version} from the wheel"


def chosen_kind() -> str:
    kind = os.environ.get(VARIABLE, "auto")
    if kind not in {"auto", "wheel", "container", "cluster"}:
        raise pytest.UsageError(f"{VARIABLE}={kind}: must be auto, wheel, container or cluster")
    engine = find_engine() if kind in {"auto", "container"} else None
    if kind == "container" and not engine.name:
        raise pytest.UsageError(f"{VARIABLE}=container, but no engine answers: {engine.reason}")
    if kind == "auto":
        return "container" if engine.name else "wheel"
    return kind


class WheelNats:
    """One nats-server out of the wheel, a process on 127.0.0.1."""

    replicas = 1

    def __init__(self, folder: Path, settings: str = "") -> None:
        self._server = LocalNats(folder, settings=settings, monitoring=True)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,)

    @property
    def monitoring_url(self) -> str:
        return self._server.monitoring_url

    @property
    def log_file(self) -> Path:
        """What it wrote since its last start."""
        return self._server.log_file

    async def start(self) -> None:
        await self.launch()
        await until_healthy(self.monitoring_url)

    async def launch(self) -> None:
        """Start without waiting for health, which a cluster's node has not by itself."""
        await self._server.start()

    async def stop(self) -> None:
        if self._server.pid:
            await self.resume()
            await self._server.stop()

    async def kill(self) -> None:
        os.kill(self._server.pid, signal.SIGKILL)
        await self._server.stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def reload(self) -> None:
        """Have it read its configuration again, in the background."""
        os.kill(self._server.pid, signal.SIGHUP)

    async def pause(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)
        # Until its last thread has stopped, the server may answer still.
        stopped = os.WSTOPPED | os.WNOWAIT
        await asyncio.to_thread(os.waitid, os.P_PID, self._server.pid, stopped)

    async def resume(self) -> None:
        os.kill(self._server.pid, signal.SIGCONT)


class NatsCluster:
    """Three nats-servers of the wheel that replicate their streams among each other."""

    replicas = CLUSTER_SIZE

    def __init__(self, folder: Path, settings: str = "") -> None:
        ports = [free_port() for _ in range(CLUSTER_SIZE)]
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        self.nodes = tuple(
            WheelNats(
                folder / f"n{number}",
                f"server_name: n{number}\n"
                f"cluster {{ name: test, listen: 127.0.0.1:{port}, routes: [{routes}] }}\n"
                f"{settings}",
            )
            for number, port in enumerate(ports, start=1)
        )

    @property
    def url(self) -> str:
        return self.nodes[0].url

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.nodes)

    async def start(self) -> None:
        await asyncio.gather(*(node.launch() for node in self.nodes))
        await asyncio.gather(*(until_healthy(node.monitoring_url) for node in self.nodes))

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))

    async def kill(self) -> None:
        await asyncio.gather(*(node.kill() for node in self.nodes))

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def pause(self) -> None:
        await asyncio.gather(*(node.pause() for node in self.nodes))

    async def resume(self) -> None:
        await asyncio.gather(*(node.resume() for node in self.nodes))
