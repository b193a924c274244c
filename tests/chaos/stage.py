"""The real parts on one machine, with proxies between them: NATS, a model server, Ray, the service.

Everything lives in one folder and ends with this process; nothing of the user's is touched.
"""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import ray
from chaos.history import History
from chaos.killing import build_mortal_actor
from chaos.load import model_script
from chaos.wiretap import Wiretap
from msgspec import Struct
from msgspec.structs import replace
from support.gcs import Gcs, kept_in
from support.nats import CLUSTER_SIZE, WheelNats
from support.processes import pids_named
from support.ready import free_port, until_healthy
from support.tcp_proxy import HEALTHY, TcpProxy

from agent_actors.adapters import ray_runtime
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.config import (
    Config,
    NatsConfig,
    PoolConfig,
    RayConfig,
    Resources,
    StreamsConfig,
    VllmConfig,
)
from agent_actors.config_tools import ToolsConfig, WorkspaceConfig
from agent_actors.config_types import Secret
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

TESTS = Path(__file__).resolve().parents[1]
USER = "chaos"
POOL = "default"
# Ray has room for as many actors as this asks for: two services beside each other.
ROOMY = Config(pools={POOL: PoolConfig(actors=16, resources=Resources(num_cpus=1))})
READY_TIMEOUT_S = 90.0
SUPERVISOR, ACTOR = "ray::Supervisor", "ray::AgentActor"
SECRET_VARIABLE = "AGENT_ACTORS_CHAOS_SECRET"  # a name, no secret


class ChaosFailed(Exception):
    """Something did not hold, and has been told."""


class Setting(Struct, frozen=True, kw_only=True):
    """What a stage is set up with; `tapped` puts the proxies between the parts.

    `kept_requests` is how many requests the model server remembers; `rpc_failures` is how many
    percent of the calls from actor to actor are lost, and as many of the answers.
    """

    seed: int = 0
    cluster: bool = False
    tapped: bool = True
    kept_requests: int = 1_000_000
    rpc_failures: int = 0
    latency: Latency = Latency(first_token_ms=300.0, spread=0.8)
    pool: PoolConfig = PoolConfig()
    vllm: VllmConfig = VllmConfig()
    streams: StreamsConfig = StreamsConfig()


# Recovers in seconds what by default would take a minute, so that much happens in a short run.
HASTY = Setting(
    pool=PoolConfig(
        actors=3, slots=16, ack_wait_s=3.0, max_attempts=4, retry_base_s=0.2, retry_cap_s=2.0
    ),
    vllm=VllmConfig(
        first_byte_timeout_s=5.0,
        total_timeout_s=20.0,
        retry_base_s=0.05,
        retry_cap_s=1.0,
        probe_interval_s=0.5,
    ),
)


