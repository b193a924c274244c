"""Making in JetStream what must lie there, and checking that it does.

All is looked at before anything is touched: a change that would lose messages stops the whole,
and what is right already is left alone, so that provisioning again changes nothing.
"""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from agent_actors.adapters.jetstream.connection import ApiError, Connection, NoResponders
from agent_actors.adapters.jetstream.wanted import (
    FoundStream,
    Json,
    StreamKind,
    WantedStream,
    differences,
    filter_of,
    losses,
    uncovered,
    wanted_consumers,
    wanted_streams,
)
from agent_actors.config import Config
from agent_actors.contract import TASK_STREAM, subjects_overlap
from agent_actors.errors import (
    PermissionDenied,
    ProvisionRefused,
    PublishFailed,
    ServiceUnreachable,
    StreamMissing,
)

# A cluster that has just started says for a moment that it has no peers, or no leader
# (nats-server's errors.json); a request that meets a change of leaders is not answered at all.
# Whatever is asked here may be asked again: making what is there already, as it is, is no error.
NOT_YET = frozenset({10004, 10005, 10008, 10009})
NOT_YET_WAIT_S = 0.25

# A consumer that a lost answer has made already is no error then, as it is to a mere "create":
# the server compares with its own defaults filled in.
CREATE_OR_UPDATE = ""
ANSWER_TIMEOUT_S = 5.0
ALL_ANSWERS_TIMEOUT_S = 30.0


class Change(Struct, frozen=True, kw_only=True):
    """What was done (or, in a dry run, would be) to one thing, and which settings changed.

    An `orphan` is the consumer of a pool that is not in the configuration any more.
    """

    kind: StreamKind | Literal["consumer"]
    name: str
    action: Literal["created", "updated", "unchanged", "orphan", "deleted"]
    details: tuple[str, ...] = ()


class _Step(Struct, frozen=True, kw_only=True):
    """A change and the request to JetStream that makes it; none when there is nothing to do."""

    change: Change
    request: str = ""
    payload: bytes = b""


class _Plan:
    """The steps to take, and why they must not be taken."""

    def __init__(self) -> None:
        self.steps: list[_Step] = []
        self.refusals: list[str] = []


async def provision(
    connection: Connection,
    config: Config,
    *,
    dry_run: bool = False,
    prune: bool = False,
    consumers: bool = True,
) -> list[Change]:
    """Create or update streams, buckets and consumers; return each with what was done to it.

    Without `consumers` those are left to the service, which moves subjects from one to another
    while it runs (`arranging`). `prune` deletes consumers of pools that are gone, when nothing of
    theirs is unacked; their messages stay. Raises ProvisionRefused, before anything is done, when
    messages would be lost or handed out twice; ApiError when JetStream does not take a setting;
    PermissionDenied.
    """
    plan = _Plan()
    for wanted in wanted_streams(config):
        _plan_stream(plan, wanted, await _find_stream(connection, wanted))
    if consumers:
        found = await find_consumers(connection)
        _plan_consumers(plan, wanted_consumers(config), found, prune=prune)
    if plan.refusals:
        raise ProvisionRefused("\n".join(plan.refusals))
    for step in plan.steps:
        if step.request and not dry_run:
            await ask(connection, step.request, step.payload)
    return [step.change for step in plan.steps]


async def check(connection: Connection, config: Config) -> None:
    """Raise StreamMissing unless everything is there and the pools' consumers are as wanted.

    A user who may not ask about streams (`STREAM.INFO` denied) has only the consumers checked.
    """
    trouble = await _missing_streams(connection, config)
    for name, wanted in wanted_consumers(config).items():
        trouble += await _consumer_trouble(connection, name, wanted)
    if trouble:
        raise StreamMissing(f"{'; '.join(trouble)}: run `agent-actors provision`")


