"""Ray: where the supervisor and the actors live. The only file that knows it.

Both are named, detached actors, so that neither dies with whoever started it, and Ray restarts
them for ever. `max_task_retries` is 0: JetStream is the only owner of retries.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import ray as typed_ray
from ray.exceptions import ActorUnavailableError, RayError

from agent_actors.actor import ActorSettings, AgentActor
from agent_actors.actor import Build as BuildActor
from agent_actors.adapters.jetstream.cancels import tell_cancelled
from agent_actors.adapters.jetstream.connection import connect
from agent_actors.adapters.jetstream.control import serve_control
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue, PullConsumer
from agent_actors.assembly import build_agent_actor, end_process
from agent_actors.config import Config, RayConfig, Resources
from agent_actors.contract import ServiceStatus, utc_now
from agent_actors.errors import ActorLost, ServiceUnreachable
from agent_actors.leases import Leases
from agent_actors.observe.logs import configure_logs
from agent_actors.pool import SupervisorParts
from agent_actors.ports import ActorReport, Delivery
from agent_actors.supervisor import Supervisor

SUPERVISOR_NAME = "supervisor"
STOP_MARGIN_S = 30.0
# For taking deliveries, which an actor does at once. Whether it hangs is found by its silence
# in `completions` (`watching`), much earlier.
SUBMIT_TIMEOUT_S = 30.0

ray = cast("Any", typed_ray)  # half of Ray's public functions have unknown parts in their types
RemoteSupervisor = ray.remote(Supervisor)
RemoteActor = ray.remote(AgentActor)


class Service:
    """The running service: a handle on its supervisor, for `up` and `serve`."""

    def __init__(self, supervisor: Any, config: Config) -> None:  # noqa: ANN401 - Ray's handles are untyped
        self._supervisor = supervisor
        self._config = config

    def wait_ready(self, timeout_s: float) -> None:
        """Return once tasks are pulled and all actors answer. Raises ServiceUnreachable."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._get(self._supervisor.ready.remote(), deadline - time.monotonic())
            except ServiceUnreachable as error:
                restarted = isinstance(error.__cause__, ActorUnavailableError)
                if not restarted or time.monotonic() > deadline:
                    raise

    def status(self, timeout_s: float = 10.0) -> ServiceStatus:
        """Return what the pools are doing. Raises ServiceUnreachable."""
        return self._get(self._supervisor.status.remote(), timeout_s)

    def stop(self, grace_s: float | None = None) -> None:
        """Drain, and leave no Ray actor behind, whether they answer or not.

        Raises ServiceUnreachable. Interrupted, it leaves the service draining: `stop` again to
        hurry it, or `kill`.
        """
        longest_s = max(pool.stop_grace_s for pool in self._config.pools.values())
        limit_s = STOP_MARGIN_S + (longest_s if grace_s is None else grace_s)
        try:
            self._get(self._supervisor.stop.remote(grace_s), limit_s)
        except ServiceUnreachable:
            self.kill()
            raise
        self.kill()

    async def drained(self) -> None:
        """Return once somebody has drained the service over NATS. Raises ServiceUnreachable."""
        try:
            await self._supervisor.drained.remote()
        except RayError as error:
            raise ServiceUnreachable(f"the supervisor does not answer: {error}") from error

    def kill(self) -> None:
        """End the supervisor, then every actor, at once; JetStream hands out again what ran."""
        ray.kill(self._supervisor, no_restart=True)
        _kill_actors(self._config)

    def _get(self, reference: Any, timeout_s: float) -> Any:  # noqa: ANN401 - Ray's answers are untyped
        try:
            return ray.get(reference, timeout=timeout_s)
        except RayError as error:
            raise ServiceUnreachable(f"the supervisor does not answer: {error}") from error


def start_local_ray(config: Config, *, temp_dir: str, log_to_driver: bool) -> None:
    """Start a Ray of our own on this machine, with room for all actors that are configured.

    `temp_dir` must be short: Ray's sockets lie below it, and their paths end at 107 bytes.
    It listens on loopback only if `local.ray_environment` was prepared beforehand.
    """
    asked = config.ray.supervisor.num_cpus + sum(
        pool.actors * pool.resources.num_cpus for pool in config.pools.values()
    )
    ray.init(
        address="local",
        namespace=config.ray.namespace,
        num_cpus=max(os.cpu_count() or 1, int(asked) + 1),
        include_dashboard=False,
        log_to_driver=log_to_driver,
        configure_logging=False,
        _temp_dir=temp_dir,
    )


