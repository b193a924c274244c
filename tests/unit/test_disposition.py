"""The table of what happens after an attempt: row by row, and over whole lives of tasks."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.fakes import NOON, delivery

from agent_actors import errors, ledger
from agent_actors.config import PoolConfig
from agent_actors.disposition import (
    Drained,
    Finish,
    GiveBack,
    Retry,
    dispose,
    refusal,
)
from agent_actors.errors import (
    Cancelled,
    InvalidTask,
    ModelRefused,
    ModelUnavailable,
    PoisonTask,
    StrategyCrashed,
    TaskError,
    WorkspaceUnavailable,
)
from agent_actors.ledger import Claim, Release, Run, TaskRecord

CRASH = StrategyCrashed()
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
        ("Cancelled", False),
        ("BudgetExceeded", False),
        ("RepeatedToolCall", False),
        ("ToolFailed", False),
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


def test_an_attempt_whose_actor_drains_leaves_no_trace():
    assert dispose(Drained(), record(failures=99), POOL, luck=0.5) == GiveBack()


ENDINGS = [None, Drained(), *(kind() for kind in failure_classes())]


@given(st.sampled_from(ENDINGS), st.integers(0, 9), st.floats(0, 1, exclude_max=True))
def test_a_cancelled_task_ends_without_a_dead_letter_however_its_attempt_ended(
    ending: TaskError | Drained | None, failures: int, luck: float
):
    marked = replace(record(failures=failures), cancelled=True)
    assert dispose(ending, marked, POOL, luck=luck) == Finish()
    assert isinstance(refusal(marked, POOL), Cancelled)


@given(
    st.sampled_from([ModelUnavailable(retry_after_s=90.0), WorkspaceUnavailable(), CRASH]),
    st.floats(-10, 1_000),
    st.floats(0, 1, exclude_max=True),
)
def test_no_wait_goes_beyond_the_deadline(failure: TaskError, left_s: float, luck: float):
    unhurried = dispose(failure, record(), POOL, luck=luck)
    hurried = dispose(failure, record(), POOL, luck=luck, left_s=left_s)
    assert isinstance(unhurried, Retry)
    assert isinstance(hurried, Retry)
    assert hurried.delay_s == min(unhurried.delay_s, max(left_s, 0.0))
    assert hurried.counts == unhurried.counts


@given(st.integers(0, 9), st.booleans())
def test_a_task_is_refused_once_enough_actors_died_with_it_alone(deaths: int, suspect: bool):  # noqa: FBT001 - hypothesis gives it
    found = replace(record(failures=99), deaths=deaths, suspect=suspect)
    refused = refusal(found, POOL)
    assert isinstance(refused, PoisonTask) == (deaths >= POOL.max_attempts)
    if refused:
        assert dispose(refused, found, POOL, luck=0.0) == Finish(dead_letter=True)
        assert f"{deaths} actors died" in str(refused)


# Whole lives: what happens to a task one attempt after the other, until it has ended.

DEATH, DEATH_ALONE, CANCEL = "its actor dies", "its actor dies, with it alone", "it is cancelled"
EVENTS = [
    None,
    Drained(),
    ModelUnavailable(),
    WorkspaceUnavailable(),
    CRASH,
    ModelRefused(),
    InvalidTask(),
    DEATH,
    DEATH_ALONE,
    CANCEL,
]


class Life:
    """One task, its record, and a count of all that has befallen it."""

    def __init__(self) -> None:
        self.found: TaskRecord | None = None
        self.deliveries = 0
        self.deaths_alone = self.crashes = 0
        self.is_cancelled = False
        self.ended_with: TaskError | None = None
        self.dead_letter = False
        self.runs = 0

    @property
    def is_over(self) -> bool:
        return self.found is not None and self.found.is_terminal

    def befall(self, event: TaskError | Drained | str | None) -> None:
        """Hand the task out, and let this happen to its attempt."""
        if event == CANCEL:
            self.found = ledger.cancel(self.found, "t", NOON)
            self.is_cancelled = True
            return
        self.deliveries += 1
        claim = a_claim(self.deliveries)
        verdict = ledger.begin(self.found, claim)
        assert isinstance(verdict, Run)
        running = verdict.record
        if refused := refusal(running, POOL):
            self._end(running, refused)
        elif event in {DEATH, DEATH_ALONE}:
            self._die(running, claim, alone=event == DEATH_ALONE)
        else:
            assert not isinstance(event, str)
            self._end(running, event)

    def _die(self, running: TaskRecord, claim: Claim, *, alone: bool) -> None:
        self.runs += 1
        self.deaths_alone += alone
        verdict = ledger.give_back(running, claim, alone=alone)
        assert isinstance(verdict, Release)
        assert verdict.record.lost
        assert verdict.record.is_suspect == (self.deaths_alone > 0 or running.lost)
        self.found = verdict.record

    def _end(self, running: TaskRecord, ending: TaskError | Drained | None) -> None:
        self.crashes += isinstance(ending, StrategyCrashed)
        match dispose(ending, running, POOL, luck=0.5):
            case Retry(_, counts):
                self.found = ledger.release(running, NOON, failed=counts, postponed=not counts)
            case GiveBack():
                self.found = ledger.release(running, NOON)
            case Finish(dead_letter):
                assert not isinstance(ending, Drained)
                self.ended_with, self.dead_letter = ending, dead_letter
                self.found = ledger.commit(running, "failed", b"{}", NOON, None)


def a_claim(delivery_number: int) -> Claim:
    return Claim(
        task_id="t",
        source=delivery(num_delivered=delivery_number).source,
        content="hash",
        agent_id="dev-0",
        lease=f"lease-{delivery_number}",
        now=NOON,
    )


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_a_task_ends_for_the_first_reason_that_there_is(events: list[TaskError | str | None]):
    life = Life()
    for event in events:
        if not life.is_over:
            life.befall(event)
    assert life.deaths_alone <= POOL.max_attempts
    assert life.crashes <= POOL.max_attempts
    if not life.is_over:
        return
    match life.ended_with:
        case Cancelled():
            assert life.is_cancelled
        case PoisonTask():
            assert life.deaths_alone == POOL.max_attempts
        case StrategyCrashed():
            assert life.crashes == POOL.max_attempts
        case failure:
            assert failure is None or isinstance(failure, ModelRefused | InvalidTask)
    assert life.dead_letter == isinstance(
        life.ended_with, InvalidTask | StrategyCrashed | PoisonTask
    )


@given(
    st.lists(st.sampled_from([Drained(), ModelUnavailable(), WorkspaceUnavailable(), DEATH])),
)
def test_what_nobody_can_help_never_ends_a_task(events: list[TaskError | str]):
    life = Life()
    for event in events:
        life.befall(event)
    assert not life.is_over
    life.befall(None)
    assert life.is_over


def test_no_deadline_is_a_deadline_that_never_comes():
    failure = ModelUnavailable(retry_after_s=1e9)
    assert dispose(failure, record(), POOL, luck=0.0, left_s=math.inf) == Retry(1e9, counts=False)
