"""Supervisor: pulls tasks from JetStream and hands them to the actors of each pool.

What it does for a pool is in `pool`; here is what all pools share: how they start and stop,
and the control service. It knows no Ray: `adapters.ray_runtime` wraps it, and gives it `build`,
which makes its adapters in its own process.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog

from agent_actors import __version__
from agent_actors.config import Config
from agent_actors.contract import (
    CancelRequest,
    DrainReply,
    DrainRequest,
    ResultRequest,
    ServiceStatus,
    check_task_id,
    encode,
    task_key,
    utc_now,
)
from agent_actors.ledger import cancel_reply, status_of
from agent_actors.patience import until_built
from agent_actors.pool import Endpoint, PoolSupervisor, SupervisorParts

log = structlog.get_logger()

# How long a drained supervisor stays, so that whoever waits for that hears of it.
LINGER_S = 2.0

Build = Callable[[Config], Awaitable[SupervisorParts]]


class Supervisor:
    """All pools of one configuration. Its `__init__` must run inside its event loop.

    `supervisor_id` stays the same when it is restarted: its actors then tell it, in their
    answer to `hello`, what they still hold of its predecessor's deliveries. `on_drained` is to
    end the process for good, and what is left of the actors, once a drain that was asked for
    over NATS has ended.
    """

    def __init__(
        self,
        config: Config,
        supervisor_id: str,
        build: Build,
        on_crash: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        self._config = config
        self._id = supervisor_id
        self._build = build
        self._started = utc_now()
        self._pools: dict[str, PoolSupervisor] = {}
        self._up = asyncio.Event()
        self._on_crash = on_crash
        self._on_drained = on_drained
        self._stop: asyncio.Task[None] | None = None
        self._hurry: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._drained = asyncio.Event()
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
        )

    async def stop(self, grace_s: float | None = None) -> None:
        """Pull nothing more, let actors finish what they can, give back the rest, end them.

        Told again meanwhile, it hurries: the time of grace is the new one.
        """
        log.info("supervisor.stopping", grace_s=grace_s)
        if not self._stop:
            self._stop = asyncio.create_task(self._end(grace_s))
        elif self._up.is_set():
            await self._stop_pools(grace_s)
        await asyncio.shield(self._stop)

    async def drained(self) -> None:
        """Return once a drain that was asked for over NATS has ended."""
        await self._drained.wait()

    async def _end(self, grace_s: float | None) -> None:
        if self._up.is_set():
            await self._stop_pools(grace_s)
        self._running.cancel()
        await asyncio.wait([self._running])
        log.info("supervisor.stopped")

    async def _stop_pools(self, grace_s: float | None) -> None:
        await asyncio.gather(*(pool.stop(grace_s) for pool in self._pools.values()))

    async def _end_drained(self, grace_s: float | None) -> None:
        await self.stop(grace_s)
        self._drained.set()
        await asyncio.sleep(LINGER_S)
        self._on_drained()

    async def _run(self) -> None:
        parts = await until_built(partial(self._build, self._config), "supervisor")
        try:
            await parts.serve_control(self._endpoints(parts))
            async with asyncio.TaskGroup() as group:
                for name, pool in self._config.pools.items():
                    self._pools[name] = PoolSupervisor(name, pool, self._id, parts)
                    group.create_task(self._pools[name].run())
                self._up.set()
        finally:
            await parts.close()

    def _ended(self, running: asyncio.Task[None]) -> None:
        """Have the process ended too when a bug ended the work, so that it is restarted."""
        if not running.cancelled() and (error := running.exception()):
            log.error("supervisor.crashed", exc_info=error)
            self._on_crash()

    def _endpoints(self, parts: SupervisorParts) -> dict[str, Endpoint]:
        """Return the endpoints of the control service. They may raise AgentActorsError."""

        async def status(_: bytes) -> bytes:
            return encode(await self.status())

        async def pools(_: bytes) -> bytes:
            return encode((await self.status()).pools)

        async def drain(request: bytes) -> bytes | None:
            wanted = msgspec.json.decode(request, type=DrainRequest)
            if wanted.cluster != self._config.ray.namespace:
                return None
            if not wanted.only_ask:
                self._begin_drain(wanted.grace_s)
            running = sum(pool.running for pool in self._pools.values())
            draining = self._stop is not None or self._drain is not None
            return encode(DrainReply(cluster=wanted.cluster, draining=draining, running=running))

        async def result(request: bytes) -> bytes:
            task_id = msgspec.json.decode(request, type=ResultRequest).task_id
            check_task_id(task_id)
            stored = await parts.store.read(task_key(task_id))
            return encode(status_of(task_id, stored.record))

        async def cancel(request: bytes) -> bytes:
            task_id = msgspec.json.decode(request, type=CancelRequest).task_id
            check_task_id(task_id)
            record = await parts.leases.cancel(task_id)
            if not record.is_terminal:
                await parts.tell_cancelled(task_key(task_id))
            return encode(cancel_reply(record))

        return {
            "status": status,
            "pools": pools,
            "result": result,
            "cancel": cancel,
            "drain": drain,
        }

    def _begin_drain(self, grace_s: float | None) -> None:
        """Drain in the background; asked again, only a time of grace that is named counts."""
        if not self._drain:
            self._drain = asyncio.create_task(self._end_drained(grace_s))
        elif grace_s is not None:
            self._hurry = asyncio.create_task(self.stop(grace_s))
