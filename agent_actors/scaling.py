"""How many actors a pool should have for its load: one pure function, `wanted_size`.

The load of a moment asks for a size. More is granted once the load has asked for it all through
`scale_up_delay_s`, and taken away once it has asked for less all through `scale_down_delay_s`:
down to the most that it asked for in that time. So a load that comes in waves keeps the size of
their crests, and what is wanted never swings with it.
"""

import math
from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

# For so long after the model had a queue its next reading without one says nothing: the queue is
# short, as the limit of requests in flight keeps it.
MODEL_FULL_S = 10.0
# Demand over room that is a whole number but for the rounding of floats is that number.
ROUNDING = 1e-9


class ScalingPolicy(Protocol):
    """Bounds and pace of a pool's size: `config.AutoscaleConfig`."""

    @property
    def min(self) -> int:
        """Fewest actors."""
        ...

    @property
    def max(self) -> int:
        """Most actors."""
        ...

    @property
    def target_utilization(self) -> float:
        """Share of the slots that is to be in use."""
        ...

    @property
    def scale_up_delay_s(self) -> float:
        """How long the load must ask for more."""
        ...

    @property
    def scale_down_delay_s(self) -> float:
        """How long the load must ask for less."""
        ...


class Load(Struct, frozen=True, kw_only=True):
    """What a pool has to do, and what it does it with.

    `pending`: tasks that JetStream has never handed out, negative when it does not say. `unacked`:
    deliveries that are out, wherever they are: at work, with another supervisor, or given back
    with a delay. `used`: slots in use in the whole pool; `slots`: of one actor. `model_full`: the
    model lets no actor use all of its slots, and has a queue already.
    """

    pending: int
    unacked: int
    used: int
    slots: int
    model_away: bool = False
    model_full: bool = False


class Asked(Struct, frozen=True):
    """A size that the load asked for, until when it did."""

    size: int
    until: float


class ScalingState(Struct, frozen=True, kw_only=True):
    """The size that is wanted now, and what the load asked for lately.

    A new one needs only `wanted`, the actors that there are: they are taken for what was asked
    for until now. `highs` falls from older to younger and `lows` rises; what a younger entry
    outdoes is forgotten, so neither is ever longer than there are sizes. Until `full_until` the
    model counts as full.
    """

    wanted: int
    full_until: float = -math.inf
    highs: tuple[Asked, ...] = ()
    lows: tuple[Asked, ...] = ()


def wanted_size(
    load: Load, policy: ScalingPolicy, state: ScalingState, now: float
) -> tuple[int, ScalingState]:
    """Return how many actors the pool should have, and the state for the next time.

    `now` is any clock's that never goes back, in seconds. Changed bounds hold at once, and so
    does the first actor of a pool that has none.
    """
    size = _within(policy, state.wanted)
    full_until = now + MODEL_FULL_S if load.model_full else state.full_until
    asked = _within(policy, _asked_for(load, policy, size, model_full=now < full_until))
    highs = [*_lately(state.highs, size, policy.scale_down_delay_s, now)]
    while highs and highs[-1].size <= asked:
        highs.pop()
    lows = [*_lately(state.lows, size, policy.scale_up_delay_s, now)]
    while lows and lows[-1].size >= asked:
        lows.pop()
    highs.append(Asked(asked, now))
    lows.append(Asked(asked, now))
    first = 1 if asked and not size else 0
    wanted = min(max(size, first, lows[0].size), highs[0].size)
    return wanted, ScalingState(
        wanted=wanted, full_until=full_until, highs=tuple(highs), lows=tuple(lows)
    )


def _asked_for(load: Load, policy: ScalingPolicy, size: int, *, model_full: bool) -> int:
    """Return the size at which what is there to do takes the share of slots that it should.

    That is what nobody has been given yet, and the slots in use. Deliveries that are out but in
    no slot are no demand as such: mostly they were given back with a delay, and need a slot when
    it is over. They show as demand when they may be waiting for a slot, which is only while none
    is free: then the pool grows by an actor, and by another once that one is full, too. And they
    keep the last actor, since somebody has to take them.

    While the model is full, what nobody has been given is no demand either: it waits for the model,
    which more actors would only share among more.

    Where nobody knows the backlog, and while the model is away, so that more actors would not
    work it off and fewer would be missed after, the size stays.
    """
    idle = not (load.pending or load.unacked or load.used)
    if load.pending < 0 or (load.model_away and not idle):
        return size
    full = load.used >= size * load.slots
    waiting = 0 if model_full else load.pending
    demand = waiting + load.used + (1 if full and load.unacked > load.used else 0)
    asked = math.ceil(demand / (load.slots * policy.target_utilization) - ROUNDING)
    return max(asked, 0 if idle else 1)


def _lately(history: tuple[Asked, ...], size: int, delay_s: float, now: float) -> Iterator[Asked]:
    """Yield what was asked for within the delay; the last of it was so until now."""
    *older, last = history or (Asked(size, now),)
    for asked in (*older, Asked(last.size, now)):
        if asked.until > now - delay_s:
            yield asked


def _within(policy: ScalingPolicy, size: int) -> int:
    return max(policy.min, min(policy.max, size))
