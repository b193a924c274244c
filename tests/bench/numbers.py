"""Samples of several rounds become one row each, and rows are compared: pure."""

import math
import statistics
from collections.abc import Mapping, Sequence

from bench.lineup import RAY_USERS, Entry
from bench.sample import Sample
from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True):
    """A contestant over all rounds: medians, and the lowest and highest rate of a round."""

    label: str
    workers: int
    durability: str
    uses_ray: bool
    rounds: int
    strangers: float
    rate: float
    lowest_rate: float
    highest_rate: float
    own_us: float
    cpu_us: dict[str, float]
    own_mb: float
    pss_mb: dict[str, float]
    added_p50_ms: float | None
    added_p99_ms: float | None


def row_of(entry: Entry, durability: str, samples: Sequence[Sample]) -> Row:
    """Return the medians of all rounds; latencies are those of all rounds together."""
    rates = [sample.rate for sample in samples]
    added_ms = [each for sample in samples for each in sample.added_ms]
    return Row(
        label=entry.label,
        workers=entry.workers,
        durability=durability,
        uses_ray=entry.who in RAY_USERS,
        rounds=len(samples),
        strangers=round(statistics.median(sample.strangers for sample in samples), 3),
        rate=round(statistics.median(rates), 2),
        lowest_rate=round(min(rates), 2),
        highest_rate=round(max(rates), 2),
        own_us=round(statistics.median(sample.own_us for sample in samples), 1),
        cpu_us=_medians([sample.cpu_us for sample in samples]),
        own_mb=round(statistics.median(sample.own_mb for sample in samples), 1),
        pss_mb=_medians([sample.pss_mb for sample in samples]),
        added_p50_ms=round(percentile(added_ms, 50), 2) if added_ms else None,
        added_p99_ms=round(percentile(added_ms, 99), 2) if added_ms else None,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many percent do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios.

    A machine's speed drifts; within a round both had much the same.
    """
    return statistics.median(m / t for m, t in zip(mine, theirs, strict=True))


def _medians(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in each for name in one)
    return {name: round(statistics.median(one.get(name, 0.0) for one in each), 1) for name in names}