class Stage:
    """What runs, and how to get at it from outside the service."""

    def __init__(self, setting: Setting, folder: Path, history: History) -> None:
        self.setting = setting
        self.folder = folder
        self.history = history
        self.tap = Wiretap(history, self.now)
        self.secrets = {
            kind: f"canary-{kind.split()[0]}-{secrets.token_hex(8)}"
            for kind in ("NATS password", "vLLM key", "environment variable")
        }
        self.nodes: list[WheelNats] = []
        self.nats_proxies: list[TcpProxy] = []
        self.model: RunningModelServer
        self.model_proxy: TcpProxy
        self.config: Config
        self.gcs: Gcs
        self.service: ray_runtime.Service
        self.link: Connection
        self.request_times: dict[int, float] = {}
        self._began = time.monotonic()
        self.began_wall_s = time.time()

    def begin(self) -> None:
        """Count the seconds from now on."""
        self._began = time.monotonic()
        self.began_wall_s = time.time()

    def now(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self._began

    def actor_pids(self) -> list[int]:
        return sorted(pids_named(ACTOR))

    def supervisor_pids(self) -> list[int]:
        return sorted(pids_named(SUPERVISOR))

    @property
    def healthy_model(self) -> Behaviour:
        return Behaviour(latency=self.setting.latency)

    @property
    def logs(self) -> list[Path]:
        """All files that the service and the servers write logs to."""
        ray_logs = (self.folder / "r").glob("session_2*/logs/**/*")
        nats_logs = (self.folder / "nats").glob("*/nats-server.log")
        return [path for path in (*ray_logs, *nats_logs) if path.is_file()]

    async def heal(self) -> None:
        """Undo whatever a fault has left, in case it was ended halfway."""
        for proxy in (*self.nats_proxies, self.model_proxy):
            await proxy.accept()
            proxy.link = HEALTHY
            proxy.cancel_cut("up")
            proxy.cancel_cut("down")
        self.model.behaviour = self.healthy_model
        await asyncio.gather(*(until_healthy(node.monitoring_url) for node in self.nodes))


@asynccontextmanager
async def standing_stage(setting: Setting, folder: Path, history: History) -> AsyncIterator[Stage]:
    """Set everything up, and take it down again whatever happens."""
    stage = Stage(setting, folder, history)
    async with AsyncExitStack() as stack:
        _prepare_environment(stage)
        await _start_nats(stage, stack)
        await _start_model(stage, stack)
        stage.config = _config(stage)
        stack.enter_context(_running_ray(stage))
        # Ray has taken SIGTERM for itself; here it is to end the run as Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        await _provision(stage, stack)
        stage.service = ray_runtime.start_service(stage.config, build_actor=build_mortal_actor)
        stack.callback(_end_service, stage)
        await asyncio.to_thread(stage.service.wait_ready, READY_TIMEOUT_S)
        yield stage


def _end_service(stage: Stage) -> None:
    """End the service, whichever it is by then."""
    stage.service.kill()


def _prepare_environment(stage: Stage) -> None:
    """Give Ray's processes a home of their own, these modules, and a secret to keep."""
    stage.folder.chmod(0o711)  # the users of workspaces pass through
    os.environ |= {
        "HOME": str(stage.folder),
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        # By default Ray's workers give way to all else on the machine, which is half of the test.
        "RAY_worker_niceness": "0",
        SECRET_VARIABLE: stage.secrets["environment variable"],
        **kept_in(stage.folder / "gcs"),
    }
    if share := stage.setting.rpc_failures:
        # Of Ray itself (src/ray/rpc/rpc_chaos.cc), for its own tests.
        lost = {
            "num_failures": -1,
            "req_failure_prob": share,
            "resp_failure_prob": share,
            "in_flight_failure_prob": 0,
        }
        failures = {"CoreWorkerService.grpc_client.PushTask": lost}
        os.environ |= {"RAY_testing_rpc_failure": msgspec.json.encode(failures).decode()}


async def _start_nats(stage: Stage, stack: AsyncExitStack) -> None:
    login = f'authorization {{ user: {USER}, password: "{stage.secrets["NATS password"]}" }}'
    count = CLUSTER_SIZE if stage.setting.cluster else 1
    ports = [free_port() for _ in range(count)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    for number, port in enumerate(ports, start=1):
        name = f"n{number}"
        # Clients know of the other servers by the proxies only.
        cluster = (
            f"server_name: {name}\ncluster {{ name: chaos, listen: 127.0.0.1:{port}, "
            f"routes: [{routes}], no_advertise: true }}\n"
        )
        node = WheelNats(stage.folder / "nats" / name, login + "\n" + cluster * (count > 1))
        stage.nodes.append(node)
        stack.push_async_callback(node.stop)
        await node.launch()
        proxy = TcpProxy(_port(node.url), on_bytes=stage.tap.of(name))
        stage.nats_proxies.append(await stack.enter_async_context(proxy))
    await asyncio.gather(*(until_healthy(node.monitoring_url) for node in stage.nodes))


async def _start_model(stage: Stage, stack: AsyncExitStack) -> None:
    settings = ModelServerSettings(
        behaviour=stage.healthy_model,
        max_model_len=4_000_000,
        api_key=Secret(stage.secrets["vLLM key"]),
        seed=stage.setting.seed,
        script=model_script(),
        keep_requests=stage.setting.kept_requests,
    )
    stage.model = await stack.enter_async_context(running_model_server(settings))
    if stage.setting.tapped:
        _keep_times(stage)
    stage.model_proxy = await stack.enter_async_context(TcpProxy(_port(stage.model.url)))


def _keep_times(stage: Stage) -> None:
    """Have the server's record of requests keep when each came."""
    record = stage.model.requests
    arrived = record.arrived

    def timed(**request: Any) -> Any:
        seen = arrived(**request)
        stage.request_times[seen.number] = stage.now()
        return seen

    record.arrived = timed


@contextmanager
def _running_ray(stage: Stage) -> Iterator[None]:
    """Run Ray. A GCS that a fault has started again is none of its children, and ends last."""
    with ExitStack() as last:
        try:
            ray_runtime.start_local_ray(
                ROOMY, temp_dir=str(stage.folder / "r"), log_to_driver=False
            )
            stage.gcs = Gcs(ray.get_runtime_context().gcs_address)
            last.callback(stage.gcs.stop)
            yield
        finally:
            ray_runtime.disconnect_ray()


def _config(stage: Stage) -> Config:
    setting = stage.setting
    nats_urls = [f"nats://{proxy.address}" for proxy in stage.nats_proxies]
    model_url = f"http://{stage.model_proxy.address}"
    if not setting.tapped:
        nats_urls, model_url = [node.url for node in stage.nodes], stage.model.url
    workspace = WorkspaceConfig(root=str(stage.folder / "w"))
    return Config(
        nats=nats_config(stage, nats_urls),
        vllm=replace(setting.vllm, urls=(model_url,), api_key=Secret(stage.secrets["vLLM key"])),
        streams=replace(setting.streams, replicas=len(stage.nodes)),
        ray=RayConfig(namespace="chaos"),
        pools={POOL: replace(setting.pool, tools=ToolsConfig(workspace=workspace))},
    )


def nats_config(stage: Stage, urls: Sequence[str]) -> NatsConfig:
    """Return how to log in at these servers."""
    password = Secret(stage.secrets["NATS password"])
    return NatsConfig(url=",".join(urls), user=USER, password=password)


async def _provision(stage: Stage, stack: AsyncExitStack) -> None:
    """Connect past the proxies, and make the streams."""
    urls = [node.url for node in stage.nodes]
    stage.link = await connect(nats_config(stage, urls), name="chaos")
    stack.push_async_callback(stage.link.close)
    await provision(stage.link, stage.config)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
