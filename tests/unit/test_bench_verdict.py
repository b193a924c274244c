"""Whether a run of `scripts/bench` meets its targets."""

from collections.abc import Sequence

import pytest
from bench.lineup import BARE, FASTSTREAM, FRESH_ACTOR, OURS, TASKIQ, Entry
from bench.sample import Sample
from bench.verdict import Target, judge, passes, verdicts


def sample(
    *, rate: float = 1_000.0, us: float = 100.0, task_ms: Sequence[float] = (2.0,)
) -> Sample:
    return Sample(
        tasks=int(rate),
        window_s=1.0,
        strangers=0.0,
        asked=1.0,
        in_flight=0.0,
        cpu_us={},
        own_us=us,
        pss_mb={},
        own_mb=0.0,
        task_ms=list(task_ms),
        direct_ms=[1.0],
    )


@pytest.mark.parametrize(
    ("at_most", "value", "passes_it", "reaches_aim"),
    [
        (True, 0.5, True, True),
        (True, 0.75, True, False),
        (True, 1.0, True, False),
        (True, 1.01, False, False),
        (False, 2.0, True, True),
        (False, 1.0, True, False),
        (False, 0.99, False, False),
    ],
)
def test_a_target_has_its_good_side(
    *, at_most: bool, value: float, passes_it: bool, reaches_aim: bool
):
    target = Target(name="t", must=1.0, aim=0.7 if at_most else 1.5, at_most=at_most)
    verdict = judge(target, value)
    assert (verdict.passes, verdict.reaches_aim) == (passes_it, reaches_aim)


def test_limits_are_told_with_their_side_and_unit():
    verdict = judge(Target(name="t", must=6, aim=3, at_most=True, unit=" ms"), 4.0)
    assert (verdict.must, verdict.aim) == ("≤ 6 ms", "≤ 3 ms")


def test_we_are_compared_with_the_peer_that_has_as_many_workers():
    samples = {
        Entry(who=OURS, workers=1): [sample(us=100)],
        Entry(who=OURS, workers=2): [sample(us=300)],
        Entry(who=TASKIQ, workers=1): [sample(us=200)],
        Entry(who=TASKIQ, workers=2): [sample(us=200)],
    }
    cpu = [each for each in verdicts(samples) if each.name.startswith("CPU")]
    assert [(each.found, each.passes) for each in cpu] == [(0.5, True), (1.5, False)]


def test_more_throughput_is_better_and_more_cpu_is_worse():
    samples = {
        Entry(who=OURS): [sample(rate=1_300, us=75)],
        Entry(who=FASTSTREAM): [sample(rate=1_000, us=100)],
    }
    found = {each.name.partition(" against")[0]: each for each in verdicts(samples)}
    assert found["CPU a task"].found == 0.75
    assert found["CPU a task"].passes
    assert found["throughput"].found == 1.3
    assert found["throughput"].passes


def test_guarantees_are_not_compared_with_none():
    samples = {Entry(who=OURS): [sample(us=100)], Entry(who=BARE, ledger=False): [sample(us=10)]}
    assert not [each for each in verdicts(samples) if each.name.startswith("CPU")]


def test_who_is_measured_once_is_compared_with_our_first_round():
    samples = {
        Entry(who=OURS): [sample(rate=1_000), sample(rate=1)],
        Entry(who=FRESH_ACTOR, ledger=False): [sample(rate=2)],
    }
    found = {each.name: each.found for each in verdicts(samples)}
    assert found["throughput against a fresh Ray actor a task, as it comes, 1 worker"] == 500


def test_latency_is_judged_over_all_rounds():
    rounds = [sample(task_ms=[2.0] * 50), sample(task_ms=[2.0] * 48 + [40.0] * 2)]
    found = {each.name: each for each in verdicts({Entry(who=OURS): rounds})}
    assert found["added latency, p50"].found == 1.0
    assert found["added latency, p99"].found == 39.0
    assert not found["added latency, p99"].passes


def test_one_missed_target_fails_the_whole():
    good, bad = (judge(Target(name="t", must=1, aim=1, at_most=True), x) for x in (0.5, 2))
    assert passes([good])
    assert not passes([good, bad])
