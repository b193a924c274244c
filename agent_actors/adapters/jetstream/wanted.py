"""What must lie in JetStream, as data, and what changing what lies there would cost: pure.

The dicts are JetStream's own configurations (times in nanoseconds), so that buckets can be
spoken to with `nats kv` and `nats object`: their layout is NATS ADR-8 and ADR-20.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from msgspec import Struct

from agent_actors.config import Config, PoolConfig, StreamsConfig
from agent_actors.contract import (
    ARTIFACT_BUCKET,
    COMPLETED_SUBJECT,
    CONFIG_BUCKET,
    DEADLETTER_PREFIX,
    DEADLETTER_STREAM,
    FAILED_SUBJECT,
    LEDGER_BUCKET,
    RESPONSE_STREAM,
    TASK_STREAM,
    TASK_SUBJECTS,
)

NANOSECONDS = 1_000_000_000
UNLIMITED = -1

# What servers and clients of NATS take when nothing is said.
USUAL_DUPLICATE_WINDOW_S = 120.0

CONFIG_HISTORY = 10
MAX_WAITING_PULLS = 512

Json = dict[str, Any]
StreamKind = Literal["stream", "bucket", "object store"]


class WantedStream(Struct, frozen=True, kw_only=True):
    """A stream, or the stream under a bucket called `name`.

    `options` names our own configuration's key for a setting of JetStream's.
    """

    kind: StreamKind
    name: str
    config: Json
    options: Mapping[str, str] = {}

    @property
    def stream(self) -> str:
        """What JetStream calls it."""
        return self.config["name"]


class FoundStream(Struct, frozen=True, kw_only=True):
    """A stream as it is. `counts` are messages by subject, asked for when subjects change."""

    config: Json
    messages: int
    bytes: int
    subjects: int
    oldest: datetime
    counts: Mapping[str, int] = {}


class Difference(Struct, frozen=True, kw_only=True):
    """A setting that is not what it should be."""

    setting: str
    now: Any
    wanted: Any

    def __str__(self) -> str:
        shown = [_shown(self.setting, value) for value in (self.now, self.wanted)]
        return f"{self.setting}: {shown[0]} -> {shown[1]}"


def wanted_streams(config: Config) -> list[WantedStream]:
    """Return the streams, buckets and the object store."""
    streams = config.streams
    return [
        _tasks(streams),
        _responses(streams),
        _dead_letters(streams),
        _bucket(
            LEDGER_BUCKET,
            streams,
            description="What became of each task; decides whose result counts",
            history=1,
            max_age_s=streams.responses_max_age_s,
            max_bytes=streams.ledger_max_bytes,
            options={
                "max_age": "streams.responses_max_age_s",
                "max_bytes": "streams.ledger_max_bytes",
            },
        ),
        _bucket(
            CONFIG_BUCKET,
            streams,
            description="Changes made while the service runs",
            history=CONFIG_HISTORY,
        ),
        _artifacts(streams),
    ]


def wanted_consumers(config: Config) -> dict[str, Json]:
    """Return a durable pull consumer for each pool, by the pool's name."""
    return {name: _consumer(name, pool) for name, pool in config.pools.items()}


def differences(now: Json, wanted: Json) -> list[Difference]:
    """Return the settings of `wanted` that `now` has otherwise; what we do not set is free."""
    return [
        Difference(setting=setting, now=_comparable(now.get(setting)), wanted=_comparable(value))
        for setting, value in wanted.items()
        if _comparable(now.get(setting)) != _comparable(value)
    ]


def losses(found: FoundStream, wanted: WantedStream, now: datetime) -> list[str]:
    """Return why making `found` what is wanted would lose messages; none if it would not."""
    reasons: list[str] = []
    for difference in differences(found.config, wanted.config):
        judge = _JUDGES.get(difference.setting)
        reason = judge(difference, found, now) if judge else ""
        if reason:
            option = wanted.options.get(difference.setting)
            keep = f", or set {option} as it was" if option else ""
            reasons.append(f"{wanted.kind} {wanted.name}, {difference}: {reason}{keep}")
    return reasons


