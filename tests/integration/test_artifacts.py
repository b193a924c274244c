"""The object store against a real server, ours and nats-py's way."""

import io
import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from support.nats import NatsServer, StartNats

from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.client import AgentClient
from agent_actors.config import Config, NatsConfig, StreamsConfig
from agent_actors.config_types import Secret
from agent_actors.contract import (
    ARTIFACT_BUCKET,
    PAYLOAD_MARGIN_BYTES,
    AgentResult,
    ArtifactRef,
    utc_now,
)
from agent_actors.errors import ArtifactLost, PublishFailed, StreamMissing
from agent_actors.oversize import fit_result

pytestmark = pytest.mark.nats

BIG = bytes(range(256)) * 4096 * 2  # 2 MiB, twice what a message may have
STREAM = f"OBJ_{ARTIFACT_BUCKET}"


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    connection = await connect(NatsConfig(url=nats_server.url), name="test")
    await provision(connection, Config(streams=StreamsConfig(replicas=nats_server.replicas)))
    yield connection
    await connection.close()


async def state(connection: Connection) -> dict:
    return (await connection.api(f"STREAM.INFO.{STREAM}"))["state"]


@pytest.mark.parametrize("data", [b"", b"x", BIG], ids=["empty", "small", "big"])
async def test_what_was_put_comes_back(connection, data):
    artifacts = JetStreamArtifacts(connection)
    ref = await artifacts.put("job=C3=BC/proposal.content", data)
    assert (ref.object, ref.size) == ("job=C3=BC/proposal.content", len(data))
    assert await artifacts.get(ref) == data


async def test_the_same_bytes_again_change_nothing(connection):
    artifacts = JetStreamArtifacts(connection)
    ref = await artifacts.put("a", BIG)
    before = await state(connection)
    assert await artifacts.put("a", BIG) == ref
    assert await state(connection) == before


async def test_other_bytes_replace_the_old_ones_and_free_their_room(connection):
    artifacts = JetStreamArtifacts(connection)
    old = await artifacts.put("a", BIG)
    new = await artifacts.put("a", b"new")
    assert await artifacts.get(new) == b"new"
    assert (await state(connection))["messages"] == 2
    with pytest.raises(ArtifactLost, match=f"agent_artifacts/a .*{old.sha256}.*replaced"):
        await artifacts.get(old)


async def test_an_object_that_is_not_there_is_told_so(connection):
    with pytest.raises(ArtifactLost, match="agent_artifacts/gone is not there"):
        await JetStreamArtifacts(connection).get(ArtifactRef(object="gone", size=1, sha256=""))


async def test_a_deleted_object_leaves_nothing_and_may_be_deleted_again(connection):
    artifacts = JetStreamArtifacts(connection)
    kept = await artifacts.put("kept", b"kept")
    ref = await artifacts.put("a", BIG)
    await artifacts.delete(ref)
    await artifacts.delete(ref)
    assert (await state(connection))["messages"] == 2
    assert await artifacts.get(kept) == b"kept"
    with pytest.raises(ArtifactLost):
        await artifacts.get(ref)


async def test_a_diff_of_five_megabytes_lies_beside_its_result(connection):
    diff = "".join(f"+line {number} of a long change, with ümlauts\n" for number in range(120_000))
    files = [{"path": f"src/{number}.py", "added": 1, "deleted": 0} for number in range(40_000)]
    artifacts: dict = {"diff": diff, "files_changed": files, "commits": [{"commit": "0123"}]}
    assert len(diff.encode()) > 5_000_000
    result = AgentResult(
        task_id="t",
        agent_id="a",
        role="DEV",
        status="completed",
        success=True,
        duration_ms=1.0,
        timestamp=utc_now(),
        artifacts={**artifacts, "tests": {"passed": 3}},
    )
    store = JetStreamArtifacts(connection)
    limit = connection.nc.max_payload - PAYLOAD_MARGIN_BYTES
    payload = await fit_result(result, max_bytes=limit, folder="t/lease", store=store)
    assert len(payload) <= limit
    told = msgspec.json.decode(payload, type=AgentResult).artifacts
    assert told["commits"] == artifacts["commits"]
    assert told["tests"] == {"passed": 3}
    client = AgentClient(connection)
    assert (await client.artifact(told["diff"])).decode() == diff
    assert msgspec.json.decode(await client.artifact(told["files_changed"])) == files


async def test_an_object_with_a_lost_chunk_is_not_waited_for(connection):
    artifacts = JetStreamArtifacts(connection)
    ref = await artifacts.put("a", BIG)
    await connection.api(f"STREAM.MSG.DELETE.{STREAM}", b'{"seq": 3}')
    with pytest.raises(ArtifactLost, match="damaged"):
        await artifacts.get(ref)


async def test_nats_py_reads_what_we_put_and_we_read_what_it_puts(connection):
    artifacts = JetStreamArtifacts(connection)
    theirs = await connection.js.object_store(ARTIFACT_BUCKET)
    ref = await artifacts.put("ours", BIG)
    assert (await theirs.get("ours")).data == BIG
    await theirs.put("theirs", io.BytesIO(BIG))
    assert (
        await artifacts.get(ArtifactRef(object="theirs", size=ref.size, sha256=ref.sha256)) == BIG
    )
    await theirs.delete("ours")
    with pytest.raises(ArtifactLost):
        await artifacts.get(ref)


async def test_a_server_for_small_messages_takes_big_objects(start_nats: StartNats):
    server = await start_nats("max_payload: 4096")
    connection = await connect(NatsConfig(url=server.url), name="test")
    await provision(connection, Config(streams=StreamsConfig(replicas=server.replicas)))
    artifacts = JetStreamArtifacts(connection)
    data = BIG[:50_000]
    assert await artifacts.get(await artifacts.put("a", data)) == data
    await connection.close()


async def test_a_user_who_may_not_purge_replaces_all_the_same(start_nats: StartNats):
    deny = json.dumps({"publish": {"deny": ["$JS.API.STREAM.PURGE.>"]}})
    users = f"{{user: owner, password: o}}, {{user: agent, password: a, permissions: {deny}}}"
    server = await start_nats(f"authorization {{ users: [{users}] }}")
    owner = await connect(NatsConfig(url=server.url, user="owner", password=Secret("o")), name="o")
    await provision(owner, Config(streams=StreamsConfig(replicas=server.replicas)))
    agent = await connect(NatsConfig(url=server.url, user="agent", password=Secret("a")), name="a")
    artifacts = JetStreamArtifacts(agent)
    await artifacts.put("a", b"old")
    assert await artifacts.get(await artifacts.put("a", b"new")) == b"new"
    await owner.close()
    await agent.close()


async def test_a_store_that_is_missing_or_full_is_told_apart(nats_server: NatsServer):
    connection = await connect(NatsConfig(url=nats_server.url), name="test")
    artifacts = JetStreamArtifacts(connection)
    with pytest.raises(StreamMissing, match=f"{STREAM}.*agent-actors provision"):
        await artifacts.put("a", b"x")
    streams = StreamsConfig(replicas=nats_server.replicas, artifacts_max_bytes=1_000_000)
    await provision(connection, Config(streams=streams))
    with pytest.raises(PublishFailed, match="maximum bytes exceeded"):
        await artifacts.put("a", BIG)
    await connection.close()
