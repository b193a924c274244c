"""What a supervisor and its pools meet, scripted: a consumer, actors, a place for actors to run."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
from support.fakes import MemoryLedger, Queue, Wire, noon

from agent_actors.config import AutoscaleConfig, Config, PoolConfig, Resources
from agent_actors.contract import DrainReply, DrainRequest, encode
from agent_actors.errors import ActorLost
from agent_actors.leases import Leases
from agent_actors.pool import Endpoint, SupervisorParts
from agent_actors.ports import ActorReport, ActorSettings, Backlog, Delivery, HandSize
from agent_actors.supervisor import Ending, Supervisor

MAX_PAYLOAD_BYTES = 1024 * 1024


class Source:
    """A consumer: counts what is asked for; the test delivers."""

    trouble = ""

    def __init__(self, receive: Callable[[Delivery], None], setting: "Setting") -> None:
        self._receive = receive
        self._setting = setting
        self.outstanding = 0
        self.most = 0
        self.asked = asyncio.Event()
        self.withdrawn = asyncio.Event()
        self.closed = False

    async def pull(self, count: int) -> None:
        self.outstanding += count
        self.most = max(self.most, self.outstanding)
        self.asked.set()

    def withdraw(self) -> None:
        self.outstanding = 0
        self.withdrawn.set()

    def deliver(self, *deliveries: Delivery) -> None:
        for each in deliveries:
            self.outstanding -= 1
            self._receive(each)

    async def backlog(self) -> Backlog:
        return self._setting.backlog

    async def close(self) -> None:
        self.closed = True


class Actor:
    """An actor's handle: holds what it is given until the test settles it or kills it."""

    def __init__(self, slots: int, free_bytes: int) -> None:
        self.slots = slots
        self.free_bytes = free_bytes
        self.life = 1
        self.version = 0
        self.held: list[Delivery] = []
        self.got: asyncio.Queue[list[Delivery]] = asyncio.Queue()
        self.news: asyncio.Queue[list[str] | ActorLost] = asyncio.Queue()
        self.stopped_with: float | None = None
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.model_away = False
        self.alone = False
        self.built_from = "earlier settings"
        self.has_place = asyncio.Event()
        self.has_place.set()
        self.on_end: Callable[[], None] = lambda: None
        self.stopping = False
        self.trouble = ""
        self.unable = False
        self.node = ""
        self.greets = asyncio.Event()
        self.greets.set()

    def report(self, **news: Any) -> ActorReport:
        self.version += 1
        is_closed = self.alone or self.stopping or self.stopped_with is not None
        return ActorReport(
            incarnation=str(self.life),
            pid=1,
            version=self.version,
            slots=self.slots,
            free=0 if is_closed else self.slots - len(self.held),
            free_bytes=self.free_bytes,
            used=len(self.held),
            model_away=self.model_away,
            alone=self.alone,
            stopping=self.stopping,
            trouble=self.trouble,
            unable=self.unable,
            **news,
        )

    async def look(self) -> ActorReport:
        await self.has_place.wait()
        return self.report(node=self.node)

    async def hello(self, supervisor_id: str) -> ActorReport:
        await self.has_place.wait()
        await self.greets.wait()
        return self.report(
            held=list(self.held),
            sandbox="bwrap",
            built_from=self.built_from,
            package="1",
            node=self.node,
        )

    async def submit(
        self, supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        self.alone = alone
        self.held.extend(batch)
        self.got.put_nowait(list(batch))
        return self.report()

    async def completions(self, supervisor_id: str) -> ActorReport:
        news = await self.news.get()
        if isinstance(news, ActorLost):
            raise news
        return self.report(finished=news)

    async def kill(self) -> None: ...

    async def end(self) -> None:
        self.on_end()

    async def stop(self, grace_s: float) -> None:
        self.stopped_with = grace_s
        if grace_s == 0:
            self.may_stop.set()
        await self.may_stop.wait()
        self.on_end()

    def settle(self, *deliveries: Delivery) -> None:
        self.held = [each for each in self.held if each not in deliveries]
        self.news.put_nowait([each.id for each in deliveries])

    def say_model_is(self, *, away: bool) -> None:
        self.model_away = away
        self.news.put_nowait([])

    def say_trouble(self, trouble: str, *, unable: bool) -> None:
        self.trouble, self.unable = trouble, unable
        self.news.put_nowait([])

    def die(self) -> None:
        self.life += 1
        self.held.clear()
        self.alone = False
        self.news.put_nowait(ActorLost("killed"))


class Setting:
    def __init__(
        self,
        actors: int | dict[str, Any] = 1,
        slots: int = 2,
        free_bytes: int = 64 * MAX_PAYLOAD_BYTES,
        existing: Sequence[str] = (),
        kept: HandSize | None = None,
        nodes: Mapping[str, str] | None = None,
        **pool: Any,
    ) -> None:
        self.slots, self.free_bytes = slots, free_bytes
        many = actors if isinstance(actors, int) else 0
        names = {f"dev-{number}" for number in range(many)} | set(existing)
        self.actors = {name: Actor(slots, free_bytes) for name in names}
        self.there = set(existing)
        self.nodes = nodes or {}
        for name, actor in self.actors.items():
            actor.node = self.nodes.get(name, "")
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.kept = kept
        self.backlog = Backlog(pending=7, unacked=1)
        self.arrangements: list[Mapping[str, str]] = []
        self.counts: dict[str, int] = {}
        self.took_over = asyncio.Event()
        self.may_take_over = asyncio.Event()
        self.may_take_over.set()
        self.rolling: set[str] | None = None
        self.wire = Wire()
        self.ledger = MemoryLedger()
        self.opened = asyncio.Event()
        self.crashed = asyncio.Event()
        self.told_cancelled: list[str] = []
        actors = actors if isinstance(actors, int) else AutoscaleConfig(**actors)
        settings = {"stop_grace_s": 3, "ack_wait_s": 1.0, **pool}
        self.config = Config(pools={"dev": PoolConfig(actors=actors, slots=slots, **settings)})
        self.endings: list[Ending] = []
        self.ended = asyncio.Event()
        self.supervisor = Supervisor(
            self.config, "s", self.build, restart=self.crashed.set, on_ended=self.note_end
        )

    def note_end(self, ending: Ending) -> None:
        self.endings.append(ending)
        self.ended.set()

    async def build(self, _: Config) -> SupervisorParts:
        return SupervisorParts(
            leases=Leases(self.ledger, Queue(), noon),
            store=self.ledger,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            acks=self.wire,
            sizes=self,
            runtime=self,
            take_over=self.take_over,
            open_source=self.open_source,
            arrange=self.arrange,
            waiting_tasks=self.waiting_tasks,
            serve_control=self.serve_control,
            tell_cancelled=self.tell_cancelled,
            close=self.wire.close,
            node=self.nodes.get("supervisor", ""),
        )

    async def tell_cancelled(self, key: str) -> None:
        self.told_cancelled.append(key)

    async def take_over(self) -> None:
        self.took_over.set()
        await self.may_take_over.wait()

    async def arrange(self, busy: Collection[str], rolling: Collection[str]) -> Mapping[str, str]:
        self.rolling = set(rolling)
        return self.arrangements.pop(0) if self.arrangements else {}

    async def waiting_tasks(self) -> Mapping[str, int]:
        return self.counts

    async def read(self, pool_name: str) -> HandSize | None:
        return self.kept

    async def write(self, pool_name: str, size: HandSize | None) -> None:
        self.kept = size

    async def existing(self) -> list[str]:
        return sorted(self.there)

    async def find(self, agent_id: str) -> Actor:
        if agent_id not in self.there:
            raise ActorLost(f"there is no {agent_id}")
        actor = self.actors[agent_id]
        actor.on_end = lambda: self.there.discard(agent_id)
        return actor

    async def start(self, settings: ActorSettings) -> Actor:
        agent_id = settings.agent_id
        if agent_id not in self.actors:
            self.actors[agent_id] = Actor(self.slots, self.free_bytes)
            self.actors[agent_id].node = self.nodes.get(agent_id, "")
        actor = self.actors[agent_id]
        if agent_id not in self.there:
            self.there.add(agent_id)
            actor.built_from = settings.built_from
            actor.has_place = self.has_room
        actor.on_end = lambda: self.there.discard(agent_id)
        return actor

    async def lacking(self, resources: Resources) -> str:
        return f"each asks for CPU {resources.num_cpus:g}"

    async def open_source(
        self, name: str, receive: Callable[[Delivery], None], idle: Callable[[], None]
    ) -> Source:
        self.source = Source(receive, self)
        self.opened.set()
        return self.source

    async def serve_control(self, endpoints: Mapping[str, Endpoint]) -> None:
        self.endpoints = endpoints

    async def ask_to_drain(self, **wanted: Any) -> DrainReply | None:
        request = DrainRequest(**{"cluster": "agent-actors", **wanted})
        answer = await self.endpoints["drain"](encode(request))
        return None if answer is None else msgspec.json.decode(answer, type=DrainReply)
