"""What a supervisor answers to those who ask over NATS: the endpoints of the control service."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from agent_actors.config import Config
from agent_actors.config_file import effective
from agent_actors.contract import (
    CancelRequest,
    ConfigReply,
    DrainReply,
    DrainRequest,
    ResultRequest,
    ScaleReply,
    ScaleRequest,
    ServiceStatus,
    check_task_id,
    encode,
    task_key,
)
from agent_actors.errors import RequestRefused
from agent_actors.ledger import cancel_reply, status_of
from agent_actors.pool import Endpoint, PoolSupervisor, SupervisorParts


class Controlled(Protocol):
    """The supervisor, as far as it is asked and told from outside."""

    @property
    def pools(self) -> Mapping[str, PoolSupervisor]:
        """Its pools by name."""
        ...

    @property
    def trouble(self) -> str:
        """What is wrong with a newer configuration."""
        ...

    @property
    def is_superseded(self) -> bool:
        """Whether another one has the pools, whom what changes them must reach."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether it is about to end."""
        ...

    async def status(self) -> ServiceStatus:
        """Return what the pools are doing."""
        ...

    def begin_drain(self, grace_s: float | None) -> None:
        """Drain in the background."""
        ...


class Control:
    """The endpoints. They may raise AgentActorsError, which is what is answered then."""

    def __init__(self, service: Controlled, config: Config, parts: SupervisorParts) -> None:
        self._service = service
        self._config = config
        self._cluster = config.ray.namespace
        self._parts = parts

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Return them by name."""
        return {
            "status": self.status,
            "pools": self.pools,
            "config": self.config,
            "result": self.result,
            "cancel": self.cancel,
            "scale": self.scale,
            "drain": self.drain,
        }

    async def status(self, _: bytes) -> bytes:
        """Tell what the service does."""
        return encode(await self._service.status())

    async def pools(self, _: bytes) -> bytes:
        """Tell what the pools do."""
        return encode((await self._service.status()).pools)

    async def config(self, _: bytes) -> bytes:
        """Tell the configuration that is in force."""
        reply = ConfigReply(
            cluster=self._cluster, config=effective(self._config), trouble=self._service.trouble
        )
        return encode(reply)

    async def result(self, request: bytes) -> bytes:
        """Tell where a task stands, and its result."""
        task_id = msgspec.json.decode(request, type=ResultRequest).task_id
        check_task_id(task_id)
        stored = await self._parts.store.read(task_key(task_id))
        return encode(status_of(task_id, stored.record))

    async def cancel(self, request: bytes) -> bytes:
        """Mark a task as cancelled, and tell all agents."""
        task_id = msgspec.json.decode(request, type=CancelRequest).task_id
        check_task_id(task_id)
        record = await self._parts.leases.cancel(task_id)
        if not record.is_terminal:
            await self._parts.tell_cancelled(task_key(task_id))
        return encode(cancel_reply(record))

    async def scale(self, request: bytes) -> bytes | None:
        """Set a pool's size, if this cluster is meant. Raises RequestRefused."""
        wanted = msgspec.json.decode(request, type=ScaleRequest)
        if not self._is_meant(wanted.cluster):
            return None
        pool = self._service.pools.get(wanted.pool)
        if pool is None:
            known = ", ".join(sorted(self._service.pools))
            raise RequestRefused(f"there is no pool {wanted.pool!r}; there is {known}")
        return encode(await self._scaled(pool, wanted))

    async def drain(self, request: bytes) -> bytes | None:
        """Begin to drain, if this cluster is meant, and tell how far that has come."""
        wanted = msgspec.json.decode(request, type=DrainRequest)
        if not self._is_meant(wanted.cluster):
            return None
        if not wanted.only_ask:
            self._service.begin_drain(wanted.grace_s)
        running = sum(pool.running for pool in self._service.pools.values())
        draining = self._service.is_draining
        return encode(DrainReply(cluster=self._cluster, draining=draining, running=running))

    def _is_meant(self, cluster: str) -> bool:
        return cluster == self._cluster and not self._service.is_superseded

    async def _scaled(self, pool: PoolSupervisor, wanted: ScaleRequest) -> ScaleReply:
        now, before, sized_by = await pool.scale(wanted.actors)
        return ScaleReply(
            cluster=wanted.cluster,
            pool=wanted.pool,
            wanted=now,
            before=before,
            sized_by=sized_by,
        )