def filter_of(consumer: Json) -> list[str]:
    """Return the subjects of a consumer; the server has two ways to write down a single one."""
    return consumer.get("filter_subjects") or [consumer.get("filter_subject") or ">"]


def covers(pattern: str, subject: str) -> bool:
    """Tell whether `pattern` matches everything that `subject` does; both may have wildcards."""
    wide, narrow = pattern.split("."), subject.split(".")
    for position, part in enumerate(wide):
        if part == ">":
            return len(narrow) > position
        if position >= len(narrow) or narrow[position] == ">":
            return False
        if part not in ("*", narrow[position]):
            return False
    return len(wide) == len(narrow)


def uncovered(subjects: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the subjects that no pattern covers."""
    patterns = tuple(patterns)
    return [subject for subject in subjects if not any(covers(p, subject) for p in patterns)]


def _tasks(streams: StreamsConfig) -> WantedStream:
    return WantedStream(
        kind="stream",
        name=TASK_STREAM,
        config=_limits(
            streams,
            max_bytes=streams.tasks_max_bytes,
            name=TASK_STREAM,
            description="Tasks until they are answered",
            subjects=[TASK_SUBJECTS],
            retention="workqueue",
            discard="new",
        ),
        options={"max_bytes": "streams.tasks_max_bytes"},
    )


def _responses(streams: StreamsConfig) -> WantedStream:
    return WantedStream(
        kind="stream",
        name=RESPONSE_STREAM,
        config=_limits(
            streams,
            max_age_s=streams.responses_max_age_s,
            max_bytes=streams.responses_max_bytes,
            duplicate_window_s=streams.duplicate_window_s,
            name=RESPONSE_STREAM,
            description="Results, one a task",
            subjects=[COMPLETED_SUBJECT, FAILED_SUBJECT],
            retention="limits",
            discard="old",
        ),
        options={
            "max_age": "streams.responses_max_age_s",
            "max_bytes": "streams.responses_max_bytes",
        },
    )


def _dead_letters(streams: StreamsConfig) -> WantedStream:
    return WantedStream(
        kind="stream",
        name=DEADLETTER_STREAM,
        config=_limits(
            streams,
            max_age_s=streams.deadletter_max_age_s,
            max_bytes=streams.deadletter_max_bytes,
            duplicate_window_s=streams.duplicate_window_s,
            name=DEADLETTER_STREAM,
            description="Tasks given up on, as they came, with the reason in headers",
            subjects=[f"{DEADLETTER_PREFIX}>"],
            retention="limits",
            discard="old",
        ),
        options={
            "max_age": "streams.deadletter_max_age_s",
            "max_bytes": "streams.deadletter_max_bytes",
        },
    )


def _bucket(
    name: str,
    streams: StreamsConfig,
    *,
    description: str,
    history: int,
    max_age_s: float = 0.0,
    max_bytes: int = UNLIMITED,
    options: Mapping[str, str] | None = None,
) -> WantedStream:
    """Return a key-value bucket whose reads come from the leader: no direct gets."""
    return WantedStream(
        kind="bucket",
        name=name,
        config=_limits(
            streams,
            max_age_s=max_age_s,
            max_bytes=max_bytes,
            name=f"KV_{name}",
            description=description,
            subjects=[f"$KV.{name}.>"],
            retention="limits",
            discard="new",
            max_msgs_per_subject=history,
            allow_rollup_hdrs=True,
            allow_direct=False,
            deny_delete=True,
        ),
        options=options or {},
    )


def _artifacts(streams: StreamsConfig) -> WantedStream:
    name = ARTIFACT_BUCKET
    return WantedStream(
        kind="object store",
        name=name,
        config=_limits(
            streams,
            max_age_s=streams.artifacts_max_age_s,
            max_bytes=streams.artifacts_max_bytes,
            name=f"OBJ_{name}",
            description="Parts of results that are too big for a message",
            subjects=[f"$O.{name}.C.>", f"$O.{name}.M.>"],
            retention="limits",
            discard="new",
            allow_rollup_hdrs=True,
            allow_direct=True,
        ),
        options={
            "max_age": "streams.artifacts_max_age_s",
            "max_bytes": "streams.artifacts_max_bytes",
        },
    )


def _limits(
    streams: StreamsConfig,
    *,
    max_bytes: int,
    max_age_s: float = 0.0,
    duplicate_window_s: float = USUAL_DUPLICATE_WINDOW_S,
    **settings: Any,  # noqa: ANN401 - any JSON value
) -> Json:
    """Return the settings with the limits; the server takes no window longer than the age."""
    window_s = min(duplicate_window_s, max_age_s or duplicate_window_s)
    return settings | {
        "storage": "file",
        "num_replicas": streams.replicas,
        "max_age": _nanoseconds(max_age_s),
        "max_bytes": max_bytes,
        "duplicate_window": _nanoseconds(window_s),
    }


def _consumer(name: str, pool: PoolConfig) -> Json:
    """Return a pool's consumer: attempts are counted by the ledger, never by `max_deliver`.

    No `max_ack_pending`, since delayed naks would fill it and stall the pool; no `backoff`,
    since it would override `ack_wait`.
    """
    return {
        "name": name,
        "durable_name": name,
        "filter_subjects": list(pool.subjects),
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_policy": "explicit",
        "ack_wait": _nanoseconds(pool.ack_wait_s),
        "backoff": [],
        "max_deliver": UNLIMITED,
        "max_ack_pending": UNLIMITED,
        "max_waiting": MAX_WAITING_PULLS,
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def _comparable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value so that equal settings are equal: the server omits what is empty."""
    if isinstance(value, list):
        return sorted(value) or None  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON
    return value or None


def _never(_difference: Difference, _found: FoundStream, _now: datetime) -> str:
    return (
        "cannot be changed in a stream that exists; "
        "back it up, delete it, provision and restore (`nats stream backup`, `restore`)"
    )


def _too_young(difference: Difference, found: FoundStream, now: datetime) -> str:
    age = timedelta(microseconds=(difference.wanted or 0) / 1_000)
    if not age or not found.messages or now - found.oldest <= age:
        return ""
    return (
        f"the oldest of {found.messages} stored messages is from "
        f"{found.oldest:%Y-%m-%d %H:%M:%S} UTC and would be deleted; wait until it has expired"
    )


def _too_small(difference: Difference, found: FoundStream, _now: datetime) -> str:
    if difference.wanted in (None, UNLIMITED) or found.bytes <= difference.wanted:
        return ""
    return f"{found.bytes} bytes are stored; wait until less is, or set at least that"


def _too_few_per_subject(difference: Difference, found: FoundStream, _now: datetime) -> str:
    most = found.messages - found.subjects + 1
    if difference.wanted in (None, UNLIMITED) or most <= difference.wanted:
        return ""
    return f"a subject may have {most} messages; older ones would be deleted; purge them first"


def _fewer_subjects(difference: Difference, found: FoundStream, _now: datetime) -> str:
    orphaned = sum(found.counts[subject] for subject in uncovered(found.counts, difference.wanted))
    if not orphaned:
        return ""
    return f"{orphaned} messages are stored on subjects that would go; work them off or purge them"


_JUDGES: dict[str, Callable[[Difference, FoundStream, datetime], str]] = {
    "retention": _never,
    "storage": _never,
    "max_age": _too_young,
    "max_bytes": _too_small,
    "max_msgs_per_subject": _too_few_per_subject,
    "subjects": _fewer_subjects,
}


def _shown(setting: str, value: Any) -> str:  # noqa: ANN401 - any JSON value
    if setting in {"max_age", "duplicate_window", "ack_wait"}:
        return f"{value / NANOSECONDS:g} s" if value else "no limit"
    if value == UNLIMITED:
        return "no limit"
    if isinstance(value, list):
        return ", ".join(value)  # pyright: ignore[reportUnknownArgumentType] - JSON
    return "not set" if value is None else str(value)
