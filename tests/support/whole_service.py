"""The whole service in one thread: its own classes over `memory_bus` and `simulated_ray`.

`WholeService` runs one planned history to its end: publishes and cancels as a user does, does to
the processes what the plan says, lets the weather clear up, and waits until all is quiet. What
happened is in its story; whether it may happen is for `promise` to say.
"""

import asyncio
import sys
import warnings
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from support.fakes import NOON
from support.histories import Plan, PlannedTask
from support.memory_bus import (
    LONGEST_STALE_S,
    REQUEST_TIMEOUT_S,
    Bus,
    MemoryConnection,
    MemorySource,
    Weather,
)
from support.seeded_loop import Process, Scheduler, Stuck
from support.simulated_ray import RemoteActor, Runtime, SimulatedRay, give

from agent_actors import actor as actor_module
from agent_actors import settlement
from agent_actors.actor import ActorParts, AgentActor
from agent_actors.config import Config, PoolConfig
from agent_actors.contract import Proposal, task_key
from agent_actors.errors import ActorLost, ModelUnavailable, PublishFailed
from agent_actors.execution import PROPOSAL, TOOLS, ExecuteAgentTask
from agent_actors.leases import Leases
from agent_actors.pool import PoolSupervisor, SupervisorParts
from agent_actors.ports import (
    ActorSettings,
    AttemptRecord,
    Delivery,
    ExecutionRequest,
    TaskSource,
)
from agent_actors.settlement import SettleDelivery

POOL = "dev"
SUBJECT = "agent.tasks.dev"
ACK_WAIT_S = 6.0
MAX_ATTEMPTS = 2
MAX_PAYLOAD_BYTES = 1024 * 1024
LONGEST_RESTART_S = 1.5
LIMIT_S = 400.0
MOST_STEPS = 30_000
LONGEST_AUDIT_S = 40
HAND_OVER_TIMEOUT_S = 30.0
LOOK_AGAIN_S = 0.5
FOR_EVER_S = 1_000.0

Connect = Callable[[Bus, Process], MemoryConnection]

# What is being settled, for connections that are to do it wrong.
current: ContextVar[Delivery] = ContextVar("current")


class Found(Struct, frozen=True, kw_only=True):
    """How the service was found once all was quiet: what it wants, and what is there."""

    wanted_slots: int
    slots: int
    free: int
    held: int
    running: int
    slots_used: int

    @property
    def is_at_rest(self) -> bool:
        """Whether all slots that there are to be are there, and free."""
        is_whole = self.wanted_slots == self.slots == self.free
        return is_whole and not (self.held or self.running or self.slots_used)


class SupervisorLife:
    """One process of a supervisor."""

    def __init__(self, process: Process, supervisor_id: str) -> None:
        self.process = process
        self.supervisor_id = supervisor_id
        self.pool: PoolSupervisor | None = None


