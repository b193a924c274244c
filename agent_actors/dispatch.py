"""Which actor gets which delivery, and how many may be asked for: pure bookkeeping of a pool.

The actor is the authority on its own slots. What is kept here is what it last said, less what
has been sent to it since; so it may be too low for a moment, but never too high.
"""

from collections.abc import Iterable

from msgspec import Struct

from agent_actors.ports import ActorReport, Delivery


class ActorView(Struct):
    """One actor as the supervisor knows it; `incarnation` is empty until it has answered.

    `alone`: what it holds is to have no company; `reserved`: it is being emptied for that.
    """

    agent_id: str
    incarnation: str = ""
    pid: int = 0
    slots: int = 0
    free: int = 0
    version: int = -1
    held: dict[str, Delivery] = {}
    sending: int = 0
    alone: bool = False
    reserved: bool = False
    model_away: bool = False
    sandbox: str = ""

    @property
    def used(self) -> int:
        """Slots that are taken, and those that something is on its way to."""
        return self.slots - max(0, self.free - self.sending)

    @property
    def available(self) -> int:
        """Slots that may get something."""
        return 0 if self.alone or self.reserved else self.slots - self.used


class Dispatcher:
    """The actors of one pool: who is there, what they hold, and who gets what comes next."""

    def __init__(self) -> None:
        self.actors: dict[str, ActorView] = {}
        self.settled = 0

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
        known = [actor for actor in self.actors.values() if actor.incarnation]
        return bool(known) and all(actor.model_away for actor in known)

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
            free=report.free,
            version=report.version,
            alone=report.alone,
            model_away=report.model_away,
            held={delivery.id: delivery for delivery in report.held},
            sandbox=report.sandbox,
        )

    def lose(self, agent_id: str) -> list[Delivery]:
        """Take note that an actor is away until it is greeted again; return what it held."""
        known = self.actors[agent_id]
        self.actors[agent_id] = ActorView(agent_id=agent_id)
        return list(known.held.values())

    def assign(self, inbox: list[Delivery]) -> dict[str, list[Delivery]]:
        """Take deliveries off the inbox, each for the actor with the most free slots.

        An actor that a batch is on its way to gets the next one when that has arrived: under
        load the batches grow by themselves.
        """
        room = {
            actor.agent_id: actor.available
            for actor in self._willing
            if not actor.sending and actor.available
        }
        batches: dict[str, list[Delivery]] = {}
        for delivery in _taken(inbox, sum(room.values())):
            roomiest = max(room, key=room.__getitem__)
            room[roomiest] -= 1
            batches.setdefault(roomiest, []).append(delivery)
        for agent_id, batch in batches.items():
            self._send(self.actors[agent_id], batch)
        return batches

    def isolate(self, lane: list[Delivery]) -> tuple[str, list[Delivery]] | None:
        """Take the first off the lane for an empty actor, to run there alone; one at a time.

        While none is empty, the one with the least to do gets nothing more.
        """
        actors = [actor for actor in self._willing if actor.incarnation]
        for actor in actors:
            actor.reserved = False
        if not lane or not actors or any(actor.alone for actor in actors):
            return None
        emptiest = min(actors, key=lambda actor: (actor.used, actor.agent_id))
        if emptiest.used:
            emptiest.reserved = True
            return None
        emptiest.alone = True
        batch = [lane.pop(0)]
        self._send(emptiest, batch)
        return emptiest.agent_id, batch

    def arrived(self, agent_id: str, batch: list[Delivery], report: ActorReport) -> list[Delivery]:
        """Take an actor's answer to a batch; return what it had no slot for."""
        actor = self.actors[agent_id]
        if actor.incarnation != report.incarnation:
            return []
        actor.sending = 0
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
    def _willing(self) -> list[ActorView]:
        """Those who reach the model; when nobody does, everybody."""
        actors = list(self.actors.values())
        return actors if self.model_away else [each for each in actors if not each.model_away]

    def _send(self, actor: ActorView, batch: list[Delivery]) -> None:
        actor.sending = len(batch)
        actor.held.update((delivery.id, delivery) for delivery in batch)

    def _update(self, actor: ActorView, report: ActorReport) -> None:
        """Believe the newest word only: answers may overtake each other."""
        if report.version >= actor.version:
            actor.version = report.version
            actor.free = report.free
            actor.model_away = report.model_away


def _taken(inbox: list[Delivery], count: int) -> Iterable[Delivery]:
    taken, inbox[:] = inbox[:count], inbox[count:]
    return taken
