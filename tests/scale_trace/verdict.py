"""What a run comes to: how fast the pool followed the load, and what is wrong with that. Pure."""

import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise

from msgspec import Struct
from scale_trace.trace import Results, Sample, Trace

# The pool looks at its load once a second, and at other moments than who samples it.
SEEN_WITHIN_S = 2.0
TOLERATED_CLIMB = 2
# Up with the burst and down after it is one turn. A machine that has not the time for the steady
# load may need another way up.
TOLERATED_TURNS = 3
NAMED_TASKS = 5


class Summary(Struct, frozen=True, kw_only=True):
    """A run in numbers, None for what did not happen.

    `grew_s`: from the burst's first task until the pool ran as many actors as it may have.
    `worked_off_s`: until each of the burst's tasks had ended. `shrank_s`: from the end of the
    steady load until no more actors were left than the pool must have. `busy_share`: of the slots
    that were there while tasks waited, those in use, the median. `turns`: how often the size that
    was wanted went another way than before; `needless_climb`: how many actors it rose by, all in
    all, that the tasks there were did not ask for.
    """

    tasks: int
    results: int
    grew_s: float | None
    worked_off_s: float
    shrank_s: float | None
    steady_actors: int
    busy_share: float
    highest_rate: float
    turns: int
    needless_climb: int


def summary(trace: Trace, results: Results) -> Summary:
    """Return the run in numbers."""
    burst, steady = trace.phases.burst, trace.phases.steady
    samples, bounds = trace.samples, trace.actors
    return Summary(
        tasks=len(results.submitted),
        results=sum(results.counts.values()),
        grew_s=_time_until(samples, burst.begin_s, lambda it: it.running == bounds.max),
        worked_off_s=round(burst.lasts_s, 1),
        shrank_s=_time_until(samples, steady.end_s, lambda it: it.actors == bounds.min),
        steady_actors=[it.running for it in samples if it.at_s <= steady.end_s][-1],
        busy_share=_busy_share(samples),
        highest_rate=max(it.rate for it in samples),
        turns=turns([it.wanted for it in samples]),
        needless_climb=needless_climb(trace),
    )


def turns(sizes: Sequence[int]) -> int:
    """Return how often the size rose after it had fallen, or fell after it had risen."""
    ways = [after > before for before, after in pairwise(sizes) if after != before]
    return sum(way != way_before for way_before, way in pairwise(ways))


def needless_climb(trace: Trace) -> int:
    """Return how much the size rose beyond what the tasks asked for that NATS had a moment ago.

    NATS counts them by itself: what has waited and what was out, wherever it was.
    """
    climb = 0
    for before, now in pairwise(trace.samples):
        if now.wanted > before.wanted:
            asked = _asked_for(trace, now.at_s)
            climb += max(0, now.wanted - max(asked, before.wanted))
    return climb


def problems(run: Summary, results: Results) -> Iterator[str]:
    """Yield what is wrong with a run, in words."""
    answered = results.counts.keys()
    amiss: dict[str, Collection[str]] = {
        "without a result": results.submitted - answered,
        "with more than one result": [each for each, count in results.counts.items() if count > 1],
        "that nobody submitted": answered - results.submitted,
        "failed": results.failed,
    }
    for what, tasks in amiss.items():
        if tasks:
            yield f"{len(tasks)} tasks {what}: {', '.join(sorted(tasks)[:NAMED_TASKS])}"
    if run.grew_s is None:
        yield "the pool did not grow to its largest size"
    if run.shrank_s is None:
        yield "the pool did not shrink to its smallest size"
    if run.needless_climb > TOLERATED_CLIMB:
        yield f"the pool flapped: it wanted {run.needless_climb} actors that no task asked for"
    if run.turns > TOLERATED_TURNS:
        yield f"the pool flapped: its size turned {run.turns} times"


def telling(trace: Trace, run: Summary) -> Iterator[str]:
    """Yield the run in words."""
    bounds = trace.actors
    yield f"{run.tasks:,} tasks, {run.results:,} results"
    yield f"{bounds.min} to {bounds.max} actors: {_seconds(run.grew_s)}"
    yield f"burst worked off: {_seconds(run.worked_off_s)}, at most {run.highest_rate:g} tasks/s"
    yield f"slots in use while tasks waited: {run.busy_share:.0%} (median)"
    yield f"actors under the steady load: {run.steady_actors}"
    yield (
        f"{run.steady_actors} to {bounds.min} actors: {_seconds(run.shrank_s)} after the last "
        f"task, of which {bounds.scale_down_delay_s:g} s are scale_down_delay_s"
    )


def _asked_for(trace: Trace, at_s: float) -> int:
    tasks = max(
        it.pending + it.unacked for it in trace.samples if at_s - SEEN_WITHIN_S <= it.at_s <= at_s
    )
    return math.ceil(tasks / (trace.slots * trace.actors.target_utilization))


def _seconds(time_s: float | None) -> str:
    return "not at all" if time_s is None else f"{time_s:g} s"


def _time_until(
    samples: Sequence[Sample], begin_s: float, holds: Callable[[Sample], bool]
) -> float | None:
    later = (it.at_s - begin_s for it in samples if it.at_s >= begin_s and holds(it))
    first_s = next(later, None)
    return None if first_s is None else round(first_s, 1)


def _busy_share(samples: Sequence[Sample]) -> float:
    shares = [it.slots_used / it.slots for it in samples if it.pending > 0 and it.slots]
    return round(statistics.median(shares), 3) if shares else 0.0
