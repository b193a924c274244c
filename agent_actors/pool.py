"""One pool of a supervisor: its consumer, its actors, and the deliveries on their way.

Read `PoolSupervisor`: `_pump` moves deliveries from the consumer to actors with free slots,
`_keep_size` has the crew start and let go actors, and what an actor took down with it is given
back at once.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from msgspec import Struct

from agent_actors import __version__
from agent_actors.breaker import Breaker
from agent_actors.config import Config
from agent_actors.config_diff import actor_settings_digest
from agent_actors.contract import PoolStatus, utc_now
from agent_actors.crew import Crew
from agent_actors.dispatch import Dispatcher
from agent_actors.errors import ActorLost, AgentActorsError, StreamMissing
from agent_actors.leases import Leases
from agent_actors.ledger import Claim
from agent_actors.patience import until_answered, until_built
from agent_actors.ports import (
    Acknowledger,
    ActorRuntime,
    ActorSettings,
    Backlog,
    Delivery,
    HandSize,
    LedgerStore,
    SizeStore,
    TaskSource,
)
from agent_actors.reading import read
from agent_actors.scaling import Load
from agent_actors.sizing import Pace, PoolSize

log = structlog.get_logger()

Endpoint = Callable[[bytes], Awaitable[bytes | None]]
OnDelivery = Callable[[Delivery], None]
OnIdle = Callable[[], None]
OpenSource = Callable[[str, OnDelivery, OnIdle], Awaitable[TaskSource]]

UNDER_WAY_TIMEOUT_S = 10.0
MODEL_UNAVAILABLE = "model unavailable"
# How often the load is looked at, and whether actors are still missing.
LOOK_EVERY_S = 1.0
# An actor's death proves little against what it held: most die of something else, and to run
# all of that one at a time would take long. So it runs once more in company, and is a suspect
# only when that actor dies too: which is known no sooner than by so many deliveries.
ALONE_FROM_DELIVERY = 3


class SupervisorParts(Struct, frozen=True, kw_only=True):
    """What a supervisor is made of: its adapters, and how to close them.

    `take_over` ends the supervisor that was there before this one. `open_source` opens a pool's
    consumer with two callbacks: for each delivery, and for when less is on its way than was
    asked for. `arrange` brings the consumers a step nearer to the configuration, and tells
    which pools wait for what; it takes the pools of earlier configurations that still have
    actors, and those whose actors are not all of this one. `waiting_tasks` counts tasks by
    subject, None where that may not be asked. `tell_cancelled` takes the key of a task. `node` is
    the id of the cluster's node that the supervisor is on.
    """

    max_payload_bytes: int
    leases: Leases
    store: LedgerStore
    sizes: SizeStore
    acks: Acknowledger
    runtime: ActorRuntime
    take_over: Callable[[], Awaitable[None]]
    open_source: OpenSource
    arrange: Callable[[Collection[str], Collection[str]], Awaitable[Mapping[str, str]]]
    waiting_tasks: Callable[[], Awaitable[Mapping[str, int] | None]]
    serve_control: Callable[[Mapping[str, Endpoint]], Awaitable[object]]
    tell_cancelled: Callable[[str], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    node: str = ""


class PoolSupervisor:
    """One pool: its consumer, its actors, and the deliveries on their way between them."""

    def __init__(
        self, name: str, config: Config, supervisor_id: str, parts: SupervisorParts
    ) -> None:
        self._name = name
        self._pool = config.pools[name]
        self._id = supervisor_id
        self._parts = parts
        self._log = log.bind(pool=name)
        self._dispatcher = Dispatcher()
        self._wake = asyncio.Event()
        self._reshape = asyncio.Event()
        self._crew = Crew(
            settings=ActorSettings(
                agent_id="",
                pool_name=name,
                config=config,
                built_from=actor_settings_digest(config, name, __version__),
            ),
            supervisor_id=supervisor_id,
            runtime=parts.runtime,
            books=self._dispatcher,
            on_lost=self._give_all_back,
            on_room=self._wake.set,
            on_change=self._note_change,
            spawn=self._spawn,
        )
        self._size = PoolSize(self._pool)
        self._pace = Pace()
        self._breaker = Breaker()
        self._inbox: list[Delivery] = []
        self._unjudged: list[Delivery] = []
        self._lane: list[Delivery] = []
        self._progress = asyncio.Condition()
        self._source: TaskSource | None = None
        self._trouble = ""
        self._moving = ""
        self._group: asyncio.TaskGroup | None = None
        self._work: asyncio.Task[Any] | None = None
        self._stop: asyncio.Task[None] | None = None
        self._grace_s = self._pool.stop_grace_s
        self._actors_told = False
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self, existing: Collection[str] = ()) -> None:
        """Serve the pool until stopped, with the actors that exist already and others.

        A bug here ends the supervisor, which Ray restarts.
        """
        self._work = asyncio.current_task()
        async with asyncio.TaskGroup() as self._group:
            self._crew.adopt(existing)
            self._size.remember(await self._kept_size(), existing=len(existing))
            self._spawn(self._keep_size())
            self._spawn(self._beat())
            opening = partial(self._parts.open_source, self._name, self._receive, self._wake.set)
            self._source = await until_built(opening, f"pool {self._name}", self._note_trouble)
            await self._announce_progress()
            await self._pump(self._source)

    async def ready(self) -> None:
        """Return once tasks are pulled and as many actors as wanted have answered."""
        async with self._progress:
            await self._progress.wait_for(
                lambda: self._source and self._crew.size >= self._size.wanted
            )

    @property
    def is_as_configured(self) -> bool:
        """Whether all of its actors work, built from the settings that hold now."""
        return self._crew.is_as_wanted

    @property
    def running(self) -> int:
        """Tasks that the actors have."""
        return sum(len(actor.held) for actor in self._dispatcher.actors.values())

    async def scale(self, actors: int | None) -> tuple[int, int, str]:
        """Have so many actors from now on, or as many as configured; keep that in mind.

        Returns how many are wanted now, and were before, and who decides. Raises PublishFailed,
        StreamMissing, PermissionDenied when it cannot be kept, and then nothing has changed.
        """
        before = self._size.wanted
        await self._parts.sizes.write(self._name, self._size.to_keep(actors))
        self._size.order(actors)
        self._log.info("pool.scaled", before=before, wanted=self._size.wanted)
        self._reshape.set()
        return self._size.wanted, before, self._size.sized_by

    def close_node(self, node: str, grace_s: float | None) -> None:
        """Have none of its actors on a node of the cluster; others start elsewhere meanwhile.

        They finish what ends in that time, by default the longest that a task may take.
        """
        self._crew.close_node(node, self._pool.task_timeout_s if grace_s is None else grace_s)
        self._note_change()

    def on_node(self, node: str) -> list[str]:
        """Return which of its actors are on a node."""
        return self._crew.on_node(node)

    def note_moving(self, reason: str) -> None:
        """Take note of why the pool's subjects are not all its own yet; empty when they are."""
        self._moving = reason

    async def stop(self, grace_s: float | None) -> None:
        """Drain: pull nothing more, and end the actors once they have finished or given back.

        Told again meanwhile, it goes on with the new time of grace.
        """
        self._grace_s = self._pool.stop_grace_s if grace_s is None else grace_s
        if not self._stop:
            self._stop = asyncio.create_task(self._drain())
        elif self._actors_told:
            await self._crew.stop(self._grace_s)
        await asyncio.shield(self._stop)

    async def hand_over(self) -> None:
        """Pull nothing more and leave the actors at their work: another supervisor has them."""
        await self._end_pulling()

    async def status(self) -> PoolStatus:
        """Return the pool as it stands, with what waits in NATS if NATS answers."""
        backlog = Backlog(pending=-1, unacked=-1)
        state, reason = "starting", self._moving or self._trouble
        if self._source:
            state, reason = self._state(self._source)
            try:
                backlog = await self._source.backlog()
            except StreamMissing as error:
                state, reason = "stalled", self._moving or str(error)
            except AgentActorsError as error:
                reason = reason or str(error)
        actors = self._crew.statuses()
        states = Counter(actor.state for actor in actors)
        return PoolStatus(
            name=self._name,
            subjects=list(self._pool.subjects),
            state=state,
            reason="; ".join(filter(None, (reason, await self._crew.trouble()))),
            actors=actors,
            wanted=self._size.wanted,
            sized_by=self._size.sized_by,
            running=states["running"],
            starting=states["starting"],
            draining=states["draining"],
            slots=sum(actor.slots for actor in actors),
            slots_used=sum(actor.slots_used for actor in actors),
            pending=backlog.pending,
            unacked=backlog.unacked,
            settled=self._dispatcher.settled,
            rate=round(self._pace.rate, 1),
        )

    def _state(self, source: TaskSource) -> tuple[str, str]:
        """Return the pool's state and its reason, as far as they are known without asking."""
        if self._stop:
            return "draining", source.trouble
        if trouble := source.trouble or self._dispatcher.trouble:
            return "stalled", trouble
        if self._breaker.is_open:
            return "paused", MODEL_UNAVAILABLE
        if not self._size.wanted:
            return "off" if self._size.sized_by != "load" else "idle", self._moving
        return "running", self._moving

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        if self._group is None:
            raise RuntimeError("the pool does not run")
        return self._group.create_task(work)

    def _note_change(self) -> None:
        self._wake.set()
        self._reshape.set()

    @property
    def _waiting(self) -> list[Delivery]:
        """What is here and with no actor."""
        return [*self._inbox, *self._unjudged, *self._lane]

    def _note_trouble(self, error: AgentActorsError) -> None:
        self._trouble = str(error)

    def _receive(self, delivery: Delivery) -> None:
        again = delivery.source.num_delivered >= ALONE_FROM_DELIVERY
        (self._unjudged if again else self._inbox).append(delivery)
        self._wake.set()

    async def _keep_size(self) -> None:
        """Start and let go actors, whenever there is news of them or of the size wanted."""
        while True:
            self._reshape.clear()
            now = asyncio.get_running_loop().time()
            self._pace.mark(self._dispatcher.settled, now)
            if load := await self._load():
                self._size.follow(load, now)
            self._crew.shape(self._size.wanted)
            await self._announce_progress()
            if self._crew.is_empty:
                self._wake.set()  # what waits for one of them has waited long enough
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._reshape.wait()

    async def _load(self) -> Load | None:
        """Return what there is to do; None when the size does not depend on it, or none knows."""
        if self._size.sized_by != "load" or not self._source:
            return None
        try:
            backlog = await self._source.backlog()
        except AgentActorsError:
            return None
        return Load(
            pending=backlog.pending,
            unacked=backlog.unacked,
            used=self._dispatcher.used + len(self._waiting),
            slots=self._pool.slots,
            model_away=self._breaker.is_open,
            model_full=self._dispatcher.model_full,
        )

    async def _kept_size(self) -> HandSize | None:
        try:
            return await until_answered(lambda: self._parts.sizes.read(self._name))
        except AgentActorsError as error:
            self._log.warning("pool.size_not_known", error=str(error))
            return None

    async def _pump(self, source: TaskSource) -> None:
        """Hand out what has come, and ask for as much as there are slots left."""
        while True:
            await self._news()
            await self._judge()
            if isolated := self._dispatcher.isolate(self._lane):
                self._start_send(*isolated, alone=True)
            for agent_id, batch in self._dispatcher.assign(self._inbox).items():
                self._start_send(agent_id, batch)
            await self._pull(source)
            if self._crew.is_empty:
                await self._give_up_waiting()

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
        """Ask for as many deliveries as there is room for; for one while tasks cannot end."""
        now = asyncio.get_running_loop().time()
        was_open = self._breaker.is_open
        unable = self._dispatcher.unable
        self._breaker.hear(away=self._dispatcher.model_away or unable, now=now)
        if self._breaker.is_open and not was_open:
            reason = self._dispatcher.trouble if unable else MODEL_UNAVAILABLE
            self._log.warning("pool.paused", reason=reason)
            source.withdraw()
        elif was_open and not self._breaker.is_open:
            self._log.info("pool.resumed")
        waiting = len(self._inbox) + source.outstanding
        if self._dispatcher.has_shrunk() and source.outstanding and waiting > self._dispatcher.free:
            source.withdraw()  # what comes now would wait here, and others may have room
        wanted = self._dispatcher.wanted(waiting, self._parts.max_payload_bytes)
        wanted = self._breaker.room(wanted, self._dispatcher.used + waiting, now)
        if wanted > 0:
            self._breaker.pulled(now)
            await source.pull(wanted)

    def _start_send(self, agent_id: str, batch: list[Delivery], *, alone: bool = False) -> None:
        self._note_under_way(self._spawn(self._send(agent_id, batch, alone=alone)))

    def _note_under_way(self, work: asyncio.Task[None]) -> None:
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)

    async def _send(self, agent_id: str, batch: list[Delivery], *, alone: bool) -> None:
        if alone:
            self._log.info("task.isolated", agent_id=agent_id, waiting=len(self._lane))
        incarnation = self._dispatcher.actors[agent_id].incarnation
        try:
            report = await self._crew.submit(agent_id, batch, alone=alone)
        except ActorLost as error:
            view = self._dispatcher.actors.get(agent_id)
            if view and view.incarnation == incarnation:
                self._crew.lose(agent_id, error)  # it is missed later, and greeted again
            return
        waiting = self._lane if alone else self._inbox
        waiting[:0] = self._dispatcher.arrived(agent_id, batch, report)
        self._wake.set()

    async def _give_up_waiting(self) -> None:
        """Give back what has come though no actor is there or comes any more."""
        for waiting in (self._inbox, self._unjudged, self._lane):
            for delivery in waiting:
                await self._parts.acks.nak(delivery)
            waiting.clear()

    def _give_all_back(self, agent_id: str, lost: Sequence[Delivery], alone: bool) -> None:  # noqa: FBT001 - as the crew tells it
        """Give back what an actor held; once the actors are told to stop, the group has ended."""
        spawn = asyncio.create_task if self._actors_told else self._spawn
        for delivery in lost:
            self._note_under_way(spawn(self._give_back(agent_id, delivery, alone=alone)))

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
        await self._end_pulling()
        self._actors_told = True
        await self._crew.stop(self._grace_s)
        await self._end_what_is_under_way()

    async def _end_pulling(self) -> None:
        if self._source:
            await self._source.close()
        await self._end_what_is_under_way()
        if self._work:
            self._work.cancel()
        await self._give_up_waiting()

    async def _end_what_is_under_way(self) -> None:
        """Wait for what is being handed over or given back, and what that begins, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UNDER_WAY_TIMEOUT_S):
                while self._under_way:
                    await asyncio.wait(self._under_way)

    async def _announce_progress(self) -> None:
        async with self._progress:
            self._progress.notify_all()
