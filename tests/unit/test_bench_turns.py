"""In which order `scripts/bench` measures whom."""

from collections import Counter

from bench.compare import LINEUP, ONCE, all_turns
from bench.lineup import BARE, FASTSTREAM, OURS, TASKIQ
from bench.verdict import COMPARISONS


def test_everybody_has_a_turn_in_each_round_before_anybody_has_the_next():
    turns = [turn for turn in all_turns(3) if turn.durability == "default"]
    rounds = [[turn.entry for turn in turns if turn.round == number] for number in (1, 2, 3)]
    assert rounds == [[*LINEUP, *ONCE], [*LINEUP], [*LINEUP]]
    assert [turn.round for turn in turns] == sorted(turn.round for turn in turns)


def test_nobody_has_two_turns_in_a_round():
    counts = Counter((turn.round, turn.durability, turn.entry) for turn in all_turns(2))
    assert set(counts.values()) == {1}


def test_peers_have_as_many_workers_as_we_have_actors():
    workers = {
        who: {entry.workers for entry in LINEUP if entry.who == who}
        for who in (OURS, TASKIQ, FASTSTREAM)
    }
    assert workers == {OURS: {1, 2}, TASKIQ: {1, 2}, FASTSTREAM: {1, 2}}


def test_whoever_we_are_compared_with_is_measured():
    measured = {(entry.who, entry.workers, entry.ledger) for entry in (*LINEUP, *ONCE)}
    compared = {
        (versus.who, workers, versus.ledger) for versus in COMPARISONS for workers in versus.workers
    }
    assert compared <= measured


def test_nats_that_keeps_more_is_measured_with_us_and_with_the_limit():
    turns = {(turn.durability, turn.entry.who) for turn in all_turns(1)}
    kept_safer = {turn for turn in turns if turn[0] != "default"}
    assert kept_safer == {(kind, who) for kind in ("always", "r3") for who in (OURS, BARE)}
