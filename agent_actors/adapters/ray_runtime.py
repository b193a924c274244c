"""Ray: where the supervisor and the actors live. The only file that knows it.

Both are named, detached actors, so that neither dies with whoever started it, and Ray restarts
them for ever. `max_task_retries` is 0: JetStream is the only owner of retries.
"""

import asyncio
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec
import ray as typed_ray
import structlog
from msgspec import Struct
from msgspec.structs import replace
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from agent_actors import __version__
from agent_actors.actor import ActorParts, AgentActor
from agent_actors.actor import Build as BuildActor
from agent_actors.adapters.jetstream.arranging import ConsumerArrangement, nothing_to_arrange
from agent_actors.adapters.jetstream.cancels import tell_cancelled
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.control import serve_control
from agent_actors.adapters.jetstream.lanes import Lane
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.sizes import JetStreamSizes
from agent_actors.adapters.jetstream.streams import tasks_by_subject
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue, PullConsumer
from agent_actors.assembly import build_agent_actor, end_process
from agent_actors.collector import spare_what_is_there
from agent_actors.config import Config, RayConfig, Resources
from agent_actors.config_diff import config_digest
from agent_actors.contract import ServiceStatus, utc_now
from agent_actors.errors import ActorLost, ServiceUnreachable
from agent_actors.leases import Leases
from agent_actors.observe.logs import configure_logs
from agent_actors.pool import SupervisorParts
from agent_actors.ports import ActorReport, ActorSettings, Delivery
from agent_actors.roster import SURGE
from agent_actors.supervisor import Ending, Supervisor

log = structlog.get_logger()

# `supervisor.<number>.<digest of configuration and version>`: the highest is the one that counts.
SUPERVISOR_PREFIX = "supervisor."
AGENT_ID = re.compile(r"[A-Za-z0-9_-]+-\d+")
STOP_MARGIN_S = 30.0
RESTART_PAUSE_S = 0.1
# For taking deliveries, which an actor does at once. Whether it hangs is found by its silence
# in `completions` (`watching`), much earlier.
SUBMIT_TIMEOUT_S = 30.0
# What is not answered by a lane in so long is asked through Ray, and so is all for a while then.
# An actor answers a poll within a third of the time after which it counts as hung.
LANE_SUBMIT_S = 2.0
LANE_SHARE_OF_HANG = 0.5
LANE_SHUT_S = 5.0
HAND_OVER_TIMEOUT_S = 15.0
# For an answer that a supervisor which has a process gives at once.
QUICK_ANSWER_S = 3.0

ray = cast("Any", typed_ray)  # half of Ray's public functions have unknown parts in their types

BuildSupervisor = Callable[..., Awaitable[SupervisorParts]]

_batch = msgspec.msgpack.Decoder(list[Delivery])
_report = msgspec.msgpack.Decoder(ActorReport)
_pack = msgspec.msgpack.Encoder().encode


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


class Submission(Struct, frozen=True, array_like=True, tag="submit"):
    """What `submit` takes, by a lane."""

    supervisor_id: str
    batch: list[Delivery]
    alone: bool = False


class Poll(Struct, frozen=True, array_like=True, tag="completions"):
    """What `completions` takes, by a lane."""

    supervisor_id: str
    heard: int


_request = msgspec.msgpack.Decoder(Submission | Poll)


class AgentActorProcess:
    """An AgentActor as Ray runs it. Its words are bytes, which other versions of us understand."""

    def __init__(self, settings: ActorSettings, build: BuildActor) -> None:
        self._lane = ""
        self._watchers: dict[str, asyncio.Event] = {}
        self._node = this_node()
        self._actor = AgentActor(settings, partial(self._built, build))

    async def look(self) -> bytes:
        """Answer at once."""
        return _pack(replace(await self._actor.look(), node=self._node))

    async def hello(self, supervisor_id: str) -> bytes:
        """Answer once everything is connected."""
        report = await self._actor.hello(supervisor_id)
        return _pack(replace(report, node=self._node, lane=self._lane))

    async def submit(self, supervisor_id: str, batch: bytes, *, alone: bool = False) -> bytes:
        """Take deliveries."""
        deliveries = _batch.decode(batch)
        return _pack(await self._actor.submit(supervisor_id, deliveries, alone=alone))

    async def completions(self, supervisor_id: str, heard: int | None = None) -> bytes:
        """Tell what is settled, when something is."""
        return _pack(await self._actor.completions(supervisor_id, heard))

    async def live(self, supervisor_id: str) -> None:
        """Stay, until this is called anew: whoever waits for it hears when this process dies."""
        if before := self._watchers.get(supervisor_id):
            before.set()
        ended = self._watchers[supervisor_id] = asyncio.Event()
        await ended.wait()

    async def stop(self, grace_s: float) -> None:
        """Finish, give back, close."""
        await self._actor.stop(grace_s)

    async def _built(self, build: BuildActor, settings: ActorSettings) -> ActorParts:
        parts = await build(settings)
        self._lane = await parts.open_lane(self._answer)
        return parts

    async def _answer(self, request: bytes) -> bytes:
        """Answer what comes by the lane, as a call through Ray is answered."""
        asked: Submission | Poll = _request.decode(request)
        if isinstance(asked, Submission):
            return _pack(
                await self._actor.submit(asked.supervisor_id, asked.batch, alone=asked.alone)
            )
        return _pack(await self._actor.completions(asked.supervisor_id, asked.heard))


