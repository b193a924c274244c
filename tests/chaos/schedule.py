"""Which faults come when: pure, and the same for the same seed."""

import random
from collections.abc import Sequence

from msgspec import Struct

# Seconds before the first fault, so that there is something to hit.
CALM_S = 3.0


class FaultKind(Struct, frozen=True, kw_only=True):
    """A kind of fault: what it is done to, how often it comes beside others, how long it lasts.

    Faults of one lane come one after the other, those of different lanes overlap.
    """

    name: str
    lane: str
    weight: float = 1.0
    shortest_s: float = 0.0
    longest_s: float = 0.0
    cluster_only: bool = False


class PlannedFault(Struct, frozen=True, kw_only=True):
    """A fault to come; `luck` seeds whatever it has to choose."""

    at_s: float
    lasts_s: float
    kind: str
    lane: str
    luck: int


def schedule(
    seed: int, duration_s: float, kinds: Sequence[FaultKind], *, mean_gap_s: float = 4.0
) -> list[PlannedFault]:
    """Return the faults of a run in the order of their beginning; all end within its time."""
    planned = [
        fault
        for lane in sorted({kind.lane for kind in kinds})
        for fault in _lane(seed, duration_s, [k for k in kinds if k.lane == lane], mean_gap_s)
    ]
    return sorted(planned, key=lambda fault: (fault.at_s, fault.lane))


def _lane(
    seed: int, duration_s: float, kinds: Sequence[FaultKind], mean_gap_s: float
) -> list[PlannedFault]:
    # A lane has dice of its own: another kind in one lane leaves the others as they were.
    dice = random.Random(f"{seed} {kinds[0].lane}")
    planned: list[PlannedFault] = []
    at_s = CALM_S + dice.expovariate(1 / mean_gap_s)
    while at_s < duration_s:
        (kind,) = dice.choices(kinds, weights=[kind.weight for kind in kinds])
        lasts_s = min(dice.uniform(kind.shortest_s, kind.longest_s), duration_s - at_s)
        luck = dice.getrandbits(32)
        planned.append(
            PlannedFault(at_s=at_s, lasts_s=lasts_s, kind=kind.name, lane=kind.lane, luck=luck)
        )
        at_s += lasts_s + dice.expovariate(1 / mean_gap_s)
    return planned
