"""How much the tools may still write into a workspace."""

import time
from collections.abc import Callable
from threading import Lock

from agent_actors.errors import ToolError

MEASURED_FOR_S = 30.0
# A folder with very many files is measured less often: a twentieth of the time at the most.
MEASURED_FOR_TIMES_ITS_COST = 20


class Quota:
    """Counts what the file tools write, on top of a measurement that is made anew now and then.

    Commands write too, hence the measurement. It is repeated before anything is refused.
    """

    def __init__(self, max_bytes: int, measure: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._measure = measure
        self._used_bytes = 0
        self._valid_until = 0.0
        self._lock = Lock()

    def take(self, count: int) -> None:
        """Count these bytes as written. Raises ToolError when they are too many."""
        with self._lock:
            if time.monotonic() >= self._valid_until or not self._fits(count):
                self._measure_again()
            if not self._fits(count):
                raise ToolError(
                    f"the workspace may hold {self._max_bytes} bytes, {self._used_bytes} are "
                    f"used, and {count} more do not fit: delete what is not needed"
                )
            self._used_bytes += count

    def _fits(self, count: int) -> bool:
        return count <= 0 or self._used_bytes + count <= self._max_bytes

    def _measure_again(self) -> None:
        started = time.monotonic()
        self._used_bytes = self._measure()
        cost_s = time.monotonic() - started
        self._valid_until = started + max(MEASURED_FOR_S, cost_s * MEASURED_FOR_TIMES_ITS_COST)