RemoteSupervisor = ray.remote(Supervisor)
RemoteActor = ray.remote(AgentActorProcess)


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


def this_node() -> str:
    """Return the id of the cluster's node that this process is on."""
    return ray.get_runtime_context().get_node_id()


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
    options = _options(str(name), namespace, config.ray.supervisor)
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
    return [name for each in _names_in(namespace) if (name := SupervisorName.of(each))]


def actors_in(namespace: str) -> list[str]:
    """Return the ids of this namespace's actors."""
    return [name for name in _names_in(namespace) if AGENT_ID.fullmatch(name)]


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


class RayRuntime:
    """Where a supervisor's actors come from."""

    def __init__(self, namespace: str, build_actor: BuildActor, connection: Connection) -> None:
        self._namespace = namespace
        self._build_actor = build_actor
        self._connection = connection
        self._starting: dict[str, asyncio.Future[Any]] = {}

    async def existing(self) -> list[str]:
        """Return the ids of all actors of this namespace. Raises ActorLost."""
        return await _asked(lambda: actors_in(self._namespace))

    async def find(self, agent_id: str) -> "RayActorHandle":
        """Return a handle on an actor that exists. Raises ActorLost when there is none."""
        if starting := self._starting.get(agent_id):
            await asyncio.wait([starting])
        find = partial(ray.get_actor, agent_id, namespace=self._namespace)
        return RayActorHandle(await _asked(find), self._connection)

    async def start(self, settings: ActorSettings) -> "RayActorHandle":
        """Return a handle on the actor of this id, starting it if there is none.

        Raises ActorLost when Ray cannot say.
        """
        options = _actor_options(settings, self._namespace)

        def start() -> Any:  # noqa: ANN401 - Ray's handles are untyped
            return RemoteActor.options(**options).remote(settings, self._build_actor)

        # It asks the GCS for the name, and waits for it as long as that is away. Who gives up
        # waiting does not undo it, so whoever looks for the actor waits for it first.
        starting = asyncio.ensure_future(_asked(start))
        self._starting[settings.agent_id] = starting
        starting.add_done_callback(partial(self._started, settings.agent_id))
        return RayActorHandle(await asyncio.shield(starting), self._connection)

    async def lacking(self, resources: Resources) -> str:
        """Return in words what an actor that asks for so much waits for."""
        try:
            return await _asked(partial(_lacking, resources))
        except ActorLost as error:
            return str(error)

    def _started(self, agent_id: str, starting: asyncio.Future[Any]) -> None:
        if self._starting.get(agent_id) is starting:
            del self._starting[agent_id]
        if not starting.cancelled():
            starting.exception()  # whoever waited has heard of it


