"""Provisioning against a real server: makes, keeps, changes, and refuses to lose."""

import json
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from nats.js.errors import ServiceUnavailableError
from support.nats import NatsServer, StartNats
from support.until import until

from agent_actors.adapters.jetstream.connection import ApiError, Connection, connect
from agent_actors.adapters.jetstream.streams import Change, check, provision
from agent_actors.config import Config, NatsConfig, PoolConfig, StreamsConfig
from agent_actors.config_types import Secret
from agent_actors.contract import TASK_STREAM
from agent_actors.errors import PermissionDenied, ProvisionRefused, StreamMissing

pytestmark = pytest.mark.nats

EVERYTHING = [
    ("stream", "AGENT_TASKS"),
    ("stream", "AGENT_RESPONSES"),
    ("stream", "AGENT_DEADLETTER"),
    ("bucket", "agent_ledger"),
    ("bucket", "agent_config"),
    ("object store", "agent_artifacts"),
    ("consumer", "default"),
]


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    connection = await connect(NatsConfig(url=nats_server.url), name="test")
    yield connection
    await connection.close()


@pytest.fixture
def config(nats_server: NatsServer) -> Config:
    return Config(streams=StreamsConfig(replicas=nats_server.replicas))


def with_streams(config: Config, **settings) -> Config:
    return replace(config, streams=replace(config.streams, **settings))


def with_pools(config: Config, **pools: list[str]) -> Config:
    return replace(
        config,
        pools={name: PoolConfig(subjects=tuple(subjects)) for name, subjects in pools.items()},
    )


def actions(changes: list[Change]) -> dict[str, str]:
    return {change.name: change.action for change in changes}


async def stream_config(connection: Connection, name: str) -> dict:
    return (await connection.api(f"STREAM.INFO.{name}"))["config"]


async def consumer_info(connection: Connection, name: str) -> dict:
    return await connection.api(f"CONSUMER.INFO.AGENT_TASKS.{name}")


async def take_one(connection: Connection, consumer: str) -> None:
    """Pull one message and leave it unacked; in a cluster, once the consumer has a leader."""
    pull = await connection.js.pull_subscribe_bind(consumer, TASK_STREAM)

    async def taken() -> bool:
        try:
            return len(await pull.fetch(1)) == 1
        except ServiceUnavailableError:
            return False

    await until(taken)


async def test_an_empty_server_gets_everything_and_a_second_run_changes_nothing(connection, config):
    changes = await provision(connection, config)
    assert [(change.kind, change.name) for change in changes] == EVERYTHING
    assert {change.action for change in changes} == {"created"}
    again = await provision(connection, config)
    assert [change.details for change in again if change.action != "unchanged"] == []
    assert [(change.kind, change.name) for change in again] == EVERYTHING
    await check(connection, config)


async def test_streams_have_the_replicas_that_were_asked_for(connection, config, nats_server):
    await provision(connection, config)
    assert (await stream_config(connection, "AGENT_TASKS"))["num_replicas"] == nats_server.replicas


async def test_a_dry_run_tells_and_does_nothing(connection, config):
    changes = await provision(connection, config, dry_run=True)
    assert {change.action for change in changes} == {"created"}
    with pytest.raises(StreamMissing):
        await check(connection, config)


async def test_a_changed_setting_is_updated_and_told(connection, config):
    await provision(connection, config)
    bigger = with_streams(config, responses_max_age_s=14 * 86_400, tasks_max_bytes=10_000_000)
    changes = await provision(connection, bigger)
    assert actions(changes) == {
        "AGENT_TASKS": "updated",
        "AGENT_RESPONSES": "updated",
        "AGENT_DEADLETTER": "unchanged",
        "agent_ledger": "updated",
        "agent_config": "unchanged",
        "agent_artifacts": "unchanged",
        "default": "unchanged",
    }
    assert changes[0].details == ("max_bytes: no limit -> 10000000",)
    assert (await stream_config(connection, "AGENT_TASKS"))["max_bytes"] == 10_000_000
    assert {change.action for change in await provision(connection, bigger)} == {"unchanged"}


