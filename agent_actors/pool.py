"""One pool of a supervisor: its consumer, its actors, and the deliveries on their way.

Read `PoolSupervisor`: `_pump` moves deliveries from the consumer to actors with free slots,
`_listen` (one an actor) hears what they have settled, and what an actor took down with it is
given back at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from msgspec import Struct

from agent_actors.breaker import Breaker
from agent_actors.config import PoolConfig
from agent_actors.contract import ActorStatus, PoolStatus, utc_now
from agent_actors.dispatch import ActorView, Dispatcher
from agent_actors.errors import ActorLost, AgentActorsError, StreamMissing
from agent_actors.leases import Leases
from agent_actors.ledger import Claim
from agent_actors.patience import FIRST_PAUSE_S, pause, until_built
from agent_actors.ports import (
    CONSUMER_MISSING,
    Acknowledger,
    ActorHandle,
    ActorRuntime,
    Delivery,
    LedgerStore,
    TaskSource,
)
from agent_actors.reading import read
from agent_actors.watching import WatchedActor

log = structlog.get_logger()

Endpoint = Callable[[bytes], Awaitable[bytes | None]]
OnDelivery = Callable[[Delivery], None]
OnIdle = Callable[[], None]
OpenSource = Callable[[str, OnDelivery, OnIdle], Awaitable[TaskSource]]

SENDS_TIMEOUT_S = 10.0
MODEL_UNAVAILABLE = "model unavailable"
# An actor's death proves little against what it held: most die of something else, and to run
# all of that one at a time would take long. So it runs once more in company, and is a suspect
# only when that actor dies too: which is known no sooner than by so many deliveries.
ALONE_FROM_DELIVERY = 3


class SupervisorParts(Struct, frozen=True, kw_only=True):
    """What a supervisor is made of: its adapters, and how to close them.

    `open_source` opens a pool's consumer with two callbacks: for each delivery, and for when
    less is on its way than was asked for. `tell_cancelled` takes the key of a task.
    """

    max_payload_bytes: int
    leases: Leases
    store: LedgerStore
    acks: Acknowledger
    runtime: ActorRuntime
    open_source: OpenSource
    serve_control: Callable[[Mapping[str, Endpoint]], Awaitable[object]]
    tell_cancelled: Callable[[str], Awaitable[None]]
    close: Callable[[], Awaitable[None]]


class PoolSupervisor:
    """One pool: its consumer, its actors, and the deliveries on their way between them."""

    def __init__(
        self, name: str, pool: PoolConfig, supervisor_id: str, parts: SupervisorParts
    ) -> None:
        self._name = name
        self._pool = pool
        self._id = supervisor_id
        self._parts = parts
        self._log = log.bind(pool=name)
        self._dispatcher = Dispatcher()
        self._breaker = Breaker()
        self._handles: dict[str, ActorHandle] = {}
        self._inbox: list[Delivery] = []
        self._unjudged: list[Delivery] = []
        self._lane: list[Delivery] = []
        self._wake = asyncio.Event()
        self._greeted = asyncio.Condition()
        self._source: TaskSource | None = None
        self._trouble = ""
        self._work: asyncio.Task[Any] | None = None
        self._stop: asyncio.Task[None] | None = None
        self._grace_s = pool.stop_grace_s
        self._actors_told = False
        self._sends: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the pool until stopped. A bug here ends the supervisor, which Ray restarts."""
        for index in range(self._pool.actors):
            self._dispatcher.add(f"{self._name}-{index}")
        self._work = asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            for agent_id in self._dispatcher.actors:
                group.create_task(self._listen(agent_id, group))
            group.create_task(self._beat())
            opening = partial(self._parts.open_source, self._name, self._receive, self._wake.set)
            self._source = await until_built(opening, f"pool {self._name}", self._note_trouble)
            await self._announce_progress()
            await self._pump(self._source, group)

    async def ready(self) -> None:
        """Return once tasks are pulled and every actor has answered."""
        async with self._greeted:
            await self._greeted.wait_for(
                lambda: self._source and len(self._handles) == self._pool.actors
            )

    @property
    def running(self) -> int:
        """Tasks that the actors have."""
        return sum(len(actor.held) for actor in self._dispatcher.actors.values())

    async def stop(self, grace_s: float | None) -> None:
        """Drain: pull nothing more, and end the actors once they have finished or given back.

        Told again meanwhile, it goes on with the new time of grace.
        """
        self._grace_s = self._pool.stop_grace_s if grace_s is None else grace_s
        if not self._stop:
            self._stop = asyncio.create_task(self._drain())
        elif self._actors_told:
            await self._stop_actors()
        await asyncio.shield(self._stop)

    async def status(self) -> PoolStatus:
        """Return the pool as it stands, with what waits in NATS if NATS answers."""
        pending, unacked = -1, -1
        state, reason = "starting", self._trouble
        if self._source:
            reason = self._source.trouble
            state = "stalled" if reason else "running"
            if not reason and self._breaker.is_open:
                state, reason = "paused", MODEL_UNAVAILABLE
            if self._stop:
                state = "draining"
            try:
                backlog = await self._source.backlog()
                pending, unacked = backlog.pending, backlog.unacked
            except StreamMissing:
                state, reason = "stalled", CONSUMER_MISSING
            except AgentActorsError as error:
                reason = reason or str(error)
        actors = [_actor_status(view) for view in self._dispatcher.actors.values()]
        return PoolStatus(
            name=self._name,
            subjects=list(self._pool.subjects),
            state=state,
            reason=reason,
            actors=actors,
            slots=sum(actor.slots for actor in actors),
            slots_used=sum(actor.slots_used for actor in actors),
            pending=pending,
            unacked=unacked,
            settled=self._dispatcher.settled,
        )

    @property
    def _waiting(self) -> list[Delivery]:
        """What is here and with no actor."""
        return [*self._inbox, *self._unjudged, *self._lane]

    def _note_trouble(self, error: AgentActorsError) -> None:
        missing = isinstance(error, StreamMissing)
        self._trouble = CONSUMER_MISSING if missing else str(error)

    def _receive(self, delivery: Delivery) -> None:
        again = delivery.source.num_delivered >= ALONE_FROM_DELIVERY
        (self._unjudged if again else self._inbox).append(delivery)
        self._wake.set()

    async def _pump(self, source: TaskSource, group: asyncio.TaskGroup) -> None:
        """Hand out what has come, and ask for as much as there are slots left."""
        while True:
            await self._news()
            await self._judge()
            if isolated := self._dispatcher.isolate(self._lane):
                self._start_send(*isolated, group, alone=True)
            for agent_id, batch in self._dispatcher.assign(self._inbox).items():
                self._start_send(agent_id, batch, group)
            await self._pull(source)

    async def _news(self) -> None:
        """Return when something has changed, or when the breaker is to be asked again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._breaker.look_again_in_s()):
                await self._wake.wait()
        self._wake.clear()

    async def _judge(self) -> None:
        """Put suspects in the lane: those that two actors died with. The others go on."""
        unjudged = list(self._unjudged)
        verdicts = await asyncio.gather(*map(self._is_suspect, unjudged))
        for delivery, is_suspect in zip(unjudged, verdicts, strict=True):
            self._unjudged.remove(delivery)
            (self._lane if is_suspect else self._inbox).append(delivery)

    async def _is_suspect(self, delivery: Delivery) -> bool:
        reading = read(delivery, max_payload_bytes=self._parts.max_payload_bytes)
        try:
            return bool(reading.task_id) and await self._parts.leases.is_suspect(reading.task_id)
        except AgentActorsError as error:
            self._log.error("task.not_judged", task_id=reading.task_id, error=str(error))
            return False

    async def _pull(self, source: TaskSource) -> None:
        """Ask for as many deliveries as there is room for; while the model is away, for one."""
        now = asyncio.get_running_loop().time()
        was_open = self._breaker.is_open
        self._breaker.hear(away=self._dispatcher.model_away, now=now)
        if self._breaker.is_open and not was_open:
            self._log.warning("pool.paused", reason=MODEL_UNAVAILABLE)
            source.withdraw()
        elif was_open and not self._breaker.is_open:
            self._log.info("pool.resumed")
        waiting = len(self._inbox) + source.outstanding
        wanted = self._dispatcher.wanted(waiting, self._parts.max_payload_bytes)
        wanted = self._breaker.room(wanted, self._dispatcher.used + waiting, now)
        if wanted > 0:
            self._breaker.pulled(now)
            await source.pull(wanted)

    def _start_send(
        self, agent_id: str, batch: list[Delivery], group: asyncio.TaskGroup, *, alone: bool = False
    ) -> None:
        send = group.create_task(self._send(agent_id, batch, group, alone=alone))
        self._sends.add(send)
        send.add_done_callback(self._sends.discard)

    async def _send(
        self, agent_id: str, batch: list[Delivery], group: asyncio.TaskGroup, *, alone: bool
    ) -> None:
        if alone:
            self._log.info("task.isolated", agent_id=agent_id, waiting=len(self._lane))
        incarnation = self._dispatcher.actors[agent_id].incarnation
        try:
            report = await self._handles[agent_id].submit(self._id, batch, alone=alone)
        except ActorLost as error:
            if self._dispatcher.actors[agent_id].incarnation == incarnation:
                self._lose(agent_id, error, group)  # `_listen` notices, and greets it again
            return
        waiting = self._lane if alone else self._inbox
        waiting[:0] = self._dispatcher.arrived(agent_id, batch, report)
        self._wake.set()

    async def _listen(self, agent_id: str, group: asyncio.TaskGroup) -> None:
        """Follow one actor through its lives."""
        while True:
            with await self._greet(agent_id) as actor:
                try:
                    while self._dispatcher.finished(agent_id, await actor.completions(self._id)):
                        self._wake.set()
                except ActorLost as error:
                    self._lose(agent_id, error, group)

    async def _greet(self, agent_id: str) -> WatchedActor:
        """Return the actor, watched, once it has said what it holds and has room for."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                handle = await self._parts.runtime.start(self._name, agent_id)
                report = await handle.hello(self._id)
            except ActorLost as error:
                self._log.warning("actor.not_ready", agent_id=agent_id, error=str(error))
                pause_s = await pause(pause_s)
            else:
                break
        self._log.info("actor.ready", agent_id=agent_id, slots=report.slots, held=len(report.held))
        self._dispatcher.greet(agent_id, report)
        self._handles[agent_id] = handle
        self._wake.set()
        await self._announce_progress()
        return WatchedActor(handle, report.process, self._pool.hang_timeout_s)

    def _lose(self, agent_id: str, error: ActorLost, group: asyncio.TaskGroup) -> None:
        alone = self._dispatcher.actors[agent_id].alone
        lost = self._dispatcher.lose(agent_id)
        self._log.warning("actor.lost", agent_id=agent_id, held=len(lost), error=str(error))
        for delivery in lost:
            group.create_task(self._give_back(agent_id, delivery, alone=alone))

    async def _give_back(self, agent_id: str, delivery: Delivery, *, alone: bool) -> None:
        """Release in the ledger what the actor held, and have it handed out again at once.

        Where that cannot be, `ack_wait` brings it back later.
        """
        reading = read(delivery, max_payload_bytes=self._parts.max_payload_bytes)
        claim = Claim(
            task_id=reading.task_id,
            source=delivery.source,
            content=reading.content,
            agent_id=agent_id,
            lease="",
            now=utc_now(),
        )
        given_back = self._log.bind(agent_id=agent_id, task_id=reading.task_id)
        try:
            if not reading.task_id or await self._parts.leases.give_back(claim, alone=alone):
                await self._parts.acks.nak(delivery)
                given_back.info("task.given_back")
        except AgentActorsError as error:
            given_back.error("task.not_given_back", error=str(error))

    async def _beat(self) -> None:
        """Keep what waits here for a slot from being handed out a second time."""
        while True:
            await asyncio.sleep(self._pool.heartbeat_s)
            await self._parts.acks.in_progress(self._waiting)

    async def _drain(self) -> None:
        if self._source:
            await self._source.close()
        if self._sends:
            await asyncio.wait(self._sends, timeout=SENDS_TIMEOUT_S)
        if self._work:
            self._work.cancel()
        for delivery in self._waiting:
            await self._parts.acks.nak(delivery)
        self._actors_told = True
        await self._stop_actors()

    async def _stop_actors(self) -> None:
        await asyncio.gather(*(self._stop_actor(handle) for handle in self._handles.values()))

    async def _stop_actor(self, handle: ActorHandle) -> None:
        try:
            await handle.stop(self._grace_s)
        except ActorLost as error:
            self._log.warning("actor.lost", error=str(error))

    async def _announce_progress(self) -> None:
        async with self._greeted:
            self._greeted.notify_all()


def _actor_status(view: ActorView) -> ActorStatus:
    return ActorStatus(
        agent_id=view.agent_id,
        state="running" if view.incarnation else "starting",
        slots=view.slots,
        slots_used=view.slots - view.free,
        pid=view.pid,
        sandbox=view.sandbox,
    )