class RayActorHandle:
    """One actor, over Ray; what is asked often goes by a lane over NATS, once the actor has one.

    Every verb raises ActorLost when the actor does not answer.
    """

    def __init__(self, actor: Any, connection: Connection) -> None:  # noqa: ANN401 - Ray's handles are untyped
        self._actor = actor
        self._connection = connection
        self._lane: Lane | None = None
        self._life: asyncio.Future[None] | None = None
        self._poll_within_s = 0.0
        self._shut_until = 0.0
        self._heard = 0

    async def look(self) -> ActorReport:
        """Return what the actor is, as soon as it has a process."""
        return _report.decode(await self._call(None, self._actor.look.remote))

    async def hello(self, supervisor_id: str) -> ActorReport:
        """Return the actor's slots and what it holds of this supervisor's deliveries."""
        report = _report.decode(await self._call(None, self._actor.hello.remote, supervisor_id))
        self._heard = report.number
        if report.lane and not self._life:
            self._lane = Lane(self._connection, report.lane)
            self._poll_within_s = LANE_SHARE_OF_HANG * report.hang_timeout_s
            live = self._call(None, self._actor.live.remote, supervisor_id)
            self._life = asyncio.ensure_future(live)
            self._life.add_done_callback(_hear)
        return report

    async def submit(
        self, supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        """Hand over deliveries; those that the actor has already it does not take twice."""
        request = Submission(supervisor_id, list(batch), alone)
        if report := await self._by_lane(request, LANE_SUBMIT_S):
            return report
        submit = partial(self._actor.submit.remote, alone=alone)
        packed = _pack(batch)
        return _report.decode(await self._call(SUBMIT_TIMEOUT_S, submit, supervisor_id, packed))

    async def completions(self, supervisor_id: str) -> ActorReport:
        """Wait for news."""
        report = await self._by_lane(Poll(supervisor_id, self._heard), self._poll_within_s)
        if not report:
            poll = partial(self._actor.completions.remote, supervisor_id, self._heard)
            report = _report.decode(await self._call(None, poll))
        self._heard = report.number
        return report

    async def kill(self) -> None:
        """End the actor's process; Ray starts another."""
        await asyncio.to_thread(ray.kill, self._actor, no_restart=False)

    async def stop(self, grace_s: float) -> None:
        """Drain the actor, and end it for good. Who gives up waiting leaves it draining."""
        try:
            await self._call(grace_s + STOP_MARGIN_S, self._actor.stop.remote, grace_s)
        finally:
            if not _is_cancelled():
                await self.end()

    async def end(self) -> None:
        """End the actor at once and for good."""
        await _asked(partial(ray.kill, self._actor, no_restart=True))

    async def _by_lane(self, request: Submission | Poll, within_s: float) -> ActorReport | None:
        """Return the answer that comes by the lane; None when Ray is to be asked instead."""
        now = asyncio.get_running_loop().time()
        if not self._lane or not self._life or self._life.done() or now < self._shut_until:
            return None
        asked = asyncio.ensure_future(self._lane.ask(_pack(request), within_s))
        try:
            await asyncio.wait({asked, self._life}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                self._life.result()  # the actor has died, or a later handle watches it
                return None
            answer = asked.result()
        finally:
            asked.cancel()
        if answer is None:
            self._shut_until = asyncio.get_running_loop().time() + LANE_SHUT_S
            return None
        return _report.decode(answer)

    async def _call(self, timeout_s: float | None, verb: Any, *args: Any) -> Any:  # noqa: ANN401 - Ray's methods are untyped
        try:
            async with asyncio.timeout(timeout_s):
                return await verb(*args)
        except RayError as error:
            raise ActorLost(_first_line(error)) from error
        except TimeoutError as error:
            raise ActorLost(f"no answer within {timeout_s:g} s") from error


def _hear(life: asyncio.Future[None]) -> None:
    if not life.cancelled():
        life.exception()  # whoever waits is told; nobody may


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
        "label_selector": resources.labels or None,
    }


def _actor_options(settings: ActorSettings, namespace: str) -> dict[str, Any]:
    pool = settings.pool
    strategy = {"scheduling_strategy": "SPREAD"} if pool.placement == "spread" else {}
    return _options(settings.agent_id, namespace, pool.resources) | strategy


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _asked(ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - Ray's answers are untyped
    """Return Ray's answer to a call that blocks. Raises ActorLost."""
    try:
        return await asyncio.to_thread(ask)
    except (RayError, ValueError) as error:
        raise ActorLost(_first_line(error)) from error


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
        log.warning("supervisor.did_not_hand_over", name=str(name), error=_first_line(error))
        await asyncio.to_thread(ray.kill, predecessor, no_restart=True)


def _leave(namespace: str, ending: Ending) -> None:
    """End the supervisor whose process this is for good; drained, with what is left of actors.

    Unless another supervisor has come meanwhile: the actors are its own.
    """
    if ending == "drained" and len(supervisors_in(namespace)) == 1:
        _kill_actors(namespace)
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def _lacking(resources: Resources) -> str:
    """Return what is asked for beside what there is, as Ray counts it."""
    asked = {"CPU": resources.num_cpus, "memory": resources.memory_bytes, **resources.custom}
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [
        f"{name} {amount:g} (the cluster has {total.get(name, 0):g}, {free.get(name, 0):g} free)"
        for name, amount in asked.items()
        if amount
    ]
    parts += [f"a node with the label {key}={value}" for key, value in resources.labels.items()]
    return f"each asks for {', '.join(parts)}" if parts else "Ray has not placed them yet"


def _newest_supervisor(namespace: str) -> SupervisorName | None:
    return max(supervisors_in(namespace), default=None)


def _names_in(namespace: str) -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == namespace]


def _kill_actors(namespace: str) -> None:
    for name in actors_in(namespace):
        with suppress(ValueError):  # it has just ended
            ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)