async def tasks_by_subject(connection: Connection) -> dict[str, int] | None:
    """Return how many tasks wait on each subject; None where that may not be asked.

    Raises PublishFailed without an answer, StreamMissing.
    """
    try:
        info = await connection.api(f"STREAM.INFO.{TASK_STREAM}", b'{"subjects_filter": ">"}')
    except PermissionDenied:
        return None
    return info["state"].get("subjects") or {}


def _plan_stream(plan: _Plan, wanted: WantedStream, found: FoundStream | None) -> None:
    if found is None:
        change = Change(kind=wanted.kind, name=wanted.name, action="created")
        payload = msgspec.json.encode(wanted.config)
        plan.steps.append(
            _Step(change=change, request=f"STREAM.CREATE.{wanted.stream}", payload=payload)
        )
        return
    plan.refusals += losses(found, wanted, datetime.now(UTC))
    changes = tuple(str(difference) for difference in differences(found.config, wanted.config))
    if not changes:
        change = Change(kind=wanted.kind, name=wanted.name, action="unchanged")
        plan.steps.append(_Step(change=change))
        return
    plan.steps.append(
        _Step(
            change=Change(kind=wanted.kind, name=wanted.name, action="updated", details=changes),
            request=f"STREAM.UPDATE.{wanted.stream}",
            # What an operator has set beyond our settings (placement, say) stays.
            payload=msgspec.json.encode(found.config | wanted.config),
        )
    )


def _plan_consumers(
    plan: _Plan, wanted: Mapping[str, Json], found: Mapping[str, Json], *, prune: bool
) -> None:
    """Plan the pools' consumers; those that give subjects up come before those that take them.

    JetStream allows each subject of a work queue one consumer only.
    """
    for name in found.keys() - wanted.keys():
        _plan_orphan(plan, name, found[name], wanted, prune=prune)
    steps = [_consumer_step(plan, name, found.get(name), wanted[name]) for name in wanted]
    giving = [step for step in steps if _gives_up(found.get(step.change.name), wanted, step)]
    plan.steps += giving + [step for step in steps if step not in giving]


def _plan_orphan(
    plan: _Plan, name: str, info: Json, wanted: Mapping[str, Json], *, prune: bool
) -> None:
    unacked: int = info["num_ack_pending"]
    heirs = [
        heir
        for heir, config in wanted.items()
        for left in filter_of(info["config"])
        for right in filter_of(config)
        if subjects_overlap(left, right)
    ]
    if unacked and (prune or heirs):
        plan.refusals.append(
            f"consumer {name}, of no pool any more: {unacked} messages of it are unacked and "
            "would be handed out twice; run its pool until they are answered"
        )
    elif heirs and not prune:
        plan.refusals.append(
            f"consumer {name}, of no pool any more: it still takes subjects of {heirs[0]}, and a "
            "work queue has one consumer a subject; delete it with `agent-actors provision "
            f"--prune` or `nats consumer rm {TASK_STREAM} {name}`, its messages stay"
        )
    action = "deleted" if prune else "orphan"
    change = Change(kind="consumer", name=name, action=action, details=(f"unacked: {unacked}",))
    request = f"CONSUMER.DELETE.{TASK_STREAM}.{name}" if prune else ""
    plan.steps.append(_Step(change=change, request=request))


def _consumer_step(plan: _Plan, name: str, info: Json | None, wanted: Json) -> _Step:
    if info is None:
        change = Change(kind="consumer", name=name, action="created")
        return _Step(change=change, **consumer_request(name, wanted, CREATE_OR_UPDATE))
    now = with_filter(info["config"])
    lost = uncovered(filter_of(now), filter_of(wanted))
    unacked: int = info["num_ack_pending"]
    if lost and unacked:
        plan.refusals.append(
            f"consumer {name}, filter_subjects: gives up {', '.join(lost)} while {unacked} "
            "messages are unacked, which another consumer would hand out a second time; "
            "stop its pool and let it drain, or wait until they are answered"
        )
    changes = tuple(str(difference) for difference in differences(now, wanted))
    if not changes:
        return _Step(change=Change(kind="consumer", name=name, action="unchanged"))
    change = Change(kind="consumer", name=name, action="updated", details=changes)
    return _Step(change=change, **consumer_request(name, now | wanted, "update"))


