"""What came of one turn of a contestant: pure."""

import statistics

from msgspec import Struct


class Sample(Struct, frozen=True, kw_only=True):
    """What came of a turn.

    `strangers` is the share of the machine's CPU that others had, who are not measured here.
    `asked` is how often the model was asked for a task, `in_flight` how many requests it had at a
    time on average, if it is slow. `cpu_us` is CPU time a task by group of processes; `own_us`
    that of the contestant's own. `pss_mb` and `own_mb` are memory likewise. `task_ms` is from
    publishing a task to its result, one at a time; `direct_ms` a request to the model by itself.
    """

    tasks: int
    window_s: float
    strangers: float
    asked: float
    in_flight: float
    cpu_us: dict[str, float]
    own_us: float
    pss_mb: dict[str, float]
    own_mb: float
    task_ms: list[float] = []
    direct_ms: list[float] = []

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.window_s

    @property
    def added_ms(self) -> list[float]:
        """What each task takes longer than a request by itself, in the middle."""
        if not self.direct_ms:
            return []
        direct_ms = statistics.median(self.direct_ms)
        return [each - direct_ms for each in self.task_ms]
