"""What must lie in JetStream, as resources for NACK, which makes it from within Kubernetes: pure.

NACK 0.34 makes a bucket whose reads may come from any replica of a `KeyValue`, while the ledger
is to be read from its leader alone; so buckets are `Stream`s here. It puts a limit of its own in
the place of a `maxAge` that is not said, so nothing is left to its defaults that counts.
"""

from collections.abc import Callable, Mapping
from typing import Any

from agent_actors.adapters.jetstream.wanted import (
    NANOSECONDS,
    UNLIMITED,
    Json,
    WantedStream,
    wanted_consumers,
    wanted_streams,
)
from agent_actors.config import Config
from agent_actors.contract import TASK_STREAM
from agent_actors.errors import ConfigError

API_VERSION = "jetstream.nats.io/v1beta2"
MILLISECOND = NANOSECONDS // 1000

# JetStream's settings as NACK calls them; what is a time there is a text here, such as `30s`.
STREAM_FIELDS = {
    "name": "name",
    "description": "description",
    "subjects": "subjects",
    "retention": "retention",
    "discard": "discard",
    "storage": "storage",
    "num_replicas": "replicas",
    "max_age": "maxAge",
    "max_bytes": "maxBytes",
    "max_msgs_per_subject": "maxMsgsPerSubject",
    "duplicate_window": "duplicateWindow",
    "allow_rollup_hdrs": "allowRollup",
    "allow_direct": "allowDirect",
    "deny_delete": "denyDelete",
}
# The rest of an object store's settings is what NACK gives to every one.
OBJECT_STORE_FIELDS = {
    "description": "description",
    "storage": "storage",
    "num_replicas": "replicas",
    "max_age": "ttl",
    "max_bytes": "maxBytes",
}
# A consumer's `name` is its `durableName`, and to have no `backoff` is not to say one.
CONSUMER_FIELDS = {
    "durable_name": "durableName",
    "filter_subjects": "filterSubjects",
    "deliver_policy": "deliverPolicy",
    "replay_policy": "replayPolicy",
    "ack_policy": "ackPolicy",
    "ack_wait": "ackWait",
    "max_deliver": "maxDeliver",
    "max_ack_pending": "maxAckPending",
    "max_waiting": "maxWaiting",
}


def nack_resources(config: Config) -> list[Json]:
    """Return resources that come to the same as `provision`, streams before their consumers.

    Whoever deletes one of them deletes nothing in JetStream. Raises ConfigError when two pools
    are one to Kubernetes, which knows neither upper case nor underscores.
    """
    streams = [_stream(wanted) for wanted in wanted_streams(config)]
    consumers: dict[str, Json] = {}
    for pool, wanted in wanted_consumers(config).items():
        consumer = _consumer(wanted)
        known = consumers.setdefault(consumer["metadata"]["name"], consumer)
        if known is not consumer:
            raise ConfigError(
                f"pools: {known['spec']['durableName']} and {pool} would have one name in "
                "Kubernetes; rename one, or provision with `agent-actors provision`"
            )
    return streams + list(consumers.values())


def _stream(wanted: WantedStream) -> Json:
    if wanted.kind == "object store":
        config = {k: v for k, v in wanted.config.items() if (k, v) != ("max_bytes", UNLIMITED)}
        spec = {"bucket": wanted.name} | _fields(config, OBJECT_STORE_FIELDS)
        return _resource("ObjectStore", wanted.name, spec)
    return _resource("Stream", wanted.stream, _fields(wanted.config, STREAM_FIELDS))


def _consumer(config: Json) -> Json:
    spec = {"streamName": TASK_STREAM} | _fields(config, CONSUMER_FIELDS)
    return _resource("Consumer", f"{TASK_STREAM}-{config['durable_name']}", spec)


def _resource(kind: str, name: str, spec: Json) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": _kubernetes_name(name)},
        "spec": spec | {"preventDelete": True},
    }


def _fields(config: Json, names: Mapping[str, str]) -> Json:
    return {
        names[setting]: _VALUES.get(setting, _same)(value)
        for setting, value in config.items()
        if setting in names
    }


def _kubernetes_name(name: str) -> str:
    """Return the name in lower case and without underscores, as Kubernetes has names (RFC 1123)."""
    return name.lower().replace("_", "-").strip("-")


def _duration(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return f"{nanoseconds // MILLISECOND}ms" if rest else f"{seconds}s"


def _same(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return value


_VALUES: Mapping[str, Callable[[Any], Any]] = {
    "max_age": _duration,
    "duplicate_window": _duration,
    "ack_wait": _duration,
}
