"""Supervisor: pulls tasks from JetStream and hands them to the actors of each pool.

What it does for a pool is in `pool`; here is what all pools share: how they start, stop, and
pass from one supervisor to the next. What is asked from outside is answered in `control`. It
knows no Ray: `adapters.ray_runtime` wraps it, and gives it `build`, which makes its adapters in
its own process.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import structlog

from agent_actors import __version__
from agent_actors.config import Config
from agent_actors.contract import MAX_SECONDS, ServiceStatus, subjects_overlap, utc_now
from agent_actors.control import Control
from agent_actors.errors import ActorLost, AgentActorsError
from agent_actors.patience import FIRST_PAUSE_S, pause, until_answered, until_built
from agent_actors.pool import Endpoint, PoolSupervisor, SupervisorParts
from agent_actors.ports import ActorRuntime
from agent_actors.roster import pool_of

log = structlog.get_logger()

# How long a drained supervisor stays, so that whoever waits for that hears of it.
LINGER_S = 2.0
ARRANGE_EVERY_S = 1.0
COUNT_EVERY_S = 10.0
# Actors of pools that are gone may finish whatever they do.
LONGEST_TASK_S = MAX_SECONDS

Ending = Literal["drained", "superseded"]

Build = Callable[[Config], Awaitable[SupervisorParts]]


class Supervisor:
    """All pools of one configuration. Its `__init__` must run inside its event loop.

    `supervisor_id` stays the same when it is restarted: its actors then tell it, in their
    answer to `hello`, what they still hold of its predecessor's deliveries. `restart` is to end
    the process, for another one to take its place. `on_ended` is to end it for good: with what is
    left of the actors once it is drained, alone once another supervisor has taken over.
    """

    def __init__(
        self,
        config: Config,
        supervisor_id: str,
        build: Build,
        restart: Callable[[], None],
        on_ended: Callable[[Ending], None],
    ) -> None:
        self._config = config
        self._id = supervisor_id
        self._build = build
        self._started = utc_now()
        self._pools: dict[str, PoolSupervisor] = {}
        self._up = asyncio.Event()
        self._takes_over = False
        self._hands_over = False
        self._restart = restart
        self._on_ended = on_ended
        self._stop: asyncio.Task[None] | None = None
        self._grace_s: float | None = None
        self._hurry: asyncio.Task[bool] | None = None
        self._drain: asyncio.Task[bool] | None = None
        self._unserved: dict[str, int] = {}
        self._trouble = ""
        self._node = ""
        self._closed: dict[str, float] = {}
        self._move: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run())
        self._running.add_done_callback(self._ended)

    async def ready(self) -> None:
        """Return once every pool pulls tasks and all its actors have answered."""
        await self._up.wait()
        await asyncio.gather(*(pool.ready() for pool in self._pools.values()))

    async def status(self) -> ServiceStatus:
        """Return what the pools are doing."""
        return ServiceStatus(
            version=__version__,
            supervisor_id=self._id,
            started=self._started,
            pools=[await pool.status() for pool in self._pools.values()],
            cluster=self._config.ray.namespace,
            unserved=self._unserved,
            trouble=self._trouble,
        )

    async def stop(self, grace_s: float | None = None) -> bool:
        """Pull nothing more, let actors finish what they can, give back the rest, end them.

        Told again meanwhile, it hurries: the time of grace is the new one. Returns whether that
        is done: another supervisor may have the pools by now.
        """
        if self._hands_over:
            return False
        log.info("supervisor.stopping", grace_s=grace_s)
        self._grace_s = grace_s
        if not self._stop:
            self._stop = asyncio.create_task(self._end())
        elif self._up.is_set():
            await self._stop_pools()
        await asyncio.shield(self._stop)
        return not self._hands_over

    @property
    def pools(self) -> Mapping[str, PoolSupervisor]:
        """Its pools by name."""
        return self._pools

    @property
    def trouble(self) -> str:
        """What is wrong with a newer configuration; empty when nothing is."""
        return self._trouble

    @property
    def is_superseded(self) -> bool:
        """Whether another supervisor has the pools by now, or is just getting them."""
        return self._hands_over

    @property
    def is_draining(self) -> bool:
        """Whether it is about to end."""
        return self._stop is not None or self._drain is not None

    async def started(self) -> None:
        """Return once the pools are this supervisor's, and no other's any more."""
        await self._up.wait()

    async def ended(self) -> Ending:
        """Return once it has been drained, or another has taken over."""
        return await asyncio.shield(self._ending)

    async def is_leaving(self) -> bool:
        """Return whether it is about to end, and whoever wants a service needs another one."""
        return self.is_draining or self._hands_over

    async def give_up(self) -> bool:
        """End, if the pools are still another supervisor's; return whether they are."""
        if self._takes_over:
            return False
        self._running.cancel()
        await asyncio.wait([self._running])
        return True

    async def hand_over(self) -> None:
        """Leave the pools with their actors and what those do to another supervisor; then end.

        It may be one of another version of the package, as with `started`.
        """
        log.info("supervisor.superseded")
        self._hands_over = True
        await asyncio.gather(*(pool.hand_over() for pool in self._pools.values()))
        self._running.cancel()
        await asyncio.wait([self._running])
        self._leave("superseded")

    async def drain_node(self, node: str, grace_s: float | None = None) -> list[str]:
        """Have the actors on a node of the cluster leave it, and after them this supervisor.

        Returns which of them are still there, at once: whoever wants the node for something else
        asks again until nobody is. Others take their places, on other nodes if this one is closed
        to newcomers. The actors finish what ends in the time of grace (by default a pool's longest
        task) and give back the rest.
        """
        await self._up.wait()
        if not self.is_draining and not self._hands_over:
            self._close_node(node, grace_s)
        left = self._on_node(node)
        return [*left, self._id] if node == self._node else left

    async def note_trouble(self, trouble: str) -> None:
        """Tell in the status what is wrong with a newer configuration; empty when nothing is."""
        self._trouble = trouble

    def begin_drain(self, grace_s: float | None) -> None:
        """Drain in the background; asked again, only a time of grace that is named counts."""
        if not self._drain:
            self._drain = asyncio.create_task(self.stop(grace_s))
        elif grace_s is not None:
            self._hurry = asyncio.create_task(self.stop(grace_s))

    def _close_node(self, node: str, grace_s: float | None) -> None:
        for pool in self._pools.values():
            pool.close_node(node, grace_s)
        longest_s = max(pool.task_timeout_s for pool in self._config.pools.values())
        until = asyncio.get_running_loop().time() + (longest_s if grace_s is None else grace_s)
        self._closed[node] = min(until, self._closed.get(node, until))
        if self._should_move() and not self._move:
            self._move = asyncio.create_task(self._move_away())

    def _should_move(self) -> bool:
        """Whether its node is to be left now: last, since the actors there are in its care.

        Those on other nodes that are being drained, too: if the whole cluster is, there is no
        other place to be.
        """
        until = self._closed.get(self._node)
        if until is None:
            return False
        nobody_left = not any(self._on_node(node) for node in self._closed)
        return nobody_left or asyncio.get_running_loop().time() > until

    def _on_node(self, node: str) -> list[str]:
        return [agent_id for pool in self._pools.values() for agent_id in pool.on_node(node)]

    async def _move_away(self) -> None:
        """End this process in good order; another one takes its place on another node."""
        log.info("supervisor.moving")
        await asyncio.gather(*(pool.hand_over() for pool in self._pools.values()))
        self._restart()

    async def _end(self) -> None:
        if self._takes_over:  # nobody else has the pools
            up = asyncio.create_task(self._up.wait())
            await asyncio.wait([up, self._running], return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
        if self._up.is_set():
            await self._stop_pools()
        self._running.cancel()
        await asyncio.wait([self._running])
        log.info("supervisor.stopped")
        if not self._hands_over:
            self._leave("drained")

    async def _stop_pools(self) -> None:
        await asyncio.gather(*(pool.stop(self._grace_s) for pool in self._pools.values()))

    def _leave(self, ending: Ending) -> None:
        """Tell those who wait for it, and end the process soon."""
        if not self._ending.done():
            self._ending.set_result(ending)
            asyncio.get_running_loop().call_later(LINGER_S, self._on_ended, ending)

    async def _run(self) -> None:
        parts = await until_built(partial(self._build, self._config), "supervisor")
        self._node = parts.node
        try:
            # Before the one before goes, so that somebody answers all the time.
            control = Control(self, self._config, parts)
            await parts.serve_control({n: self._once_up(e) for n, e in control.endpoints.items()})
            self._takes_over = True
            await parts.take_over()
            actors = await _actors_by_pool(parts.runtime)
            async with asyncio.TaskGroup() as group:
                for name in self._config.pools:
                    self._pools[name] = PoolSupervisor(name, self._config, self._id, parts)
                    group.create_task(self._pools[name].run(actors.pop(name, [])))
                self._up.set()
                group.create_task(self._arrange(parts, actors))
                group.create_task(self._look_for_unserved(parts))
        finally:
            await parts.close()

    def _once_up(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint that answers once the pools are ours."""

        async def answer(request: bytes) -> bytes | None:
            await self._up.wait()
            return await endpoint(request)

        return answer

    async def _arrange(self, parts: SupervisorParts, former: Mapping[str, Sequence[str]]) -> None:
        """Let the actors of former pools finish, and bring the consumers to where they belong."""
        async with asyncio.TaskGroup() as group:
            leaving = {
                name: group.create_task(self._dismiss(parts.runtime, agent_ids))
                for name, agent_ids in former.items()
            }
            while True:
                busy = [name for name, dismissal in leaving.items() if not dismissal.done()]
                rolling = [n for n, pool in self._pools.items() if not pool.is_as_configured]
                waiting = await until_answered(partial(parts.arrange, busy, rolling))
                for name, pool in self._pools.items():
                    pool.note_moving(waiting.get(name, ""))
                if not waiting and not busy:
                    return
                await asyncio.sleep(ARRANGE_EVERY_S)

    async def _dismiss(self, runtime: ActorRuntime, agent_ids: Sequence[str]) -> None:
        """End the actors of a pool that is not configured any more, when they have finished."""
        await asyncio.gather(*(_dismissed(runtime, agent_id) for agent_id in agent_ids))

    async def _look_for_unserved(self, parts: SupervisorParts) -> None:
        """Tell of tasks that no pool serves: they wait until one does."""
        while True:
            try:
                counts = await parts.waiting_tasks()
            except AgentActorsError as error:
                log.debug("tasks.not_counted", error=str(error))
            else:
                if counts is None:
                    return
                self._note_unserved(counts)
            await asyncio.sleep(COUNT_EVERY_S)

    def _note_unserved(self, counts: Mapping[str, int]) -> None:
        served = [subject for pool in self._config.pools.values() for subject in pool.subjects]
        unserved = {
            subject: count
            for subject, count in sorted(counts.items())
            if not any(subjects_overlap(subject, pattern) for pattern in served)
        }
        if unserved.keys() - self._unserved.keys():
            log.warning("tasks.unserved", waiting=unserved)
        self._unserved = unserved

    def _ended(self, running: asyncio.Task[None]) -> None:
        """Have the process ended too when a bug ended the work, so that it is restarted."""
        if not running.cancelled() and (error := running.exception()):
            log.error("supervisor.crashed", exc_info=error)
            self._restart()


async def _actors_by_pool(runtime: ActorRuntime) -> dict[str, list[str]]:
    actors: dict[str, list[str]] = {}
    for agent_id in await _until_listed(runtime):
        actors.setdefault(pool_of(agent_id), []).append(agent_id)
    return actors


async def _until_listed(runtime: ActorRuntime) -> list[str]:
    """Return the ids of all actors there are, as soon as somebody can tell."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await runtime.existing()
        except ActorLost as error:
            log.warning("actors.not_known", error=str(error))
            pause_s = await pause(pause_s)


async def _dismissed(runtime: ActorRuntime, agent_id: str) -> None:
    try:
        await (await runtime.find(agent_id)).stop(LONGEST_TASK_S)
    except ActorLost as error:
        log.warning("actor.lost", agent_id=agent_id, error=str(error))
    else:
        log.info("actor.left", agent_id=agent_id)
