"""A cancel: what it writes, and that it ends a task once wherever it meets it."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.fakes import MemoryLedger, Queue, Scripted, Wire, delivery, noon

from agent_actors import ledger, patience
from agent_actors.config import PoolConfig
from agent_actors.contract import AgentResult, Operation, Usage
from agent_actors.errors import (
    FencedOut,
    ModelRefused,
    ModelUnavailable,
    PublishFailed,
    StreamMissing,
)
from agent_actors.execution import PROPOSAL, TOOLS, ExecuteAgentTask
from agent_actors.leases import Leases
from agent_actors.ledger import UNQUEUED, Claim, TaskRecord, cancel_reply, status_of
from agent_actors.ports import AttemptRecord, ExecutionRequest, Message, Stored
from agent_actors.settlement import SettleDelivery

WITH_TOOLS = b'{"task_id": "t-1", "task_description": "do it", "enable_tools": true}'
OTHER = b'{"task_id": "t-1", "task_description": "do something else"}'
BROKEN = b'{"task_id": "t-1"}'


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.0)


class Working:
    """A strategy that does one operation, and then whatever `then` is."""

    def __init__(self, then: Callable[[AttemptRecord], Awaitable[None]] | None = None) -> None:
        self.begun = asyncio.Event()
        self.ended_by: BaseException | None = None
        self.runs = 0
        self._then = then or self._wait

    async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
        self.runs += 1
        record.operations.append(Operation(tool="files", operation="read_file", success=True))
        record.count(Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10))
        self.begun.set()
        try:
            await self._then(record)
        except BaseException as error:
            self.ended_by = error
            raise

    async def _wait(self, record: AttemptRecord) -> None:
        await asyncio.Event().wait()


class Bench:
    """One actor's settlement, and whoever cancels."""

    def __init__(
        self, strategy: Working | Scripted | None = None, ledger: MemoryLedger | None = None
    ) -> None:
        self.strategy = strategy or Working()
        self.ledger = ledger or MemoryLedger()
        self.wire = Wire()
        self.leases = Leases(self.ledger, Queue(1, 2), noon)
        self.settle = SettleDelivery(
            agent_id="dev-0",
            pool_name="dev",
            pool=PoolConfig(max_attempts=2),
            max_payload_bytes=256 * 1024,
            execute=ExecuteAgentTask({PROPOSAL: self.strategy, TOOLS: self.strategy}, noon),
            leases=self.leases,
            publisher=self.wire,
            acks=self.wire,
            artifacts=self.wire,
            events=self.wire,
            clock=noon,
        )

    async def cancel(self, *, heard: bool = True) -> str:
        reply = cancel_reply(await self.leases.cancel("t-1"))
        if heard:
            self.settle.cancel("t-1")
        return reply.state

    @property
    def record(self) -> TaskRecord:
        record = self.ledger.records["t-1"].record
        assert record is not None
        return record

    def ended_cancelled_once(self) -> AgentResult:
        (message,) = self.wire.published
        assert message.subject == "agent.response.failed"
        result = msgspec.json.decode(message.payload, type=AgentResult)
        assert (result.status, result.error_type) == ("failed", "Cancelled")
        assert result.error == "The task was cancelled."
        assert bytes(self.record.result) == message.payload
        assert self.wire.verbs == ["publish", "ack"]
        return result


# What runs.


async def test_a_running_task_is_stopped_and_tells_what_it_had_done():
    bench = Bench()
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.begun.wait()
    assert await bench.cancel() == "cancel_requested"
    assert await settling == "failed"
    assert isinstance(bench.strategy.ended_by, asyncio.CancelledError)
    result = bench.ended_cancelled_once()
    assert [operation.operation for operation in result.operations] == ["read_file"]
    assert (result.usage.total_tokens, result.attempt) == (10, 1)


async def test_a_task_that_is_said_to_be_cancelled_and_is_not_goes_on():
    gate = asyncio.Event()
    bench = Bench(Scripted(waits=gate))
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    bench.settle.cancel("t-1")
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    assert await settling == "completed"


async def test_a_cancel_that_nobody_heard_ends_the_task_at_its_commit():
    bench = Bench(Scripted(waits=(gate := asyncio.Event())))
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    await bench.cancel(heard=False)
    gate.set()
    assert await settling == "failed"
    bench.ended_cancelled_once()


async def test_a_cancel_that_nobody_heard_stops_an_agent_with_tools_at_its_next_turn():
    async def two_turns(record: AttemptRecord) -> None:
        await bench.cancel(heard=False)
        await record.journal.append(b"a turn")
        pytest.fail("it went on")

    bench = Bench(Working(two_turns))
    assert await bench.settle(delivery(WITH_TOOLS)) == "failed"
    assert bench.ended_cancelled_once().operations


