"""What `scripts/bench` makes of its samples: a row each, and ratios between them."""

import pytest
from bench.lineup import OURS, RAY_CALL, TASKIQ, Entry
from bench.numbers import percentile, ratio, row_of
from bench.sample import Sample


def sample(*, tasks: int = 1_000, own_us: float = 400.0, **more) -> Sample:
    usual = {"window_s": 2.0, "strangers": 0.0, "asked": 1.0, "in_flight": 0.0}
    usual |= {"cpu_us": {"workers": own_us}, "pss_mb": {"workers": 50.0}, "own_mb": 50.0}
    return Sample(tasks=tasks, own_us=own_us, **(usual | more))


def test_a_row_has_the_median_of_its_rounds_and_the_span_of_their_rates():
    rounds = [sample(tasks=tasks, own_us=us) for tasks, us in ((900, 500), (1_000, 300), (5, 310))]
    row = row_of(Entry(who=OURS), "default", rounds)
    assert (row.rate, row.lowest_rate, row.highest_rate) == (450.0, 2.5, 500.0)
    assert (row.own_us, row.rounds) == (310, 3)


def test_what_a_task_takes_longer_is_counted_from_the_usual_request():
    one = sample(task_ms=[3.0, 5.0], direct_ms=[1.0, 1.0, 90.0])
    another = sample(task_ms=[4.0, 10.0], direct_ms=[2.0])
    row = row_of(Entry(who=OURS), "default", [one, another])
    assert (row.added_p50_ms, row.added_p99_ms) == (2.0, 8.0)


def test_a_row_without_single_tasks_has_no_latency():
    row = row_of(Entry(who=TASKIQ), "default", [sample()])
    assert (row.added_p50_ms, row.added_p99_ms) == (None, None)


def test_groups_of_processes_keep_their_medians_apart():
    rounds = [sample(cpu_us={"workers": us, "nats": 2 * us}) for us in (1.0, 2.0, 9.0)]
    assert row_of(Entry(who=OURS), "default", rounds).cpu_us == {"workers": 2.0, "nats": 4.0}


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (99, 99), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: float):
    assert percentile(range(100, 0, -1), percent) == expected


def test_a_ratio_is_taken_within_each_round():
    # The machine was half as fast in the second round, and neither has changed.
    assert ratio([100, 200], [50, 100]) == 2.0


def test_rays_users_are_known_by_their_row():
    rows = [row_of(Entry(who=who), "default", [sample()]) for who in (OURS, RAY_CALL, TASKIQ)]
    assert [row.uses_ray for row in rows] == [True, True, False]


def test_a_label_tells_with_which_guarantees():
    labels = [
        Entry(who=who, ledger=ledger).label
        for who, ledger in ((OURS, True), (TASKIQ, True), (TASKIQ, False))
    ]
    assert labels == ["agent_actors", "taskiq-nats, same guarantees", "taskiq-nats, as it comes"]
