"""Ray: where the service lives: starting it, finding it again, and putting a supervisor together.

The supervisor is a named, detached actor of Ray like its actors (`ray_actors`), so that it does
not die with whoever started it, and Ray restarts it for ever.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import structlog
from ray.exceptions import (
    ActorUnavailableError,
    AuthenticationError,
    GetTimeoutError,
    RayError,
)
from ray.job_config import JobConfig

from agent_actors import __version__
from agent_actors.actor import Build as BuildActor
from agent_actors.adapters.jetstream.arranging import ConsumerArrangement, nothing_to_arrange
from agent_actors.adapters.jetstream.cancels import tell_cancelled
from agent_actors.adapters.jetstream.connection import connect
from agent_actors.adapters.jetstream.control import serve_control
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.sizes import JetStreamSizes
from agent_actors.adapters.jetstream.streams import tasks_by_subject
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue, PullConsumer
from agent_actors.adapters.ray_actors import (
    STOP_MARGIN_S,
    RayRuntime,
    actors_in,
    first_line,
    named_options,
    names_in,
    ray,
    this_node,
)
from agent_actors.assembly import build_agent_actor, end_process
from agent_actors.collector import spare_what_is_there
from agent_actors.config import Config, RayConfig
from agent_actors.config_diff import config_digest
from agent_actors.contract import ServiceStatus, utc_now
from agent_actors.errors import ServiceUnreachable
from agent_actors.leases import Leases
from agent_actors.observe.logs import configure_logs
from agent_actors.pool import SupervisorParts
from agent_actors.roster import SURGE
from agent_actors.supervisor import Ending, Supervisor

log = structlog.get_logger()

# `supervisor.<number>.<digest of configuration and version>`: the highest is the one that counts.
SUPERVISOR_PREFIX = "supervisor."
RESTART_PAUSE_S = 0.1
HAND_OVER_TIMEOUT_S = 15.0
# For an answer that a supervisor which has a process gives at once.
QUICK_ANSWER_S = 3.0

BuildSupervisor = Callable[..., Awaitable[SupervisorParts]]


class SupervisorName(NamedTuple):
    """The name of a supervisor: of two in one namespace the one that sorts last counts."""

    number: int
    digest: str

    def __str__(self) -> str:
        return f"{SUPERVISOR_PREFIX}{self.number}.{self.digest}"

    @classmethod
    def of(cls, name: str) -> "SupervisorName | None":
        """Return what an actor's name says, if it is a supervisor's."""
        prefix, _, rest = name.partition(".")
        number, _, digest = rest.partition(".")
        is_one = f"{prefix}." == SUPERVISOR_PREFIX and number.isdecimal()
        return cls(int(number), digest) if is_one else None


RemoteSupervisor = ray.remote(Supervisor)


class Service:
    """The running service: a handle on its supervisor, for `up` and `serve`."""

    def __init__(self, supervisor: Any, name: SupervisorName, config: Config) -> None:  # noqa: ANN401 - Ray's handles are untyped
        self._supervisor = supervisor
        self._name = name
        self._config = config

    @property
    def config(self) -> Config:
        """What it was started with."""
        return self._config

    def wait_ready(self, timeout_s: float) -> None:
        """Return once tasks are pulled and all actors answer. Raises ServiceUnreachable."""
        self._get_from_next(self._supervisor.ready.remote, timeout_s)

    def wait_started(self, timeout_s: float) -> None:
        """Return once the pools are this service's, and no other's. Raises ServiceUnreachable."""
        self._get_from_next(self._supervisor.started.remote, timeout_s)

    def status(self, timeout_s: float = 10.0) -> ServiceStatus:
        """Return what the pools are doing. Raises ServiceUnreachable."""
        return self._get(self._supervisor.status.remote(), timeout_s)

    async def heartbeat(self, timeout_s: float) -> None:
        """Return when the supervisor answers. Raises ServiceUnreachable."""
        await self._answer(self._supervisor.is_leaving, timeout_s)

    async def ask_status(self, timeout_s: float) -> ServiceStatus:
        """Return what the pools are doing. Raises ServiceUnreachable."""
        return await self._answer(self._supervisor.status, timeout_s)

    def note_trouble(self, trouble: str, timeout_s: float = 10.0) -> None:
        """Have the status tell what is wrong with a newer configuration; empty when nothing is."""
        self._get(self._supervisor.note_trouble.remote(trouble), timeout_s)

    def stop(self, grace_s: float | None = None) -> None:
        """Drain, and leave no Ray actor behind, whether they answer or not.

        One that has handed over, or not taken over yet, leaves the pools to the other. Raises
        ServiceUnreachable. Interrupted, it leaves the service draining: `stop` again to hurry
        it, or `kill`.
        """
        if self.give_up():
            return
        longest_s = max(pool.stop_grace_s for pool in self._config.pools.values())
        limit_s = STOP_MARGIN_S + (longest_s if grace_s is None else grace_s)
        try:
            drained = self._get_from_next(partial(self._supervisor.stop.remote, grace_s), limit_s)
        except ServiceUnreachable:
            has_ended = self.fate() is not None
            self.kill()
            if not has_ended:
                raise
        else:
            if drained:
                self.kill()

    def give_up(self) -> bool:
        """End this supervisor alone while the pools are still its predecessor's.

        Returns whether they are. A supervisor that gives no answer has no process yet.
        """
        if not any(name < self._name for name in self._supervisors()):
            return False
        try:
            gives_up = self._get_from_next(self._supervisor.give_up.remote, QUICK_ANSWER_S)
        except ServiceUnreachable:
            gives_up = True
        if gives_up:
            self.abandon()
        return gives_up

    async def ended(self) -> Ending:
        """Return once others have ended the service, or another one has taken over.

        Raises ServiceUnreachable while the supervisor does not answer, but comes back.
        """
        try:
            return await self._supervisor.ended.remote()
        except RayError as error:
            if fate := await asyncio.to_thread(self.fate):
                return fate
            raise ServiceUnreachable(f"the supervisor does not answer: {error}") from error

    def fate(self) -> Ending | None:
        """Return how the supervisor has ended for good; None while it is there, or comes back."""
        there = self._supervisors()
        if self._name in there:
            return None
        return "superseded" if there else "drained"

    def kill(self) -> None:
        """End the supervisor, then every actor, at once; JetStream hands out again what ran.

        Actors that are another supervisor's by now, or about to be, are left alone.
        """
        newest = max(self._supervisors(), default=self._name)
        self.abandon()
        if newest == self._name:
            _kill_actors(self._config.ray.namespace)

    def abandon(self) -> None:
        """End this supervisor alone, so that another one gets its place."""
        ray.kill(self._supervisor, no_restart=True)

    def restart(self) -> None:
        """End the supervisor's process, which hangs; another one takes its place."""
        with suppress(RayError, ValueError):  # it has just ended
            ray.kill(self._supervisor, no_restart=False)

    def _supervisors(self) -> list[SupervisorName]:
        return supervisors_in(self._config.ray.namespace)

    def _get_from_next(self, ask: Callable[[], Any], timeout_s: float) -> Any:  # noqa: ANN401 - Ray's answers are untyped
        """Have it answered; a supervisor that died meanwhile is asked again when it is back."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._get(ask(), deadline - time.monotonic())
            except ServiceUnreachable as error:
                restarts = isinstance(error.__cause__, ActorUnavailableError)
                if not restarts or time.monotonic() > deadline:
                    raise
                time.sleep(RESTART_PAUSE_S)

    async def _answer(self, verb: Any, timeout_s: float) -> Any:  # noqa: ANN401 - Ray's methods are untyped
        try:
            async with asyncio.timeout(timeout_s):
                return await verb.remote()
        except RayError as error:
            raise ServiceUnreachable(f"the supervisor does not answer: {error}") from error
        except TimeoutError as error:
            message = f"the supervisor does not answer within {timeout_s:g} s"
            raise ServiceUnreachable(message) from error

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
    # Those that replace others are beside them for a while.
    asked = 2 * config.ray.supervisor.num_cpus + sum(
        math.ceil((1 + SURGE) * pool.max_actors) * pool.resources.num_cpus
        for pool in config.pools.values()
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


def connect_ray(config: RayConfig, metadata: Mapping[str, str] | None = None) -> None:
    """Connect to a Ray cluster that is there; others find `metadata` in Ray's table of jobs.

    Raises ServiceUnreachable.
    """
    address = config.address or "auto"
    where = config.address or os.environ.get("RAY_ADDRESS", "auto")
    job = JobConfig(metadata=dict(metadata)) if metadata else None
    try:
        ray.init(address=address, namespace=config.namespace, job_config=job, log_to_driver=False)
    except AuthenticationError as error:
        raise ServiceUnreachable(
            f"cannot connect to Ray at {where}: {error.message}; set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the token of the cluster"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        message = f"cannot connect to Ray at {where}: {error}; set ray.address"
        raise ServiceUnreachable(message) from error


def disconnect_ray() -> None:
    """Leave the cluster; a local one ends with us."""
    ray.shutdown()


def start_service(
    config: Config,
    *,
    build_actor: BuildActor = build_agent_actor,
    build: BuildSupervisor | None = None,
    provisions: bool = True,
) -> Service:
    """Return the service of this namespace with this configuration and version. Needs a Ray.

    It is started if there is none; one with another configuration, or of another version, has
    its supervisor replaced, and its actors one after the other. `provisions` lets it make the
    pools' consumers. `build` makes a supervisor's adapters, by default `build_supervisor`.
    """
    namespace = config.ray.namespace
    digest = config_digest(config, __version__)
    found = _newest_supervisor(namespace)
    if found and found.digest == digest and not _is_leaving(found, namespace):
        name = found
    else:
        name = SupervisorName(found.number + 1 if found else 1, digest)
    options = named_options(str(name), namespace, config.ray.supervisor)
    supervisor = RemoteSupervisor.options(**options).remote(
        config,
        f"{namespace}/supervisor",
        partial(build or build_supervisor, build_actor, name, provisions=provisions),
        end_process,
        partial(_leave, namespace),
    )
    return Service(supervisor, name, config)


def _is_leaving(name: SupervisorName, namespace: str) -> bool:
    """Tell whether a supervisor is being drained; one that has no process yet is not."""
    try:
        found = ray.get_actor(str(name), namespace=namespace)
        return ray.get(found.is_leaving.remote(), timeout=QUICK_ANSWER_S)
    except GetTimeoutError:
        return False
    except (RayError, ValueError) as error:
        return not isinstance(error, ActorUnavailableError)  # it has just ended


def supervisors_in(namespace: str) -> list[SupervisorName]:
    """Return the names of this namespace's supervisors: one, but while it is replaced."""
    return [name for each in names_in(namespace) if (name := SupervisorName.of(each))]


