"""Messages on their way into the buffer: put there by us as nats-py would put them."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import BadHeaderError

from agent_actors.adapters.jetstream.nats_client import NatsClient, header_block

NAMES = st.sampled_from(["Nats-Msg-Id", " ce-id ", "ce-type", "traceparent", "", "  "])
VALUES = st.text(st.characters(codec="utf-8"), max_size=20)


class Connected:
    """A client that believes to be connected, and sends nothing."""

    async def __aenter__(self) -> NatsClient:
        self.client = NatsClient(secure=False)
        self.client._status = Client.CONNECTED
        self.client._max_pending_size = 2 * 1024 * 1024
        self.client._flush_queue = asyncio.Queue()
        self.client._flusher_task = asyncio.create_task(asyncio.Event().wait())
        return self.client

    async def __aexit__(self, *_: object) -> None:
        self.client._flusher_task.cancel()


@given(headers=st.dictionaries(NAMES, VALUES, max_size=6), payload=st.binary(max_size=40))
def test_the_same_bytes_are_sent_as_by_nats_py(headers: dict[str, str], payload: bytes):
    async def run() -> None:
        async with Connected() as client:
            block = header_block(headers) if headers else b""
            assert client.offer("a.b", payload, "reply.1", block)
            await client.publish("a.b", payload, "reply.1", headers or None)
            ours, theirs = client._pending
            assert ours == theirs
            assert client._pending_data_size == len(ours) + len(theirs)
            assert client._flush_queue.qsize() == 1

    asyncio.run(run())


@pytest.mark.parametrize("name", ["a b", "ä", "a:b", "a\nb"])
def test_a_header_without_a_proper_name_is_refused_as_by_nats_py(name: str):
    with pytest.raises(BadHeaderError):
        header_block({name: "value"})


@pytest.mark.parametrize(
    ("subject", "reply"),
    [("", ""), ("a b", ""), ("a\r\nPUB b 0\r\n", ""), ("a", "b\tc"), ("a", "b\nc")],
)
async def test_what_would_break_the_protocol_is_left_to_nats_py(subject: str, reply: str):
    async with Connected() as client:
        assert not client.offer(subject, b"", reply, b"")
        assert not client._pending


async def test_nothing_is_put_into_a_buffer_that_is_half_full():
    async with Connected() as client:
        client._pending_data_size = client._max_pending_size // 2
        assert not client.offer("a", b"x", "", b"")


async def test_nothing_is_put_into_a_buffer_that_nobody_empties():
    async with Connected() as client:
        flusher = client._flusher_task
        client._flusher_task = None
        assert not client.offer("a", b"x", "", b"")
        client._flusher_task = flusher
        flusher.cancel()
        await asyncio.wait([flusher])
        assert not client.offer("a", b"x", "", b"")


@pytest.mark.parametrize(
    "status", [Client.RECONNECTING, Client.CLOSED, Client.DRAINING_SUBS, Client.DRAINING_PUBS]
)
async def test_nothing_is_put_into_the_buffer_without_a_connection(status: int):
    async with Connected() as client:
        client._status = status
        assert not client.offer("a", b"x", "", b"")


async def test_what_comes_while_subscribing_waits_for_room_is_told_first(
    monkeypatch: pytest.MonkeyPatch,
):
    async with Connected() as client:
        early, late = (
            Msg(client, subject="s", data=b"early"),
            Msg(client, subject="s", data=b"late"),
        )

        async def subscribe(subject: str) -> Subscription:
            subscription = Subscription(client, 7, subject)
            subscription._pending_queue.put_nowait(early)
            return subscription

        monkeypatch.setattr(client, "subscribe", subscribe)
        heard: list[bytes] = []
        await client.hear("s", lambda message: heard.append(message.data))
        await client._process_msg(7, b"s", b"", late.data, None)
        assert heard == [b"early", b"late"]
