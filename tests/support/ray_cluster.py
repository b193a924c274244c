"""A Ray cluster of several nodes on this machine, and the service on it as production runs it.

A node is a PID namespace: no other node sees its processes, and all of them end at once with its
first one, as when a machine loses its power. The GCS keeps its tables in a file (RocksDB), so
that it can die and come back.
"""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any
from uuid import uuid4

from support.gcs import Gcs, kept_in
from support.nats import NatsServer
from support.processes import children_of, descendants, pids_named
from support.ray_environment import RAY_OF_TESTS
from support.ready import free_port
from support.service import SeenService

from agent_actors.adapters.jetstream.connection import connect
from agent_actors.config import NatsConfig
from agent_actors.config_keys import variable_of

# Root needs no user namespace to make the other ones.
UNSHARE = (
    "unshare",
    *(() if os.geteuid() == 0 else ("--user", "--map-current-user")),
    *("--pid", "--fork", "--mount-proc"),
)
# A node's first process: a shell that ends with its stdin, and so with this process at the latest,
# and takes note of who ends meanwhile, as the first process of a container has to. The control
# group is a folder of ours, in which Ray reads how much memory is in use.
FIRST_PROCESS = """
mount --bind "$0" /sys/fs/cgroup && ray start "$@" >&2 </dev/null && echo started && cat; true
"""
MEMORY_IN_USE = "memory.current"
MEMORY_BYTES = 4 * 1024**3
PYTHON = Path(sys.executable)
ENDING_S = 20.0
HEAD_IP = "127.0.0.1"
# By default it takes the GCS some 20 s to find out that a node is lost.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


def can_make_nodes() -> bool:
    """Tell whether this system lets us have namespaces of processes and of mounts."""
    command = [*UNSHARE, "mount", "--bind", "/dev", "/sys/fs/cgroup"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


class RayNode:
    """One node, as seen from outside of its namespace."""

    def __init__(self, process: Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._has_started = False

    def wait_started(self) -> None:
        assert self._process.stdout is not None
        if not self._has_started:
            assert self._process.stdout.readline(), (self._folder / "log").read_text()
            self._has_started = True

    def pids(self, title: str) -> list[int]:
        """Return those of its processes whose title begins so."""
        return pids_named(title, below=self._process.pid)

    @property
    def ip(self) -> str:
        return f"127.0.0.{self._folder.name}"

    async def run(self, *command: str, env: Mapping[str, str]) -> tuple[int, str]:
        """Run a command on it; return its exit code and what it said."""
        (first,) = children_of(self._process.pid)
        within = ("nsenter", f"--target={first}", "--pid", "--mount", "--wd=/")
        process = await asyncio.create_subprocess_exec(
            *within, *command, env=env, stdout=PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()

    @property
    def is_up(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process that all others of the node are below."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it to all of its processes."""
        for pid in descendants(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @contextmanager
    def short_of_memory(self) -> Iterator[None]:
        """Have Ray believe that nearly all memory is in use."""
        (self._folder / MEMORY_IN_USE).write_text(f"{MEMORY_BYTES - 1}\n")
        try:
            yield
        finally:
            (self._folder / MEMORY_IN_USE).write_text("0\n")

    def kill(self) -> None:
        """End all of its processes at once, if they have not ended."""
        if self._process.poll() is None:
            for first in children_of(self._process.pid):
                os.kill(first, signal.SIGKILL)
        self._process.communicate()


class RayCluster:
    """A head, which has the GCS and no room for actors, and nodes that have.

    Nodes of clusters that run side by side have addresses after different `first` ones.
    """

    def __init__(self, folder: Path, first: int = 1) -> None:
        self._folder = folder
        self._opened = ExitStack()
        self._numbers = first
        self.nodes: list[RayNode] = []
        self.address = f"{HEAD_IP}:{free_port()}"
        self.environment = {
            **{name: each for name, each in os.environ.items() if not name.startswith("RAY_")},
            **HEALTH_CHECKS,
            "HOME": str(folder),
            "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
            **RAY_OF_TESTS,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            **kept_in(folder / "gcs"),
        }

    def start(self, *dashboard: str) -> None:
        """Start the head, without a dashboard unless options of it are given."""
        port = self.address.rpartition(":")[2]
        place = (f"--port={port}", *(dashboard or ("--include-dashboard=false",)))
        self.head = self._begin_node(HEAD_IP, "--head", "--num-cpus=0", *place)
        self.head.wait_started()

    def fill(self, count: int, *, cpus: float) -> None:
        """Have so many nodes, starting those that are missing side by side."""
        self.nodes = [node for node in self.nodes if node.is_up]
        options = (f"--num-cpus={cpus}", f"--address={self.address}")
        while len(self.nodes) < count:
            self._numbers += 1
            self.nodes.append(self._begin_node(f"127.0.0.{self._numbers}", *options))
        for node in self.nodes:
            node.wait_started()

    def stop(self) -> None:
        self._opened.close()

    @property
    def gcs(self) -> Gcs:
        """The GCS, to kill it and to start it again."""
        gcs = Gcs(self.address, below=self.head.pid)
        self._opened.callback(gcs.stop)
        return gcs

    def _begin_node(self, ip: str, *options: str) -> RayNode:
        # Its name is short, since Ray's sockets lie below it.
        folder = self._folder / ip.rpartition(".")[2]
        _lay_out_control_group(folder)
        place = (f"--node-ip-address={ip}", f"--temp-dir={folder}")
        command = ["sh", "-c", FIRST_PROCESS, folder, *place, *options]
        log = self._opened.enter_context((folder / "log").open("wb"))
        process = Popen(
            [*UNSHARE, *command], env=self.environment, stdin=PIPE, stdout=PIPE, stderr=log
        )
        node = RayNode(process, folder)
        self._opened.callback(node.kill)
        return node


@contextmanager
def running_cluster() -> Iterator[RayCluster]:
    """Run a head, and what nodes it is given."""
    with room_for_a_cluster() as folder:
        cluster = RayCluster(folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@contextmanager
def room_for_a_cluster() -> Iterator[Path]:
    """Have a folder whose name is short, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="aa-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@asynccontextmanager
async def serving(
    cluster: RayCluster, server: NatsServer, model_url: str, *, num_cpus: float, **pool: Any
) -> AsyncIterator[SeenService]:
    """Run `agent-actors serve` with one pool, `default`, on the cluster."""
    settings = {
        ("nats", "url"): server.url,
        ("vllm", "urls"): model_url,
        ("streams", "replicas"): server.replicas,
        ("ray", "address"): cluster.address,
        ("ray", "namespace"): f"test-{uuid4().hex[:8]}",
        **{("pools", "default", key): value for key, value in pool.items()},
        ("pools", "default", "resources", "num_cpus"): num_cpus,
        ("pools", "default", "stop_grace_s"): 0,
    }
    variables = {variable_of(path): str(value) for path, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, "-m", "agent_actors", "serve", "--json"),
        env={**cluster.environment, **variables},
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        ready = await process.stdout.readline()
        assert ready, (await process.stderr.read()).decode()
        link = await connect(NatsConfig(url=server.url), name="test")
        yield SeenService(link)
        await link.close()
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.communicate(), ENDING_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _lay_out_control_group(folder: Path) -> None:
    """Write what Ray reads of a control group (v2)."""
    folder.mkdir()
    (folder / "memory.max").write_text(f"{MEMORY_BYTES}\n")
    (folder / MEMORY_IN_USE).write_text("0\n")
    (folder / "memory.stat").write_text("inactive_file 0\nactive_file 0\n")
