"""Resources for NACK come to what `provision` makes, on a real server.

NACK itself is not here. What it makes of a resource is written down here once more, after its
sources (internal/controller in v0.34) and the defaults of the libraries that it calls.
"""

import re
from typing import Any

import msgspec
import pytest
from support.nats import StartNats

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.nack import nack_resources
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.adapters.jetstream.wanted import wanted_consumers, wanted_streams
from agent_actors.config import Config, NatsConfig, PoolConfig, StreamsConfig
from agent_actors.errors import ConfigError

pytestmark = pytest.mark.nats

SECOND = 1_000_000_000
UNITS = {"ms": SECOND // 1000, "s": SECOND}

STREAM_DEFAULTS = {
    "retention": "limits",
    "discard": "old",
    "max_consumers": -1,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "max_bytes": -1,
    "max_age": 365 * 86_400 * SECOND,
    "max_msg_size": -1,
    "num_replicas": 1,
}
STREAM_SETTINGS = {
    "name": "name",
    "description": "description",
    "subjects": "subjects",
    "retention": "retention",
    "discard": "discard",
    "storage": "storage",
    "replicas": "num_replicas",
    "maxAge": "max_age",
    "maxBytes": "max_bytes",
    "maxMsgsPerSubject": "max_msgs_per_subject",
    "duplicateWindow": "duplicate_window",
    "allowRollup": "allow_rollup_hdrs",
    "allowDirect": "allow_direct",
    "denyDelete": "deny_delete",
}
OBJECT_STORE_SETTINGS = {
    "description": "description",
    "storage": "storage",
    "replicas": "num_replicas",
    "ttl": "max_age",
    "maxBytes": "max_bytes",
}
CONSUMER_DEFAULTS = {
    "deliver_policy": "all",
    "ack_policy": "explicit",
    "ack_wait": 30 * SECOND,
    "replay_policy": "instant",
}
CONSUMER_SETTINGS = {
    "durableName": "durable_name",
    "filterSubjects": "filter_subjects",
    "deliverPolicy": "deliver_policy",
    "replayPolicy": "replay_policy",
    "ackPolicy": "ack_policy",
    "ackWait": "ack_wait",
    "maxDeliver": "max_deliver",
    "maxAckPending": "max_ack_pending",
    "maxWaiting": "max_waiting",
}

ODD = StreamsConfig(
    tasks_max_bytes=10_000_000,
    responses_max_age_s=90.0,
    responses_max_bytes=20_000_000,
    deadletter_max_age_s=1.5,
    ledger_max_bytes=30_000_000,
    artifacts_max_age_s=0.0,
    artifacts_max_bytes=40_000_000,
    duplicate_window_s=60.0,
)
CONFIGS = {
    "as it is by default": Config(),
    "otherwise in everything": Config(
        streams=ODD,
        pools={
            "one": PoolConfig(subjects=("agent.tasks.dev",), ack_wait_s=2.5),
            "Two_Of": PoolConfig(subjects=("agent.tasks.qa", "agent.tasks.data")),
        },
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
async def test_resources_come_to_what_provision_makes(start_nats: StartNats, config: Config):
    by_nack, by_us = [
        await connect(NatsConfig(url=(await start_nats()).url), name="test") for _ in range(2)
    ]
    await provision(by_us, config)
    for resource in nack_resources(config):
        await make(by_nack, resource)
    assert await everything(by_nack, config) == await everything(by_us, config)
    assert {change.action for change in await provision(by_nack, config)} == {"unchanged"}
    for link in (by_nack, by_us):
        await link.close()


def test_pools_that_are_one_to_kubernetes_are_told_apart_or_refused():
    pools = {name: PoolConfig(subjects=(f"agent.tasks.{name}",)) for name in ("a_b", "c", "A-B")}
    with pytest.raises(ConfigError, match="a_b and A-B would have one name"):
        nack_resources(Config(pools=pools))


async def make(link: Connection, resource: dict[str, Any]) -> None:
    """Make of a resource what NACK does."""
    spec = resource["spec"]
    assert spec.pop("preventDelete")
    match resource["kind"]:
        case "Stream":
            stream = STREAM_DEFAULTS | settings(spec, STREAM_SETTINGS)
            await ask(link, f"STREAM.CREATE.{stream['name']}", stream)
        case "ObjectStore":
            bucket = spec.pop("bucket")
            stream = {
                "name": f"OBJ_{bucket}",
                "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
                "discard": "new",
                "allow_rollup_hdrs": True,
                "allow_direct": True,
                "max_bytes": -1,
            } | settings(spec, OBJECT_STORE_SETTINGS)
            await ask(link, f"STREAM.CREATE.OBJ_{bucket}", stream)
        case "Consumer":
            stream_name = spec.pop("streamName")
            consumer = CONSUMER_DEFAULTS | settings(spec, CONSUMER_SETTINGS)
            name = consumer["name"] = consumer["durable_name"]
            if len(consumer["filter_subjects"]) == 1:
                (consumer["filter_subject"],) = consumer.pop("filter_subjects")
            body = {"stream_name": stream_name, "config": consumer}
            await ask(link, f"CONSUMER.CREATE.{stream_name}.{name}", body)


def settings(spec: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    assert set(spec) <= set(names)
    return {names[field]: value_of(value) for field, value in spec.items()}


def value_of(value: Any) -> Any:
    """Return a value as JetStream has it: times in nanoseconds."""
    found = re.fullmatch(r"(\d+)(ms|s)", value) if isinstance(value, str) else None
    return int(found[1]) * UNITS[found[2]] if found else value


async def ask(link: Connection, request: str, body: dict[str, Any]) -> None:
    await link.api(request, msgspec.json.encode(body))


async def everything(link: Connection, config: Config) -> dict[str, Any]:
    """Return the configurations of all streams and consumers, as the server has them."""
    found = {}
    for wanted in wanted_streams(config):
        info = await link.api(f"STREAM.INFO.{wanted.stream}")
        found[wanted.stream] = info["config"]
    for pool in wanted_consumers(config):
        info = (await link.api(f"CONSUMER.INFO.AGENT_TASKS.{pool}"))["config"]
        subjects = info.pop("filter_subject", None)
        found[pool] = {"filter_subjects": [subjects], **info} if subjects else info
    return found
