"""AgentActor: one process that keeps its sessions open and works on many tasks at once.

It takes deliveries in batches, settles each as a task of its event loop, and tells its
supervisor which are settled when asked. It knows no Ray: `adapters.ray_actors` wraps it, and
gives it `build`, which makes its adapters in its own process.
"""

import asyncio
import os
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import structlog
from msgspec import Struct

from agent_actors import __version__
from agent_actors.asking import Asker, Askers, start_as
from agent_actors.contract import EndpointStatus
from agent_actors.errors import AgentActorsError, PermissionDenied, StreamMissing
from agent_actors.patience import until_built
from agent_actors.ports import (
    Acknowledger,
    ActorReport,
    ActorSettings,
    Answer,
    AnyRoom,
    Delivery,
    ModelRoom,
)
from agent_actors.processes import this_process

log = structlog.get_logger()

LONGEST_POLL_S = 5.0
# An actor that lives answers so often in the time after which it counts as hung.
POLLS_BEFORE_HUNG = 3
# Among the ids of settled deliveries: there is other news.
OTHER_NEWS = ""
GIVE_BACK_S = 5.0
TELL_ENDPOINTS_EVERY_S = 1.0


class Settle(Protocol):
    """What an actor does with a delivery; `settlement.SettleDelivery` in production."""

    async def __call__(self, delivery: Delivery) -> object:
        """Settle one delivery."""
        ...

    def give_back(self) -> None:
        """End what is under way; each settlement then gives its task back."""
        ...

    async def cleared(self) -> None:
        """Return once what settled tasks have left is removed."""
        ...


def _no_model(_listener: Callable[[bool], None]) -> None:
    """Tell nothing."""


def _no_trouble() -> str:
    return ""


async def _no_lane(_answer: Answer) -> str:
    return ""


class ActorParts(Struct, frozen=True, kw_only=True):
    """What an actor is made of: the settlement with its adapters, and how to close them.

    `watch_model` takes whom to tell whether the model is away, at once and at each change; `model`
    says how many tasks may ask it at a time.
    `sandbox` says what confines the commands of its tools, or why nothing does; `trouble` what
    NATS does not do just now, and why. `open_lane` has requests over NATS answered, and returns
    where they are to be sent.
    """

    settle: Settle
    acks: Acknowledger
    close: Callable[[], Awaitable[None]]
    watch_model: Callable[[Callable[[bool], None]], None] = _no_model
    model: ModelRoom = AnyRoom()
    sandbox: str = ""
    trouble: Callable[[], str] = _no_trouble
    open_lane: Callable[[Answer], Awaitable[str]] = _no_lane


class News:
    """What one supervisor is to hear: each settled delivery, until it is known to have."""

    def __init__(self) -> None:
        self._fresh: list[str] = []
        self._told: list[str] = []
        self._number = 0
        self._arrived = asyncio.Event()

    @property
    def is_there(self) -> bool:
        """Whether something has not been told yet."""
        return bool(self._fresh)

    def note(self, id_: str) -> None:
        """Have it told."""
        self._fresh.append(id_)
        self._arrived.set()

    async def wait(self, heard: int | None) -> None:
        """Return when there is something to tell to one who has heard so much."""
        while not self._fresh and self._has_heard(heard):
            self._arrived.clear()
            await self._arrived.wait()

    def tell(self, heard: int | None) -> tuple[int, list[str]]:
        """Return what is to be told now, and the number of this answer."""
        if self._has_heard(heard):
            self._told = []
        if self._fresh:
            self._told += (id_ for id_ in self._fresh if id_ != OTHER_NEWS)
            self._fresh.clear()
            self._number += 1
        return self._number, list(self._told)

    def _has_heard(self, heard: int | None) -> bool:
        return heard is None or heard == self._number


class Held(Struct, frozen=True):
    """A delivery being settled, and the supervisor that wants to hear of it."""

    delivery: Delivery
    owner: str
    asker: Asker
    settlement: asyncio.Future[object]


Build = Callable[[ActorSettings], Awaitable[ActorParts]]