async def test_a_cancel_in_place_of_a_retry_ends_the_task_at_once():
    async def model_away(record: AttemptRecord) -> None:
        await bench.cancel(heard=False)
        raise ModelUnavailable("503")

    bench = Bench(Working(model_away))
    assert await bench.settle(delivery()) == "failed"
    bench.ended_cancelled_once()


async def test_a_cancel_in_place_of_a_crash_leaves_no_dead_letter():
    async def crash(record: AttemptRecord) -> None:
        await bench.cancel(heard=False)
        raise ValueError("oops")

    bench = Bench(Working(crash))
    await bench.leases.begin(claim())
    await bench.leases.give_back(claim(), alone=False)
    assert await bench.settle(delivery(num_delivered=2)) == "failed"
    bench.ended_cancelled_once()
    assert bench.record.dead_letter is None


async def test_a_cancel_while_the_actor_gives_back_ends_the_task():
    bench = Bench()
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.begun.wait()
    await bench.cancel(heard=False)
    bench.settle.give_back()
    assert await settling == "failed"
    bench.ended_cancelled_once()


async def test_a_cancel_is_heard_while_the_task_is_just_beginning():
    bench = Bench()
    write, began, gate = bench.ledger.write, asyncio.Event(), asyncio.Event()

    async def slow_answer(key: str, record: TaskRecord, revision: int) -> int:
        revision = await write(key, record, revision)
        began.set()
        await gate.wait()
        return revision

    bench.ledger.write = slow_answer
    settling = asyncio.create_task(bench.settle(delivery()))
    await began.wait()
    bench.ledger.write = write
    await bench.cancel()
    gate.set()
    assert await settling == "failed"
    bench.ended_cancelled_once()


async def test_an_agent_that_cannot_ask_the_ledger_is_left_to_its_next_write():
    bench = Bench(Scripted(waits=(gate := asyncio.Event())))
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    await bench.cancel(heard=False)
    read = bench.ledger.read

    async def gone(key: str) -> Stored:
        bench.ledger.read = read
        raise StreamMissing("no bucket")

    bench.ledger.read = gone
    bench.settle.cancel("t-1")
    for _ in range(10):
        await asyncio.sleep(0)
    gate.set()
    assert await settling == "failed"
    bench.ended_cancelled_once()


async def test_a_question_to_the_ledger_ends_with_the_attempt_that_it_is_about():
    bench = Bench(Scripted(waits=(gate := asyncio.Event())))
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    asked, ended = asyncio.Event(), asyncio.Event()

    async def silent(key: str) -> Stored:
        asked.set()
        try:
            return await asyncio.Event().wait()
        finally:
            ended.set()

    bench.ledger.read = silent
    bench.settle.cancel("t-1")
    await asked.wait()
    gate.set()
    assert await settling == "completed"
    await asyncio.wait_for(ended.wait(), 5)


async def test_two_cancels_at_once_end_the_task_once():
    bench = Bench()
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.begun.wait()
    assert await asyncio.gather(bench.cancel(), bench.cancel()) == ["cancel_requested"] * 2
    assert await settling == "failed"
    bench.ended_cancelled_once()
    assert await bench.cancel() == "cancelled"


async def test_whoever_lost_the_task_does_not_end_it_for_a_cancel():
    stale = Bench()
    settling = asyncio.create_task(stale.settle(delivery()))
    await stale.strategy.begun.wait()
    fresh = Bench(ledger=stale.ledger)
    taking_over = asyncio.create_task(fresh.settle(delivery(num_delivered=2)))
    await fresh.strategy.begun.wait()
    await fresh.cancel()
    stale.settle.cancel("t-1")
    stale.settle.give_back()
    assert await settling == "fenced"
    assert await taking_over == "failed"
    assert not stale.wire.verbs
    fresh.ended_cancelled_once()


# What does not run.


@pytest.mark.parametrize("payload", [delivery().payload, OTHER, WITH_TOOLS, BROKEN])
async def test_an_id_cancelled_before_its_task_came_fails_whatever_comes(payload: bytes):
    bench = Bench()
    assert await bench.cancel() == "cancel_requested"
    assert await bench.settle(delivery(payload)) == "failed"
    assert bench.strategy.runs == 0
    result = bench.ended_cancelled_once()
    assert not result.operations
    assert "started" not in [event.kind for event in bench.wire.events]


