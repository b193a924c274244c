"""The table of what happens after an attempt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import NOON, delivery

from agent_actors import errors
from agent_actors.config import PoolConfig
from agent_actors.disposition import Finish, Retry, dispose
from agent_actors.errors import (
    ModelUnavailable,
    StrategyCrashed,
    TaskError,
    WorkspaceUnavailable,
)
from agent_actors.ledger import TaskRecord

POOL = PoolConfig(max_attempts=3, retry_base_s=1.0, retry_cap_s=60.0)


def record(*, failures: int = 0, postponed: int = 0) -> TaskRecord:
    return TaskRecord(
        task_id="t",
        state="running",
        source=delivery().source,
        content="",
        updated=NOON,
        failures=failures,
        postponed=postponed,
    )


def failure_classes() -> list[type[TaskError]]:
    found, rest = [], [TaskError]
    while rest:
        kind = rest.pop()
        found.append(kind)
        rest.extend(kind.__subclasses__())
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_an_answer_ends_the_task():
    assert dispose(None, record(), POOL, luck=0.5) == Finish()


@pytest.mark.parametrize(
    ("failure", "dead_letter"),
    [
        ("InvalidTask", True),
        ("PoisonTask", True),
        ("ModelRefused", False),
        ("AnswerTruncated", False),
        ("AnswerInvalid", False),
        ("AnswerEmpty", False),
        ("TaskTimeout", False),
        ("DeadlineExceeded", False),
        ("StrategyUnavailable", False),
    ],
)
def test_what_another_try_would_not_mend_fails_at_once(failure: str, *, dead_letter: bool):
    error = getattr(errors, failure)()
    assert dispose(error, record(), POOL, luck=0.5) == Finish(dead_letter=dead_letter)


@pytest.mark.parametrize("kind", failure_classes(), ids=lambda kind: kind.__name__)
def test_every_failure_has_its_disposition(kind: type[TaskError]):
    disposition = dispose(kind(), record(failures=2), POOL, luck=0.5)
    assert isinstance(disposition, Retry) == issubclass(kind, AWAY)


AWAY = (ModelUnavailable, WorkspaceUnavailable)


@given(
    st.sampled_from([ModelUnavailable, WorkspaceUnavailable]),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_what_is_away_never_counts_and_never_gives_up(
    kind: type[TaskError], failures: int, postponed: int, luck: float
):
    now = record(failures=failures, postponed=postponed)
    disposition = dispose(kind(), now, POOL, luck=luck)
    assert isinstance(disposition, Retry)
    assert not disposition.counts
    assert 0 <= disposition.delay_s <= min(POOL.retry_cap_s, 2.0 ** min(postponed, 30))


@given(st.integers(0, 10))
def test_a_crash_is_retried_until_it_has_counted_max_attempts(failures: int):
    disposition = dispose(StrategyCrashed(), record(failures=failures), POOL, luck=0.0)
    if failures + 1 < POOL.max_attempts:
        assert disposition == Retry(delay_s=0.0, counts=True)
    else:
        assert disposition == Finish(dead_letter=True)


def test_the_wait_that_a_model_asks_for_is_the_shortest():
    failure = ModelUnavailable()
    failure.retry_after_s = 90.0
    assert dispose(failure, record(), POOL, luck=0.9) == Retry(delay_s=90.0, counts=False)
