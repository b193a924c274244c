"""What all contestants are measured on: NATS, the stub of a model, Ray; one folder for all."""

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import ray
from msgspec import Struct
from support.ready import free_port, until_healthy
from support.until import until

from agent_actors.adapters import ray_runtime
from agent_actors.config import Config, PoolConfig, Resources
from agent_actors.local.nats_server import LocalNats
from agent_actors.local.tied import tied

TESTS = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 30.0
# Ray has room for as many actors as this asks for.
ROOMY = Config(pools={"default": PoolConfig(actors=32, resources=Resources(num_cpus=1))})

Durability = Literal["default", "always", "r3"]


class Nats(Struct, frozen=True, kw_only=True):
    """A NATS: its addresses, how many copies a stream can have, and its processes."""

    urls: list[str]
    replicas: int
    pids: list[int]


class Model(Struct, frozen=True, kw_only=True):
    """A model server: a stub of one, or a real one."""

    url: str
    pids: list[int] = []
    api_key: str = ""
    counts: bool = True  # whether it tells what it was asked


class Site:
    """Where things run, and what is there for the whole time."""

    def __init__(self, folder: Path, ray_address: str) -> None:
        self.folder = folder
        self.ray_address = ray_address
        self._numbers = itertools.count()

    def new_name(self, kind: str) -> str:
        """Return a name that nothing here has yet."""
        return f"{kind}-{next(self._numbers)}"

    @asynccontextmanager
    async def nats(self, durability: Durability = "default") -> AsyncIterator[Nats]:
        """Run a NATS of its own, with nothing in it."""
        folder = self.folder / self.new_name("nats")
        count = 3 if durability == "r3" else 1
        servers = [
            LocalNats(
                folder / str(number),
                monitoring=True,
                sync_interval="always" if durability == "always" else "",
                settings=settings,
            )
            for number, settings in enumerate(_cluster(count))
        ]
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server)
            await asyncio.gather(*(until_healthy(server.monitoring_url) for server in servers))
            urls = [server.url for server in servers]
            yield Nats(urls=urls, replicas=count, pids=[server.pid for server in servers])

    @asynccontextmanager
    async def model(self, delay_s: float = 0.0) -> AsyncIterator[Model]:
        """Run a stub that answers after so many seconds."""
        port_file = self.folder / self.new_name("model")
        process = await asyncio.create_subprocess_exec(
            *tied(Path(sys.executable), "-m", "bench.stub", str(port_file), str(delay_s)),
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C on the terminal is not meant for it
        )
        try:
            await until(port_file.exists, timeout_s=START_TIMEOUT_S)
            yield Model(url=f"http://127.0.0.1:{port_file.read_text()}", pids=[process.pid])
        finally:
            process.kill()
            await process.wait()


@contextmanager
def standing_site(folder: Path, *, log_level: str = "warning") -> Iterator[Site]:
    """Run Ray in the folder, with these modules at hand for its workers."""
    folder.chmod(0o711)
    os.environ |= {
        "HOME": str(folder),
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        # By default Ray's workers give way to all else on the machine; no peer's do.
        "RAY_worker_niceness": "0",
        "AGENT_ACTORS_LOG_LEVEL": log_level,
    }
    try:
        ray_runtime.start_local_ray(ROOMY, temp_dir=str(folder / "r"), log_to_driver=False)
        yield Site(folder, ray.get_runtime_context().gcs_address)
    finally:
        ray_runtime.disconnect_ray()


def _cluster(count: int) -> list[str]:
    """Return the settings of so many servers that belong together."""
    if count == 1:
        return [""]
    ports = [free_port() for _ in range(count)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    return [
        f"server_name: n{number}\n"
        f"cluster {{ name: bench, listen: 127.0.0.1:{port}, routes: [{routes}] }}"
        for number, port in enumerate(ports)
    ]
