"""What becomes of a delivery whose actor died with it: each rule is a sentence here."""

import pytest
from msgspec.structs import replace
from support.fakes import NOON, delivery

from agent_actors.ledger import (
    Claim,
    Nak,
    Release,
    Run,
    Stale,
    TaskRecord,
    begin,
    commit,
    give_back,
    release,
)


def claim(*, stream_seq: int = 1, num_delivered: int = 1, agent_id: str = "dead") -> Claim:
    return Claim(
        task_id="t",
        source=delivery(stream_seq=stream_seq, num_delivered=num_delivered).source,
        content="hash",
        agent_id=agent_id,
        lease=f"lease of {agent_id}",
        now=NOON,
    )


def begun(by: Claim, found: TaskRecord | None = None) -> TaskRecord:
    verdict = begin(found, by)
    assert isinstance(verdict, Run)
    return verdict.record


ENDED = commit(begun(claim()), "completed", b"{}", NOON, None)


def test_what_the_actor_ran_is_released():
    verdict = give_back(begun(claim()), claim())
    assert isinstance(verdict, Release)
    assert (verdict.record.state, verdict.record.lease) == ("waiting", "")
    assert verdict.record.failures == 0


def test_what_nobody_began_gets_a_record_that_voids_a_late_begin():
    verdict = give_back(None, claim())
    assert isinstance(verdict, Release)
    assert verdict.record.attempt == 0
    assert begin(verdict.record, claim()) == Stale()
    assert isinstance(begin(verdict.record, claim(num_delivered=2)), Run)


def test_what_was_committed_and_not_acked_goes_to_somebody_who_announces_it():
    assert give_back(ENDED, claim()) == Nak()


@pytest.mark.parametrize("record", [begun(claim(agent_id="other")), ENDED])
def test_a_copy_that_the_actor_had_not_begun_is_handed_out_again(record: TaskRecord):
    assert give_back(record, claim(stream_seq=2)) == Nak()


def test_what_a_later_delivery_has_taken_over_is_left_alone():
    later = begun(claim(num_delivered=2, agent_id="other"), begun(claim()))
    assert give_back(later, claim()) == Stale()


def test_a_later_delivery_that_the_actor_had_not_begun_voids_the_earlier_lease():
    earlier = begun(claim(agent_id="other"))
    verdict = give_back(earlier, claim(num_delivered=2))
    assert isinstance(verdict, Release)
    assert verdict.record.source.num_delivered == 2
    assert isinstance(begin(verdict.record, claim(num_delivered=3)), Run)


def test_a_delivery_released_before_is_handed_out_again():
    assert give_back(release(begun(claim()), NOON), claim()) == Nak()


def test_what_another_agent_runs_from_this_very_delivery_is_left_alone():
    other = replace(begun(claim()), agent_id="other")
    assert give_back(other, claim()) == Stale()
