"""What `scripts/scale-trace` says of a run: its numbers, and what is wrong with it."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace
from scale_trace.picture import HEIGHT_PX, WIDTH_PX, draw
from scale_trace.trace import Phase, Phases, Results, Sample, Trace
from scale_trace.verdict import Summary, needless_climb, problems, summary, telling, turns

from agent_actors.config import AutoscaleConfig

BOUNDS = AutoscaleConfig(min=0, max=6, target_utilization=0.5, scale_down_delay_s=3.0)
SLOTS = 10
# Wanted actors and tasks, a second from one to the next: idle, burst, steady, idle.
FOLLOWING = [
    *[(0, 0)] * 3,
    *[(6, 100), (6, 80), (6, 60), (6, 40), (6, 20), (6, 0)],
    *[(6, 9), (6, 9), (2, 9), (2, 9), (2, 9)],
    *[(2, 0), (2, 0), (0, 0), (0, 0)],
]


def sample(at_s: float, wanted: int, tasks: int) -> Sample:
    """A pool that has the actors that it wants, a second after it wants them."""
    used = min(tasks, wanted * SLOTS)
    return Sample(
        at_s=at_s,
        pending=tasks - used,
        unacked=used,
        wanted=wanted,
        running=wanted,
        starting=0,
        draining=0,
        slots=wanted * SLOTS,
        slots_used=used,
        settled=0,
        rate=float(used),
    )


def trace(course: Sequence[tuple[int, int]]) -> Trace:
    bounds_s = (("idle", 0, 3), ("burst", 3, 9), ("steady", 9, 14), ("idle", 14, len(course)))
    before, burst, steady, after = (
        Phase(load=load, begin_s=begin_s, end_s=end_s) for load, begin_s, end_s in bounds_s
    )
    return Trace(
        seed=0,
        actors=BOUNDS,
        slots=SLOTS,
        answer_s=1.0,
        phases=Phases(before=before, burst=burst, steady=steady, after=after),
        samples=[sample(at_s, *moment) for at_s, moment in enumerate(course)],
    )


RESULTS = Results(submitted={"a", "b"}, counts={"a": 1, "b": 1})


def verdict(course: Sequence[tuple[int, int]], results: Results = RESULTS) -> list[str]:
    return list(problems(summary(trace(course), results), results))


def test_a_run_is_told_in_numbers():
    assert summary(trace(FOLLOWING), RESULTS) == Summary(
        tasks=2,
        results=2,
        grew_s=0.0,
        worked_off_s=6.0,
        shrank_s=2.0,
        steady_actors=2,
        busy_share=1.0,
        highest_rate=60.0,
        turns=1,
        needless_climb=0,
    )


def test_growing_takes_until_all_actors_run_and_shrinking_until_the_last_one_is_gone():
    run = trace(FOLLOWING)
    late = [replace(each, running=3, starting=1) for each in run.samples[3:5]]
    left = [replace(each, running=0, draining=1) for each in run.samples[16:17]]
    samples = [*run.samples[:3], *late, *run.samples[5:16], *left, *run.samples[17:]]
    told = summary(replace(run, samples=samples), RESULTS)
    assert (told.grew_s, told.shrank_s) == (2.0, 3.0)


def test_idle_slots_while_tasks_wait_show():
    run = trace(FOLLOWING)
    idle = [replace(each, slots_used=each.slots // 4) for each in run.samples]
    assert summary(replace(run, samples=idle), RESULTS).busy_share == 0.25


def test_a_pool_that_follows_its_load_is_right():
    assert verdict(FOLLOWING) == []


def test_a_pool_that_neither_grows_nor_shrinks_is_wrong():
    assert verdict([(2, tasks) for _, tasks in FOLLOWING]) == [
        "the pool did not grow to its largest size",
        "the pool did not shrink to its smallest size",
    ]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([0, 0], 0), ([0, 8, 8, 3, 0], 1), ([0, 8, 3, 3, 4, 0], 3), ([2, 1, 2, 1, 2], 3)],
)
def test_a_turn_is_a_way_up_after_one_down_and_the_reverse(sizes: list[int], expected: int):
    assert turns(sizes) == expected


def test_a_pool_that_grows_without_tasks_that_ask_for_it_flaps():
    course = [*FOLLOWING[:12], (6, 9), (2, 9), *FOLLOWING[14:]]
    assert verdict(course) == ["the pool flapped: it wanted 4 actors that no task asked for"]


def test_what_the_tasks_asked_for_a_moment_ago_is_no_needless_climb():
    course = [*FOLLOWING[:10], (2, 29), (6, 9), *FOLLOWING[12:]]
    assert needless_climb(trace(course)) == 0


def test_a_pool_whose_size_swings_with_its_load_flaps():
    course = [*FOLLOWING[:9], (2, 9), (6, 30), (2, 9), (6, 30), (2, 9), *FOLLOWING[14:]]
    assert verdict(course) == ["the pool flapped: its size turned 5 times"]


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        (replace(RESULTS, counts={"a": 1}), "1 tasks without a result: b"),
        (replace(RESULTS, counts={"a": 1, "b": 2}), "1 tasks with more than one result: b"),
        (replace(RESULTS, submitted={"a"}), "1 tasks that nobody submitted: b"),
        (replace(RESULTS, failed=["b"]), "1 tasks failed: b"),
    ],
)
def test_each_task_must_have_one_result_and_no_failure(results: Results, problem: str):
    assert verdict(FOLLOWING, results) == [problem]


def test_a_run_is_told_in_words():
    run = trace(FOLLOWING)
    told = list(telling(run, summary(run, RESULTS)))
    assert "0 to 6 actors: 0 s" in told
    assert told[-1].startswith("2 to 0 actors: 2 s after the last task")
    flat = trace([(2, tasks) for _, tasks in FOLLOWING])
    assert "0 to 6 actors: not at all" in telling(flat, summary(flat, RESULTS))


def test_the_picture_is_a_png_of_the_size_that_the_readme_shows(tmp_path: Path):
    run = trace(FOLLOWING)
    file = tmp_path / "run.png"
    draw(run, summary(run, RESULTS), file)
    head = file.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    size = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    assert size == (WIDTH_PX, HEIGHT_PX)
