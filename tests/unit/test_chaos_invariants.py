"""Each invariant of the chaos run, held and broken: one that cannot break proves nothing."""

from typing import Any

import pytest
from chaos.history import (
    Acked,
    Announced,
    Buried,
    CancelAsked,
    Confirmed,
    Delivered,
    FaultWindow,
    History,
    Leak,
    Leftovers,
    ModelRequest,
    Published,
    Record,
    Sample,
    SlotSample,
)
from chaos.invariants import INVARIANTS, MEGABYTE, WITH_DEAD_LETTER, check
from chaos.telling import broken, story, summary

from agent_actors.contract import DEADLETTER_STREAM, RESPONSE_STREAM

TURNS = {"proposal": 1, "tools": 2}
OUTCOMES = {"proposal": frozenset({"completed"}), "invalid": frozenset({"InvalidTask"})}


def published(seq: int = 1, task_id: str = "t", **more: Any) -> Published:
    about = {"at_s": 1.0, "order": 1, "kind": "proposal", "content": "a", **more}
    return Published(seq=seq, task_id=task_id, **about)


def announced(task_id: str = "t", **more: Any) -> Announced:
    about = {"at_s": 2.0, "seq": 1, "status": "completed", "digest": "d", **more}
    return Announced(task_id=task_id, **{"msg_id": task_id, **about})


def failed(error_type: str, error: str = "why", **more: Any) -> Announced:
    return announced(status="failed", error_type=error_type, error=error, **more)


def buried(source_seq: int = 1, reason: str = "InvalidTask", **more: Any) -> Buried:
    about = {"at_s": 2.0, "seq": 1, "msg_id": "t", "task_id": "t", "error": "why", **more}
    return Buried(source_seq=source_seq, reason=reason, **about)


def acked(order: int, seq: int = 1, verb: str = "+ACK") -> Acked:
    return Acked(at_s=3.0, order=order, seq=seq, verb=verb, by="default-0")


def confirmed(order: int, stream: str = RESPONSE_STREAM, **more: Any) -> Confirmed:
    about = {"at_s": 2.5, "msg_id": "t", "task_id": "t", "by": "default-0", **more}
    return Confirmed(order=order, stream=stream, **about)


def asked(conversation: str = "c", at_s: float = 1.5, **more: Any) -> ModelRequest:
    about = {"task_id": "t", "status": 200, **more}
    return ModelRequest(conversation=conversation, at_s=at_s, **about)


def record(state: str = "completed", attempt: int = 1, **more: Any) -> Record:
    return Record(state=state, attempt=attempt, **{"task_id": "t", "digest": "d", **more})


def sample(at_s: float, rss_mb: float = 200, descriptors: int = 40) -> Sample:
    rss_bytes = int(rss_mb * MEGABYTE)
    return Sample(at_s=at_s, who="supervisor", pid=7, rss_bytes=rss_bytes, descriptors=descriptors)


def good(**changes: Any) -> History:
    """Return a history of one task that went well, with changes."""
    parts: dict[str, Any] = {
        "published": [published()],
        "delivered": [Delivered(at_s=1.2, order=2, seq=1, num_delivered=1, to="supervisor")],
        "confirmed": [confirmed(4)],
        "acked": [acked(5)],
        "requests": [asked()],
        "announced": [announced()],
        "records": [record()],
        "samples": [sample(0), sample(20), sample(60)],
        "slots": [SlotSample(at_s=1, slots=4, used=4), SlotSample(at_s=9, slots=4, used=0)],
        **changes,
    }
    return History(max_asks=3, max_attempts=2, turns=TURNS, outcomes=OUTCOMES, **parts)


def broken_in(history: History) -> list[str]:
    return sorted({violation.invariant for violation in check(history)})


REDELIVERED = [Delivered(at_s=1.2, order=2, seq=1, num_delivered=2, to="supervisor")]
MODEL_ILL = [FaultWindow(kind="model answers wrong", lane="model", begin_s=1, end_s=2)]
SECOND = published(2, content="b")
CONFLICT = buried(2, reason="TaskIdConflict", msg_id="conflict:2")

