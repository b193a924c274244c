"""What may be written over what in the ledger: each rule of it is a sentence here."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent_actors.contract import ArtifactRef
from agent_actors.ledger import (
    AckCopy,
    Announce,
    AskQueue,
    Claim,
    Conflict,
    DeadLetterReason,
    Run,
    Source,
    Stale,
    TaskRecord,
    begin,
    commit,
    keep,
    never_begun,
    release,
    status_of,
)

NOW = datetime(2026, 11, 22, 10, 20, 30, tzinfo=UTC)
LATER = NOW + timedelta(seconds=5)
DONE = b'{"task_id":"t","status":"completed"}'


def source(seq=17, delivered=1, *, created=1_000, consumer="default"):
    return Source(
        stream_seq=seq, consumer=consumer, consumer_created=created, num_delivered=delivered
    )


def claim(of=None, *, lease="mine", content="hash"):
    return Claim(
        task_id="t",
        source=of or source(),
        content=content,
        agent_id="default-1",
        lease=lease,
        now=LATER,
    )


def running(of=None, **changes):
    record = TaskRecord(
        task_id="t",
        state="running",
        source=of or source(),
        content="hash",
        updated=NOW,
        attempt=2,
        failures=1,
        postponed=3,
        generation=4,
        agent_id="default-0",
        lease="theirs",
    )
    return replace(record, **changes)


def waiting(of=None):
    return release(running(of), NOW)


def ended(of=None, state="completed"):
    return commit(running(of), state, DONE, NOW, None)


# begin: the first delivery, and the next one of the same message.


def test_a_task_that_nobody_knows_is_run_as_the_first_attempt():
    assert begin(None, claim()) == Run(
        TaskRecord(
            task_id="t",
            state="running",
            source=source(),
            content="hash",
            updated=LATER,
            attempt=1,
            agent_id="default-1",
            lease="mine",
        )
    )


@pytest.mark.parametrize("found", [running, waiting])
def test_a_later_delivery_of_the_message_takes_over_with_a_lease_of_its_own(found):
    later = claim(source(delivered=2))
    assert begin(found(), later) == Run(
        running(later.source, attempt=3, agent_id="default-1", lease="mine", updated=LATER)
    )


@pytest.mark.parametrize("found", [running, waiting])
@pytest.mark.parametrize("delivered", [1, 2])
def test_the_same_delivery_or_an_earlier_one_is_stale(found, delivered):
    assert begin(found(source(delivered=2)), claim(source(delivered=delivered))) == Stale()


def test_a_consumer_made_anew_counts_from_one_again_and_still_is_later():
    found = running(source(delivered=9, created=1_000))
    assert isinstance(begin(found, claim(source(delivered=1, created=1_001))), Run)


def test_a_delivery_of_the_consumer_that_was_there_before_is_stale():
    found = running(source(delivered=1, created=1_001))
    assert begin(found, claim(source(delivered=9, created=1_000))) == Stale()


def test_a_subject_that_moved_to_another_pool_goes_on_there():
    found = running(source(delivered=9, consumer="old"))
    assert isinstance(begin(found, claim(source(delivered=1, consumer="new"))), Run)


# begin: the task was published twice.


@pytest.mark.parametrize("found", [running, waiting])
def test_for_a_copy_it_matters_whether_the_first_message_is_still_queued(found):
    assert begin(found(source(17)), claim(source(23))) == AskQueue(17)


@pytest.mark.parametrize("found", [running, waiting])
@pytest.mark.parametrize("delivered", [1, 99])
def test_a_copy_is_acked_while_the_first_message_lives_however_often_it_comes(found, delivered):
    copy = claim(source(23, delivered))
    assert begin(found(source(17)), copy, rival_queued=True) == AckCopy()


@pytest.mark.parametrize("found", [running, waiting])
def test_a_copy_takes_over_once_the_first_message_is_gone(found):
    verdict = begin(found(source(17, 9)), claim(source(23)), rival_queued=False)
    assert isinstance(verdict, Run)
    assert verdict.record.source == source(23)
    assert verdict.record.attempt == 3


@given(
    st.integers(1, 99),
    st.integers(1, 99),
    st.integers(1, 99),
    st.integers(1, 99),
    st.sampled_from(["default", "other"]),
)
def test_two_living_messages_never_take_over_from_each_other(one, created, other, made, consumer):
    left = source(17, one, created=created)
    right = source(23, other, created=made, consumer=consumer)
    assert begin(running(left), claim(right), rival_queued=True) == AckCopy()
    assert begin(running(right), claim(left), rival_queued=True) == AckCopy()


@pytest.mark.parametrize("answer", [True, False])
def test_an_answer_about_another_message_does_not_change_ones_own_turn(answer):
    assert begin(running(), claim(source(delivered=1)), rival_queued=answer) == Stale()
    assert isinstance(begin(running(), claim(source(delivered=2)), rival_queued=answer), Run)


# begin: the task has ended, or is another one.


@pytest.mark.parametrize("state", ["completed", "failed"])
@pytest.mark.parametrize(
    "by",
    [source(), source(delivered=9), source(23), source(created=1), source(consumer="other")],
    ids=["same delivery", "later delivery", "a copy", "older consumer", "another pool"],
)
def test_a_task_that_has_ended_is_announced_again_and_never_run(state, by):
    found = ended(source(delivered=2), state)
    assert begin(found, claim(by)) == Announce(found)


@pytest.mark.parametrize("found", [running, waiting, ended])
@pytest.mark.parametrize("by", [source(23), source(23, 2), source(created=2_000)])
@pytest.mark.parametrize("rival_queued", [None, True, False])
def test_other_content_under_the_same_id_is_a_conflict_whatever_the_first_one_does(
    found, by, rival_queued
):
    assert begin(found(), claim(by, content="other"), rival_queued=rival_queued) == Conflict()


@pytest.mark.parametrize("of", [source(delivered=2), source(delivered=9)])
def test_one_message_is_no_conflict_with_itself_though_it_is_read_differently(of):
    """A later version of the service may read more, or less, in the same bytes."""
    verdict = begin(running(source()), claim(of, content="other"))
    assert isinstance(verdict, Run)
    assert verdict.record.content == "other"
    found = ended(source())
    assert begin(found, claim(of, content="other")) == Announce(found)


# commit, release, and what was never begun.


def test_a_commit_ends_the_task_with_its_result_word_for_word():
    why = DeadLetterReason(reason="StrategyCrashed", error="KeyError")
    record = commit(running(), "failed", b'{ "a" : 1 }', LATER, why)
    assert record == running(
        state="failed", updated=LATER, result=msgspec.Raw(b'{ "a" : 1 }'), dead_letter=why
    )
    assert record.is_terminal
    assert not running().is_terminal
    assert not waiting().is_terminal


def test_a_release_voids_the_lease_and_counts_nothing_by_itself():
    assert release(running(), LATER) == running(state="waiting", lease="", updated=LATER)


def test_a_release_counts_a_failure_or_that_the_model_was_away():
    assert release(running(), LATER, failed=True).failures == 2
    assert release(running(), LATER, failed=True).postponed == 3
    assert release(running(), LATER, postponed=True).failures == 1
    assert release(running(), LATER, postponed=True).postponed == 4


def test_a_delivery_given_back_before_its_begin_used_no_attempt():
    record = never_begun(claim())
    assert (record.state, record.attempt, record.lease) == ("waiting", 0, "")
    verdict = begin(record, claim(source(delivered=2)))
    assert isinstance(verdict, Run)
    assert verdict.record.attempt == 1


def test_a_delivery_that_was_given_back_can_begin_no_more():
    assert begin(never_begun(claim()), claim()) == Stale()
    assert begin(release(running(), LATER), claim()) == Stale()


# What is kept of the work.

OBJECT = ArtifactRef(object="t/theirs/turns/0", size=9, sha256="00")


def test_what_is_kept_changes_nothing_else_and_leaves_the_lease_as_it_is():
    kept = keep(running(), [OBJECT], [b"a turn"], LATER)
    assert kept == running(turns=[OBJECT], recent_turns=[b"a turn"], updated=LATER)


@pytest.mark.parametrize("by", [source(delivered=2), source(23)], ids=["later", "a copy"])
@pytest.mark.parametrize("given_back", [True, False])
def test_what_is_kept_is_there_for_whoever_takes_over(by, given_back):
    found = keep(running(), [OBJECT], [b"a turn"], NOW)
    found = release(found, NOW) if given_back else found
    verdict = begin(found, claim(by), rival_queued=False)
    assert isinstance(verdict, Run)
    assert (verdict.record.turns, verdict.record.recent_turns) == ([OBJECT], [b"a turn"])


def test_a_task_that_has_ended_keeps_nothing_of_the_way_there():
    kept = keep(running(), [OBJECT], [b"a turn"], NOW)
    assert commit(kept, "completed", DONE, NOW, None) == ended()


# What others see, and what is stored.


@pytest.mark.parametrize("record", [running(), waiting(), running(agent_id="", attempt=0)])
def test_the_status_of_a_task_on_its_way_has_no_result(record):
    status = status_of("t", record)
    assert (status.state, status.attempt) == (record.state, record.attempt)
    assert (status.agent_id, status.result) == (record.agent_id, None)


def test_the_status_of_a_task_that_nobody_knows_is_unknown():
    assert status_of("t", None).state == "unknown"


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_the_status_of_a_task_that_has_ended_has_its_result(state):
    result = {
        "task_id": "t",
        "agent_id": "default-0",
        "role": "DEV",
        "status": state,
        "success": state == "completed",
        "duration_ms": 1.5,
        "timestamp": "2026-11-22T10:20:30Z",
    }
    status = status_of("t", commit(running(), state, msgspec.json.encode(result), NOW, None))
    assert status.state == state
    assert status.result is not None
    assert status.result.status == state


counts = st.integers(0, 2**53)
sources = st.builds(
    Source,
    stream_seq=counts,
    consumer=st.text(),
    consumer_created=st.integers(0, 2**63),
    num_delivered=counts,
)
times = st.datetimes(timezones=st.just(UTC))
results = st.dictionaries(st.text(), st.text()).map(msgspec.json.encode).map(msgspec.Raw)
NO_RESULT = running().result
records = st.builds(
    TaskRecord,
    task_id=st.text(),
    state=st.sampled_from(["running", "waiting", "completed", "failed"]),
    source=sources,
    content=st.text(),
    updated=times,
    attempt=counts,
    failures=counts,
    postponed=counts,
    generation=counts,
    agent_id=st.text(),
    lease=st.text(),
    result=st.just(NO_RESULT) | results,
    dead_letter=st.none() | st.builds(DeadLetterReason, reason=st.text(), error=st.text()),
    turns=st.lists(st.builds(ArtifactRef, object=st.text(), size=counts, sha256=st.text())),
    recent_turns=st.lists(st.binary()),
)


@given(records)
def test_a_record_comes_out_of_the_store_as_it_went_in(record):
    stored = msgspec.json.encode(record)
    assert msgspec.json.decode(stored, type=TaskRecord) == record


@given(sources, sources, sources)
def test_of_one_consumers_deliveries_one_is_later_and_the_order_is_the_same_for_all(a, b, c):
    a, b, c = (replace(each, consumer="default") for each in (a, b, c))
    assert not a.is_later_than(a)
    assert not (a.is_later_than(b) and b.is_later_than(a))
    if a.is_later_than(b) and b.is_later_than(c):
        assert a.is_later_than(c)


@given(records, sources, st.none() | st.booleans())
def test_whatever_runs_next_counts_one_attempt_more_and_forgets_nothing(found, by, queued):
    verdict = begin(found, replace(claim(by), content=found.content), rival_queued=queued)
    if isinstance(verdict, Run):
        assert verdict.record == replace(
            found,
            task_id="t",
            state="running",
            source=by,
            updated=LATER,
            attempt=found.attempt + 1,
            agent_id="default-1",
            lease="mine",
            result=NO_RESULT,
            dead_letter=None,
        )
        assert not found.is_terminal
