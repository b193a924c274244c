"""The service that a `serve` stays with, through edits and takeovers: over scripted ones."""

import asyncio

import pytest
from support.until import until

from agent_actors import kept as kept_module
from agent_actors.config import Config, PoolConfig
from agent_actors.errors import ServiceUnreachable
from agent_actors.following import FollowedConfig
from agent_actors.kept import KeptService
from agent_actors.supervisor import Ending

FIRST = Config()
EDITED = Config(pools={"default": PoolConfig(actors=3)})


class ScriptedService:
    """Takes over when it may, and tells how it has ended when it has."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.takes_over = True
        self.gives_up = False
        self.ending: Ending | None = None
        self.stops: list[float | None] = []
        self.abandoned = False
        self.troubles: list[str] = []

    def wait_started(self, timeout_s: float) -> None:
        if self.ending or not self.takes_over:
            raise ServiceUnreachable("it does not answer")

    def fate(self) -> Ending | None:
        return self.ending

    def give_up(self) -> bool:
        return self.gives_up

    def stop(self, grace_s: float | None = None) -> None:
        self.stops.append(grace_s)

    def abandon(self) -> None:
        self.abandoned = True

    def note_trouble(self, trouble: str) -> None:
        self.troubles.append(trouble)

    async def ended(self) -> Ending:
        if self.ending is None:
            raise ServiceUnreachable("it is being restarted")
        return self.ending


class Edits(FollowedConfig):
    """One edit, and then no more; `taken` is set once it has been dealt with."""

    def __init__(self) -> None:
        self.wanted = [EDITED]
        self.taken = asyncio.Event()

    async def edited(self) -> Config:
        if self.wanted:
            return self.wanted.pop()
        self.taken.set()
        return await asyncio.Future()


class Stage:
    """A first service, and the one that is to take over from it."""

    def __init__(self) -> None:
        self.first, self.next = ScriptedService(FIRST), ScriptedService(EDITED)
        self._services = [self.next, self.first]
        self.kept = KeptService(lambda _: self._services.pop(), FIRST)  # type: ignore[arg-type]

    async def edit(self) -> asyncio.Task[None]:
        """Follow an edit; return once it is being taken over."""
        self.edits = Edits()
        following = asyncio.create_task(self.kept.follow(self.edits))
        await until(lambda: not self._services)
        return following


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_module, "ASK_EVERY_S", 0.0)


async def test_it_stays_with_what_has_taken_over_for_an_edit():
    stage = Stage()
    following = await stage.edit()
    await asyncio.wait_for(stage.edits.taken.wait(), 5)
    following.cancel()
    stage.kept.stop(3)
    assert (stage.first.stops, stage.next.stops) == ([], [3])
    assert not stage.first.abandoned


@pytest.mark.parametrize("gives_up", [True, False])
async def test_a_stop_during_a_takeover_drains_whichever_has_the_pools(*, gives_up: bool):
    stage = Stage()
    stage.next.takes_over = False
    following = await stage.edit()
    following.cancel()
    stage.next.gives_up = gives_up
    stage.kept.stop()
    stage.kept.stop(0)
    stopped, other = (stage.first, stage.next) if gives_up else (stage.next, stage.first)
    assert (stopped.stops, other.stops) == ([None, 0], [])


async def test_what_dies_instead_of_taking_over_costs_the_running_service_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(kept_module, "ROOM_WITHIN_S", 0.0)
    stage = Stage()
    stage.next.ending = "drained"
    following = await stage.edit()
    await asyncio.wait_for(stage.edits.taken.wait(), 5)
    following.cancel()
    assert not stage.first.abandoned
    assert stage.first.troubles == [
        "the edited configuration cannot be taken over: it does not answer"
    ]


@pytest.mark.parametrize("ending", ["drained", "superseded"])
async def test_it_hears_how_a_service_has_ended_that_was_silent_for_a_while(ending: Ending):
    stage = Stage()
    ended = asyncio.create_task(stage.kept.ended())
    await asyncio.sleep(0)
    stage.first.ending = ending
    assert await asyncio.wait_for(ended, 5) == ending
