"""Who decides what after an attempt: the table of design section 5, as one pure function."""

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


Disposition = Finish | Retry


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
    failure: TaskError | None, record: TaskRecord, policy: RetryPolicy, *, luck: float
) -> Disposition:
    """Decide what becomes of a task whose attempt ended with `failure` (None: an answer).

    `luck` in [0, 1) is the share of the longest wait: full jitter.
    """
    if isinstance(failure, POSTPONED):
        delay_s = _backoff_s(record.postponed, policy, luck)
        asked_s = failure.retry_after_s if isinstance(failure, ModelUnavailable) else None
        return Retry(delay_s=max(delay_s, asked_s or 0.0), counts=False)
    match failure:
        case StrategyCrashed() if record.failures + 1 < policy.max_attempts:
            return Retry(delay_s=_backoff_s(record.failures, policy, luck), counts=True)
        case InvalidTask() | StrategyCrashed() | PoisonTask():
            return Finish(dead_letter=True)
        case _:
            return Finish()


def _backoff_s(earlier: int, policy: RetryPolicy, luck: float) -> float:
    longest_s = policy.retry_base_s * 2.0 ** min(earlier, MAX_DOUBLINGS)
    return luck * min(policy.retry_cap_s, longest_s)
