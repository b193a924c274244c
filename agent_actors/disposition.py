"""What becomes of a task after an attempt: one table, as pure functions.

    how the attempt ended           what becomes of the task            what counts
    ------------------------------  ----------------------------------  ---------------------
    an answer                       completed
    cancelled, however it ended     failed
    told to stop: its actor drains  given back, handed out at once
    InvalidTask                     failed, dead letter
    ModelUnavailable, Workspace-    handed out again after a while,     how often, for the
      Unavailable                     until the task's deadline           wait
    StrategyCrashed                 handed out again after a while      a failure
      with max_attempts of them     failed, dead letter
    its actor died                  runs again; alone, after two        a death, when alone
      with max_attempts of them     PoisonTask: failed, dead letter
    any other error                 failed

`dispose` has what an attempt lives to see. The death of its actor is told to the ledger by
those who survive it (`ledger.give_back`), and `refusal` sees what that has come to.
"""

import math
from typing import Protocol

from msgspec import Struct

from agent_actors.errors import (
    Cancelled,
    InvalidTask,
    ModelUnavailable,
    PoisonTask,
    StrategyCrashed,
    TaskError,
    WorkspaceUnavailable,
)
from agent_actors.ledger import TaskRecord

# What no task can help: it is tried again however often, and its result is never seen.
POSTPONED = (ModelUnavailable, WorkspaceUnavailable)

MAX_DOUBLINGS = 30


class RetryPolicy(Protocol):
    """The pool's limits: how often a task may fail, and how long it waits in between."""

    @property
    def max_attempts(self) -> int:
        """Failures that count, until the task is given up on."""
        ...

    @property
    def retry_base_s(self) -> float:
        """The longest first wait."""
        ...

    @property
    def retry_cap_s(self) -> float:
        """The longest wait of all."""
        ...


class Finish(Struct, frozen=True):
    """Commit the result; `dead_letter` says whether a dead letter goes with it."""

    dead_letter: bool = False


class Retry(Struct, frozen=True):
    """Release the task and nak it with a delay; `counts` against `max_attempts` or does not."""

    delay_s: float
    counts: bool


class GiveBack(Struct, frozen=True):
    """Release the task and nak it, as if this attempt had not been."""


class Drained(Struct, frozen=True):
    """How an attempt ends whose actor was told to stop."""


Disposition = Finish | Retry | GiveBack


def refusal(record: TaskRecord, policy: RetryPolicy) -> TaskError | None:
    """Return why a task that was handed out is not to run; None when it may."""
    if record.cancelled:
        return Cancelled()
    if record.deaths >= policy.max_attempts:
        return PoisonTask(
            f"{record.deaths} actors died while they ran this task and nothing else; "
            "their logs may tell of what"
        )
    return None


def dispose(
    ending: TaskError | Drained | None,
    record: TaskRecord,
    policy: RetryPolicy,
    *,
    luck: float,
    left_s: float = math.inf,
) -> Disposition:
    """Decide what becomes of a task, by how its attempt ended (None: with an answer).

    `luck` in [0, 1) is the share of the longest wait: full jitter. `left_s` is the time to the
    task's deadline, when it is to be told that this has passed.
    """
    if record.cancelled:
        return Finish()
    if isinstance(ending, POSTPONED):
        asked_s = ending.retry_after_s if isinstance(ending, ModelUnavailable) else None
        delay_s = max(_backoff_s(record.postponed, policy, luck), asked_s or 0.0)
        return Retry(delay_s=_until(left_s, delay_s), counts=False)
    match ending:
        case Drained():
            return GiveBack()
        case StrategyCrashed() if record.failures + 1 < policy.max_attempts:
            delay_s = _backoff_s(record.failures, policy, luck)
            return Retry(delay_s=_until(left_s, delay_s), counts=True)
        case InvalidTask() | StrategyCrashed() | PoisonTask():
            return Finish(dead_letter=True)
        case _:
            return Finish()


def _until(left_s: float, delay_s: float) -> float:
    return min(delay_s, max(0.0, left_s))


def _backoff_s(earlier: int, policy: RetryPolicy, luck: float) -> float:
    longest_s = policy.retry_base_s * 2.0 ** min(earlier, MAX_DOUBLINGS)
    return luck * min(policy.retry_cap_s, longest_s)