class WholeService:
    """A history: the bus, the cluster, the service, and who does what to it."""

    def __init__(
        self, plan: Plan, scheduler: Scheduler, connect: Connect = MemoryConnection
    ) -> None:
        self.plan = plan
        self.scheduler = scheduler
        self.connect = connect
        self.weather = Weather(scheduler.random, **plan.odds)
        self.bus = Bus(scheduler, self.weather, ACK_WAIT_S)
        self.ray = SimulatedRay(self.bus, self._new_actor)
        self.operator = scheduler.process("operator")
        self.supervisors: dict[str, SupervisorLife] = {}
        self.tasks = {task.task_id: task for task in plan.tasks}
        self.runs: dict[str, int] = {}
        self.open: dict[Process, int] = {}
        self.troubles: list[str] = []
        self.found: Found | None = None
        self._expected = 0
        self._lives = 0
        self._model_away = 0
        self._watching: list[tuple[Process, Callable[[bool], None]]] = []
        self._draining: float | None = None
        self._is_calm = False
        self._predecessor: SupervisorLife | None = None
        self._versions = 0
        self._has_other = False
        self._is_scaled = False
        self.config = config_of(plan)

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.scheduler.now)

    def run(self) -> None:
        """Let the history happen."""
        self._start_supervisor("s")
        for task in self.plan.tasks:
            self._plan_task(task)
        for fault in self.plan.faults:
            self.scheduler.at_step(fault.at_step, partial(getattr(self, fault.kind), **fault.how))
        self.scheduler.at_step(self.plan.clears_up_at, self.clear_up)
        if not self._go_on(self._is_over, "does not come to an end"):
            return
        self.scheduler.forget_actions()
        self.clear_up()
        audit = self.operator.create_task(self._audit())
        if self._go_on(audit.done, "cannot be audited") and self.plan.drained_at_last:
            self.drain(grace_s=0.0)
            self._go_on(lambda: self._draining is None, "cannot be drained")

    # What may befall it.

    def kill_actor(self, index: int) -> None:
        self.ray.kill(f"{POOL}-{index}")

    def kill_supervisor(self, supervisor_id: str = "s") -> None:
        if life := self.supervisors.pop(supervisor_id, None):
            self.bus.tell("operator", "kills", process=life.process)
            self._end(life)
            restart_s = self.weather.up_to(LONGEST_RESTART_S)
            self.bus.server.call_later(restart_s, self._start_supervisor, supervisor_id)

    def kill_all(self) -> None:
        self.kill_supervisor()
        for agent_id in list(self.ray.lives):
            self.ray.kill(agent_id)

    def freeze_actor(self, index: int, for_s: float) -> None:
        if life := self.ray.lives.get(f"{POOL}-{index}"):
            self._freeze(life.process, for_s)

    def hang_actor(self, index: int) -> None:
        """Freeze an actor for ever once it is listened to: its silence is to be found."""
        life = self.ray.lives.get(f"{POOL}-{index}")
        if life and any(call.verb == "completions" for call in life.calls):
            self._freeze(life.process, FOR_EVER_S)
        else:
            self.bus.server.call_later(LOOK_AGAIN_S, self.hang_actor, index)

    def freeze_supervisor(self, for_s: float) -> None:
        if life := self.supervisors.get("s"):
            self._freeze(life.process, for_s)

    def start_another_supervisor(self) -> None:
        """Have two for a while, until the weather clears up; both with the same settings."""
        if not self._is_scaled and not self._versions:
            self._has_other = True
            self._start_supervisor("other")

    def reconfigure(self) -> None:
        """Start a supervisor with other settings: it takes over, and replaces the actors."""
        if self._is_stable:
            self.bus.tell("operator", "reconfigures")
            self._predecessor = self.supervisors.pop("s")
            self._versions += 1
            self.config = config_of(self.plan, temperature=0.1 * self._versions)
            self._start_supervisor("s")

    def scale(self, actors: int) -> None:
        life = self.supervisors.get("s")
        if life and life.pool and self._is_stable:
            self._is_scaled = True
            self.bus.tell("operator", "scales", actors=actors)
            scale = life.pool.scale
            life.process.post(0.0, lambda: life.process.create_task(scale(actors)))

    @property
    def _is_stable(self) -> bool:
        """Whether there is one supervisor, which goes on, and is no other's successor."""
        return (
            "s" in self.supervisors
            and not self._has_other
            and self._draining is None
            and self._predecessor is None
        )

    def kill_actor_unseen(self, index: int) -> None:
        """End an actor while nobody looks, so that another process may take its place unseen."""
        self.freeze_supervisor(for_s=1.2)
        self.kill_actor(index)

    def purge_a_copy(self) -> None:
        self.bus.purge_a_copy()

    def make_consumer_anew(self) -> None:
        self.bus.make_consumer_anew()

    def send_model_away(self, for_s: float) -> None:
        self._model_away += 1
        self._tell_of_model()
        self.bus.server.call_later(for_s, self._bring_model_back)

    def drain(self, grace_s: float) -> None:
        """Drain the service and start it again, as an operator does who upgrades it.

        When the supervisor dies meanwhile, the one that is started in its place is told again.
        """
        if self._draining is None:
            self._draining = grace_s
            self.bus.tell("operator", "drains", grace_s=grace_s)
            if life := self.supervisors.get("s"):
                life.process.post(0.0, self._stop, life)

    def clear_up(self) -> None:
        """End all that disturbs: from now on the service has to bring everything to its end."""
        if not self._is_calm:
            self._is_calm = True
            self.bus.tell("operator", "has the weather clear up")
            self.weather.clear_up()
            if other := self.supervisors.pop("other", None):
                self._end(other)

    # What a user does.

    def _plan_task(self, task: PlannedTask) -> None:
        times = [(at, False) for at in task.published_at]
        if task.conflict_at is not None:
            times.append((task.conflict_at, True))
        for at, is_other in times:
            self._expected += 1
            self.scheduler.at_step(at, partial(self._publish, task, is_other=is_other))
        if task.cancelled_at is not None:
            self._expected += 1
            self.scheduler.at_step(task.cancelled_at, partial(self._begin_cancel, task.task_id))

    def _publish(self, task: PlannedTask, *, is_other: bool) -> None:
        self._expected -= 1
        self.bus.accept("user", SUBJECT, payload_of(task, self.now, is_other=is_other), {})

    def _begin_cancel(self, task_id: str) -> None:
        self.operator.post(0.0, lambda: self.operator.create_task(self._cancel(task_id)))

    async def _cancel(self, task_id: str) -> None:
        connection = self.connect(self.bus, self.operator)
        leases = Leases(connection, connection, self.now)
        while True:
            try:
                record = await leases.cancel(task_id)
            except PublishFailed:
                await asyncio.sleep(0.1)
            else:
                break
        self.bus.tell("user", "cancels", task_id=task_id, ended=record.is_terminal)
        if not record.is_terminal:
            self.bus.tell_cancelled(task_key(task_id))
        self._expected -= 1

    # How the service is put together.

    def _start_supervisor(self, supervisor_id: str) -> None:
        if supervisor_id not in self.supervisors and not (self._is_calm and supervisor_id != "s"):
            self._lives += 1
            process = self.scheduler.process(f"supervisor {supervisor_id}#{self._lives}")
            life = self.supervisors[supervisor_id] = SupervisorLife(process, supervisor_id)
            process.post(0.0, self._begin, life)

    def _begin(self, life: SupervisorLife) -> None:
        serving = life.process.create_task(self._serve(life))
        serving.add_done_callback(partial(self._note_end, life))
        if self._draining is not None and life.supervisor_id == "s":
            self._stop(life)

    async def _serve(self, life: SupervisorLife) -> None:
        """Take over from the supervisor that was there before, if there was one, and serve."""
        if self._predecessor and life.supervisor_id == "s":
            await self._take_over(life, self._predecessor)
        existing = await Runtime(self.ray, life.process).existing()
        life.pool = pool_supervisor(self, life.process, life.supervisor_id)
        await life.pool.run(existing)

    async def _take_over(self, life: SupervisorLife, predecessor: SupervisorLife) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
                while not predecessor.pool:  # noqa: ASYNC110 - in the time of the model
                    await asyncio.sleep(0.1)
                await self._asked(life.process, predecessor.process, predecessor.pool.hand_over)
        self._end(predecessor)
        self._predecessor = None

    def _note_end(self, life: SupervisorLife, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled():
            self.troubles.append(f"{life.process.name} has crashed: {serving.exception()!r}")

    def _stop(self, life: SupervisorLife) -> None:
        if life.pool is None:
            life.process.post(0.1, self._stop, life)
        elif self._draining is not None:
            stopping = life.process.create_task(life.pool.stop(self._draining))
            stopping.add_done_callback(partial(self._note_drained, life))

    def _note_drained(self, life: SupervisorLife, stopping: asyncio.Task[None]) -> None:
        if stopping.cancelled() or stopping.exception():
            self.troubles.append(f"{life.process.name} cannot be stopped: {stopping!r}")
        self.bus.tell(life.process.name, "is drained")
        for agent_id in list(self.ray.lives):
            self.ray.kill(agent_id, restart=False)
        self.supervisors.pop("s")
        self._end(life)
        self._draining = None
        self.bus.sizes.clear()
        restart_s = self.weather.up_to(LONGEST_RESTART_S)
        self.bus.server.call_later(restart_s, self._start_supervisor, "s")

    def _end(self, life: SupervisorLife) -> None:
        life.process.kill()
        self.bus.forget_process(life.process)

    def _freeze(self, process: Process, for_s: float) -> None:
        self.bus.tell("operator", "freezes", process=process, for_s=for_s)
        process.freeze()
        self.bus.server.call_later(for_s, process.thaw)

    def _new_actor(self, process: Process, settings: ActorSettings) -> AgentActor:
        return AgentActor(settings, partial(self._build_actor, process))

    async def _build_actor(self, process: Process, settings: ActorSettings) -> ActorParts:
        connection = self.connect(self.bus, process)
        work = SimulatedWork(self, process, settings.agent_id)
        settle = SettleDelivery(
            agent_id=settings.agent_id,
            pool_name=settings.pool_name,
            pool=settings.pool,
            max_payload_bytes=MAX_PAYLOAD_BYTES,
            execute=ExecuteAgentTask({PROPOSAL: work, TOOLS: work}, self.now),
            leases=Leases(connection, connection, self.now),
            publisher=connection,
            acks=connection,
            artifacts=connection,
            events=connection,
            clock=self.now,
        )
        self.bus.hear_cancelled(process, settle.cancel)
        return ActorParts(
            settle=Observed(self, process, settings.agent_id, settle),
            acks=connection,
            close=connection.close,
            watch_model=partial(self._watch_model, process),
        )

    # The model.

    @property
    def is_model_away(self) -> bool:
        return self._model_away > 0

    def _watch_model(self, process: Process, listener: Callable[[bool], None]) -> None:
        self._watching.append((process, listener))
        listener(self.is_model_away)

    def _bring_model_back(self) -> None:
        self._model_away -= 1
        self._tell_of_model()

    def _tell_of_model(self) -> None:
        self.bus.tell("model", "is away" if self.is_model_away else "is back")
        for process, listener in self._watching:
            process.post(self.weather.delay_s(), listener, self.is_model_away)

    # Its end.

    def _go_on(self, until: Callable[[], bool], otherwise: str) -> bool:
        try:
            if self.scheduler.run(
                until, limit_s=LIMIT_S, most_steps=MOST_STEPS, on_error=self._note_error
            ):
                return True
        except Stuck:
            otherwise += ": steps are taken for ever"
        self.troubles.append(f"the history {otherwise}")
        return False

    def _note_error(self, process: Process, error: Exception) -> None:
        self.troubles.append(f"in {process.name} a callback raised {error!r}")

    def _is_over(self) -> bool:
        return (
            not self._expected
            and self.bus.is_idle
            and self._draining is None
            and "s" in self.supervisors
            and not any(count for process, count in self.open.items() if process.is_alive)
        )

    async def _audit(self) -> None:
        """Look until everything is at rest; what is found at last counts."""
        if self.plan.odds.keys() & {"late_requests", "stale_sends"}:
            await asyncio.sleep(LONGEST_STALE_S + REQUEST_TIMEOUT_S)
        for _ in range(LONGEST_AUDIT_S):
            self.found = await self._look()
            if self.found and self.found.is_at_rest:
                break
            await asyncio.sleep(1.0)

    async def _look(self) -> Found | None:
        life = self.supervisors.get("s")
        if not life or not life.pool or self._predecessor:
            return None
        try:
            async with asyncio.timeout(1.0):
                status = await self._asked(self.operator, life.process, life.pool.status)
                reports = [
                    await RemoteActor(self.ray, self.operator, agent_id).hello("audit")
                    for agent_id in list(self.ray.lives)
                ]
        except (ActorLost, TimeoutError):
            return None
        return Found(
            wanted_slots=status.wanted * self.plan.slots,
            slots=sum(report.slots for report in reports),
            free=sum(report.free for report in reports),
            held=sum(len(report.held) for report in reports),
            running=life.pool.running,
            slots_used=status.slots_used,
        )

    async def _asked(
        self, caller: Process, process: Process, question: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Any:
        """Return the answer from another process."""
        future = caller.create_future()

        def ask() -> None:
            asking = process.create_task(question())
            asking.add_done_callback(lambda asked: caller.post(0.0, give, future, asked.result()))

        process.post(0.0, ask)
        return await future


def pool_supervisor(service: WholeService, process: Process, supervisor_id: str) -> PoolSupervisor:
    """Return the pool as a supervisor in this process makes it."""
    connection = service.connect(service.bus, process)

    async def open_source(
        _: str, on_delivery: Callable[[Delivery], None], on_idle: Callable[[], None]
    ) -> TaskSource:
        return MemorySource(connection, on_delivery, on_idle)

    async def nothing(*_: object) -> None: ...

    async def nothing_to_arrange(_: object) -> dict[str, str]:
        return {}

    async def tell_cancelled(key: str) -> None:
        service.bus.tell_cancelled(key)

    parts = SupervisorParts(
        max_payload_bytes=MAX_PAYLOAD_BYTES,
        leases=Leases(connection, connection, service.now),
        store=connection,
        sizes=connection.sizes,
        acks=connection,
        runtime=Runtime(service.ray, process),
        take_over=nothing,
        open_source=open_source,
        arrange=nothing_to_arrange,
        waiting_tasks=nothing,
        serve_control=nothing,
        tell_cancelled=tell_cancelled,
        close=connection.close,
    )
    return PoolSupervisor(POOL, service.config, supervisor_id, parts)


def config_of(plan: Plan, *, temperature: float = 0.0) -> Config:
    pool = PoolConfig(
        actors=plan.actors,
        slots=plan.slots,
        temperature=temperature,
        max_attempts=MAX_ATTEMPTS,
        ack_wait_s=ACK_WAIT_S,
        hang_timeout_s=ACK_WAIT_S,
        retry_base_s=0.5,
        retry_cap_s=2.0,
        task_timeout_s=60.0,
        stop_grace_s=1.0,
    )
    return Config(pools={POOL: pool})


class Observed:
    """A settlement that is looked at from outside."""

    def __init__(
        self, service: WholeService, process: Process, agent_id: str, settle: SettleDelivery
    ) -> None:
        self._service = service
        self._process = process
        self._agent_id = agent_id
        self._settle = settle
        self.give_back = settle.give_back
        self.cleared = settle.cleared

    async def __call__(self, delivery: Delivery) -> object:
        service, source = self._service, delivery.source
        place = {"seq": source.stream_seq, "count": source.num_delivered, "id": delivery.id}
        current.set(delivery)
        service.open[self._process] = service.open.get(self._process, 0) + 1
        service.bus.tell(self._process.name, "takes", **place)
        settled: object = "raised"
        try:
            settled = await self._settle(delivery)
        except asyncio.CancelledError:
            settled = "left"
            raise
        finally:
            service.open[self._process] -= 1
            if self._process.is_alive:
                mine, later = self._standing(delivery)
                about = {"how": settled, "mine": mine, "later": later, **place}
                service.bus.tell(self._process.name, "settles", **about)
        return settled

    def _standing(self, delivery: Delivery) -> tuple[bool, bool]:
        """Tell whether this very delivery still has its task, and whether an earlier one has."""
        record, mine = self._service.bus.record_of(delivery), delivery.source
        if record is None or record.source.stream_seq != mine.stream_seq:
            return False, False
        has_it = self._service.bus.is_run_by(delivery) and record.agent_id == self._agent_id
        theirs = record.source
        is_later = (mine.consumer_created, mine.num_delivered) > (
            theirs.consumer_created,
            theirs.num_delivered,
        )
        return has_it, is_later


class SimulatedWork:
    """A strategy that asks a model and keeps turns, as its task's plan says."""

    def __init__(self, service: WholeService, process: Process, agent_id: str) -> None:
        self._service = service
        self._process = process
        self._agent_id = agent_id

    async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
        service, task_id = self._service, request.task.task_id
        plan = service.tasks[task_id]
        number = service.runs[task_id] = service.runs.get(task_id, 0) + 1
        tell = partial(
            service.bus.tell, self._process.name, task_id=task_id, attempt=request.attempt
        )
        kept = [bytes(entry[:40]) for entry in await record.journal.entries()] if plan.turns else []
        tell("begins", kept=kept)
        for turn in range(len(kept), plan.turns):
            await self._ask_model(plan, tell)
            entry = f"turn {turn} of attempt {request.attempt} ".encode()
            await record.journal.append(entry.ljust(plan.turn_bytes))
            tell("has kept", entry=entry.ljust(plan.turn_bytes)[:40])
        await self._ask_model(plan, tell)
        if plan.kills:
            service.ray.kill(self._agent_id)
            await self._process.create_future()  # for ever
        if number <= plan.crashes:
            tell("crashes")
            raise KeyError(task_id)
        record.proposal = Proposal(
            content=f"answer {number} to {request.task.task_description}",
            author_id=request.agent.agent_id,
            author_role=str(request.agent.role),
            model="simulated",
            temperature=0.0,
        )

    async def _ask_model(self, plan: PlannedTask, tell: Callable[..., None]) -> None:
        await asyncio.sleep(plan.think_s / (plan.turns + 1))
        if self._service.is_model_away:
            tell("finds no model")
            raise ModelUnavailable("away")


def payload_of(task: PlannedTask, now: Callable[[], datetime], *, is_other: bool) -> bytes:
    """Return the message of a planned task, or one of the same id with other content."""
    match task.payload_kind:
        case "no task":
            return msgspec.json.encode({"task_id": task.task_id, "task_description": 7})
        case "no id":
            return b"no JSON at all " + task.task_id.encode()
    constraints: dict[str, Any] = {}
    if task.deadline_s is not None:
        constraints["deadline"] = NOON + timedelta(seconds=task.deadline_s)
    if task.timeout_s is not None:
        constraints["timeout"] = task.timeout_s
    return msgspec.json.encode(
        {
            "task_id": task.task_id,
            "task_description": "something else" if is_other else f"do {task.task_id}",
            "enable_tools": task.turns > 0,
            "constraints": constraints,
        }
    )


class Silence:
    """A logger that says nothing."""

    def bind(self, **_: object) -> "Silence":
        return self

    def info(self, *_: object, **__: object) -> None: ...

    debug = warning = error = info


@contextmanager
def silence() -> Generator[None]:
    """Have nobody log, nor look for the process of an actor in this machine's /proc.

    What ends in the midst of its work warns of coroutines that never began; that is silenced too.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for name, module in list(sys.modules.items()):
            if name.startswith("agent_actors.") and hasattr(module, "log"):
                patch.setattr(module, "log", Silence())
        patch.setattr(settlement, "bind_contextvars", lambda **_: None)
        patch.setattr(actor_module, "this_process", str)
        yield
