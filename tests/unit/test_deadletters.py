"""What a replay may write over what, and how a letter reads."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.fakes import NOON

from agent_actors.adapters.jetstream.deadletters import Choice, _letter
from agent_actors.cli.letters import _readable
from agent_actors.contract import ArtifactRef, DeadLetter, generation_in, message_id
from agent_actors.ledger import (
    UNQUEUED,
    AckCopy,
    Announce,
    AskQueue,
    Claim,
    Conflict,
    DeadLetterReason,
    Nak,
    Occupied,
    Plea,
    Release,
    Reopen,
    Run,
    Source,
    Stale,
    Superseded,
    TaskRecord,
    begin,
    give_back,
    queue,
    replay,
)

LATER = NOON + timedelta(hours=1)
WHY = DeadLetterReason(reason="StrategyCrashed", error="KeyError")


def source(seq: int = 17, delivered: int = 1) -> Source:
    return Source(stream_seq=seq, consumer="c", consumer_created=1, num_delivered=delivered)


def record(**changes) -> TaskRecord:
    dead = TaskRecord(
        task_id="t",
        state="failed",
        source=source(),
        content="hash",
        updated=NOON,
        attempt=3,
        failures=3,
        postponed=2,
        agent_id="a-1",
        lease="l",
        result=b'{"status":"failed"}',
        dead_letter=WHY,
        turns=[ArtifactRef(object="o", size=1, sha256="s")],
    )
    return replace(dead, **changes)


def plea(**changes) -> Plea:
    return replace(
        Plea(task_id="t", generation=0, stream_seq=17, content="hash", now=LATER), **changes
    )


def claim(seq: int = 18, delivered: int = 1, **changes) -> Claim:
    asks = Claim(
        task_id="t",
        source=source(seq, delivered),
        content="hash",
        agent_id="a-1",
        lease="mine",
        now=LATER,
    )
    return replace(asks, **changes)


REOPENED = TaskRecord(
    task_id="t", state="waiting", source=UNQUEUED, content="hash", updated=LATER, generation=1
)
QUEUED = queue(REOPENED, 18, LATER)


# Replaying.


def test_a_dead_task_waits_again_with_nothing_of_its_last_generation():
    assert replay(record(), plea()) == Reopen(REOPENED)


def test_a_task_without_a_record_waits_as_well():
    assert replay(None, plea(generation=4)) == Reopen(replace(REOPENED, generation=5))


def test_the_generation_is_the_one_after_the_letters():
    verdict = replay(record(generation=2), plea(generation=2))
    assert verdict == Reopen(replace(REOPENED, generation=3))


def test_a_replay_that_may_not_have_queued_the_task_goes_on():
    assert replay(REOPENED, plea()) == Reopen(REOPENED)


@pytest.mark.parametrize(
    "found",
    [
        QUEUED,
        record(generation=1),
        record(generation=1, state="running", dead_letter=None),
        record(generation=1, state="completed", dead_letter=None),
        replace(REOPENED, generation=2),
    ],
    ids=["queued", "failed", "running", "completed", "two replays later"],
)
def test_a_letter_that_was_replayed_has_done_its_work(found: TaskRecord):
    assert replay(found, plea()) == Superseded(found)


@pytest.mark.parametrize("state", ["running", "waiting", "completed", "failed"])
def test_a_task_that_is_no_dead_letter_is_left_alone(state):
    found = record(state=state, dead_letter=None)
    assert replay(found, plea()) == Occupied(found)


def test_another_task_of_the_same_id_is_left_alone():
    assert replay(record(source=source(30)), plea(content="other")) == Conflict()
    assert replay(REOPENED, plea(content="other")) == Conflict()


def test_the_letters_own_message_is_known_whatever_a_newer_version_reads_in_it():
    assert replay(record(), plea(content="other")) == Reopen(replace(REOPENED, content="other"))


# What may run it.


@pytest.mark.parametrize("found", [REOPENED, QUEUED], ids=["not noted", "noted"])
@pytest.mark.parametrize("delivered", [1, 2])
@pytest.mark.parametrize("content", ["hash", "as another version reads it"])
def test_the_replays_own_message_runs_the_new_generation(found, delivered, content):
    verdict = begin(found, claim(delivered=delivered, generation=1, content=content))
    assert isinstance(verdict, Run)
    begun = verdict.record
    assert (begun.state, begun.generation, begun.attempt) == ("running", 1, 1)
    assert begun.source == source(18, delivered)


@pytest.mark.parametrize("generation", [0, 2])
def test_no_other_message_runs_it_while_the_replays_own_is_not_known(generation):
    assert begin(REOPENED, claim(17, 2, generation=generation)) == Stale()


def test_other_messages_are_copies_once_the_replays_own_is_known():
    assert begin(QUEUED, claim(17, 2)) == AskQueue(18)
    assert begin(QUEUED, claim(17, 2), rival_queued=True) == AckCopy()


def test_when_the_replays_own_message_was_purged_another_one_runs_it():
    verdict = begin(QUEUED, claim(19), rival_queued=False)
    assert isinstance(verdict, Run)
    assert verdict.record.generation == 1


def test_a_message_of_an_older_generation_finds_the_end_of_the_newer_one():
    ended = record(generation=1)
    assert begin(ended, claim(17, 2)) == Announce(ended)
    assert begin(None, claim(generation=1)) == Run(
        replace(
            REOPENED, state="running", source=source(18), attempt=1, agent_id="a-1", lease="mine"
        )
    )


def test_a_replayed_message_that_died_before_it_was_begun_is_given_back():
    assert give_back(REOPENED, claim(generation=1)) == Nak()
    verdict = give_back(QUEUED, claim(generation=1))
    assert verdict == Release(replace(QUEUED, source=source(18)))
    again = begin(verdict.record, claim(delivered=2, generation=1))
    assert isinstance(again, Run)


# Which generation a message is of.


@given(st.text(min_size=1), st.integers(0, 999_999_999))
def test_a_message_id_tells_its_generation(task_id: str, generation: int):
    assert generation_in(message_id(task_id, generation), task_id) == generation


@pytest.mark.parametrize(
    "msg_id",
    ["", "t", "t#", "t#x", "u#1", "t#01", "t#-1", "t#1#1", "#1", "t#²", "t#" + "9" * 5_000],
)
def test_what_is_no_replays_message_id_is_of_no_generation(msg_id: str):
    assert generation_in(msg_id, "t") == 0


# Choosing, and reading.

LETTER = DeadLetter(stream_seq=1, time=NOON, role="DEV", reason="PoisonTask", task_id="t")


@pytest.mark.parametrize(
    ("choice", "taken"),
    [
        (Choice(), True),
        (Choice(role="dev", reason="poisontask", task_id="t"), True),
        (Choice(role="qa"), False),
        (Choice(reason="Poison"), False),
        (Choice(task_id="T"), False),
        (Choice(older_than_s=3_599), True),
        (Choice(older_than_s=3_600), False),
        (Choice(newer_than_s=3_601, older_than_s=3_599), True),
        (Choice(newer_than_s=3_600), False),
    ],
)
def test_a_letter_is_meant_when_all_filters_take_it(choice: Choice, *, taken: bool):
    assert choice.takes(LETTER, LATER) is taken


@given(st.dictionaries(st.text(), st.text()), st.binary(max_size=400))
def test_any_stored_message_is_a_letter_that_can_be_shown(headers, payload):
    from base64 import b64encode

    block = "NATS/1.0\r\n" + "".join(f"{name}: {text}\r\n" for name, text in headers.items())
    stored = {
        "seq": 1,
        "subject": "agent.deadletter.dev",
        "time": "2026-01-01T12:00:00.123456789Z",
        "hdrs": b64encode(block.encode(errors="replace")).decode(),
        "data": b64encode(payload).decode(),
    }
    letter = _letter(stored)
    assert letter.payload == payload
    shown = _readable(letter.payload)
    assert all(char.isprintable() or char in "\n\t\u200c\u200d" for char in shown)


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b'{"a":[1,2]}', '{\n  "a": [\n    1,\n    2\n  ]\n}'),
        (b"plain words\n", "plain words\n"),
        (b"[" * 100_000, "[" * 100_000),
        (b"", ""),
        (b"a\0b", f"00000000  {'61 00 62':47}  a.b"),
        (b"\xff", f"00000000  {'ff':47}  ."),
    ],
    ids=["JSON", "text", "too deep", "nothing", "a zero byte", "no UTF-8"],
)
def test_a_payload_is_shown_by_what_it_is(payload: bytes, shown: str):
    assert _readable(payload) == shown