async def build_supervisor(
    build_actor: BuildActor, name: SupervisorName, config: Config, *, provisions: bool = True
) -> SupervisorParts:
    """Connect a supervisor to NATS. Raises ServiceUnreachable, PermissionDenied."""
    configure_logs("supervisor")
    connection = await connect(config.nats, name="supervisor", on_closed=end_process)
    store = JetStreamLedger(connection)
    consumers = ConsumerArrangement(connection, config)
    spare_what_is_there()
    return SupervisorParts(
        leases=Leases(store, JetStreamTaskQueue(connection), utc_now),
        store=store,
        sizes=JetStreamSizes(connection, config.ray.namespace),
        max_payload_bytes=connection.nc.max_payload,
        acks=JetStreamAcks(connection),
        runtime=RayRuntime(config.ray.namespace, build_actor, connection),
        take_over=partial(_take_over, name, config.ray.namespace),
        open_source=partial(PullConsumer.open, connection),
        arrange=consumers.step if provisions else nothing_to_arrange,
        waiting_tasks=partial(tasks_by_subject, connection),
        serve_control=partial(serve_control, connection),
        tell_cancelled=partial(tell_cancelled, connection),
        close=connection.close,
        node=this_node(),
    )


async def _take_over(mine: SupervisorName, namespace: str) -> None:
    """Have every earlier supervisor leave its actors to us; end if a later one has them.

    A later one that has not come so far, since there is no room for it, takes over from us.
    """
    there = sorted(await asyncio.to_thread(supervisors_in, namespace))
    for name in there:
        if name > mine and await _is_in_force(name, namespace):
            log.info("supervisor.superseded", by=str(name))
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
    for name in there:
        if name < mine:
            await _retire(name, namespace)


