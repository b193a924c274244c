"""The actors of one pool: found or started, followed through their lives, let go when done.

Read `Crew.shape`: it starts those that are missing and lets go those that are too many or built
from earlier settings, as `roster` decides. What an actor holds is in the books (`dispatch`).
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Literal

import structlog
from msgspec import Struct
from msgspec.structs import replace

from agent_actors.contract import ActorStatus
from agent_actors.dispatch import Dispatcher
from agent_actors.errors import ActorLost
from agent_actors.patience import FIRST_PAUSE_S, pause
from agent_actors.ports import ActorHandle, ActorReport, ActorRuntime, ActorSettings, Delivery
from agent_actors.roster import ROOM_PATIENCE_S, Member, moves
from agent_actors.watching import WatchedActor

log = structlog.get_logger()

# How often an actor that cannot work yet is asked for the reason.
ASK_WHY_EVERY_S = 2.0
# An actor answers a look as soon as it has a process.
LOOK_TIMEOUT_S = 2.0
# A time of grace that is told again is the same one, but for what it took to tell it.
SHORTER_BY_S = 1.0

OnLost = Callable[[str, Sequence[Delivery], bool], None]
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Place(Struct):
    """What is known of one actor beside what it holds."""

    since: float
    handle: ActorHandle | None = None
    current: bool = True
    ready: bool = False
    placed: bool = False
    trouble: str = ""
    package: str = ""
    node: str = ""
    adopted: bool = False
    following: asyncio.Task[None] | None = None


class Crew:
    """The actors of one pool. `settings` are those that hold now, of an actor without a name.

    `on_lost` takes what an actor took down with it, and whether that was alone there; `on_room`
    is called when there may be more room, `on_change` when there may be somebody to start or to
    let go, too; `spawn` starts a task in whose failure the supervisor fails.
    """

    def __init__(
        self,
        *,
        settings: ActorSettings,
        supervisor_id: str,
        runtime: ActorRuntime,
        books: Dispatcher,
        on_lost: OnLost,
        on_room: Callable[[], None],
        on_change: Callable[[], None],
        spawn: Spawn,
    ) -> None:
        self._settings = settings
        self._pool = settings.pool
        self._id = supervisor_id
        self._runtime = runtime
        self._books = books
        self._on_lost = on_lost
        self._on_room = on_room
        self._on_change = on_change
        self._spawn = spawn
        self._log = log.bind(pool=settings.pool_name)
        self._places: dict[str, Place] = {}
        self._leaving: set[str] = set()
        self._closed: dict[str, float] = {}

    @property
    def size(self) -> int:
        """Actors that are to stay and work."""
        return sum(place.ready for name, place in self._places.items() if name not in self._leaving)

    @property
    def is_empty(self) -> bool:
        """Whether nobody is there, or comes soon, who could take something."""
        return all(name in self._leaving or self._is_unplaced(name) for name in self._places)

    @property
    def is_as_wanted(self) -> bool:
        """Whether nobody is on the way, in or out, or built from other settings."""
        return not self._leaving and all(
            each.ready and each.current for each in self._places.values()
        )

    async def submit(self, agent_id: str, batch: Sequence[Delivery], *, alone: bool) -> ActorReport:
        """Hand deliveries to an actor that has answered. Raises ActorLost."""
        handle = self._places[agent_id].handle
        if handle is None:
            raise ActorLost("it has not answered yet")
        return await handle.submit(self._id, batch, alone=alone)

    def adopt(self, agent_ids: Collection[str]) -> None:
        """Follow actors that are there already."""
        for agent_id in sorted(agent_ids):
            self._follow_from_now(agent_id)
            self._places[agent_id].adopted = True

    def shape(self, wanted: int) -> None:
        """Make the next moves towards so many actors with the settings that hold now."""
        members = [self._member(name) for name in self._places if name not in self._leaving]
        todo = moves(self._settings.pool_name, members, self._leaving, wanted)
        for agent_id in todo.start:
            self._follow_from_now(agent_id)
        for agent_id in todo.retire:
            self._let_go(agent_id)

    def close_node(self, node: str, grace_s: float) -> None:
        """Have nobody on a node any more; those who are there finish what ends in `grace_s`.

        Asked again, it does nothing new unless the time is shorter now.
        """
        until = _now() + grace_s
        known = self._closed.get(node, math.inf)
        if until < known - SHORTER_BY_S:
            self._closed[node] = until
            for agent_id, place in self._places.items():
                if place.node == node:
                    self._leave_node(agent_id)

    def on_node(self, node: str) -> list[str]:
        """Return who is on a node, or may be: those adopted have not said yet where they are.

        One that was started and has not answered yet holds nothing that could be lost.
        """
        return [
            name
            for name, place in self._places.items()
            if place.node == node
            or (place.adopted and not place.node and not self._is_unplaced(name))
        ]

    async def stop(self, grace_s: float) -> None:
        """End all actors, once they have finished what they can in the time of grace.

        What one takes down with it that dies meanwhile is handed on.
        """
        await asyncio.gather(
            *(
                self._stopped(agent_id, place.handle, grace_s)
                if place.handle
                else self._found_and_stopped(agent_id, grace_s)
                for agent_id, place in self._places.items()
            )
        )

    def statuses(self) -> list[ActorStatus]:
        """Return what the actors do."""
        return [self._status(agent_id) for agent_id in sorted(self._places, key=_in_order)]

    async def trouble(self) -> str:
        """Return what keeps actors from working; empty when all of them do."""
        told = Counter(
            place.trouble for place in self._places.values() if place.trouble and not place.ready
        )
        reasons = [f"{count} of its actors: {trouble}" for trouble, count in told.most_common()]
        unplaced = [name for name in self._places if self._is_unplaced(name)]
        if unplaced:
            lacking = await self._runtime.lacking(self._pool.resources)
            reasons.append(f"no room for {', '.join(sorted(unplaced, key=_in_order))}: {lacking}")
        return "; ".join(reasons)

    def lose(self, agent_id: str, error: ActorLost) -> None:
        """Take note that an actor is away, and hand on what it held."""
        place = self._places[agent_id]
        place.ready, place.placed, place.since, place.node = False, False, _now(), ""
        alone = self._books.actors[agent_id].alone
        lost = self._books.lose(agent_id)
        self._log.warning("actor.lost", agent_id=agent_id, held=len(lost), error=str(error))
        self._on_lost(agent_id, lost, alone)
        self._on_change()

    def _follow_from_now(self, agent_id: str) -> None:
        self._books.add(agent_id)
        place = Place(since=_now())
        self._places[agent_id] = place
        place.following = self._spawn(self._follow(agent_id))

    async def _follow(self, agent_id: str) -> None:
        """Follow one actor through its lives."""
        while True:
            with await self._greet(agent_id) as actor:
                try:
                    while self._books.finished(agent_id, await actor.completions(self._id)):
                        self._on_room()
                except ActorLost as error:
                    self.lose(agent_id, error)
                else:
                    self.lose(agent_id, ActorLost("another process has its place"))

    async def _greet(self, agent_id: str) -> WatchedActor:
        """Return the actor, watched, once it has said what it holds and has room for."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                handle = await self._runtime.start(replace(self._settings, agent_id=agent_id))
                report = await self._answer(agent_id, handle)
            except ActorLost as error:
                self._log.warning("actor.not_ready", agent_id=agent_id, error=str(error))
                pause_s = await pause(pause_s)
            else:
                break
        place = self._places[agent_id]
        place.handle, place.ready, place.placed, place.trouble = handle, True, True, ""
        place.current = report.built_from == self._settings.built_from
        place.package = report.package
        self._books.greet(agent_id, report)
        self._log.info(
            "actor.ready",
            agent_id=agent_id,
            slots=report.slots,
            held=len(report.held),
            outdated=not place.current,
        )
        if report.stopping:
            self._let_go(agent_id)
        self._note_node(agent_id, report)
        self._on_change()
        # One of earlier settings answers as often as those say.
        hang_timeout_s = report.hang_timeout_s or self._pool.hang_timeout_s
        return WatchedActor(handle, report.process, hang_timeout_s)

    async def _answer(self, agent_id: str, handle: ActorHandle) -> ActorReport:
        """Return the actor's greeting; until it comes, know whether it has a place, and why not."""
        place = self._places[agent_id]
        greeting = asyncio.ensure_future(handle.hello(self._id))
        looking = asyncio.create_task(self._keep_looking(agent_id, place, handle))
        try:
            return await greeting
        finally:
            greeting.cancel()
            looking.cancel()

    async def _keep_looking(self, agent_id: str, place: Place, handle: ActorHandle) -> None:
        with suppress(ActorLost):
            while True:
                report = await handle.look()
                place.placed, place.trouble = True, report.trouble
                self._note_node(agent_id, report)
                self._on_change()
                await asyncio.sleep(ASK_WHY_EVERY_S)

    def _note_node(self, agent_id: str, report: ActorReport) -> None:
        place = self._places[agent_id]
        place.node, place.adopted = report.node, False
        if report.node in self._closed:
            self._let_go(agent_id)

    def _leave_node(self, agent_id: str) -> None:
        """Let an actor go; one that is leaving already gets the time of grace that is left."""
        place = self._places[agent_id]
        if agent_id in self._leaving and place.handle:
            self._spawn(self._stopped(agent_id, place.handle, self._grace_s(place)))
        self._let_go(agent_id)

    def _let_go(self, agent_id: str) -> None:
        if agent_id not in self._leaving:
            self._leaving.add(agent_id)
            self._books.let_go(agent_id)
            self._on_change()
            self._spawn(self._retire(agent_id))

    async def _retire(self, agent_id: str) -> None:
        """Have an actor finish what it has, and end it."""
        place = self._places[agent_id]
        grace_s = self._grace_s(place)
        self._log.info(
            "actor.leaving", agent_id=agent_id, outdated=not place.current, grace_s=round(grace_s)
        )
        if place.handle and place.ready:
            await self._stopped(agent_id, place.handle, grace_s)
        else:
            await self._found_and_stopped(agent_id, grace_s)
        if place.following:
            place.following.cancel()
            await asyncio.wait([place.following])
        self._books.remove(agent_id)
        del self._places[agent_id]
        self._leaving.discard(agent_id)
        self._log.info("actor.left", agent_id=agent_id)
        self._on_change()

    def _grace_s(self, place: Place) -> float:
        """Return how long one that leaves may work: as long as it takes, if its node stays."""
        longest_s = self._pool.task_timeout_s + self._pool.stop_grace_s
        until = self._closed.get(place.node, math.inf)
        return max(0.0, min(longest_s, until - _now()))

    async def _stopped(self, agent_id: str, handle: ActorHandle, grace_s: float) -> None:
        try:
            await handle.stop(grace_s)
        except ActorLost as error:
            if agent_id in self._places:  # else it was let go, too, and that was quicker
                self.lose(agent_id, error)

    async def _found_and_stopped(self, agent_id: str, grace_s: float) -> None:
        """End an actor that has not answered: at once if it has no process yet.

        Else it may be at work, for the supervisor before this one.
        """
        with suppress(ActorLost):
            handle = await self._runtime.find(agent_id)
            if await _has_process(handle):
                await self._stopped(agent_id, handle, grace_s)
            else:
                await handle.end()

    def _member(self, agent_id: str) -> Member:
        place = self._places[agent_id]
        return Member(
            agent_id=agent_id,
            current=place.current,
            ready=place.ready,
            placed=place.placed,
            used=self._books.actors[agent_id].used,
            waiting_s=_now() - place.since,
        )

    def _is_unplaced(self, agent_id: str) -> bool:
        place = self._places[agent_id]
        return not place.ready and not place.placed and _now() - place.since > ROOM_PATIENCE_S

    def _status(self, agent_id: str) -> ActorStatus:
        place, view = self._places[agent_id], self._books.actors[agent_id]
        state: Literal["starting", "running", "draining"] = (
            "draining" if agent_id in self._leaving else "running" if place.ready else "starting"
        )
        return ActorStatus(
            agent_id=agent_id,
            state=state,
            slots=view.slots,
            slots_used=view.in_use,
            pid=view.pid,
            sandbox=view.sandbox,
            trouble=view.trouble,
            endpoints=view.endpoints,
            version=place.package,
            outdated=not place.current,
        )


async def _has_process(handle: ActorHandle) -> bool:
    try:
        async with asyncio.timeout(LOOK_TIMEOUT_S):
            await handle.look()
    except (ActorLost, TimeoutError):
        return False
    return True


def _now() -> float:
    return asyncio.get_running_loop().time()


def _in_order(agent_id: str) -> tuple[str, int]:
    pool_name, _, number = agent_id.rpartition("-")
    return pool_name, int(number)
