"""The numbers of `scripts/chaos --report` and `--soak` are what they say."""

import math

import pytest
from chaos.history import Sample
from chaos.invariants import MEGABYTE
from chaos.recording import Progress, until_none_left
from chaos.report import Recovery, percentile
from chaos.soak import growth


@pytest.mark.parametrize(("percent", "expected"), [(50, 10), (95, 19), (100, 20), (1, 1)])
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(percent: int, expected: int):
    assert percentile(range(20, 0, -1), percent) == expected


@pytest.mark.parametrize(("slowest_s", "holds"), [(2.9, True), (3.1, False)])
def test_a_recovery_holds_by_its_slow_end(slowest_s: float, *, holds: bool):
    recovery = Recovery(
        fault="kill", until="it goes on", target_s=3.0, times_s=[0.1, 0.2, slowest_s]
    )
    assert recovery.holds == holds


def sample(at_s: float, rss_mb: float, pid: int = 7) -> Sample:
    return Sample(at_s=at_s, who="supervisor", pid=pid, rss_bytes=int(rss_mb * MEGABYTE))


def test_growth_counts_from_when_a_process_is_warm():
    samples = [sample(at_s, 80 if at_s < 300 else 120 + at_s / 600) for at_s in range(0, 1_801, 2)]
    (grown,) = growth(samples, warm_up_s=300, end_s=1_800)
    assert grown.warm_mb == pytest.approx(120.5, abs=0.15)
    assert grown.grown_mb == pytest.approx(2.4, abs=0.15)


def test_a_process_that_did_not_live_all_the_time_has_no_growth():
    samples = [sample(at_s, 120, pid=8) for at_s in range(600, 1_801, 2)]
    assert growth(samples, warm_up_s=300, end_s=1_800) == []


@pytest.mark.parametrize(
    ("seen", "quiet"),
    [
        ([(9,), (7,), (7,), (4,), (5,), (3,), (0,)], True),
        ([(0,)], True),
        ([(9,), (7,), (7,)], False),
        ([(math.inf,)], False),
        ([(2, 1), (2, 4), (2, 4)], False),
    ],
    ids=["it falls", "nothing was left", "it falls no more", "nobody can tell", "no more deaths"],
)
async def test_quiet_is_waited_for_as_long_as_it_comes_nearer(
    seen: list[tuple[float, ...]], *, quiet: bool
):
    async def look() -> Progress:
        left, *deaths = seen.pop(0) if len(seen) > 1 else seen[0]
        return Progress(left, *map(int, deaths))

    assert await until_none_left(look, patience_s=30 if quiet else 0.5) == quiet


@pytest.mark.parametrize(
    ("seen", "known", "is_beyond"),
    [
        (Progress(4), Progress(5, 9), True),
        (Progress(5, 3), Progress(5, 2), True),
        (Progress(5, 2), Progress(5, 2), False),
        (Progress(6, 9), Progress(5, 2), False),
    ],
)
def test_less_to_do_is_progress_and_so_is_a_death_more(
    seen: Progress, known: Progress, *, is_beyond: bool
):
    assert seen.is_beyond(known) == is_beyond
