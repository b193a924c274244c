"""The targets, and whether a run meets them: pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from bench.lineup import BARE, FASTSTREAM, FRESH_ACTOR, OURS, RAY_CALL, TASKIQ, Entry
from bench.numbers import percentile, ratio
from bench.sample import Sample
from msgspec import Struct

Samples = Mapping[Entry, Sequence[Sample]]


class Target(Struct, frozen=True, kw_only=True):
    """What must be, and what is aimed at; `at_most` tells which side is the good one."""

    name: str
    must: float
    aim: float
    at_most: bool
    unit: str = "x"

    def holds(self, value: float, limit: float) -> bool:
        return value <= limit if self.at_most else value >= limit


class Verdict(Struct, frozen=True, kw_only=True):
    """A target and what this run has found."""

    name: str
    found: float
    must: str
    aim: str
    passes: bool
    reaches_aim: bool


def judge(target: Target, found: float) -> Verdict:
    sign = "≤" if target.at_most else "≥"
    return Verdict(
        name=target.name,
        found=found,
        must=f"{sign} {target.must:g}{target.unit}",
        aim=f"{sign} {target.aim:g}{target.unit}",
        passes=target.holds(found, target.must),
        reaches_aim=target.holds(found, target.aim),
    )


class Versus(Struct, frozen=True, kw_only=True):
    """How we must compare with one other: CPU a task, or tasks a second."""

    who: str
    ledger: bool
    of: str
    must: float
    aim: float
    workers: tuple[int, ...] = (1, 2)


# The table of what must hold, and what is aimed at, line by line.
COMPARISONS = (
    Versus(who=TASKIQ, ledger=True, of="CPU a task", must=1.0, aim=0.75),
    Versus(who=FASTSTREAM, ledger=True, of="CPU a task", must=0.75, aim=0.5),
    Versus(who=TASKIQ, ledger=False, of="CPU a task", must=1.3, aim=1.0),
    Versus(who=FASTSTREAM, ledger=False, of="CPU a task", must=0.9, aim=0.6),
    Versus(who=TASKIQ, ledger=True, of="throughput", must=1.0, aim=1.3),
    Versus(who=FASTSTREAM, ledger=True, of="throughput", must=1.3, aim=2.0),
    Versus(who=BARE, ledger=True, of="CPU a task", must=2.0, aim=1.4, workers=(1,)),
    Versus(who=RAY_CALL, ledger=True, of="throughput", must=3.0, aim=5.0),
    Versus(who=FRESH_ACTOR, ledger=False, of="throughput", must=300.0, aim=1_000.0, workers=(1,)),
)
ADDED_P50 = Target(name="added latency, p50", must=6, aim=3, at_most=True, unit=" ms")
ADDED_P99 = Target(name="added latency, p99", must=25, aim=10, at_most=True, unit=" ms")


def verdicts(samples: Samples) -> Iterator[Verdict]:
    """Yield a verdict for each comparison whose both sides were measured."""
    for versus in COMPARISONS:
        for workers in versus.workers:
            mine = samples.get(Entry(who=OURS, workers=workers))
            theirs = samples.get(Entry(who=versus.who, workers=workers, ledger=versus.ledger))
            if mine and theirs:
                yield _compare(versus, workers, mine, theirs)
    if mine := samples.get(Entry(who=OURS, workers=1)):
        added_ms = [each for sample in mine for each in sample.added_ms]
        yield judge(ADDED_P50, round(percentile(added_ms, 50), 2))
        yield judge(ADDED_P99, round(percentile(added_ms, 99), 2))


def _compare(
    versus: Versus, workers: int, mine: Sequence[Sample], theirs: Sequence[Sample]
) -> Verdict:
    entry = Entry(who=versus.who, workers=workers, ledger=versus.ledger)
    is_cpu = versus.of == "CPU a task"
    value = _own_us if is_cpu else _rate
    # A contestant that is measured less often is compared with our first rounds.
    rounds = min(len(mine), len(theirs))
    found = ratio([value(s) for s in mine[:rounds]], [value(s) for s in theirs[:rounds]])
    who = f"{entry.label}, {workers} worker{'s' * (workers > 1)}"
    target = Target(
        name=f"{versus.of} against {who}", must=versus.must, aim=versus.aim, at_most=is_cpu
    )
    return judge(target, round(found, 3))


def passes(found: Iterable[Verdict]) -> bool:
    """Tell whether all that must hold does."""
    return all(verdict.passes for verdict in found)


def _own_us(sample: Sample) -> float:
    return sample.own_us


def _rate(sample: Sample) -> float:
    return sample.rate
