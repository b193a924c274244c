"""How much a pool may have in hand while no task can end, and just after: pure.

That is while its model is away, or NATS denies what ends a task. Then one delivery at a time is
pulled, to probe with; the backlog waits in JetStream. Once it is over the limit grows from one
by doubling, so that no herd runs the model over again.
"""

PROBE_EVERY_S = 1.0
RAMP_STEP_S = 0.25
# The limit after so many doublings is no limit any more.
RAMP_STEPS = 16


class Breaker:
    """One pool's; `now` is any clock's that never goes back, in seconds."""

    def __init__(self) -> None:
        self._is_open = False
        self._probe_at = 0.0
        self._ramp_began: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether no task can end."""
        return self._is_open

    def hear(self, *, away: bool, now: float) -> None:
        """Take note of whether all actors say that no task can end."""
        if away and not self._is_open:
            self._probe_at = now + PROBE_EVERY_S
        elif self._is_open and not away:
            self._ramp_began = now
        self._is_open = away

    def room(self, wanted: int, in_hand: int, now: float) -> int:
        """Return how many of the `wanted` deliveries may be pulled beside those `in_hand`."""
        if self._is_open:
            wanted = min(wanted, 1 - in_hand) if now >= self._probe_at else 0
        elif self._ramp_began is not None:
            steps = int((now - self._ramp_began) / RAMP_STEP_S)
            if steps >= RAMP_STEPS:
                self._ramp_began = None
            else:
                wanted = min(wanted, 2**steps - in_hand)
        return max(0, wanted)

    def pulled(self, now: float) -> None:
        """Take note that something was pulled; while open, the next one has to wait."""
        self._probe_at = now + PROBE_EVERY_S

    def look_again_in_s(self) -> float | None:
        """Return after how many seconds there may be more room; None: only after news."""
        if self._is_open:
            return PROBE_EVERY_S
        return RAMP_STEP_S if self._ramp_began is not None else None
