"""Which actor gets which delivery, and how many may be asked for: pure bookkeeping of a pool.

The actor is the authority on its own room, in slots and in bytes. What is kept here is what it
last said, less what has been sent to it since; so it may be too low for a moment, but never too
high.
"""

from collections.abc import Iterable
from operator import attrgetter

from msgspec import Struct

from agent_actors.contract import EndpointStatus
from agent_actors.ports import ActorReport, Delivery

# The share of an actor's slots that must be closed at once to be worth asking for less at once.
SHRUNK = 4

_slots = attrgetter("slots")


class ActorView(Struct):
    """One actor as the supervisor knows it; `incarnation` is empty until it has answered.

    `alone`: what it holds is to have no company; `reserved`: it is being emptied for that.
    `leaving`: it finishes what it has, and gets nothing more.
    """

    agent_id: str
    incarnation: str = ""
    pid: int = 0
    slots: int = 0
    in_use: int = 0
    free: int = 0
    free_bytes: int = 0
    version: int = -1
    held: dict[str, Delivery] = {}
    sending: int = 0
    sending_bytes: int = 0
    alone: bool = False
    reserved: bool = False
    leaving: bool = False
    model_away: bool = False
    trouble: str = ""
    unable: bool = False
    sandbox: str = ""
    endpoints: list[EndpointStatus] = []

    @property
    def used(self) -> int:
        """Slots that are taken, and those that something is on its way to."""
        return min(self.slots, self.in_use + self.sending)

    @property
    def available(self) -> int:
        """Slots that may get something."""
        is_closed = self.alone or self.reserved or self.leaving
        return 0 if is_closed else max(0, self.free - self.sending)

    @property
    def model_full(self) -> bool:
        """Whether the model servers let it use less than its slots, and all have a queue."""
        return (
            bool(self.endpoints)
            and all(each.waiting > 0 for each in self.endpoints)
            and sum(each.limit for each in self.endpoints) < self.slots
        )

    @property
    def available_bytes(self) -> int:
        """Bytes of messages that it may get; when it has none, it gets one of any size."""
        return max(0, self.free_bytes - self.sending_bytes)

    def room(self, largest_bytes: int) -> int:
        """Return how many messages it can take if each is the largest that there is."""
        fitting = self.available_bytes // largest_bytes
        return min(self.available, fitting or (0 if self.used else 1))


