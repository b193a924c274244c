"""NATS in trouble under a load: each fault is caused, told where people look, and healed.

One story for all of them: tasks are under way, the fault happens, the pool's status says what is
wrong, it heals, work goes on, and each task has ended exactly once. The faults of one server
meet one service, those of three another one.
"""

import asyncio
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from time import monotonic

import msgspec
import pytest
import pytest_asyncio
from support.nats import NatsCluster, NatsServer, WheelNats, running_nats
from support.ready import until_healthy
from support.service import RunningService, running_service
from support.tcp_proxy import HEALTHY, PARTITIONED, Link, TcpProxy
from support.until import until

from agent_actors.adapters.jetstream.connection import ApiError
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.config import NatsConfig
from agent_actors.contract import RESPONSE_STREAM, TASK_STREAM, PoolStatus
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings
from agent_actors.patience import until_answered

pytestmark = [
    pytest.mark.ray,
    pytest.mark.nats,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.usefixtures("local_ray"),
]

SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=100)))
ACTORS, SLOTS = 2, 4
TASKS = 60
# When so many have ended, the fault begins: all slots are taken and most tasks still wait.
UNDER_WAY = 8
GOES_ON_WITHIN_S = 5.0

DISK_BYTES = 96 * 1024 * 1024
STORE_BYTES = 32 * 1024 * 1024
BALLAST = "BALLAST"
LEDGER_STREAM = "KV_agent_ledger"

USERS = """
users: [
  {user: test, password: test}
  {user: service, password: service, permissions: {publish: {deny: [%s]}}}
]
"""


class Stage:
    """What runs, and what a fault can get at; `nodes` are the servers, one or three."""

    def __init__(
        self, running: RunningService, nodes: tuple[WheelNats, ...], folder: Path, proxy: TcpProxy
    ) -> None:
        self.running = running
        self.nodes = nodes
        self.folder = folder
        self.proxy = proxy
        # Tasks whose results were deleted with their stream.
        self.gone: set[str] = set()

    @property
    def server(self) -> WheelNats:
        (server,) = self.nodes
        return server

    async def pool(self) -> PoolStatus:
        (pool,) = (await asyncio.to_thread(self.running.service.status)).pools
        return pool

    async def until_told(self, *reasons: str) -> None:
        """Return once the pool is said to be stalled for one of these reasons, if there are any."""

        async def told() -> bool:
            pool = await self.pool()
            return not reasons or any(reason in pool.reason for reason in reasons)

        await until(told)

    async def goes_on(self, within_s: float) -> None:
        """Return once more tasks have ended than can have been with the actors until now."""
        enough = min(TASKS - len(self.gone), await self.ended() + ACTORS * SLOTS + 1)

        async def has_gone_on() -> bool:
            return await self.ended() >= enough

        await until(has_gone_on, timeout_s=within_s)

    async def ended(self) -> int:
        """Return how many results there are, also when the server that was asked is lost."""
        ask = partial(self.running.link.api, f"STREAM.INFO.{RESPONSE_STREAM}")
        return (await until_answered(ask))["state"]["messages"]

    async def is_quiet(self) -> bool:
        """Tell whether no result came from one look to the next."""
        before = await self.ended()
        return await self.ended() == before

    async def deny(self, *subjects: str) -> None:
        """Forbid the service's user to publish to these subjects, and to no others."""
        before = await asyncio.to_thread(_config_load_time, self.server)
        write_users(self.folder, *subjects)
        # Nothing goes on meanwhile: it may take a moment.
        self.proxy.link = PARTITIONED
        self.server.reload()

        async def reloaded() -> bool:
            return await asyncio.to_thread(_config_load_time, self.server) != before

        await until(reloaded)
        self.proxy.link = HEALTHY

    async def leader_of(self, stream: str) -> WheelNats:
        cluster = (await self.running.js.stream_info(stream)).cluster
        assert cluster is not None
        (number,) = (number for number in range(3) if cluster.leader == f"n{number + 1}")
        return self.nodes[number]


