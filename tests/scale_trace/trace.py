"""What is known of a run: its phases, what the pool said of itself meanwhile, and the results."""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from agent_actors.config import AutoscaleConfig
from agent_actors.contract import PoolStatus


class Phase(Struct, frozen=True, kw_only=True):
    """A part of the trace; `load` says in a few words what is asked of the pool in it."""

    load: str
    begin_s: float
    end_s: float

    @property
    def lasts_s(self) -> float:
        return self.end_s - self.begin_s


class Phases(Struct, frozen=True, kw_only=True):
    """The trace, in the order of time. A burst lasts until each of its tasks has ended."""

    before: Phase
    burst: Phase
    steady: Phase
    after: Phase

    @property
    def in_order(self) -> tuple[Phase, ...]:
        return (self.before, self.burst, self.steady, self.after)


class Sample(Struct, frozen=True, kw_only=True):
    """What the pool said of itself at a moment; `rate` is in tasks a second."""

    at_s: float
    pending: int
    unacked: int
    wanted: int
    running: int
    starting: int
    draining: int
    slots: int
    slots_used: int
    settled: int
    rate: float

    @classmethod
    def of(cls, pool: PoolStatus, at_s: float) -> "Sample":
        same = (name for name in cls.__struct_fields__ if name != "at_s")
        return cls(at_s=round(at_s, 2), **{name: getattr(pool, name) for name in same})

    @property
    def actors(self) -> int:
        """All that there are, whatever they do."""
        return self.running + self.starting + self.draining


class Results(Struct, frozen=True, kw_only=True):
    """The ids of all tasks, how many results each id has, and which tasks have failed."""

    submitted: set[str]
    counts: Mapping[str, int]
    failed: Collection[str] = ()


class Trace(Struct, frozen=True, kw_only=True):
    """A whole run: one pool of so many `slots` an actor, sized by its load.

    `answer_s` is how long the model takes for a task.
    """

    seed: int
    actors: AutoscaleConfig
    slots: int
    answer_s: float
    phases: Phases
    samples: Sequence[Sample]
