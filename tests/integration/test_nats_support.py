"""The NATS that the other tests get does what they take for granted, whatever kind it is."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import nats
import nats.errors
import pytest
from nats.js.errors import NoStreamResponseError
from support.nats import NatsServer, StartNats, chosen_kind

pytestmark = pytest.mark.nats


# A cluster needs a moment to elect a stream's leader and to tell every node of it; until then
# nobody answers.
NOT_YET = (nats.errors.TimeoutError, NoStreamResponseError)


async def _keep_one_message(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    stream = client.jetstream(timeout=5)
    await stream.add_stream(name="KEEP", subjects=["keep"], num_replicas=server.replicas)
    await _until_answered(lambda: stream.publish("keep", b"this"))
    await client.close()


async def _kept_message(server: NatsServer) -> bytes | None:
    client = await nats.connect(server.url)
    stream = client.jetstream(timeout=1)
    message = await _until_answered(lambda: stream.get_msg("KEEP", 1))
    await client.close()
    return message.data


async def _until_answered(request: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(*NOT_YET):
                return await request()


async def test_streams_have_as_many_replicas_as_there_are_servers(nats_server: NatsServer):
    await _keep_one_message(nats_server)
    client = await nats.connect(nats_server.url)
    info = await client.jetstream().stream_info("KEEP")
    await client.close()
    copies = 1 + len(info.cluster.replicas or []) if info.cluster else 1
    assert copies == nats_server.replicas == (3 if chosen_kind() == "cluster" else 1)


async def test_streams_and_address_outlive_a_kill(nats_server: NatsServer):
    await _keep_one_message(nats_server)
    url = nats_server.url
    await nats_server.kill()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    await nats_server.start()
    assert nats_server.url == url
    assert await _kept_message(nats_server) == b"this"


async def test_streams_outlive_a_restart(nats_server: NatsServer):
    await _keep_one_message(nats_server)
    await nats_server.restart()
    assert await _kept_message(nats_server) == b"this"


async def test_a_paused_server_answers_only_once_it_is_resumed(nats_server: NatsServer):
    client = await nats.connect(nats_server.url)
    await nats_server.pause()
    answer = asyncio.ensure_future(client.flush(timeout=20))
    done, _ = await asyncio.wait({answer}, timeout=0.3)
    assert not done
    await nats_server.resume()
    await answer
    await client.close()


async def test_every_started_server_keeps_streams_and_settings_of_its_own(start_nats: StartNats):
    one, other = await start_nats("max_payload: 2048"), await start_nats()
    await _keep_one_message(one)
    await _keep_one_message(other)
    small, large = await nats.connect(one.url), await nats.connect(other.url)
    assert (small.max_payload, large.max_payload) == (2048, 1024 * 1024)
    await small.close()
    await large.close()
