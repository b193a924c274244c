"""What passes between the service and NATS is read whole, however it is cut into pieces."""

import msgspec
import pytest
from chaos.history import History
from chaos.wiretap import FrameReader, Wiretap

from agent_actors.contract import RESPONSE_STREAM

ACK = "$JS.ACK.AGENT_TASKS.default.{times}.{seq}.9.1700000000000000000.0"


def pub(subject: str, payload: bytes, reply: str = "") -> bytes:
    return f"PUB {subject} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"


def hpub(subject: str, reply: str, headers: dict[str, str], payload: bytes) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    sizes = f"{len(block)} {len(block) + len(payload)}"
    return f"HPUB {subject} {reply} {sizes}\r\n".encode() + block + payload + b"\r\n"


def msg(subject: str, payload: bytes, reply: str = "") -> bytes:
    return f"MSG {subject} 1 {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"


RESULT = {"Nats-Msg-Id": "t", "ce-subject": "t"}
RECORD = {"task_id": "t", "state": "running", "attempt": 1, "agent_id": "default-0"}


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_task_is_followed_from_its_delivery_to_its_ack(size: int):
    history = History()
    tap = Wiretap(history, clock=lambda: 1.0)
    hear = tap.of("n1")
    said = [
        ("down", b'INFO {"server_id":"x"}\r\n'),
        ("up", b'CONNECT {"name":"default-0"}\r\nSUB _INBOX.a.* 1\r\nPING\r\n'),
        ("down", b"PONG\r\n" + msg("_INBOX.p", b"{}\r\n", ACK.format(times=1, seq=5))),
        ("up", pub("$KV.agent_ledger.t", msgspec.json.encode(RECORD), "_INBOX.a.1")),
        ("up", hpub("agent.response.completed", "_INBOX.a.2", RESULT, b"{}")),
        ("up", pub(ACK.format(times=1, seq=5), b"+WPI")),
        ("down", msg("_INBOX.a.2", b'{"stream":"AGENT_RESPONSES","seq":1}')),
        ("up", pub(ACK.format(times=1, seq=5), b"+ACK")),
        ("up", pub(ACK.format(times=3, seq=6), b'-NAK {"delay": 5}')),
    ]
    for way, data in said:
        for start in range(0, len(data), size):
            hear(1, way, data[start : start + size])
    (delivered,) = history.delivered
    assert (delivered.seq, delivered.num_delivered, delivered.to) == (5, 1, "default-0")
    (written,) = history.ledger_writes
    assert (written.task_id, written.state, written.attempt) == ("t", "running", 1)
    (confirmed,) = history.confirmed
    assert (confirmed.stream, confirmed.task_id) == (RESPONSE_STREAM, "t")
    assert [(ack.seq, ack.verb) for ack in history.acked] == [(5, "+ACK"), (6, "-NAK")]
    assert delivered.order < written.order < confirmed.order < history.acked[0].order


@pytest.mark.parametrize(
    "answer", [b'{"error":{"code":503},"stream":"AGENT_RESPONSES","seq":0}', b""]
)
def test_a_refusal_confirms_nothing(answer: bytes):
    history = History()
    hear = Wiretap(history).of("n1")
    hear(1, "up", hpub("agent.response.failed", "_INBOX.a.2", RESULT, b"{}"))
    hear(1, "down", msg("_INBOX.a.2", answer))
    assert history.confirmed == []


def test_what_is_cut_off_never_counts():
    history = History()
    hear = Wiretap(history).of("n1")
    ack = pub(ACK.format(times=1, seq=5), b"+ACK")
    hear(1, "up", ack[:-3])
    hear(2, "up", b"PING\r\n")
    assert history.acked == []
    hear(1, "up", ack[-3:])
    assert len(history.acked) == 1


def test_acks_of_newer_servers_are_read_as_well():
    history = History()
    hear = Wiretap(history).of("n1")
    hear(1, "up", pub("$JS.ACK.dom.hash.AGENT_TASKS.default.2.8.9.17.0.x", b"+ACK"))
    assert [ack.seq for ack in history.acked] == [8]


def test_a_payload_may_look_like_the_protocol():
    payload = b"PUB x 3\r\nabc\r\n"
    (frame,) = FrameReader().feed(pub("subject", payload))
    assert frame.payload == payload
    assert frame.reply == ""
