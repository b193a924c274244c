"""Subjects move from the consumer of one pool to that of another, while both are served.

A work queue allows each subject one consumer. But a consumer that has given up a subject still
redelivers what it had handed out before (tried on nats-server 2.15), and another one would
deliver the same messages beside it. So the one is narrowed first; the other gets the subject
once all that the first had handed out by then is acked. What was given up stands in the
consumer's own metadata, so that whoever goes on with this knows of it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import structlog
from msgspec import Struct

from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.adapters.jetstream.streams import (
    CREATE_OR_UPDATE,
    ask,
    consumer_request,
    find_consumers,
    with_filter,
)
from agent_actors.adapters.jetstream.wanted import (
    Json,
    covers,
    differences,
    filter_of,
    uncovered,
    wanted_consumers,
)
from agent_actors.config import Config
from agent_actors.contract import TASK_STREAM, TASK_SUBJECTS, subjects_overlap
from agent_actors.errors import AgentActorsError, PermissionDenied, ServiceUnreachable

log = structlog.get_logger()

GIVEN_UP = "agent-actors.given-up"
# Before its name, the filter of a consumer that has given up everything: no task's subject.
NOTHING = TASK_SUBJECTS.replace(">", "-.nothing-for.")


class Step(Struct, frozen=True, kw_only=True):
    """A request to JetStream about one consumer."""

    consumer: str
    request: str
    payload: bytes = b""


class Plan(Struct, frozen=True, kw_only=True):
    """What to ask now, and which pools wait for what."""

    steps: Sequence[Step]
    waiting: Mapping[str, str]


class ConsumerArrangement:
    """Brings the consumers to where a configuration wants them, one `step` after the other."""

    def __init__(self, connection: Connection, config: Config) -> None:
        self._connection = connection
        self._wanted = wanted_consumers(config)
        self._until: dict[str, int] = {}

    async def step(
        self, busy: Collection[str] = (), rolling: Collection[str] = ()
    ) -> Mapping[str, str]:
        """Do what can be done now; return which pools wait for what, none when all is done.

        `busy` are former pools that still have actors, `rolling` those with actors of earlier
        settings. Consumers that we may not see or make are left as they are. Raises
        PublishFailed without an answer.
        """
        try:
            found = await find_consumers(self._connection)
            self._note_given_up(found)
            todo = plan(found, self._wanted, self._until, busy, rolling)
            failed = [await self._take(step) for step in todo.steps]
        except PermissionDenied as error:
            log.info("consumers.not_ours_to_make", reason=str(error))
            return {}
        except ServiceUnreachable as error:  # JetStream is about to start
            return dict.fromkeys(self._wanted, str(error))
        return {**todo.waiting, **{name: why for name, why in failed if why}}

    async def _take(self, step: Step) -> tuple[str, str]:
        log.info("consumer.arranged", consumer=step.consumer, request=step.request)
        try:
            await ask(self._connection, step.request, step.payload)
        except PermissionDenied:
            raise
        except AgentActorsError as error:
            return step.consumer, str(error)
        return step.consumer, ""

    def _note_given_up(self, found: Mapping[str, Json]) -> None:
        """Know up to which message each consumer may still have handed out what it gave up.

        That is the last one it had handed out when this is first seen, which is after it was
        narrowed.
        """
        for name, info in found.items():
            if not _given_up(info):
                self._until.pop(name, None)
                continue
            until = self._until.setdefault(name, info["delivered"]["stream_seq"])
            if info["ack_floor"]["stream_seq"] >= until or not info["num_ack_pending"]:
                self._until[name] = 0


def plan(
    found: Mapping[str, Json],
    wanted: Mapping[str, Json],
    until: Mapping[str, int],
    busy: Collection[str],
    rolling: Collection[str],
) -> Plan:
    """Return the next steps: pure.

    `until` has, for each consumer that has given up something, the message by which all of
    that is acked; 0 when it is.
    """
    planning = _Planning(found, wanted, until, busy, rolling)
    steps = [*planning.narrowed(), *planning.removed(), *planning.widened()]
    return Plan(steps=steps, waiting=planning.waiting)


async def nothing_to_arrange(
    _busy: Collection[str], _rolling: Collection[str]
) -> Mapping[str, str]:
    """Leave the consumers as they are: others make them."""
    return {}


class _Planning:
    """One plan in the making; `_filters` are the subjects of each consumer after its steps."""

    def __init__(
        self,
        found: Mapping[str, Json],
        wanted: Mapping[str, Json],
        until: Mapping[str, int],
        busy: Collection[str],
        rolling: Collection[str],
    ) -> None:
        self._found = found
        self._wanted = wanted
        self._busy = busy
        self._rolling = rolling
        self._filters = {name: filter_of(info["config"]) for name, info in found.items()}
        self._given_up = {name: _given_up(info) for name, info in found.items() if until.get(name)}
        self._narrowed: set[str] = set()
        self.waiting: dict[str, str] = {}

    def narrowed(self) -> Iterator[Step]:
        """Yield the steps by which consumers give up subjects."""
        for name, config in self._wanted.items():
            lost = uncovered(self._filters.get(name, ()), config["filter_subjects"])
            if not lost or lost == [NOTHING + name]:
                continue
            now = self._filters[name]
            kept = [p for p in config["filter_subjects"] if any(covers(own, p) for own in now)]
            lost += self._given_up.get(name, [])
            self._narrowed.add(name)
            self._filters[name] = kept or [NOTHING + name]
            self._given_up[name] = lost
            before = with_filter(self._found[name]["config"])
            metadata = _metadata(before) | {GIVEN_UP: " ".join(lost)}
            narrow = {"filter_subjects": self._filters[name], "metadata": metadata}
            yield _update(name, before | narrow)

    def removed(self) -> Iterator[Step]:
        """Yield the steps that remove consumers of former pools whose subjects others take."""
        for name in self._found.keys() - self._wanted.keys():
            heirs = [pool for pool in self._wanted if self._overlap(name, pool)]
            if heirs and name not in self._busy:
                del self._filters[name]
                yield Step(consumer=heirs[0], request=f"CONSUMER.DELETE.{TASK_STREAM}.{name}")

    def widened(self) -> Iterator[Step]:
        """Yield the steps by which consumers get all that they are to have."""
        for name, config in self._wanted.items():
            if reason := self._obstacle(name):
                self.waiting[name] = reason
            elif name not in self._found:
                yield _update(name, config)
            elif name not in self._narrowed:
                yield from self._updated(name)

    def _updated(self, name: str) -> Iterator[Step]:
        now = with_filter(self._found[name]["config"])
        metadata = _metadata(now)
        is_answered = GIVEN_UP in metadata and name not in self._given_up
        if is_answered:
            del metadata[GIVEN_UP]
        then = self._wanted[name] | self._kept(name, now)
        if is_answered or differences(now, then):
            yield _update(name, now | then | {"metadata": metadata})

    def _kept(self, name: str, now: Json) -> Json:
        """Return what is not to change yet: actors give signs of life as often as theirs says."""
        is_lower = self._wanted[name]["ack_wait"] < now["ack_wait"]
        if not is_lower or name not in self._rolling:
            return {}
        self.waiting[name] = "its actors are being replaced; ack_wait_s is lowered after that"
        return {"ack_wait": now["ack_wait"]}

    def _obstacle(self, name: str) -> str:
        """Return what keeps a pool's consumer from having all its subjects."""
        gained = uncovered(self._wanted[name]["filter_subjects"], self._filters.get(name, ()))
        for other, subjects in self._filters.items():
            if other != name and _overlaps(gained, subjects):
                return f"waits for the actors of the former pool {other} to finish"
        for other, subjects in self._given_up.items():
            if other != name and _overlaps(gained, subjects):
                unacked = self._found[other]["num_ack_pending"]
                return f"waits until pool {other} has answered what it has ({unacked} unacked)"
        return ""

    def _overlap(self, consumer: str, pool: str) -> bool:
        return _overlaps(self._filters[consumer], self._wanted[pool]["filter_subjects"])


def _given_up(info: Json) -> list[str]:
    return _metadata(info["config"]).get(GIVEN_UP, "").split()


def _metadata(config: Json) -> dict[str, str]:
    return dict(config.get("metadata") or {})


def _overlaps(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    return any(subjects_overlap(mine, other) for mine in ours for other in theirs)


def _update(name: str, config: Json) -> Step:
    request = consumer_request(name, config, CREATE_OR_UPDATE)
    return Step(consumer=name, **request)
