"""What a hostile publisher puts into a task message cannot make its announcements unpublishable."""

from datetime import UTC, datetime

import pytest
from support.fakes import delivery

from agent_actors.announcement import dead_letter, result_message
from agent_actors.contract import AgentResult, encode
from agent_actors.ledger import DeadLetterReason
from agent_actors.ports import Delivery, Message

# What JetStream takes as headers, less what the lead-in and one moved payload's names need.
HEADERS_LIMIT_BYTES = 60 * 1024
WHY = DeadLetterReason(reason="InvalidTask", error="payload: is not JSON")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def letter(of: Delivery, why: DeadLetterReason = WHY) -> Message:
    return dead_letter(of, why, "m-1", task_id="t-1", attempts=1)


def result(of: Delivery) -> Message:
    failed = AgentResult(
        task_id="t-1",
        agent_id="a-1",
        role="DEV",
        status="failed",
        success=False,
        duration_ms=0.0,
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return result_message(encode(failed), "m-1", of.headers)


def headers_bytes(message: Message) -> int:
    return sum(
        len(name.encode()) + len(value.encode()) + len(": \r\n")
        for name, value in message.headers.items()
    )


@pytest.mark.parametrize("announce", [letter, result])
def test_a_trace_goes_on(announce):
    assert announce(delivery(headers={"traceparent": TRACE})).headers["traceparent"] == TRACE


@pytest.mark.parametrize("announce", [letter, result])
@pytest.mark.parametrize(
    "trace", ["a" * 65_300, TRACE.upper(), TRACE + "\n", f"{TRACE}-00", "", "00-0-0-00"]
)
def test_what_is_no_trace_is_left_out(announce, trace):
    message = announce(delivery(headers={"traceparent": trace}))
    assert "traceparent" not in message.headers
    assert headers_bytes(message) < 2_000


def test_the_publishers_headers_are_kept_under_our_prefix():
    headers = {"x-team": "blue\r\nNats-Msg-Id: other\0", "Nats-Msg-Id": "mine", "x": "ü"}
    kept = letter(delivery(headers=headers)).headers
    assert kept["Agent-Actors-Original-x-team"] == "blue Nats-Msg-Id: other"
    assert kept["Agent-Actors-Original-x"] == "ü"
    assert kept["Nats-Msg-Id"] == "m-1"
    assert "Agent-Actors-Original-Nats-Msg-Id" not in kept


@pytest.mark.parametrize("name", ["x@y", "a b", "", "(", "a:b", 'quo"te', "ü"])
def test_a_header_that_cannot_be_published_is_left_out(name):
    kept = letter(delivery(headers={name: "1", "good": "2"})).headers
    assert [key for key in kept if "Original" in key] == ["Agent-Actors-Original-good"]


@pytest.mark.parametrize(
    "headers",
    [
        {f"{number:04x}": "" for number in range(8_000)},
        {f"{number}": "x" * 4_000 for number in range(16)},
        {"x" * 65_000: "y", "z": "1"},
    ],
)
def test_headers_are_kept_only_as_far_as_there_is_room(headers):
    why = DeadLetterReason(reason="InvalidTask", error="é" * 10_000)
    message = letter(delivery(headers=headers, subject="agent.tasks." + "é" * 1_890), why)
    assert headers_bytes(message) < HEADERS_LIMIT_BYTES
    assert any("Original" in name for name in message.headers)


def test_a_big_header_does_not_push_out_the_small_ones():
    kept = letter(delivery(headers={"x" * 65_000: "y", "small": "1"})).headers
    assert kept["Agent-Actors-Original-small"] == "1"


@pytest.mark.parametrize(
    ("subject", "letters"),
    [
        ("agent.tasks.dev", "agent.deadletter.dev"),
        ("agent.tasks.dév", "agent.deadletter.dév"),
        ("agent.tasks.a.b", "agent.deadletter.a-b"),
        ("agent.tasks.*", "agent.deadletter._"),
        ("agent.tasks.a>", "agent.deadletter.a_"),
        ("agent.tasks.a\x0cb\0c\N{NO-BREAK SPACE}d", "agent.deadletter.a_b_c_d"),
        ("agent.tasks." + "d" * 3_785, "agent.deadletter." + "d" * 128),
    ],
)
def test_a_dead_letters_subject_can_be_published(subject, letters):
    message = letter(delivery(subject=subject))
    assert message.subject == letters
    assert all(value.isprintable() for value in message.headers.values())