def _gives_up(info: Json | None, wanted: Mapping[str, Json], step: _Step) -> bool:
    if info is None:
        return False
    return bool(uncovered(filter_of(info["config"]), filter_of(wanted[step.change.name])))


def with_filter(config: Json) -> Json:
    """Return the consumer's configuration with its subjects in the one place where we look."""
    return {key: value for key, value in config.items() if key != "filter_subject"} | {
        "filter_subjects": filter_of(config)
    }


def consumer_request(name: str, config: Json, action: str) -> dict[str, Any]:
    """Return the request, and its payload, that makes a consumer or brings it up to date."""
    body = {"stream_name": TASK_STREAM, "config": config, "action": action}
    return {
        "request": f"CONSUMER.CREATE.{TASK_STREAM}.{name}",
        "payload": msgspec.json.encode(body),
    }


async def ask(connection: Connection, request: str, payload: bytes = b"") -> Json:
    """Ask JetStream, again for a while if it is not ready yet. Raises ServiceUnreachable."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ALL_ANSWERS_TIMEOUT_S
    while True:
        try:
            return await connection.api(request, payload, ANSWER_TIMEOUT_S)
        except NoResponders as error:
            raise ServiceUnreachable(str(error)) from error
        except PublishFailed as error:
            final = isinstance(error, ApiError) and error.err_code not in NOT_YET
            if final or loop.time() > deadline:
                raise
        await asyncio.sleep(NOT_YET_WAIT_S)


async def _find_stream(connection: Connection, wanted: WantedStream) -> FoundStream | None:
    request = f"STREAM.INFO.{wanted.stream}"
    try:
        info = await ask(connection, request)
        counts: dict[str, int] = {}
        if uncovered(info["config"]["subjects"], wanted.config["subjects"]):
            counted = await ask(connection, request, b'{"subjects_filter": ">"}')
            counts = counted["state"].get("subjects") or {}
    except StreamMissing:
        return None
    state = info["state"]
    return FoundStream(
        config=info["config"],
        messages=state["messages"],
        bytes=state["bytes"],
        subjects=state.get("num_subjects", 0),
        oldest=datetime.fromisoformat(state["first_ts"]),
        counts=counts,
    )


async def find_consumers(connection: Connection) -> dict[str, Json]:
    """Return the consumers of the stream of tasks, as JetStream tells of them, by name.

    Raises PermissionDenied, PublishFailed, ServiceUnreachable.
    """
    found: dict[str, Json] = {}
    total = 1
    while len(found) < total:
        request = msgspec.json.encode({"offset": len(found)})
        try:
            page = await ask(connection, f"CONSUMER.LIST.{TASK_STREAM}", request)
        except StreamMissing:
            return {}
        total = page["total"] if page["consumers"] else 0
        found |= {info["name"]: info for info in page["consumers"]}
    return found


async def _missing_streams(connection: Connection, config: Config) -> list[str]:
    missing: list[str] = []
    for wanted in wanted_streams(config):
        try:
            await ask(connection, f"STREAM.INFO.{wanted.stream}")
        except StreamMissing:
            missing.append(f"{wanted.kind} {wanted.name} is missing")
        except PermissionDenied:
            break
    return missing


async def _consumer_trouble(connection: Connection, name: str, wanted: Json) -> list[str]:
    try:
        info = await ask(connection, f"CONSUMER.INFO.{TASK_STREAM}.{name}")
    except StreamMissing:
        return [f"consumer {name} of {TASK_STREAM} is missing"]
    changes = differences(with_filter(info["config"]), wanted)
    return [f"consumer {name} has another {change}" for change in changes]
