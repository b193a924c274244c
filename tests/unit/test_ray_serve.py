"""The application of Ray Serve over a scripted service: what it answers, when it counts as ill."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from support.until import until

from agent_actors import following as following_module
from agent_actors.adapters import ray_serve
from agent_actors.adapters.ray_serve import Control, control_app
from agent_actors.config import Config
from agent_actors.contract import Health, PoolStatus, ServiceStatus, utc_now
from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.supervisor import Ending

CONFIG = "nats: {url: nats://127.0.0.1:4222}\nvllm: {urls: [http://127.0.0.1:8000]}\n"
WELL = PoolStatus(name="dev", subjects=[], state="running", running=1, wanted=1, pending=0)


class ScriptedService:
    """A service that says what it is told to say."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.config = config
        self.pool = WELL
        self.is_silent = False
        self.restarts = 0
        self.asked = 0
        self.troubles: list[str] = []
        self.ending: asyncio.Future[Ending] = loop.create_future()

    async def heartbeat(self, timeout_s: float) -> None:
        self.asked += 1
        if self.is_silent:
            raise ServiceUnreachable("the supervisor does not answer")

    async def ask_status(self, timeout_s: float) -> ServiceStatus:
        await self.heartbeat(timeout_s)
        return ServiceStatus(version="1", supervisor_id="s", started=utc_now(), pools=[self.pool])

    def restart(self) -> None:
        self.restarts += 1

    def wait_started(self, timeout_s: float) -> None: ...

    def note_trouble(self, trouble: str) -> None:
        self.troubles.append(trouble)

    async def ended(self) -> Ending:
        return await asyncio.shield(self.ending)


