"""How many actors a pool's load asks for: pure.

The size follows the demand up at once, and down to the highest that was asked for during
`scale_down_delay_s`: as with the stabilization window of Kubernetes' horizontal autoscaler, a load
that comes and goes within that time changes nothing.
"""

import math
from typing import Protocol

from msgspec import Struct


class ScalingPolicy(Protocol):
    """The bounds of a size and how it follows the load; `config.AutoscaleConfig` has them."""

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
        """The share of the slots that is to be in use."""
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
    """What a pool has to do. `pending` is -1 when NATS does not tell.

    `pending` messages were never handed out, `unacked` ones were: to this pool, to that of another
    cluster, or given back with a delay. `used` are the slots of this pool that are in use, `slots`
    those of one actor.
    """

    pending: int
    unacked: int
    used: int
    slots: int
    model_away: bool = False


class ScalingState(Struct, frozen=True, kw_only=True):
    """What is to be remembered: the size, and what was asked for of late.

    `rising_since` is when the load began to ask for more. `asked` has the times and sizes that
    may still be the highest of the window: each is lower than the one before.
    """

    size: int = 0
    rising_since: float | None = None
    asked: tuple[tuple[float, int], ...] = ()


def wanted_size(
    load: Load, policy: ScalingPolicy, state: ScalingState, now: float
) -> tuple[int, ScalingState]:
    """Return the size that is wanted now (`now` in seconds), and what to remember.

    While the model is away nothing can be worked off, so the size stays; and while nobody
    knows what waits.
    """
    size = min(max(state.size, policy.min), policy.max)
    if load.pending < 0 or load.model_away:
        return size, ScalingState(size=size, asked=((now, size),))
    asked = _asked(load, policy)
    window = _within(policy.scale_down_delay_s, state.asked or ((now, size),), asked, now)
    if asked <= size:
        size = min(size, max(asked, window[0][1]))
        return size, ScalingState(size=size, asked=window)
    since = now if state.rising_since is None else state.rising_since
    if now - since < policy.scale_up_delay_s:
        return size, ScalingState(size=size, rising_since=since, asked=window)
    return asked, ScalingState(size=asked, asked=window)


def _asked(load: Load, policy: ScalingPolicy) -> int:
    """Return the size that fits the load.

    What is unacked asks for no more than one actor: most of it has a slot already, and what was
    given back with a delay only comes again to somebody who pulls.
    """
    demand = load.pending + load.used
    fitting = math.ceil(demand / (load.slots * policy.target_utilization))
    needed = 1 if demand or load.unacked > 0 else 0
    return min(max(fitting, needed, policy.min), policy.max)


def _within(
    longest_s: float, before: tuple[tuple[float, int], ...], asked: int, now: float
) -> tuple[tuple[float, int], ...]:
    """Return what was asked for within so many seconds, as far as it may be the highest."""
    kept = [(at, size) for at, size in before if size > asked and now - at < longest_s]
    return (*kept, (now, asked))