async def test_what_an_operator_set_beyond_our_settings_stays(connection, config):
    await provision(connection, config)
    theirs = await stream_config(connection, "AGENT_RESPONSES") | {"max_msgs": 1_000_000}
    await connection.api("STREAM.UPDATE.AGENT_RESPONSES", json.dumps(theirs).encode())
    await provision(connection, with_streams(config, responses_max_bytes=10_000_000))
    now = await stream_config(connection, "AGENT_RESPONSES")
    assert (now["max_msgs"], now["max_bytes"]) == (1_000_000, 10_000_000)


async def test_buckets_are_usable_as_such(connection, config):
    await provision(connection, config)
    bucket = await connection.js.key_value("agent_ledger")
    await bucket.create("task", b"1")
    await bucket.put("task", b"2")
    assert (await bucket.get("task")).value == b"2"
    assert (await bucket.history("task"))[0].value == b"2"
    status = await bucket.status()
    assert (status.history, status.ttl, status.values) == (1, 7 * 86_400, 1)


async def test_a_change_that_would_lose_messages_is_refused_as_a_whole(connection, config):
    await provision(connection, config)
    await connection.publish_stored("agent.tasks.dev", b"x" * 2_000)
    smaller = with_streams(config, tasks_max_bytes=1_000, deadletter_max_age_s=3600.0)
    with pytest.raises(
        ProvisionRefused,
        match=r"stream AGENT_TASKS, max_bytes: no limit -> 1000: \d+ bytes are stored.*"
        r"streams\.tasks_max_bytes",
    ):
        await provision(connection, smaller)
    letters = await stream_config(connection, "AGENT_DEADLETTER")
    assert letters["max_age"] == 30 * 86_400 * 1_000_000_000


async def test_a_stream_that_is_something_else_is_refused(connection, config):
    foreign = {"name": "AGENT_TASKS", "subjects": ["agent.tasks.>"], "storage": "memory"}
    await connection.api("STREAM.CREATE.AGENT_TASKS", json.dumps(foreign).encode())
    with pytest.raises(ProvisionRefused) as caught:
        await provision(connection, config)
    assert "retention: limits -> workqueue" in str(caught.value)
    assert "storage: memory -> file" in str(caught.value)


async def test_subjects_that_hold_messages_are_not_dropped(connection, config):
    old = {"name": "AGENT_RESPONSES", "subjects": ["agent.response.*"], "storage": "file"}
    old["num_replicas"] = config.streams.replicas
    await connection.api("STREAM.CREATE.AGENT_RESPONSES", json.dumps(old).encode())
    await connection.publish_stored("agent.response.failed", b"")
    await connection.publish_stored("agent.response.odd", b"")
    with pytest.raises(ProvisionRefused, match="1 messages are stored on subjects that would go"):
        await provision(connection, config)
    await connection.api("STREAM.PURGE.AGENT_RESPONSES", b'{"filter": "agent.response.odd"}')
    assert actions(await provision(connection, config))["AGENT_RESPONSES"] == "updated"


async def test_a_foreign_stream_on_our_subjects_is_named(connection, config):
    foreign = {"name": "OTHER", "subjects": ["agent.>"], "storage": "memory"}
    await connection.api("STREAM.CREATE.OTHER", json.dumps(foreign).encode())
    with pytest.raises(ApiError, match="AGENT_TASKS: subjects overlap with an existing stream"):
        await provision(connection, config)


async def test_a_pools_consumer_is_updated_and_keeps_its_place(connection, config):
    await provision(connection, with_pools(config, dev=["agent.tasks.dev"]))
    created = (await consumer_info(connection, "dev"))["created"]
    wider = with_pools(config, dev=["agent.tasks.dev", "agent.tasks.qa"])
    changes = await provision(connection, wider)
    assert changes[-1].details == (
        "filter_subjects: agent.tasks.dev -> agent.tasks.dev, agent.tasks.qa",
    )
    assert (await consumer_info(connection, "dev"))["created"] == created
    assert actions(await provision(connection, wider))["dev"] == "unchanged"


async def test_a_subject_moves_from_one_pool_to_another_in_one_run(connection, config):
    before = with_pools(config, a=["agent.tasks.a"], b=["agent.tasks.b", "agent.tasks.c"])
    after = with_pools(config, a=["agent.tasks.a", "agent.tasks.c"], b=["agent.tasks.b"])
    await provision(connection, before)
    await connection.publish_stored("agent.tasks.c", b"")
    assert actions(await provision(connection, after))["a"] == "updated"
    assert (await consumer_info(connection, "a"))["num_pending"] == 1
    assert actions(await provision(connection, before))["b"] == "updated"
    assert (await consumer_info(connection, "b"))["num_pending"] == 1