Reasons = tuple[str, ...]
Fault = Callable[[Stage], AbstractAsyncContextManager[Reasons]]

ALONE: list[Fault] = []
CLUSTERED: list[Fault] = []


def fault_of(rows: list[Fault]) -> Callable[[Callable[[Stage], AsyncIterator[Reasons]]], Fault]:
    """Add a fault to these rows: it happens, yields what people are to be told, and heals."""

    def add(happen: Callable[[Stage], AsyncIterator[Reasons]]) -> Fault:
        @asynccontextmanager
        @wraps(happen)
        async def fault(stage: Stage) -> AsyncIterator[Reasons]:
            course = happen(stage)
            reasons = await anext(course)
            try:
                yield reasons
            finally:
                await anext(course, None)

        rows.append(fault)
        return fault

    return add


SILENT = "no answer on", "was lost before the answer came"
NOTHING: Reasons = ()


@fault_of(ALONE)
async def restarted(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.server.stop()
    yield SILENT
    await stage.server.start()


@fault_of(ALONE)
async def killed(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.server.kill()
    yield SILENT
    await stage.server.start()


@fault_of(ALONE)
async def frozen(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.server.pause()
    yield SILENT
    await stage.server.resume()


@fault_of(ALONE)
async def partitioned(stage: Stage) -> AsyncIterator[Reasons]:
    stage.proxy.link = PARTITIONED
    yield SILENT
    stage.proxy.link = HEALTHY


@fault_of(ALONE)
async def forgotten(stage: Stage) -> AsyncIterator[Reasons]:
    """Leave the open connections without a word, as when a node or a router is lost."""
    accepted = stage.proxy.accepted
    stage.proxy.forget()
    yield SILENT
    await until(lambda: stage.proxy.accepted == accepted + 1 + ACTORS)


@fault_of(ALONE)
async def slow(stage: Stage) -> AsyncIterator[Reasons]:
    stage.proxy.link = Link(latency_s=0.2)
    await stage.goes_on(within_s=20)
    yield NOTHING
    stage.proxy.link = HEALTHY


@fault_of(ALONE)
async def narrow(stage: Stage) -> AsyncIterator[Reasons]:
    stage.proxy.link = Link(bytes_per_s=30_000)
    await stage.goes_on(within_s=20)
    yield NOTHING
    stage.proxy.link = HEALTHY


@fault_of(ALONE)
async def cut_in_a_publish(stage: Stage) -> AsyncIterator[Reasons]:
    accepted = stage.proxy.accepted
    stage.proxy.cut("up", at_least_bytes=200)
    yield NOTHING
    await until(lambda: stage.proxy.accepted > accepted)


@fault_of(ALONE)
async def cut_in_an_answer(stage: Stage) -> AsyncIterator[Reasons]:
    accepted = stage.proxy.accepted
    stage.proxy.cut("down", at_least_bytes=200)
    yield NOTHING
    await until(lambda: stage.proxy.accepted > accepted)


@fault_of(ALONE)
async def denied_results(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.deny("agent.response.completed")
    yield ('Permissions Violation for Publish to "agent.response.completed"',)
    await stage.deny()


@fault_of(ALONE)
async def denied_ledger(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.deny("$KV.agent_ledger.>")
    yield ('Permissions Violation for Publish to "$KV.agent_ledger.',)
    await stage.deny()


@fault_of(ALONE)
async def denied_pulling(stage: Stage) -> AsyncIterator[Reasons]:
    pulling = "$JS.API.CONSUMER.MSG.NEXT.AGENT_TASKS.default"
    await stage.deny(pulling)
    yield (f'Permissions Violation for Publish to "{pulling}"',)
    await stage.deny()


@fault_of(ALONE)
async def denied_acks(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.deny("$JS.ACK.>")
    yield ('Permissions Violation for Publish to "$js.ack.',)
    await stage.deny()


@fault_of(ALONE)
async def consumer_deleted(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.running.link.api(f"CONSUMER.DELETE.{TASK_STREAM}.default")
    yield ("consumer missing: run provision",)
    await provision(stage.running.link, stage.running.config)


@fault_of(ALONE)
async def results_deleted(stage: Stage) -> AsyncIterator[Reasons]:
    """Delete the stream, while nothing is on its way there: what it holds then is gone."""
    stage.proxy.link = PARTITIONED
    await until(stage.is_quiet)
    stage.gone = {result.task_id for result in await stage.running.results(await stage.ended())}
    await stage.running.link.api(f"STREAM.DELETE.{RESPONSE_STREAM}")
    stage.proxy.link = HEALTHY
    yield ("nobody answers on agent.response.completed: `agent-actors provision` makes it",)
    await provision(stage.running.link, stage.running.config)


@fault_of(ALONE)
async def ledger_deleted(stage: Stage) -> AsyncIterator[Reasons]:
    await stage.running.link.api(f"STREAM.DELETE.{LEDGER_STREAM}")
    yield ("nobody answers on $KV.agent_ledger.", f"{LEDGER_STREAM}: stream not found: run")
    await provision(stage.running.link, stage.running.config)


@fault_of(ALONE)
async def store_full(stage: Stage) -> AsyncIterator[Reasons]:
    """Let other data fill what JetStream may store."""
    link = stage.running.link
    await link.api(f"STREAM.CREATE.{BALLAST}", b'{"name": "BALLAST", "subjects": ["ballast"]}')
    for size in (900_000, 20_000, 500):
        with suppress(ApiError):
            while True:
                await link.publish_stored("ballast", bytes(size))
    yield ("insufficient resources",)
    await link.api(f"STREAM.DELETE.{BALLAST}")


@fault_of(ALONE)
async def disk_full(stage: Stage) -> AsyncIterator[Reasons]:
    """Fill the disk. A nats-server that could not write never does, until it is restarted."""
    ballast = stage.folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * 1024))
    yield "no answer on $KV.agent_ledger", "no answer on agent.response.completed"
    ballast.unlink()
    await stage.server.restart()


@fault_of(CLUSTERED)
async def leaders_step_down(stage: Stage) -> AsyncIterator[Reasons]:
    for stream in (TASK_STREAM, RESPONSE_STREAM, LEDGER_STREAM):
        await stage.running.link.api(f"STREAM.LEADER.STEPDOWN.{stream}")
    await stage.running.link.api(f"CONSUMER.LEADER.STEPDOWN.{TASK_STREAM}.default")
    yield NOTHING


@fault_of(CLUSTERED)
async def leader_lost(stage: Stage) -> AsyncIterator[Reasons]:
    """Lose one of three servers: work goes on without it, and once it is back."""
    leader = await stage.leader_of(TASK_STREAM)
    await leader.kill()
    await stage.goes_on(within_s=30)
    yield NOTHING
    await leader.start()


@fault_of(CLUSTERED)
async def leader_frozen(stage: Stage) -> AsyncIterator[Reasons]:
    leader = await stage.leader_of(RESPONSE_STREAM)
    await leader.pause()
    await stage.goes_on(within_s=30)
    yield NOTHING
    await leader.resume()


@pytest.mark.parametrize("fault", ALONE, ids=lambda fault: fault.__name__)
async def test_work_goes_on_when_nats_is_well_again_and_each_task_ends_once(
    fault: Fault, stage: Stage
):
    if fault is disk_full and not stage.folder.is_mount():
        pytest.skip("needs a disk of its own, which only root can mount")
    await assert_work_outlives(fault, stage)


@pytest.mark.parametrize("fault", CLUSTERED, ids=lambda fault: fault.__name__)
async def test_work_outlives_what_befalls_one_of_three_servers(fault: Fault, cluster_stage: Stage):
    await assert_work_outlives(fault, cluster_stage)


async def test_when_the_queue_is_deleted_what_runs_is_answered_and_new_tasks_are_taken(
    stage: Stage,
):
    running = stage.running
    tasks = await begin(stage, "queue_deleted")
    await running.link.api(f"STREAM.DELETE.{TASK_STREAM}")
    await stage.until_told("stream AGENT_TASKS missing: run provision")
    await provision(running.link, running.config)
    healed = monotonic()
    await running.publish("afterwards")
    await until(lambda: has_ended(running, "afterwards"))
    assert monotonic() - healed < GOES_ON_WITHIN_S
    begun = [task_id for task_id in tasks if (await running.stored(task_id)).record]
    assert UNDER_WAY <= len(begun) < TASKS
    assert await running.announced() == dict.fromkeys([*begun, "afterwards"], 1)


async def assert_work_outlives(fault: Fault, stage: Stage) -> None:
    tasks = await begin(stage, fault.__name__)
    async with fault(stage) as reasons:
        await stage.until_told(*reasons)
    await stage.goes_on(GOES_ON_WITHIN_S)
    await asyncio.gather(*(until_healthy(node.monitoring_url) for node in stage.nodes))
    announced = await stage.running.announced()
    assert set(announced) | stage.gone == set(tasks)
    assert set(announced.values()) == {1}
    await until(lambda: is_well(stage))


async def begin(stage: Stage, prefix: str) -> list[str]:
    """Publish tasks, and return them when some have ended and all slots are taken."""
    running = stage.running
    tasks = [f"{prefix}-{number}" for number in range(TASKS)]
    stage.gone = set()
    await until_answered(lambda: running.link.api(f"STREAM.PURGE.{RESPONSE_STREAM}"))
    await asyncio.gather(*(running.publish(task_id) for task_id in tasks))
    await running.results(UNDER_WAY)
    return tasks


async def has_ended(running: RunningService, task_id: str) -> bool:
    record = (await running.stored(task_id)).record
    return record is not None and record.is_terminal


async def is_well(stage: Stage) -> bool:
    pool = await stage.pool()
    return (pool.state, pool.reason) == ("running", "")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder on a small disk of its own where that can be had, else a mere folder."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    with suppress(FileNotFoundError):
        subprocess.run(mount, check=False, capture_output=True)
    yield folder
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(disk: Path, local_ray: None) -> AsyncIterator[Stage]:
    """One server that can be denied, filled and cut off, and a service on the other side of it."""
    write_users(disk)
    settings = f"""
        jetstream {{ store_dir: "{disk}/jetstream", max_file_store: {STORE_BYTES} }}
        authorization {{ include "./users.conf" }}
        no_auth_user: test
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_nats(disk, settings, kind="wheel"))
        assert isinstance(server, WheelNats)
        proxy = await stack.enter_async_context(TcpProxy(int(server.url.rpartition(":")[2])))
        reach = NatsConfig(url=f"nats://service:service@{proxy.address}", request_timeout_s=1.0)
        running = await stack.enter_async_context(_service(server, reach))
        yield Stage(running, (server,), disk, proxy)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster_stage(
    tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("cluster")
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(running_nats(folder, kind="cluster"))
        assert isinstance(cluster, NatsCluster)
        reach = NatsConfig(url=",".join(cluster.urls), request_timeout_s=1.0)
        running = await stack.enter_async_context(_service(cluster, reach))
        yield Stage(running, cluster.nodes, folder, TcpProxy())


@asynccontextmanager
async def _service(server: NatsServer, reach: NatsConfig) -> AsyncIterator[RunningService]:
    async with (
        running_model_server(SLOW) as model,
        running_service(
            server,
            model.url,
            nats=reach,
            actors=ACTORS,
            slots=SLOTS,
            ack_wait_s=2,
            hang_timeout_s=5,
        ) as running,
    ):
        yield running


def write_users(folder: Path, *denied: str) -> None:
    (folder / "users.conf").write_text(USERS % ", ".join(f'"{subject}"' for subject in denied))


def _config_load_time(server: WheelNats) -> str:
    with urllib.request.urlopen(f"{server.monitoring_url}/varz", timeout=5) as answer:
        return msgspec.json.decode(answer.read())["config_load_time"]
