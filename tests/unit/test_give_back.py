"""What becomes of a delivery whose actor died with it: each rule is a sentence here."""

import pytest
from msgspec.structs import replace
from support.fakes import NOON, MemoryLedger, Queue, delivery, noon

from agent_actors.leases import Leases
from agent_actors.ledger import (
    Claim,
    Nak,
    Release,
    Run,
    Stale,
    TaskRecord,
    begin,
    cancel,
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


async def test_both_messages_of_a_task_are_handed_out_again_when_they_are_given_back_at_once():
    ledger = MemoryLedger("fenced")
    verdict = give_back(None, claim(stream_seq=2))
    assert isinstance(verdict, Release)
    ledger.rival = verdict.record
    assert await Leases(ledger, Queue(1, 2), noon).give_back(claim(stream_seq=1))


async def test_what_was_begun_while_it_was_given_back_is_left_alone():
    ledger = MemoryLedger("fenced")
    ledger.rival = begun(claim(agent_id="other"))
    assert not await Leases(ledger, Queue(1), noon).give_back(claim())


# Suspects.


@pytest.mark.parametrize("alone", [True, False])
def test_what_ran_in_an_actor_that_died_alone_is_a_suspect_and_that_counts(*, alone: bool):
    verdict = give_back(begun(claim()), claim(), alone=alone)
    assert isinstance(verdict, Release)
    assert verdict.record.lost
    assert verdict.record.is_suspect == alone
    assert verdict.record.deaths == alone
    assert verdict.record.failures == 0


def test_what_ran_in_company_is_a_suspect_from_the_second_death_on_however_often_it_came():
    verdict = give_back(begun(claim()), claim())
    for number in range(2, 9):
        assert isinstance(verdict, Release)
        assert not verdict.record.is_suspect
        again = begun(claim(num_delivered=number), verdict.record)
        verdict = Release(release(again, NOON, postponed=True))
    again = begun(claim(num_delivered=9), verdict.record)
    verdict = give_back(again, claim(num_delivered=9))
    assert isinstance(verdict, Release)
    assert verdict.record.is_suspect
    assert verdict.record.deaths == 0


def test_what_was_not_begun_there_is_no_suspect():
    waiting = release(begun(claim()), NOON)
    earlier = begun(claim(agent_id="other"))
    for found in (None, waiting, earlier, replace(ENDED, agent_id="dead")):
        verdict = give_back(found, claim(num_delivered=2), alone=True)
        if isinstance(verdict, Release):
            assert not verdict.record.lost
            assert not verdict.record.is_suspect
            assert verdict.record.deaths == 0
        else:
            assert verdict == Nak()


def test_a_suspect_stays_one_until_the_task_has_ended():
    verdict = give_back(begun(claim()), claim(), alone=True)
    assert isinstance(verdict, Release)
    again = begun(claim(num_delivered=2), verdict.record)
    assert again.is_suspect
    assert release(again, NOON, postponed=True).is_suspect
    assert not commit(again, "completed", b"{}", NOON, None).is_suspect
    died_again = give_back(again, claim(num_delivered=2), alone=True)
    assert isinstance(died_again, Release)
    assert died_again.record.deaths == 2


def test_a_suspect_that_is_cancelled_need_not_run_alone_since_it_does_not_run():
    verdict = give_back(begun(claim()), claim(), alone=True)
    assert isinstance(verdict, Release)
    assert verdict.record.is_suspect
    assert not cancel(verdict.record, "t", NOON).is_suspect