async def test_a_subject_does_not_move_while_its_messages_are_with_agents(connection, config):
    before = with_pools(config, a=["agent.tasks.a"], b=["agent.tasks.b", "agent.tasks.c"])
    await provision(connection, before)
    await connection.publish_stored("agent.tasks.c", b"")
    await take_one(connection, "b")
    after = with_pools(config, a=["agent.tasks.a", "agent.tasks.c"], b=["agent.tasks.b"])
    with pytest.raises(
        ProvisionRefused, match=r"consumer b, filter_subjects: gives up agent\.tasks\.c while 1"
    ):
        await provision(connection, after)
    wider = with_pools(config, a=["agent.tasks.a"], b=["agent.tasks.b", "agent.tasks.*.x"])
    with pytest.raises(ProvisionRefused):
        await provision(connection, wider)


async def test_the_consumer_of_a_pool_that_is_gone_is_reported_and_kept(connection, config):
    await provision(connection, with_pools(config, a=["agent.tasks.a"], b=["agent.tasks.b"]))
    changes = await provision(connection, with_pools(config, a=["agent.tasks.a"]))
    assert actions(changes)["b"] == "orphan"
    await consumer_info(connection, "b")


async def test_pruning_deletes_an_idle_orphan_and_its_messages_go_to_the_heir(connection, config):
    await provision(connection, config)
    await connection.publish_stored("agent.tasks.dev", b"")
    after = with_pools(config, dev=["agent.tasks.dev"])
    with pytest.raises(
        ProvisionRefused, match=r"consumer default.*still takes subjects of dev.*--prune"
    ):
        await provision(connection, after)
    changes = actions(await provision(connection, after, prune=True))
    assert (changes["default"], changes["dev"]) == ("deleted", "created")
    assert (await consumer_info(connection, "dev"))["num_pending"] == 1


async def test_pruning_leaves_an_orphan_that_has_work_under_way(connection, config):
    await provision(connection, config)
    await connection.publish_stored("agent.tasks.dev", b"")
    await take_one(connection, "default")
    with pytest.raises(ProvisionRefused, match=r"consumer default.*1 messages of it are unacked"):
        await provision(connection, with_pools(config, dev=["agent.tasks.dev"]), prune=True)
    await consumer_info(connection, "default")


async def test_more_consumers_than_one_page_are_all_seen(connection, config):
    many = {f"p{number}": [f"agent.tasks.r{number}"] for number in range(300)}
    config = with_pools(with_streams(config, replicas=1), **many)
    await provision(connection, config)
    assert {change.action for change in await provision(connection, config)} == {"unchanged"}


async def test_the_check_names_all_that_is_missing(connection, config):
    with pytest.raises(StreamMissing) as caught:
        await check(connection, config)
    for kind, name in EVERYTHING:
        assert f"{kind} {name}" in str(caught.value)
    assert "agent-actors provision" in str(caught.value)


async def test_the_check_sees_a_consumer_that_is_not_as_configured(connection, config):
    await provision(connection, config)
    slower = replace(config, pools={"default": PoolConfig(ack_wait_s=60.0)})
    with pytest.raises(
        StreamMissing, match="consumer default has another ack_wait: 30 s -> 60 s: run"
    ):
        await check(connection, slower)


async def test_the_check_needs_no_more_than_to_ask_about_its_consumers(start_nats: StartNats):
    allow = json.dumps({"publish": {"allow": ["$JS.API.CONSUMER.INFO.AGENT_TASKS.*"]}})
    users = f"{{user: owner, password: o}}, {{user: agent, password: a, permissions: {allow}}}"
    server = await start_nats(f"authorization {{ users: [{users}] }}")
    config = Config(streams=StreamsConfig(replicas=server.replicas))
    owner = await connect(NatsConfig(url=server.url, user="owner", password=Secret("o")), name="o")
    agent = await connect(NatsConfig(url=server.url, user="agent", password=Secret("a")), name="a")
    with pytest.raises(StreamMissing, match="consumer default of AGENT_TASKS is missing"):
        await check(agent, config)
    await provision(owner, config)
    await check(agent, config)
    with pytest.raises(PermissionDenied, match=r"STREAM\.INFO\.AGENT_TASKS"):
        await provision(agent, config)
    await owner.close()
    await agent.close()