async def _is_in_force(name: SupervisorName, namespace: str) -> bool:
    try:
        later = await asyncio.to_thread(ray.get_actor, str(name), namespace=namespace)
        async with asyncio.timeout(QUICK_ANSWER_S):
            await later.started.remote()
    except (RayError, TimeoutError, ValueError):
        return False
    return True


async def _retire(name: SupervisorName, namespace: str) -> None:
    log.info("supervisor.taking_over", from_=str(name))
    try:
        predecessor = await asyncio.to_thread(ray.get_actor, str(name), namespace=namespace)
    except ValueError:
        return  # it has just ended
    try:
        async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
            await predecessor.hand_over.remote()
    except (RayError, TimeoutError) as error:
        log.warning("supervisor.did_not_hand_over", name=str(name), error=first_line(error))
        await asyncio.to_thread(ray.kill, predecessor, no_restart=True)


def _leave(namespace: str, ending: Ending) -> None:
    """End the supervisor whose process this is for good; drained, with what is left of actors.

    Unless another supervisor has come meanwhile: the actors are its own.
    """
    if ending == "drained" and len(supervisors_in(namespace)) == 1:
        _kill_actors(namespace)
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _newest_supervisor(namespace: str) -> SupervisorName | None:
    return max(supervisors_in(namespace), default=None)


def _kill_actors(namespace: str) -> None:
    for name in actors_in(namespace):
        with suppress(ValueError):  # it has just ended
            ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)
