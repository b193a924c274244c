"""Ray: where a supervisor's actors live, and how the two speak with each other.

They are named, detached actors, which Ray restarts for ever. `max_task_retries` is 0: JetStream is
the only owner of retries. A supervisor asks its actors by a lane over NATS once they have one, and
through Ray where that gives no answer; either way their words are msgpack, which other versions of
us understand.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import msgspec
import ray as typed_ray
from msgspec import Struct
from msgspec.structs import replace
from ray.exceptions import RayError

from agent_actors.actor import ActorParts, AgentActor, Build
from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.adapters.jetstream.lanes import Lane
from agent_actors.config import Resources
from agent_actors.errors import ActorLost
from agent_actors.ports import ActorReport, ActorSettings, Delivery

AGENT_ID = re.compile(r"[A-Za-z0-9_-]+-\d+")
# Beyond an actor's grace, for its answer that it has stopped.
STOP_MARGIN_S = 30.0
# For taking deliveries, which an actor does at once. Whether it hangs is found by its silence
# in `completions` (`watching`), much earlier.
SUBMIT_TIMEOUT_S = 30.0
# What is not answered by a lane in so long is asked through Ray, and so is all for a while then.
# An actor answers a poll within a third of the time after which it counts as hung.
LANE_SUBMIT_S = 2.0
LANE_SHARE_OF_HANG = 0.5
LANE_SHUT_S = 5.0

ray = cast("Any", typed_ray)  # half of Ray's public functions have unknown parts in their types

_batch = msgspec.msgpack.Decoder(list[Delivery])
_report = msgspec.msgpack.Decoder(ActorReport)
_pack = msgspec.msgpack.Encoder().encode


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

    def __init__(self, settings: ActorSettings, build: Build) -> None:
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

    async def _built(self, build: Build, settings: ActorSettings) -> ActorParts:
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


RemoteActor = ray.remote(AgentActorProcess)


class RayRuntime:
    """Where a supervisor's actors come from."""

    def __init__(self, namespace: str, build_actor: Build, connection: Connection) -> None:
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
            raise ActorLost(first_line(error)) from error
        except TimeoutError as error:
            raise ActorLost(f"no answer within {timeout_s:g} s") from error


def this_node() -> str:
    """Return the id of the cluster's node that this process is on."""
    return ray.get_runtime_context().get_node_id()


def actors_in(namespace: str) -> list[str]:
    """Return the ids of this namespace's actors."""
    return [name for name in names_in(namespace) if AGENT_ID.fullmatch(name)]


def names_in(namespace: str) -> list[str]:
    """Return the names of all that has one in this namespace, supervisors too."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in found if actor["namespace"] == namespace]


def named_options(name: str, namespace: str, resources: Resources) -> dict[str, Any]:
    """Return Ray's options for an actor that lives until it is killed, wherever its name is."""
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


def first_line(error: Exception) -> str:
    """Return what an error of Ray says, without the traceback that may follow."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _hear(life: asyncio.Future[None]) -> None:
    if not life.cancelled():
        life.exception()  # whoever waits is told; nobody may


def _actor_options(settings: ActorSettings, namespace: str) -> dict[str, Any]:
    pool = settings.pool
    strategy = {"scheduling_strategy": "SPREAD"} if pool.placement == "spread" else {}
    return named_options(settings.agent_id, namespace, pool.resources) | strategy


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _asked(ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - Ray's answers are untyped
    """Return Ray's answer to a call that blocks. Raises ActorLost."""
    try:
        return await asyncio.to_thread(ask)
    except (RayError, ValueError) as error:
        raise ActorLost(first_line(error)) from error


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
