"""The service that `serve` stays with, over scripted services: edits, successors, endings."""

import asyncio
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from support.until import until

from agent_actors import kept as kept_module
from agent_actors.config import Config, NatsConfig, PoolConfig, StreamsConfig
from agent_actors.errors import ConfigError, ServiceUnreachable
from agent_actors.kept import KeptService
from agent_actors.supervisor import Ending


class ScriptedService:
    """A service that says what it is told to say."""

    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.config = config
        self.starts = True
        self.told: list[str] = []
        self.abandoned = False
        self.stopped_with: list[float | None] = []
        self.ending: asyncio.Future[Ending] = loop.create_future()

    def wait_started(self, timeout_s: float) -> None:
        if not self.starts:
            raise ServiceUnreachable("no room")

    def note_trouble(self, trouble: str) -> None:
        self.told.append(trouble)

    def abandon(self) -> None:
        self.abandoned = True

    def fate(self) -> Ending | None:
        return None

    def give_up(self) -> bool:
        self.abandoned = self.abandoned or not self.starts
        return self.abandoned

    def stop(self, grace_s: float | None = None) -> None:
        self.stopped_with.append(grace_s)

    async def ended(self) -> Ending:
        return await asyncio.shield(self.ending)


class Edits:
    """A followed configuration whose edits a test makes."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[Config | ConfigError] = asyncio.Queue()

    async def edited(self) -> Config:
        edit = await self.coming.get()
        if isinstance(edit, ConfigError):
            raise edit
        return edit


class Stage:
    def __init__(self) -> None:
        self.services: list[ScriptedService] = []
        self.loop = asyncio.get_running_loop()
        self.prepare: Callable[[ScriptedService], None] = lambda _: None
        self.kept = KeptService(self.start, Config())
        self.edits = Edits()
        self.following = asyncio.create_task(self.kept.follow(self.edits))

    def start(self, config: Config) -> ScriptedService:
        service = ScriptedService(config, self.loop)
        self.prepare(service)
        self.services.append(service)
        return service

    async def edit(self, edit: Config | ConfigError) -> None:
        self.edits.coming.put_nowait(edit)

    async def until_told(self, said: str, number: int = 0) -> None:
        await until(lambda: said in self.services[number].told, timeout_s=5)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_module, "ASK_EVERY_S", 0.01)
    stage = Stage()
    yield stage
    stage.following.cancel()


def sized(actors: int, **more) -> Config:
    return Config(pools={"default": PoolConfig(actors=actors)}, **more)


async def test_an_edit_gets_a_successor_that_is_stayed_with(stage: Stage):
    await stage.edit(sized(5))
    await until(lambda: len(stage.services) == 2 and stage.kept.service is stage.services[1])
    await stage.until_told("", 1)
    assert stage.services[1].config == sized(5)


async def test_a_wrong_edit_leaves_the_service_and_is_told(stage: Stage):
    await stage.edit(ConfigError("c.yaml:1: pools.default.actors is -1"))
    said = "the edited configuration is wrong: c.yaml:1: pools.default.actors is -1"
    await stage.until_told(said)
    assert len(stage.services) == 1
    await stage.edit(Config())
    await until(lambda: stage.services[0].told[-1] == "", timeout_s=5)


async def test_what_only_a_restart_brings_in_force_is_named_and_left(stage: Stage):
    await stage.edit(sized(5, nats=NatsConfig(url="nats://elsewhere:4222")))
    said = "edited, not in force yet: nats.url: restart the service"
    await until(lambda: len(stage.services) == 2, timeout_s=5)
    await stage.until_told(said, 1)
    assert stage.services[1].config == sized(5)


async def test_an_edit_of_nothing_but_the_streams_needs_provision(stage: Stage):
    edited = replace(Config(), streams=StreamsConfig(replicas=3))
    await stage.edit(edited)
    await until(lambda: len(stage.services) == 2, timeout_s=5)
    said = "edited, not in force yet: streams.replicas: run `agent-actors provision`"
    await stage.until_told(said, 1)


async def test_a_successor_without_room_gets_that_of_the_service_before(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(kept_module, "ROOM_WITHIN_S", 0.05)
    stage.prepare = lambda service: setattr(service, "starts", False)
    await stage.edit(sized(5))
    first = stage.services[0]
    await until(lambda: first.abandoned, timeout_s=5)
    stage.services[1].starts = True
    await until(lambda: stage.kept.service is stage.services[1], timeout_s=5)


async def test_a_stop_ends_a_successor_that_has_not_started(stage: Stage):
    stage.prepare = lambda service: setattr(service, "starts", False)
    await stage.edit(sized(5))
    await until(lambda: len(stage.services) == 2, timeout_s=5)
    stage.kept.stop(3.0)
    assert stage.services[1].abandoned
    assert stage.services[0].stopped_with == [3.0]


async def test_it_ends_when_the_service_is_drained(stage: Stage):
    stage.services[0].ending.set_result("drained")
    assert await asyncio.wait_for(stage.kept.ended(), 5) == "drained"


async def test_it_ends_when_another_than_its_own_service_has_taken_over(stage: Stage):
    stage.services[0].ending.set_result("superseded")
    assert await asyncio.wait_for(stage.kept.ended(), 5) == "superseded"


async def test_it_goes_on_when_its_own_successor_has_taken_over(stage: Stage):
    ended = asyncio.create_task(stage.kept.ended())
    stage.prepare = lambda service: setattr(service, "starts", False)
    await stage.edit(sized(5))
    await until(lambda: len(stage.services) == 2, timeout_s=5)
    stage.services[0].ending.set_result("superseded")
    stage.services[1].starts = True
    await until(lambda: stage.kept.service is stage.services[1], timeout_s=5)
    assert not ended.done()
    stage.services[1].ending.set_result("drained")
    assert await asyncio.wait_for(ended, 5) == "drained"