KILLS = [
    FaultWindow(kind="actor killed", lane="processes", begin_s=at_s, end_s=at_s)
    for at_s in (1.2, 1.4)
]
POISONED = {"announced": [failed("PoisonTask")], "buried": [buried(reason="PoisonTask")]}

CANCELLED = [CancelAsked(at_s=1.5, task_id="t", answer="cancel_requested")]
TOO_LATE = [CancelAsked(at_s=2.5, task_id="t", answer="completed")]
ENDED_CANCELLED = failed("Cancelled")

HOLDS = {
    "a task that met one actor after the other being killed may be given up": good(
        faults=KILLS, **POISONED
    ),
    "a cancel that came too late says so": good(cancels=TOO_LATE),
    "a cancelled task ends as such": good(
        cancels=CANCELLED, published=[published(kind="some")], announced=[ENDED_CANCELLED]
    ),
    "all is well": good(),
    "a copy of a task has no result of its own": good(
        published=[published(), published(2)], acked=[acked(3, seq=2), acked(5)]
    ),
    "a conflicting message is a dead letter": good(
        published=[published(), SECOND],
        buried=[CONFLICT],
        confirmed=[confirmed(4), confirmed(6, DEADLETTER_STREAM, source_seq=2)],
        acked=[acked(5), acked(7, seq=2)],
    ),
    "a message without an id has a result by its number": good(
        published=[published(3, "", kind="invalid")],
        announced=[failed("InvalidTask", task_id="unknown:AGENT_TASKS:3", msg_id="i")],
        buried=[buried(3, msg_id="i", task_id="")],
        confirmed=[confirmed(4, task_id="unknown:AGENT_TASKS:3")],
        acked=[acked(5, seq=3, verb="+TERM")],
        delivered=[],
        requests=[],
        records=[],
    ),
    "a nak may come before any result": good(acked=[acked(2, verb="-NAK"), acked(5)]),
    "a second attempt may ask again": good(
        delivered=REDELIVERED, requests=[asked(), asked()], records=[record(attempt=2)]
    ),
    "an ill model may be asked again in place": good(
        faults=MODEL_ILL, requests=[asked(status=503), asked()]
    ),
    "an actor that slept through its answer may ask again": good(
        faults=[FaultWindow(kind="actor frozen", lane="processes", begin_s=1, end_s=2)],
        requests=[asked(), asked()],
    ),
    "a fresh process may grow": good(samples=[sample(0, 20), sample(5, 150), sample(60, 200)]),
}