class Dispatcher:
    """The actors of one pool: who is there, what they hold, and who gets what comes next."""

    def __init__(self) -> None:
        self.actors: dict[str, ActorView] = {}
        self.settled = 0
        self._has_shrunk = False

    @property
    def free(self) -> int:
        """Slots of the whole pool that may get something."""
        return sum(actor.available for actor in self._willing)

    @property
    def used(self) -> int:
        """Slots of the whole pool that are taken, and those that something is on its way to."""
        return sum(actor.used for actor in self.actors.values())

    @property
    def model_away(self) -> bool:
        """Whether all actors that have answered say that they cannot reach the model."""
        return bool(self._known) and all(actor.model_away for actor in self._known)

    @property
    def model_full(self) -> bool:
        """Whether the model takes no more, as all actors that have answered say."""
        return bool(self._known) and all(actor.model_full for actor in self._known)

    @property
    def unable(self) -> bool:
        """Whether no actor that has answered could settle its newest task, for a trouble."""
        return bool(self.trouble) and all(actor.unable for actor in self._known)

    @property
    def trouble(self) -> str:
        """What NATS does not do for all actors that have answered, in the words of one."""
        is_everywhere = all(actor.trouble for actor in self._known)
        return self._known[0].trouble if self._known and is_everywhere else ""

    def wanted(self, waiting: int, largest_bytes: int) -> int:
        """Return how many deliveries to ask for beside those that wait here or are on their way.

        Nobody knows how big what comes will be. So what waits is no more than would find room if
        each were the largest that there is; but a single one may wait for room.
        """
        room = sum(actor.room(largest_bytes) for actor in self._willing)
        return max(0, min(self.free, max(1, room)) - waiting)

    def add(self, agent_id: str) -> None:
        """Know of an actor that has not answered yet."""
        self.actors[agent_id] = ActorView(agent_id=agent_id)

    def greet(self, agent_id: str, report: ActorReport) -> None:
        """Take an actor's answer to `hello`: from now on it gets work."""
        self.actors[agent_id] = ActorView(
            agent_id=agent_id,
            incarnation=report.incarnation,
            pid=report.pid,
            slots=report.slots,
            in_use=report.used,
            free=report.free,
            free_bytes=report.free_bytes,
            version=report.version,
            alone=report.alone,
            model_away=report.model_away,
            leaving=self.actors[agent_id].leaving,
            trouble=report.trouble,
            unable=report.unable,
            held={delivery.id: delivery for delivery in report.held},
            sandbox=report.sandbox,
            endpoints=report.endpoints,
        )

    def lose(self, agent_id: str) -> list[Delivery]:
        """Take note that an actor is away until it is greeted again; return what it held."""
        known = self.actors[agent_id]
        self.actors[agent_id] = ActorView(agent_id=agent_id, leaving=known.leaving)
        return list(known.held.values())

    def let_go(self, agent_id: str) -> None:
        """Give an actor nothing more; it finishes what it has."""
        self.actors[agent_id].leaving = True
        self._has_shrunk = True

    def has_shrunk(self) -> bool:
        """Tell, once, that much room has gone since this was asked before.

        Somebody was let go, or the model takes less at a time.
        """
        shrunk, self._has_shrunk = self._has_shrunk, False
        return shrunk

    def remove(self, agent_id: str) -> None:
        """Forget an actor that has ended: what it held it has settled, if too late to tell."""
        self.settled += len(self.actors.pop(agent_id).held)

    def assign(self, inbox: list[Delivery]) -> dict[str, list[Delivery]]:
        """Take deliveries off the inbox, each for the actor with the most free slots.

        One that is too big for all of them waits, and what came later waits behind it: else small
        ones would take its room for ever. An actor that a batch is on its way to gets the next
        one when that has arrived: under load the batches grow by themselves.
        """
        rooms = [_Room(actor) for actor in self._willing if not actor.sending and actor.available]
        count = 0
        for delivery in inbox:
            size_bytes = delivery.size_bytes
            fitting = [room for room in rooms if room.fits(size_bytes)]
            if not fitting:
                break
            max(fitting, key=_slots).take(delivery, size_bytes)
            count += 1
        del inbox[:count]
        batches = {room.agent_id: room.batch for room in rooms if room.batch}
        for agent_id, batch in batches.items():
            self._send(self.actors[agent_id], batch)
        return batches

    def isolate(self, lane: list[Delivery]) -> tuple[str, list[Delivery]] | None:
        """Take the first off the lane for an empty actor, to run there alone; one at a time.

        While none is empty, the one with the least to do gets nothing more.
        """
        actors = [each for each in self._willing if each.incarnation and not each.leaving]
        for actor in actors:
            actor.reserved = False
        if not lane or not actors or any(actor.alone for actor in actors):
            return None
        emptiest = min(actors, key=lambda actor: (actor.used, actor.agent_id))
        if emptiest.used or not emptiest.available:
            emptiest.reserved = True
            return None
        emptiest.alone = True
        batch = [lane.pop(0)]
        self._send(emptiest, batch)
        return emptiest.agent_id, batch

    def arrived(self, agent_id: str, batch: list[Delivery], report: ActorReport) -> list[Delivery]:
        """Take an actor's answer to a batch; return what it had no room for."""
        actor = self.actors.get(agent_id)
        if actor is None or actor.incarnation != report.incarnation:
            return []
        actor.sending = actor.sending_bytes = 0
        refused = set(report.refused)
        for id_ in refused:
            actor.held.pop(id_, None)
        actor.alone = actor.alone and bool(actor.held)
        self._update(actor, report)
        return [delivery for delivery in batch if delivery.id in refused]

    def finished(self, agent_id: str, report: ActorReport) -> bool:
        """Take an actor's news of what it has settled; tell whether it still is who we greeted."""
        actor = self.actors[agent_id]
        if actor.incarnation != report.incarnation:
            return False
        for id_ in report.finished:
            if actor.held.pop(id_, None):
                self.settled += 1
        actor.alone = actor.alone and bool(actor.held)
        self._update(actor, report)
        return True

    @property
    def _known(self) -> list[ActorView]:
        """Those who have answered."""
        return [actor for actor in self.actors.values() if actor.incarnation]

    @property
    def _willing(self) -> list[ActorView]:
        """Those who reach the model; when nobody does, everybody."""
        actors = list(self.actors.values())
        return actors if self.model_away else [each for each in actors if not each.model_away]

    def _send(self, actor: ActorView, batch: list[Delivery]) -> None:
        actor.sending = len(batch)
        actor.sending_bytes = _bytes(batch)
        actor.held.update((delivery.id, delivery) for delivery in batch)

    def _update(self, actor: ActorView, report: ActorReport) -> None:
        """Believe the newest word only: answers may overtake each other."""
        if report.version >= actor.version:
            taken = report.used - actor.in_use
            self._has_shrunk |= (actor.free - report.free - taken) * SHRUNK > actor.slots
            actor.version = report.version
            actor.in_use = report.used
            actor.free = report.free
            actor.free_bytes = report.free_bytes
            actor.model_away = report.model_away
            actor.trouble = report.trouble
            actor.unable = report.unable
            actor.endpoints = report.endpoints or actor.endpoints
            if not actor.sending:
                actor.alone = report.alone


class _Room:
    """What an actor can take of the inbox, and what it is given."""

    def __init__(self, actor: ActorView) -> None:
        self.agent_id = actor.agent_id
        self.slots = actor.available
        self.batch: list[Delivery] = []
        self._bytes = actor.available_bytes
        self._is_empty = not actor.used

    def fits(self, size_bytes: int) -> bool:
        return self.slots > 0 and (size_bytes <= self._bytes or self._is_empty)

    def take(self, delivery: Delivery, size_bytes: int) -> None:
        self.batch.append(delivery)
        self.slots -= 1
        self._bytes -= size_bytes
        self._is_empty = False


def _bytes(deliveries: Iterable[Delivery]) -> int:
    return sum(delivery.size_bytes for delivery in deliveries)