class AgentActor:
    """A pool's worker. Its `__init__` must run inside the event loop that it works in."""

    def __init__(self, settings: ActorSettings, build: Build) -> None:
        self._settings = settings
        self._incarnation = uuid.uuid4().hex
        self._slots = settings.pool.slots
        self._free_bytes = settings.pool.max_in_flight_bytes
        self._process = this_process()
        self._poll_s = min(LONGEST_POLL_S, settings.pool.hang_timeout_s / POLLS_BEFORE_HUNG)
        self._version = 0
        self._held: dict[str, Held] = {}
        self._news: defaultdict[str, News] = defaultdict(News)
        self._stop: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._model: ModelRoom = AnyRoom()
        self._model_away = False
        self._askers = Askers(on_rest=self._note_rest)
        self._told_free = 0
        self._told_endpoints_at = -TELL_ENDPOINTS_EVERY_S
        self._alone = False
        self._build_trouble = ""
        self._unable = False
        self._parts = asyncio.create_task(self._built(build))
        self._heartbeat = asyncio.create_task(self._beat())

    async def look(self) -> ActorReport:
        """Answer at once, whether there are connections yet or not."""
        return self._report()

    async def hello(self, supervisor_id: str) -> ActorReport:
        """Answer once everything is connected: my slots, and what I hold of yours."""
        parts = await asyncio.shield(self._parts)
        self._news[supervisor_id] = News()  # a poll of its predecessor gets nothing more
        mine = [held.delivery for held in self._held.values() if held.owner == supervisor_id]
        return self._report(
            held=mine,
            sandbox=parts.sandbox,
            process=self._process,
            built_from=self._settings.built_from,
            hang_timeout_s=self._settings.pool.hang_timeout_s,
            package=__version__,
        )

    async def submit(
        self, supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        """Take what there is room for, and return at once; after the first refused, no other.

        With `alone` that is one delivery if nothing is held, and nothing beside it until it ends.
        """
        settle = (await asyncio.shield(self._parts)).settle
        taken = 0
        for delivery in batch:
            if delivery.id not in self._held:
                if (alone and self._held) or not self._has_room(delivery):
                    break
                self._alone = alone
                self._take(supervisor_id, delivery, settle)
            taken += 1
        return self._report(refused=[delivery.id for delivery in batch[taken:]])

    async def completions(self, supervisor_id: str, heard: int | None = None) -> ActorReport:
        """Return all that was settled since the last call; wait a while for news of any kind.

        `heard` is the `number` of the last answer that came: what others told meanwhile is told
        again. Without it all have come.
        """
        news = self._news[supervisor_id]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_s):
                await news.wait(heard)
        number, finished = news.tell(heard)
        return self._report(finished=finished, number=number)

    async def stop(self, grace_s: float) -> None:
        """Take nothing more, finish what ends within `grace_s`, give back the rest, close.

        Told again meanwhile, whichever time is over first counts.
        """
        log.info("actor.stopping", running=len(self._held), grace_s=grace_s)
        asyncio.get_running_loop().call_later(grace_s, self._hurry.set)
        if not self._stop:
            self._version += 1
            self._stop = asyncio.create_task(self._end())
        await asyncio.shield(self._stop)

    @property
    def _trouble(self) -> str:
        is_built = self._parts.done() and not self._parts.cancelled()
        return self._parts.result().trouble() if is_built else self._build_trouble

    @property
    def _free(self) -> int:
        """Slots that may get something: no more than there is room for in the model.

        Tasks whose tools work want none of that now; when they come back they go before others.
        """
        if self._stop or self._alone:
            return 0
        asking = len(self._held) - self._askers.resting
        room = max(1, self._model.room) - asking
        return max(0, min(self._slots - len(self._held), room))

    def _has_room(self, delivery: Delivery) -> bool:
        """Tell whether it may be taken; a big one may when nothing is held, or it never could."""
        return self._free > 0 and (delivery.size_bytes <= self._free_bytes or not self._held)

    async def _end(self) -> None:
        if not self._parts.done():
            self._parts.cancel()
            return
        parts = self._parts.result()
        hurry = asyncio.create_task(self._hurry.wait())
        settlements = asyncio.create_task(self._wait_for_settlements())
        await asyncio.wait([hurry, settlements], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        parts.settle.give_back()
        await asyncio.wait([settlements], timeout=GIVE_BACK_S)
        settlements.cancel()
        self._heartbeat.cancel()
        await parts.settle.cleared()
        await parts.close()
        log.info("actor.stopped", unsettled=len(self._held))

    async def _built(self, build: Build) -> ActorParts:
        building = partial(build, self._settings)
        parts = await until_built(building, self._settings.agent_id, self._note_build_trouble)
        parts.watch_model(self._note_model)
        self._model = parts.model
        self._model.watch_room(self._note_room)
        return parts

    def _note_build_trouble(self, error: AgentActorsError) -> None:
        self._build_trouble = str(error)

    def _note_model(self, away: bool) -> None:  # noqa: FBT001 - the one thing that is told
        """Tell every supervisor at once, since it then pulls less, or more."""
        if away != self._model_away:
            self._model_away = away
            self._tell()

    def _note_room(self) -> None:
        if self._free != self._told_free:
            self._tell()

    def _note_rest(self) -> None:
        if self._free > self._told_free:
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        for news in self._news.values():
            if not news.is_there:  # whoever gets what is there hears this, too
                news.note(OTHER_NEWS)

    def _take(self, owner: str, delivery: Delivery, settle: Settle) -> None:
        self._version += 1
        self._free_bytes -= delivery.size_bytes
        asker = Asker(self._askers)
        settlement = start_as(asker, settle(delivery))
        self._held[delivery.id] = Held(delivery, owner, asker, settlement)
        settlement.add_done_callback(partial(self._let_go, delivery))

    def _let_go(self, delivery: Delivery, settlement: asyncio.Future[object]) -> None:
        """Free its room, whatever happened.

        A settlement that raised leaves its message unacked: JetStream hands it out again
        after `ack_wait_s`.
        """
        error = None if settlement.cancelled() else settlement.exception()
        self._unable = isinstance(error, (PermissionDenied, StreamMissing))
        self._version += 1
        held = self._held.pop(delivery.id)
        held.asker.leave()
        self._free_bytes += delivery.size_bytes
        self._alone = False  # it was the only one, if it was alone
        self._news[held.owner].note(delivery.id)
        if self._unable:
            log.error("task.unsettled", stream_seq=delivery.source.stream_seq, error=str(error))
        elif error:
            log.error("task.unsettled", stream_seq=delivery.source.stream_seq, exc_info=error)

    async def _wait_for_settlements(self) -> None:
        if self._held:
            await asyncio.wait([held.settlement for held in self._held.values()])

    async def _beat(self) -> None:
        """Tell JetStream every third of `ack_wait_s` what is still being worked on."""
        acks = (await asyncio.shield(self._parts)).acks
        while True:
            await asyncio.sleep(self._settings.pool.heartbeat_s)
            await acks.in_progress([held.delivery for held in self._held.values()])

    def _endpoints(self) -> list[EndpointStatus]:
        """Return what there is to tell of the model servers, when that is due."""
        now = asyncio.get_running_loop().time()
        if now - self._told_endpoints_at < TELL_ENDPOINTS_EVERY_S:
            return []
        self._told_endpoints_at = now
        return self._model.endpoints()

    def _report(
        self,
        *,
        refused: Sequence[str] = (),
        finished: Sequence[str] = (),
        **of_hello: Any,  # noqa: ANN401 - what only a greeting tells
    ) -> ActorReport:
        self._told_free = self._free
        return ActorReport(
            incarnation=self._incarnation,
            pid=os.getpid(),
            version=self._version,
            slots=self._slots,
            free=self._told_free,
            free_bytes=self._free_bytes,
            used=len(self._held),
            model_away=self._model_away,
            alone=self._alone,
            stopping=self._stop is not None,
            trouble=self._trouble,
            unable=self._unable,
            refused=list(refused),
            finished=list(finished),
            endpoints=self._endpoints(),
            **of_hello,
        )