BREAKS: dict[str, tuple[str, History]] = {
    "no result": ("I1", good(announced=[])),
    "two different results": ("I1", good(announced=[announced(), announced(digest="e")])),
    "a copy of a result": ("I1", good(announced=[announced(), announced(seq=2)])),
    "another result than the committed one": ("I1", good(records=[record(digest="e")])),
    "a result of nobody's task": ("I2", good(announced=[announced(), announced("stranger")])),
    "a dead letter of no message": ("I2", good(buried=[buried(9, msg_id="x", reason="Odd")])),
    "an ack before the result": ("I3", good(acked=[acked(3)])),
    "an ack without any result": ("I3", good(confirmed=[])),
    "a copy acked after the message it is a copy of, with no result": (
        "I3",
        good(
            published=[published(), published(2)],
            acked=[acked(2), acked(3, seq=2)],
        ),
    ),
    "a conflicting message acked before its dead letter": (
        "I3",
        good(
            published=[published(), SECOND],
            buried=[CONFLICT],
            confirmed=[confirmed(8), confirmed(9, DEADLETTER_STREAM, source_seq=2)],
            acked=[acked(7, seq=2), acked(6)],
        ),
    ),
    "a turn asked for twice in good health": ("I4", good(requests=[asked(), asked()])),
    "a turn asked for more often than attempts allow": (
        "I4",
        good(faults=MODEL_ILL, requests=[asked(fault="500")] * 4),
    ),
    "a turn asked for twice in one attempt though only other parts failed": (
        "I4",
        good(delivered=REDELIVERED, requests=[asked()] * 3, records=[record(attempt=2)]),
    ),
    "more turns in several attempts than those have": (
        "I4",
        good(
            delivered=REDELIVERED,
            requests=[asked(name) for name in ("c1", "c2", "c3")],
            records=[record(attempt=2)],
        ),
    ),
    "a turn too many": ("I4", good(requests=[asked(), asked("c2")])),
    "a message in the queue": ("I5", good(leftovers=Leftovers(queued_seqs=[1]))),
    "something unacked": ("I5", good(leftovers=Leftovers(unacked=1))),
    "a slot in use": ("I5", good(slots=[SlotSample(at_s=9, slots=4, used=1)])),
    "a running record": (
        "I5",
        good(records=[record(), record("running", task_id="u", digest="")]),
    ),
    "more slots than there are": (
        "I6",
        good(slots=[SlotSample(at_s=1, slots=4, used=5), SlotSample(at_s=9, slots=4, used=0)]),
    ),
    "memory that grows": ("I6", good(samples=[sample(0), sample(20), sample(60, 300)])),
    "descriptors that grow": (
        "I6",
        good(samples=[sample(0), sample(20), sample(60, descriptors=400)]),
    ),
    "a secret in a log": ("I7", good(leaks=[Leak(secret="vLLM key", where="a log")])),
    "no reason": ("I8", good(announced=[failed("TaskTimeout", "")])),
    "a task that completed though its cancel was taken": ("I8", good(cancels=CANCELLED)),
    "a task that was cancelled though its cancel came too late": (
        "I8",
        good(cancels=TOO_LATE, published=[published(kind="some")], announced=[ENDED_CANCELLED]),
    ),
    "a task given up though few actors were killed": ("I8", good(faults=KILLS[:1], **POISONED)),
    "a failure that the task does not call for": ("I8", good(announced=[failed("TaskTimeout")])),
    "a success that the task does not allow": ("I8", good(published=[published(kind="invalid")])),
    "no dead letter": (
        "I8",
        good(published=[published(kind="invalid")], announced=[failed("InvalidTask")]),
    ),
    "a dead letter beside a success": ("I8", good(buried=[buried()])),
    "a conflict that nobody was told of": ("I8", good(published=[published(), SECOND])),
    "both sides of a conflict in the dead letters": (
        "I8",
        good(
            published=[published(), SECOND],
            buried=[CONFLICT, buried(1, reason="TaskIdConflict", msg_id="conflict:1")],
        ),
    ),
}


@pytest.mark.parametrize("what", HOLDS)
def test_invariants_hold_where_nothing_is_wrong(what: str):
    assert check(HOLDS[what]) == []


@pytest.mark.parametrize("what", BREAKS)
def test_a_history_that_breaks_an_invariant_is_found(what: str):
    invariant, history = BREAKS[what]
    assert invariant in broken_in(history)


def test_each_invariant_is_broken_by_some_history():
    assert {invariant for invariant, _ in BREAKS.values()} == set(INVARIANTS)


@pytest.mark.parametrize("error_type", sorted(WITH_DEAD_LETTER))
def test_a_failure_of_the_table_with_its_dead_letter_holds(error_type: str):
    history = good(
        published=[published(kind="some")],
        announced=[failed(error_type)],
        buried=[buried(reason=error_type)],
    )
    assert "I8" not in broken_in(history)


def test_the_story_of_a_task_has_all_that_is_known_in_the_order_of_time():
    lines = story(good(faults=MODEL_ILL), "t")
    for part in ("published", "delivered", "model asked", "FAULT", "stored", "+ACK", "ledger"):
        assert any(part in line for line in lines), part
    times = [float(line.split()[0]) for line in lines if line.split()[0][0].isdigit()]
    assert times == sorted(times)


def test_what_is_told_at_the_end_names_what_broke():
    history = good(announced=[])
    violations = check(history)
    assert [task_id for task_id, _ in broken(violations)] == ["t"]
    told = "\n".join(summary(history, violations))
    assert "BROKEN 1 times     I1" in told
    assert "holds              I2" in told