class Stage:
    """A replica that has started, and its services, the newest last."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.loop = asyncio.get_running_loop()
        self.services: list[ScriptedService] = []
        self.provisions: set[bool] = set()
        self.first = WELL
        self.control: Any = Control.__new__(Control)
        file.write_text(CONFIG)

    @property
    def service(self) -> ScriptedService:
        return self.services[-1]

    def start(self, config: Config, *, provisions: bool) -> ScriptedService:
        service = ScriptedService(config, self.loop)
        service.pool = self.first
        self.services.append(service)
        self.provisions.add(provisions)
        return service

    async def begin(self) -> None:
        await self.control.__init__(str(self.file), provisions=False)

    async def get(self, path: str, method: str = "GET") -> tuple[int, Any]:
        scope = {"type": "http", "method": method, "path": path, "headers": []}
        response = await self.control(Request(scope))
        return response.status_code, msgspec.json.decode(response.body)

    async def reasons(self, path: str) -> list[str]:
        status, said = await self.get(path)
        health = msgspec.convert(said, Health)
        assert (status == 200) == health.ok == (not health.reasons)
        return health.reasons


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path / "agent-actors.yaml")
    monkeypatch.setattr(ray_serve, "start_service", stage.start)
    monkeypatch.setattr(ray_serve, "configure_logs", lambda _: None)
    for module, name in ((ray_serve, "ASK_EVERY_S"), (following_module, "READ_EVERY_S")):
        monkeypatch.setattr(module, name, 0.01)
    return stage


@asynccontextmanager
async def replica(stage: Stage) -> AsyncIterator[Stage]:
    await stage.begin()
    yield stage
    for task in stage.control._tasks:
        task.cancel()


async def test_a_service_that_works_is_well_and_ready_and_tells_its_status(stage: Stage):
    async with replica(stage):
        await stage.control.check_health()
        assert await stage.reasons("/healthz") == []
        assert await stage.reasons("/readyz") == []
        status, said = await stage.get("/status")
        assert (status, said["pools"][0]["name"]) == (200, "dev")
        assert stage.provisions == {False}


async def test_it_has_started_once_the_service_works(stage: Stage):
    stage.first = msgspec.structs.replace(WELL, running=0)
    starting = asyncio.create_task(stage.begin())
    await until(lambda: bool(stage.services) and stage.service.asked > 3, timeout_s=5)
    assert not starting.done()
    stage.service.pool = WELL
    await asyncio.wait_for(starting, 5)


async def test_what_keeps_tasks_from_being_worked_on_makes_it_not_ready_and_not_ill(stage: Stage):
    async with replica(stage):
        stage.service.pool = msgspec.structs.replace(WELL, state="paused", reason="model away")
        assert await stage.reasons("/readyz") == ["pool dev is paused: model away"]
        assert await stage.reasons("/healthz") == []
        await stage.control.check_health()


async def test_a_silent_supervisor_is_started_anew_and_the_replica_is_ill_until_it_answers(
    stage: Stage,
):
    async with replica(stage):
        stage.service.is_silent = True
        assert await stage.reasons("/readyz") == ["the supervisor does not answer"]
        assert (await stage.get("/status"))[0] == 503
        await stage.control.check_health()
        for name in ("_heard", "_woken"):
            setattr(stage.control, name, getattr(stage.control, name) - 60)
        assert await stage.reasons("/healthz") == ["the supervisor has not answered for 60 s"]
        for _ in range(2):
            with pytest.raises(ServiceUnreachable, match="has not answered for 60 s"):
                await stage.control.check_health()
        assert stage.service.restarts == 1
        stage.service.is_silent = False
        await until(lambda: stage.control._silent_s < 1, timeout_s=5)
        await stage.control.check_health()
        assert await stage.reasons("/healthz") == []


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("drained", "the service was drained"), ("superseded", "another service has taken over")],
)
async def test_a_service_that_was_ended_stays_so_and_the_replica_stays_well(
    stage: Stage, ending: Ending, reason: str, monkeypatch: pytest.MonkeyPatch
):
    async with replica(stage):
        stage.service.is_silent = True
        stage.service.ending.set_result(ending)

        async def told() -> bool:
            return any(each.startswith(reason) for each in await stage.reasons("/readyz"))

        await until(told, timeout_s=5)
        monkeypatch.setattr(ray_serve, "SILENT_AFTER_S", -1.0)
        await stage.control.check_health()
        assert await stage.reasons("/healthz") == []
        await until(stage.control._following.cancelled, timeout_s=5)
        assert len(stage.services) == 1
        assert stage.service.restarts == 0


async def test_an_edit_gets_a_service_of_its_own_and_a_wrong_one_is_told(stage: Stage):
    async with replica(stage):
        stage.file.write_text(CONFIG + "pools: {dev: {actors: 2}}\n")
        await until(lambda: len(stage.services) == 2, timeout_s=5)
        assert stage.service.config.pools["dev"].actors == 2
        stage.file.write_text("nats: 1\n")
        await until(lambda: "nats" in " ".join(stage.service.troubles), timeout_s=5)
        assert len(stage.services) == 2


async def test_a_bug_in_what_it_does_beside_has_it_replaced(stage: Stage):
    async with replica(stage):
        stage.service.note_trouble = None
        stage.file.write_text("nats: 1\n")
        await until(lambda: any(each.done() for each in stage.control._tasks), timeout_s=5)
        with pytest.raises(TypeError):
            await stage.control.check_health()


async def test_other_paths_and_methods_are_refused(stage: Stage):
    async with replica(stage):
        assert (await stage.get("/"))[0] == 404
        assert (await stage.get("/readyz", "POST"))[0] == 405
        assert (await stage.get("/readyz", "HEAD"))[0] == 200


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({}, "args of the application: .*`config`"),
        ({"config": "/none.yaml", "replicas": 2}, "args of the application: .*`replicas`"),
        ({"config": "/none.yaml"}, "/none.yaml: cannot be read"),
        ({"config": "FILE"}, "nats.url .*must be set"),
    ],
    ids=str,
)
def test_wrong_arguments_or_a_wrong_configuration_are_told_when_the_application_is_built(
    args: dict[str, Any], words: str, tmp_path: Path
):
    file = tmp_path / "agent-actors.yaml"
    file.write_text("pools: {dev: {}}\n")
    given = {key: str(file) if value == "FILE" else value for key, value in args.items()}
    with pytest.raises(ConfigError, match=words):
        control_app(given)


def test_the_application_is_one_small_replica(tmp_path: Path):
    file = tmp_path / "agent-actors.yaml"
    file.write_text(CONFIG)
    deployment = control_app({"config": str(file)})._bound_deployment
    assert (deployment.name, deployment.num_replicas) == ("Control", 1)
    assert deployment.ray_actor_options["num_cpus"] == 0.1