def connect_ray(config: RayConfig) -> None:
    """Connect to a Ray cluster that is there. Raises ServiceUnreachable."""
    address = config.address or "auto"
    try:
        ray.init(address=address, namespace=config.namespace, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        message = f"cannot connect to Ray at {address}: {error}; set ray.address"
        raise ServiceUnreachable(message) from error


def disconnect_ray() -> None:
    """Leave the cluster; a local one ends with us."""
    ray.shutdown()


def start_service(config: Config, *, build_actor: BuildActor = build_agent_actor) -> Service:
    """Return the supervisor of this namespace, started if there is none. Needs a Ray."""
    namespace = config.ray.namespace
    options = _options(SUPERVISOR_NAME, namespace, config.ray.supervisor)
    supervisor = RemoteSupervisor.options(**options).remote(
        config,
        f"{namespace}/{SUPERVISOR_NAME}",
        partial(build_supervisor, build_actor),
        end_process,
        partial(_leave, config),
    )
    return Service(supervisor, config)


async def build_supervisor(build_actor: BuildActor, config: Config) -> SupervisorParts:
    """Connect a supervisor to NATS. Raises ServiceUnreachable, PermissionDenied."""
    configure_logs("supervisor")
    connection = await connect(config.nats, name=SUPERVISOR_NAME, on_closed=end_process)
    store = JetStreamLedger(connection)
    return SupervisorParts(
        leases=Leases(store, JetStreamTaskQueue(connection), utc_now),
        store=store,
        max_payload_bytes=connection.nc.max_payload,
        acks=JetStreamAcks(connection),
        runtime=RayRuntime(config, build_actor),
        open_source=partial(PullConsumer.open, connection),
        serve_control=partial(serve_control, connection),
        tell_cancelled=partial(tell_cancelled, connection),
        close=connection.close,
    )


class RayRuntime:
    """Where a supervisor's actors come from."""

    def __init__(self, config: Config, build_actor: BuildActor) -> None:
        self._config = config
        self._build_actor = build_actor

    async def start(self, pool_name: str, agent_id: str) -> "RayActorHandle":
        """Return a handle on the actor of this name, starting it if there is none.

        Raises ActorLost when Ray cannot say.
        """
        settings = ActorSettings(agent_id=agent_id, pool_name=pool_name, config=self._config)
        options = _options(agent_id, self._config.ray.namespace, settings.pool.resources)

        def start() -> Any:  # noqa: ANN401 - Ray's handles are untyped
            return RemoteActor.options(**options).remote(settings, self._build_actor)

        try:
            # It asks the GCS for the name, and waits for it as long as that is away.
            return RayActorHandle(await asyncio.to_thread(start))
        except (RayError, ValueError) as error:
            raise ActorLost(_first_line(error)) from error


class RayActorHandle:
    """One actor, over Ray. Every verb raises ActorLost when it does not answer."""

    def __init__(self, actor: Any) -> None:  # noqa: ANN401 - Ray's handles are untyped
        self._actor = actor

    async def hello(self, supervisor_id: str) -> ActorReport:
        """Return the actor's slots and what it holds of this supervisor's deliveries."""
        return await self._call(None, self._actor.hello.remote, supervisor_id)

    async def submit(
        self, supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        """Hand over deliveries."""
        submit = partial(self._actor.submit.remote, alone=alone)
        return await self._call(SUBMIT_TIMEOUT_S, submit, supervisor_id, batch)

    async def completions(self, supervisor_id: str) -> ActorReport:
        """Wait for news."""
        return await self._call(None, self._actor.completions.remote, supervisor_id)

    async def kill(self) -> None:
        """End the actor's process; Ray starts another."""
        await asyncio.to_thread(ray.kill, self._actor, no_restart=False)

    async def stop(self, grace_s: float) -> None:
        """Drain the actor, and end it for good."""
        try:
            await self._call(grace_s + STOP_MARGIN_S, self._actor.stop.remote, grace_s)
        finally:
            ray.kill(self._actor, no_restart=True)

    async def _call(self, timeout_s: float | None, verb: Any, *args: Any) -> Any:  # noqa: ANN401 - Ray's methods are untyped
        try:
            async with asyncio.timeout(timeout_s):
                return await verb(*args)
        except RayError as error:
            raise ActorLost(_first_line(error)) from error
        except TimeoutError as error:
            raise ActorLost(f"no answer within {timeout_s:g} s") from error


def _options(name: str, namespace: str, resources: Resources) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": resources.num_cpus,
        "memory": resources.memory_bytes or None,
        "resources": resources.custom or None,
    }


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _leave(config: Config) -> None:
    """End the supervisor whose process this is for good, and whatever is left of its actors."""
    _kill_actors(config)
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _kill_actors(config: Config) -> None:
    for pool_name, pool in config.pools.items():
        for index in range(pool.actors):
            _kill_named(f"{pool_name}-{index}", config.ray.namespace)


def _kill_named(name: str, namespace: str) -> None:
    try:
        actor = ray.get_actor(name, namespace=namespace)
    except ValueError:
        return  # already gone
    ray.kill(actor, no_restart=True)