async def test_a_task_cancelled_while_it_waits_for_a_retry_does_not_start_again():
    bench = Bench(Scripted(ModelUnavailable("503")))
    assert await bench.settle(delivery()) == "retried"
    assert await bench.cancel() == "cancel_requested"
    bench.wire.log.clear()
    assert await bench.settle(delivery(num_delivered=2)) == "failed"
    assert len(bench.strategy.requests) == 1
    bench.ended_cancelled_once()


async def test_a_task_whose_actor_died_after_the_cancel_is_not_run_again():
    bench = Bench()
    await bench.leases.begin(claim())
    await bench.cancel()
    assert await bench.leases.give_back(claim(), alone=True)
    assert not await bench.leases.is_suspect("t-1")
    assert await bench.settle(delivery(num_delivered=2)) == "failed"
    assert bench.strategy.runs == 0
    bench.ended_cancelled_once()


@pytest.mark.parametrize("payload", [delivery().payload, OTHER])
async def test_a_delivery_given_back_before_it_was_begun_stays_cancelled(payload: bytes):
    bench = Bench()
    await bench.cancel()
    assert await bench.leases.give_back(claim(agent_id="dead"))
    assert bench.record.cancelled
    assert bench.record.source != UNQUEUED


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_a_task_that_has_ended_says_so_and_stays_as_it_is(state: str):
    bench = Bench(Scripted(*([ModelRefused("400")] if state == "failed" else [])))
    assert await bench.settle(delivery()) == state
    history = len(bench.ledger.history)
    assert await bench.cancel() == state
    assert len(bench.ledger.history) == history


# Writes that the mark, or a lost answer, comes between.


def claim(*, num_delivered: int = 1, agent_id: str = "dev-0", lease: str = "mine") -> Claim:
    return Claim(
        task_id="t-1",
        source=delivery(num_delivered=num_delivered).source,
        content="hash",
        agent_id=agent_id,
        lease=lease,
        now=noon(),
    )


class MarkedUnder(MemoryLedger):
    """A bucket where a cancel meets the n-th write: `before` it, or `after` it, unanswered."""

    def __init__(self, number: int, when: str) -> None:
        super().__init__()
        self.number, self.when = number, when

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        self.number -= 1
        if self.number or self.when == "never":
            return await super().write(key, record, revision)
        if self.when == "before":
            await self.mark(key)
            return await super().write(key, record, revision)
        await super().write(key, record, revision)
        await self.mark(key)
        raise PublishFailed("no answer")

    async def mark(self, key: str) -> None:
        found = await self.read(key)
        marked = ledger.cancel(found.record, "t-1", noon())
        if marked != found.record:
            await super().write(key, marked, found.revision)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_whichever_write_a_cancel_meets_the_task_ends_once(number: int, when: str):
    async def one_turn(record: AttemptRecord) -> None:
        await record.journal.append(b"a turn")

    bench = Bench(Working(one_turn), MarkedUnder(number, when))
    settled = await bench.settle(delivery(WITH_TOOLS))
    assert bench.wire.verbs == ["publish", "ack"]
    if (number, when) == (3, "after"):  # it was committed before
        assert settled == "completed"
        assert not bench.record.cancelled
    else:
        assert settled == "failed"
        bench.ended_cancelled_once()


async def test_a_release_whose_answer_was_lost_is_known_under_the_mark():
    bench = Bench(Scripted(ModelUnavailable("503")), MarkedUnder(2, "after"))
    assert await bench.settle(delivery()) == "retried"
    assert (bench.record.state, bench.record.cancelled) == ("waiting", True)
    assert bench.wire.verbs == ["nak"]


@pytest.mark.parametrize("begun", [True, False])
async def test_a_cancel_while_a_dead_actor_gives_back_does_not_keep_it_from_that(*, begun: bool):
    bench = Bench(ledger=MarkedUnder(begun + 1, "before"))
    if begun:
        await bench.leases.begin(claim())
    assert await bench.leases.give_back(claim())
    assert (bench.record.state, bench.record.cancelled) == ("waiting", True)


async def test_a_cancel_that_loses_a_race_is_tried_again():
    bench = Bench()
    mine = await bench.leases.begin(claim())
    write = bench.ledger.write

    async def beaten(key: str, record: TaskRecord, revision: int) -> int:
        bench.ledger.write = write
        await bench.leases.keep(mine, [], [b"a turn"])
        return await write(key, record, revision)

    bench.ledger.write = beaten
    await bench.cancel()
    assert (bench.record.cancelled, bench.record.recent_turns) == (True, [b"a turn"])


async def test_a_cancel_without_an_answer_says_so_and_can_be_asked_again():
    bench = Bench(ledger=MemoryLedger("lost"))
    with pytest.raises(PublishFailed):
        await bench.cancel()
    assert await bench.cancel() == "cancel_requested"
    assert len(bench.ledger.history) == 1


