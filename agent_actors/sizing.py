"""How many actors a pool is to have: as somebody said by hand, by its load, or as configured.

The newest word counts: a size set by hand holds until the pool's `actors` are configured anew.
"""

from collections import deque
from typing import Literal

import msgspec

from agent_actors.config import PoolConfig
from agent_actors.ports import HandSize
from agent_actors.scaling import Load, ScalingState, wanted_size

SizedBy = Literal["configuration", "hand", "load"]

RATE_WINDOW_S = 10.0


class PoolSize:
    """One pool's; `wanted` is the number, and `sized_by` tells who says it."""

    def __init__(self, pool: PoolConfig) -> None:
        self._pool = pool
        self._configured = msgspec.json.encode(pool.actors).decode()
        self._state = ScalingState(wanted=pool.min_actors)
        self._by_hand: int | None = None
        self.wanted = pool.min_actors

    @property
    def sized_by(self) -> SizedBy:
        """Who decides."""
        if self._by_hand is not None:
            return "hand"
        return "load" if self._pool.autoscale else "configuration"

    def remember(self, kept: HandSize | None, *, existing: int) -> None:
        """Begin with what was kept, and with the actors that exist.

        An order does not hold any more when `actors` was configured anew since.
        """
        if self._pool.autoscale:
            self.wanted = self._within_bounds(existing)
            self._state = ScalingState(wanted=self.wanted)
        if kept and kept.configured == self._configured:
            self.order(kept.actors)

    def to_keep(self, actors: int | None) -> HandSize | None:
        """Return what is to be kept of an order given by hand."""
        return None if actors is None else HandSize(actors=actors, configured=self._configured)

    def order(self, actors: int | None) -> None:
        """Follow an order given by hand, or none any more."""
        self._by_hand = actors
        self.wanted = self._within_bounds(self.wanted) if actors is None else actors
        self._state = ScalingState(wanted=self.wanted)

    def follow(self, load: Load, now: float) -> None:
        """Take note of the load; it counts when it is what decides. `now` is in seconds."""
        if self.sized_by == "load" and self._pool.autoscale:
            self.wanted, self._state = wanted_size(load, self._pool.autoscale, self._state, now)

    def _within_bounds(self, actors: int) -> int:
        return min(max(actors, self._pool.min_actors), self._pool.max_actors)


class Pace:
    """How many deliveries are settled a second, of late."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, settled: int, now: float) -> None:
        """Take note of how many have been settled by now (in seconds)."""
        self._marks.append((now, settled))
        while self._marks[0][0] < now - RATE_WINDOW_S:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Deliveries a second, over the last seconds."""
        if not self._marks:
            return 0.0
        (began, before), (now, settled) = self._marks[0], self._marks[-1]
        return (settled - before) / (now - began) if now > began else 0.0