async def test_what_another_attempt_took_over_is_fenced_though_it_is_cancelled():
    bench = Bench()
    lost = await bench.leases.begin(claim())
    await bench.leases.begin(claim(num_delivered=2, lease="theirs"))
    await bench.cancel()
    with pytest.raises(FencedOut):
        await bench.leases.commit(lost, "completed", b"{}", None)
    assert not await bench.leases.is_cancelled(lost)


# The mark, as data.

turns = st.lists(st.binary())
running = st.builds(
    TaskRecord,
    task_id=st.just("t-1"),
    state=st.sampled_from(["running", "waiting"]),
    source=st.just(delivery().source),
    content=st.text(),
    updated=st.just(noon()),
    attempt=st.integers(0, 9),
    generation=st.integers(0, 3),
    lease=st.text(max_size=3),
    recent_turns=turns,
    lost=st.booleans(),
    suspect=st.booleans(),
    deaths=st.integers(0, 9),
)


@given(running)
def test_the_mark_changes_nothing_else_and_comes_once(record: TaskRecord):
    marked = ledger.cancel(record, "t-1", noon())
    assert replace(marked, cancelled=False) == record
    assert ledger.cancel(marked, "t-1", noon()) == marked
    assert ledger.was_written(record, marked)
    assert ledger.was_marked(record, marked)
    assert not ledger.was_marked(marked, marked)


@given(running, st.integers(2, 9))
def test_the_mark_stays_until_the_task_has_ended(record: TaskRecord, later: int):
    marked = ledger.cancel(record, "t-1", noon())
    assert ledger.release(marked, noon()).cancelled
    assert ledger.keep(marked, [], [], noon()).cancelled
    taken_over = ledger.begin(marked, replace(claim(num_delivered=later), content=record.content))
    assert isinstance(taken_over, ledger.Run)
    assert taken_over.record.cancelled
    ended = ledger.commit(taken_over.record, "failed", b"{}", noon(), None)
    assert cancel_reply(ended).state == "cancelled"


def test_the_status_of_a_cancelled_task_says_so():
    awaited = ledger.cancel(None, "t-1", noon())
    assert status_of("t-1", awaited).state == "unknown"
    assert status_of("t-1", awaited).cancel_requested
    waiting = replace(awaited, source=delivery().source)
    assert (status_of("t-1", waiting).state, status_of("t-1", waiting).cancel_requested) == (
        "waiting",
        True,
    )


async def test_an_announcement_of_a_cancelled_task_is_repeated_word_for_word():
    bench = Bench()
    await bench.cancel()
    await bench.settle(delivery())
    (first,) = bench.wire.published
    assert await bench.settle(delivery(num_delivered=2)) == "announced"
    assert bench.wire.published == [first, first]
    assert isinstance(first, Message)


# Together with a replay.


def plea(generation: int = 0) -> ledger.Plea:
    return ledger.Plea(
        task_id="t-1", generation=generation, stream_seq=1, content="hash", now=noon()
    )


def test_a_cancelled_task_leaves_nothing_to_replay():
    marked = ledger.cancel(begun(), "t-1", noon())
    ended = ledger.commit(marked, "failed", b"{}", noon(), None)
    assert ledger.replay(ended, plea()) == ledger.Occupied(ended)


@pytest.mark.parametrize("queued_at", [0, 5])
def test_a_task_cancelled_while_it_is_replayed_does_not_run(queued_at: int):
    why = ledger.DeadLetterReason(reason="StrategyCrashed", error="KeyError")
    ended = ledger.commit(begun(), "failed", b"{}", noon(), why)
    opened = ledger.replay(ended, plea())
    assert isinstance(opened, ledger.Reopen)
    marked = ledger.cancel(opened.record, "t-1", noon())
    assert ledger.replay(marked, plea()) == ledger.Reopen(marked)
    if queued_at:
        marked = ledger.queue(marked, queued_at, noon())
    mine = replace(claim(), source=delivery(stream_seq=5).source, generation=1)
    verdict = ledger.begin(marked, mine)
    assert isinstance(verdict, ledger.Run)
    assert (verdict.record.cancelled, verdict.record.generation) == (True, 1)


def test_a_replay_undoes_the_cancel_of_an_id_whose_record_is_gone():
    awaited = ledger.cancel(None, "t-1", noon())
    opened = ledger.replay(awaited, plea())
    assert isinstance(opened, ledger.Reopen)
    assert (opened.record.cancelled, opened.record.generation) == (False, 1)


def begun() -> TaskRecord:
    verdict = ledger.begin(None, claim())
    assert isinstance(verdict, ledger.Run)
    return verdict.record
