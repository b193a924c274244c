"""One delivery from beginning to end, over scripted ports."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import pytest
from support.fakes import MemoryLedger, Queue, Scripted, Wire, delivery, noon

from agent_actors import patience
from agent_actors.config import PoolConfig, RoleConfig
from agent_actors.contract import AgentResult, AgentTask, Constraints, TaskEvent, encode
from agent_actors.errors import (
    FencedOut,
    ModelRefused,
    ModelUnavailable,
    PermissionDenied,
    StreamMissing,
)
from agent_actors.execution import PROPOSAL, TOOLS, ExecuteAgentTask
from agent_actors.leases import Leases
from agent_actors.ledger import Claim, TaskRecord
from agent_actors.oversize import MAX_EVENT_BYTES, fit_event, fit_result
from agent_actors.ports import AttemptRecord, ExecutionRequest, Message, Strategy
from agent_actors.settlement import SettleDelivery, agent_for

MAX_PAYLOAD = 256 * 1024
TASK = b'{"task_id": "t-1", "task_description": "do it"}'
WITH_TOOLS = b'{"task_id": "t-1", "task_description": "do it", "enable_tools": true}'


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.0)


class Bench:
    """A settlement with its ports in reach."""

    def __init__(
        self,
        *,
        strategy: Scripted | None = None,
        ledger: MemoryLedger | None = None,
        wire: Wire | None = None,
        queue: Queue | None = None,
        pool: PoolConfig | None = None,
        tools: Strategy | None = None,
    ) -> None:
        self.strategy = strategy or Scripted()
        self.cleared: list[tuple[str, str]] = []
        self.clearing_fails: list[Exception] = []
        strategies: dict[str, Strategy] = {PROPOSAL: self.strategy}
        if tools:
            strategies[TOOLS] = tools
        self.ledger = ledger or MemoryLedger()
        self.wire = wire or Wire()
        self.settle = SettleDelivery(
            agent_id="dev-0",
            pool_name="dev",
            pool=pool or PoolConfig(),
            max_payload_bytes=MAX_PAYLOAD,
            execute=ExecuteAgentTask(strategies, noon),
            leases=Leases(self.ledger, queue or Queue(), noon),
            publisher=self.wire,
            acks=self.wire,
            artifacts=self.wire,
            events=self.wire,
            clock=noon,
            clear_away=self.clear_away,
        )

    async def clear_away(self, task_id: str, status: str) -> None:
        self.cleared.append((task_id, status))
        if self.clearing_fails:
            raise self.clearing_fails.pop()

    @property
    def result(self) -> AgentResult:
        (message,) = (m for m in self.wire.published if m.subject.startswith("agent.response."))
        return msgspec.json.decode(message.payload, type=AgentResult)

    @property
    def dead_letters(self) -> list[Message]:
        return [m for m in self.wire.published if m.subject.startswith("agent.deadletter.")]

    def record(self, key: str = "t-1") -> TaskRecord:
        record = self.ledger.records[key].record
        assert record is not None
        return record


async def test_an_answer_is_committed_then_published_then_acked():
    bench = Bench()
    assert await bench.settle(delivery()) == "completed"
    assert [record.state for record in bench.ledger.history] == ["running", "completed"]
    assert bench.wire.verbs == ["publish", "ack"]
    assert bench.result.proposal is not None
    assert bench.result.proposal.content == "an answer"
    assert bytes(bench.record().result) == bench.wire.published[0].payload
    assert bench.wire.published[0].headers["Nats-Msg-Id"] == "t-1"


async def test_the_result_echoes_what_was_asked():
    payload = (
        b'{"task_id": "j/1", "task_description": "x", "diversity": true,'
        b' "constraints": {"language": "python", "timeout": 7}}'
    )
    bench = Bench()
    await bench.settle(delivery(payload))
    assert bench.result.constraints == {"language": "python", "timeout": 7}
    assert bench.result.diversity
    assert bench.result.role == "DEV"
    assert bench.wire.published[0].headers["Nats-Msg-Id"] == "j=2F1"
    assert bench.strategy.requests[0].timeout_s == 7


async def test_a_refusal_of_the_model_fails_the_task_without_a_dead_letter():
    bench = Bench(strategy=Scripted(ModelRefused("400: too long")))
    assert await bench.settle(delivery()) == "failed"
    assert bench.result.error_type == "ModelRefused"
    assert bench.result.error == "400: too long"
    assert bench.wire.published[0].subject == "agent.response.failed"
    assert not bench.dead_letters


async def test_a_model_that_is_away_gives_the_task_back_without_counting_it():
    bench = Bench(strategy=Scripted(ModelUnavailable("503")))
    assert await bench.settle(delivery()) == "retried"
    assert bench.record().state == "waiting"
    assert (bench.record().failures, bench.record().postponed) == (0, 1)
    assert bench.wire.verbs == ["nak"]


async def test_a_wait_that_the_model_asked_for_is_kept():
    failure = ModelUnavailable("429")
    failure.retry_after_s = 17.0
    bench = Bench(strategy=Scripted(failure))
    await bench.settle(delivery())
    assert ("nak", 17.0) in bench.wire.log


async def test_a_bug_of_ours_is_tried_again_and_then_becomes_a_dead_letter():
    bench = Bench(
        strategy=Scripted(ValueError("oops"), ValueError("oops")), pool=PoolConfig(max_attempts=2)
    )
    assert await bench.settle(delivery()) == "retried"
    assert bench.record().failures == 1
    assert await bench.settle(delivery(num_delivered=2)) == "failed"
    assert bench.result.error_type == "StrategyCrashed"
    assert bench.result.error == "ValueError: oops"
    (letter,) = bench.dead_letters
    assert letter.subject == "agent.deadletter.dev"
    assert letter.payload == TASK
    assert letter.headers["Agent-Actors-Reason"] == "StrategyCrashed"
    assert letter.headers["Agent-Actors-Attempts"] == "2"


async def test_a_task_that_took_its_actors_down_is_not_run_again_and_becomes_a_dead_letter():
    bench = Bench(pool=PoolConfig(max_attempts=2))
    leases = Leases(bench.ledger, Queue(), noon)
    for number in (1, 2):
        claim = Claim(
            task_id="t-1",
            source=delivery(num_delivered=number).source,
            content="hash",
            agent_id="dead",
            lease=f"lease-{number}",
            now=noon(),
        )
        await leases.begin(claim)
        assert await leases.give_back(claim, alone=True)
        assert await leases.is_suspect("t-1")
    assert await bench.settle(delivery(num_delivered=3)) == "failed"
    assert not bench.strategy.requests
    assert bench.result.error_type == "PoisonTask"
    assert "2 actors died" in (bench.result.error or "")
    (letter,) = bench.dead_letters
    assert letter.headers["Agent-Actors-Reason"] == "PoisonTask"
    assert letter.payload == TASK
    assert not await leases.is_suspect("t-1")


async def test_a_suspect_that_answers_is_completed_like_any_other():
    bench = Bench()
    leases = Leases(bench.ledger, Queue(), noon)
    assert not await leases.is_suspect("t-1")
    claim = Claim(
        task_id="t-1",
        source=delivery().source,
        content="hash",
        agent_id="dead",
        lease="lease",
        now=noon(),
    )
    await leases.begin(claim)
    await leases.give_back(claim)
    assert await bench.settle(delivery(num_delivered=2)) == "completed"


async def test_a_retry_comes_back_when_the_deadline_has_passed_to_tell_so():
    payload = (
        b'{"task_id": "t-1", "task_description": "x",'
        b' "constraints": {"deadline": "2026-01-01T12:00:05Z"}}'
    )
    bench = Bench(strategy=Scripted(ModelUnavailable("429", retry_after_s=600.0)))
    assert await bench.settle(delivery(payload)) == "retried"
    assert ("nak", 5.0) in bench.wire.log


async def test_an_attempt_that_takes_too_long_fails():
    payload = b'{"task_id": "t-1", "task_description": "x", "constraints": {"timeout": 0.01}}'
    bench = Bench(strategy=Scripted(waits=asyncio.Event()))
    assert await bench.settle(delivery(payload)) == "failed"
    assert bench.result.error_type == "TaskTimeout"


async def test_a_task_past_its_deadline_fails_without_an_answer():
    payload = (
        b'{"task_id": "t-1", "task_description": "x",'
        b' "constraints": {"deadline": "2026-01-01T11:59:59Z"}}'
    )
    bench = Bench(strategy=Scripted(waits=asyncio.Event()))
    assert await bench.settle(delivery(payload)) == "failed"
    assert bench.result.error_type == "DeadlineExceeded"


async def test_tools_without_a_tool_strategy_fail_with_a_reason():
    payload = b'{"task_id": "t-1", "task_description": "x", "enable_tools": true}'
    bench = Bench()
    assert await bench.settle(delivery(payload)) == "failed"
    assert bench.result.error_type == "StrategyUnavailable"


async def test_a_message_without_a_task_id_is_answered_under_its_sequence_and_termed():
    bench = Bench()
    broken = delivery(b"{not json", stream_seq=9, headers={"x-team": "blue"})
    assert await bench.settle(broken) == "buried"
    assert bench.result.task_id == "unknown:AGENT_TASKS:9"
    assert bench.result.error_type == "InvalidTask"
    (letter,) = bench.dead_letters
    assert letter.payload == b"{not json"
    assert letter.headers["Agent-Actors-Original-x-team"] == "blue"
    assert {m.headers["Nats-Msg-Id"] for m in bench.wire.published} == {"invalid:AGENT_TASKS:9"}
    assert bench.wire.verbs == ["publish", "publish", "term"]
    assert not bench.ledger.history


async def test_an_invalid_task_with_an_id_ends_under_that_id_in_the_ledger():
    bench = Bench()
    broken = delivery(b'{"task_id": "t-1", "task_description": ""}')
    assert await bench.settle(broken) == "failed"
    assert bench.result.task_id == "t-1"
    assert bench.result.error == "task_description: is empty"
    assert bench.record().state == "failed"
    assert len(bench.dead_letters) == 1
    assert bench.wire.verbs == ["publish", "publish", "ack"]


async def test_a_task_that_ended_is_announced_again_and_not_run():
    bench = Bench()
    await bench.settle(delivery())
    first = bench.wire.published[0]
    assert await bench.settle(delivery(num_delivered=2)) == "announced"
    assert bench.wire.published == [first, first]
    assert len(bench.strategy.requests) == 1


async def test_a_copy_of_a_task_that_ended_is_announced_again_however_it_is_written():
    bench = Bench()
    await bench.settle(delivery())
    same = delivery(b'{"task_description":"do it","task_id":"t-1","role":"dev"}', stream_seq=2)
    assert await bench.settle(same) == "announced"
    assert len(bench.strategy.requests) == 1


async def test_other_content_under_a_known_id_is_a_dead_letter_and_no_result():
    bench = Bench()
    await bench.settle(delivery())
    other = delivery(b'{"task_id": "t-1", "task_description": "something else"}', stream_seq=2)
    assert await bench.settle(other) == "conflict"
    assert len([m for m in bench.wire.published if m.subject.startswith("agent.response")]) == 1
    (letter,) = bench.dead_letters
    assert letter.headers["Agent-Actors-Reason"] == "TaskIdConflict"
    assert letter.headers["Nats-Msg-Id"] == "conflict:AGENT_TASKS:2"


async def test_a_copy_of_a_running_task_is_acked_and_not_run():
    gate = asyncio.Event()
    bench = Bench(strategy=Scripted(waits=gate), queue=Queue(1, 2))
    first = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    assert await bench.settle(delivery(stream_seq=2)) == "copy"
    gate.set()
    assert await first == "completed"
    assert len(bench.strategy.requests) == 1


async def test_a_copy_takes_over_when_the_running_one_was_purged():
    bench = Bench(strategy=Scripted(waits=(gate := asyncio.Event())), queue=Queue(2))
    first = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    second = asyncio.create_task(bench.settle(delivery(stream_seq=2)))
    gate.set()
    assert await second == "completed"
    assert await first == "fenced"
    assert bench.result.attempt == 2


async def test_an_attempt_that_was_taken_over_publishes_acks_and_naks_nothing():
    gate = asyncio.Event()
    slow = Bench(strategy=Scripted(waits=gate))
    stale = asyncio.create_task(slow.settle(delivery()))
    await slow.strategy.started.wait()
    fast = Bench(ledger=slow.ledger)
    assert await fast.settle(delivery(num_delivered=2)) == "completed"
    gate.set()
    assert await stale == "fenced"
    assert not slow.wire.verbs


async def test_an_earlier_delivery_of_a_running_task_stops_without_a_word():
    gate = asyncio.Event()
    bench = Bench(strategy=Scripted(waits=gate))
    later = asyncio.create_task(bench.settle(delivery(num_delivered=2)))
    await bench.strategy.started.wait()
    assert await bench.settle(delivery(num_delivered=1)) == "stale"
    assert not bench.wire.verbs
    gate.set()
    assert await later == "completed"


@pytest.mark.parametrize("fault", ["lost", "dropped"])
@pytest.mark.parametrize("write", [0, 1])
async def test_a_write_without_an_answer_is_neither_lost_nor_done_twice(fault: str, write: int):
    script = ["stored"] * write + [fault, fault]
    bench = Bench(ledger=MemoryLedger(*script))
    assert await bench.settle(delivery()) == "completed"
    assert [record.state for record in bench.ledger.history] == ["running", "completed"]
    assert len(bench.strategy.requests) == 1
    assert bench.wire.verbs == ["publish", "ack"]


async def test_a_publish_without_an_answer_is_repeated_before_the_ack():
    bench = Bench(wire=Wire("dropped", "dropped"))
    assert await bench.settle(delivery()) == "completed"
    assert bench.wire.verbs == ["publish", "ack"]


async def test_a_missing_stream_leaves_the_message_unacked():
    class NoStream(Wire):
        async def publish(self, message: Message) -> None:
            raise StreamMissing("AGENT_RESPONSES")

    bench = Bench(wire=NoStream())
    with pytest.raises(StreamMissing):
        await bench.settle(delivery())
    assert not bench.wire.verbs


async def test_giving_back_releases_and_naks_what_runs():
    bench = Bench(strategy=Scripted(waits=asyncio.Event()))
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    bench.settle.give_back()
    assert await settling == "released"
    assert bench.record().state == "waiting"
    assert bench.record().failures == 0
    assert bench.wire.verbs == ["nak"]


async def test_giving_back_reaches_what_is_just_beginning():
    bench = Bench()
    write, began, gate = bench.ledger.write, asyncio.Event(), asyncio.Event()

    async def slow_write(key: str, record: TaskRecord, revision: int) -> int:
        began.set()
        await gate.wait()
        return await write(key, record, revision)

    bench.ledger.write = slow_write
    settling = asyncio.create_task(bench.settle(delivery()))
    await began.wait()
    bench.settle.give_back()
    gate.set()
    assert await settling == "released"
    assert not bench.strategy.requests


async def test_giving_back_reaches_what_just_tells_that_it_begins():
    bench = Bench()
    emit = bench.wire.emit

    async def give_back_first(event: TaskEvent) -> None:
        bench.settle.give_back()
        await emit(event)

    bench.wire.emit = give_back_first
    assert await bench.settle(delivery()) == "released"
    assert not bench.strategy.requests


async def test_a_cancellation_that_leaks_from_a_strategy_is_a_crash_of_it():
    def leak() -> None:
        raise asyncio.CancelledError

    bench = Bench(strategy=Scripted(during=leak), pool=PoolConfig(max_attempts=1))
    assert await bench.settle(delivery()) == "failed"
    assert bench.result.error_type == "StrategyCrashed"


async def test_a_cancelled_settlement_stops_its_attempt():
    bench = Bench(strategy=Scripted(waits=asyncio.Event()))
    settling = asyncio.create_task(bench.settle(delivery()))
    await bench.strategy.started.wait()
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    assert not bench.wire.verbs


async def test_a_result_too_big_for_a_message_moves_its_biggest_part_to_the_object_store():
    bench = Bench(strategy=Scripted("x" * MAX_PAYLOAD))
    assert await bench.settle(delivery()) == "completed"
    assert bench.result.proposal is not None
    assert bench.result.proposal.content == ""
    reference = bench.result.artifacts["proposal.content"]
    assert bench.wire.objects[reference["object"]] == b"x" * MAX_PAYLOAD
    assert reference["size"] == MAX_PAYLOAD


@pytest.mark.parametrize("count", [50, 5_000])
async def test_a_result_that_is_big_by_many_parts_moves_as_a_whole_if_need_be(count: int):
    artifacts = {f"part-{number}": "x" * 300 for number in range(count)}
    artifacts["big"] = "y" * MAX_PAYLOAD
    wire = Wire()
    result = AgentResult(
        task_id="t",
        agent_id="a",
        role="DEV",
        status="completed",
        success=True,
        duration_ms=1.0,
        timestamp=noon(),
        artifacts=artifacts,
    )
    payload = await fit_result(result, max_bytes=MAX_PAYLOAD, folder="t/lease", store=wire)
    assert len(payload) <= MAX_PAYLOAD
    told = msgspec.json.decode(payload, type=AgentResult)
    if count == 50:
        assert told.artifacts["part-7"] == "x" * 300
        assert wire.objects[told.artifacts["big"]["object"]] == b"y" * MAX_PAYLOAD
    else:
        whole = msgspec.json.decode(wire.objects[told.artifacts["result"]["object"]])
        assert whole["artifacts"] == artifacts


async def test_a_task_over_the_size_limit_is_invalid_and_its_bytes_are_kept():
    payload = encode(AgentTask(task_id="big", task_description="x" * (MAX_PAYLOAD - 1_000)))
    bench = Bench()
    assert await bench.settle(delivery(payload)) == "failed"
    assert "payload: is" in (bench.result.error or "")
    (letter,) = bench.dead_letters
    kept = letter.payload or bench.wire.objects[letter.headers["Agent-Actors-Object"]]
    assert kept == payload


async def test_progress_is_told_as_events():
    bench = Bench()
    await bench.settle(delivery())
    assert [what for verb, what in bench.wire.log if verb == "event"] == ["started", "finished"]


# Agents with tools: what they keep, what they tell, what they leave behind.


class Turns:
    """A strategy that keeps one entry a step, and then does what the step says."""

    def __init__(self, *script: Callable[[], object] | Exception) -> None:
        self.script = list(script)
        self.found: list[Sequence[bytes]] = []

    async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
        self.found.append(await record.journal.entries())
        while self.script:
            step = self.script.pop(0)
            await record.journal.append(b"%d left" % len(self.script))
            if isinstance(step, Exception):
                raise step
            step()


def nothing() -> None:
    """Go on to the next turn."""


async def test_the_lease_that_the_turns_have_changed_ends_the_task():
    bench = Bench(tools=Turns(nothing, nothing))
    assert await bench.settle(delivery(WITH_TOOLS)) == "completed"
    assert [(r.state, len(r.recent_turns)) for r in bench.ledger.history] == [
        ("running", 0),
        ("running", 1),
        ("running", 2),
        ("completed", 0),
    ]
    assert bench.wire.verbs == ["publish", "ack"]


async def test_a_retry_goes_on_from_what_was_kept():
    turns = Turns(nothing, ModelUnavailable("503"), nothing)
    bench = Bench(tools=turns)
    assert await bench.settle(delivery(WITH_TOOLS)) == "retried"
    assert not bench.cleared
    assert await bench.settle(delivery(WITH_TOOLS, num_delivered=2)) == "completed"
    assert turns.found == [[], [b"2 left", b"1 left"]]


async def test_an_attempt_that_cannot_keep_its_turn_stops_without_a_word():
    bench = Bench()
    other = Bench(ledger=bench.ledger)

    class TakenOver(Turns):
        async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
            await other.settle(delivery(num_delivered=2))
            await super().run(request, record)
            pytest.fail("it went on")

    bench = Bench(ledger=bench.ledger, tools=TakenOver(nothing))
    assert await bench.settle(delivery(WITH_TOOLS)) == "fenced"
    assert not bench.wire.verbs
    assert not bench.cleared


@pytest.mark.parametrize("error", [PermissionDenied("denied"), StreamMissing("no bucket")])
async def test_a_journal_that_cannot_be_written_leaves_the_message_unacked(error: Exception):
    bench = Bench(tools=Turns(nothing))
    write = bench.ledger.write

    async def refuses_turns(key: str, record: TaskRecord, revision: int) -> int:
        if record.recent_turns:
            raise error
        return await write(key, record, revision)

    bench.ledger.write = refuses_turns
    with pytest.raises(type(error)):
        await bench.settle(delivery(WITH_TOOLS))
    assert not bench.wire.verbs


@pytest.mark.parametrize("error", [FencedOut(), PermissionDenied("no"), StreamMissing("no")])
async def test_what_a_journal_raises_is_no_failure_of_the_strategy(error: Exception):
    class Lost:
        async def entries(self) -> Sequence[bytes]:
            return []

        async def append(self, entry: bytes) -> None:
            raise error

    execute = ExecuteAgentTask({TOOLS: Turns(nothing)}, noon)
    task = AgentTask(task_id="t", task_description="x", role="DEV", enable_tools=True)
    request = ExecutionRequest(
        task=task, constraints=Constraints(), agent=agent_for(task, PoolConfig(), "a"), timeout_s=9
    )
    with pytest.raises(type(error)):
        await execute.run(request, journal=Lost())


class SlowTurn(MemoryLedger):
    """A ledger that stores a turn and answers only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.stored, self.answers = asyncio.Event(), asyncio.Event()

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        revision = await super().write(key, record, revision)
        if record.recent_turns and not self.answers.is_set():
            self.stored.set()
            await self.answers.wait()
        return revision


async def test_a_turn_on_its_way_when_time_is_up_does_not_fence_out_its_own_attempt():
    ledger = SlowTurn()
    bench = Bench(tools=Turns(nothing), ledger=ledger)
    timed = WITH_TOOLS[:-1] + b', "constraints": {"timeout": 0.01}}'
    settling = asyncio.create_task(bench.settle(delivery(timed)))
    await ledger.stored.wait()
    done, _ = await asyncio.wait([settling], timeout=0.05)
    assert not done
    ledger.answers.set()
    assert await settling == "failed"
    assert bench.result.error_type == "TaskTimeout"


async def test_a_turn_on_its_way_when_the_task_is_given_back_is_there_for_the_next_attempt():
    ledger = SlowTurn()
    bench = Bench(tools=Turns(nothing), ledger=ledger)
    settling = asyncio.create_task(bench.settle(delivery(WITH_TOOLS)))
    await ledger.stored.wait()
    bench.settle.give_back()
    ledger.answers.set()
    assert await settling == "released"
    assert (bench.record().state, bench.record().recent_turns) == ("waiting", [b"0 left"])


async def test_a_turn_that_lost_the_task_while_time_ran_out_ends_as_fenced():
    ledger = SlowTurn()
    bench = Bench(tools=Turns(nothing), ledger=ledger)

    async def lost(key: str, record: TaskRecord, revision: int) -> int:
        if record.recent_turns:
            ledger.stored.set()
            await ledger.answers.wait()
            raise FencedOut
        return await MemoryLedger.write(ledger, key, record, revision)

    ledger.write = lost
    settling = asyncio.create_task(bench.settle(delivery(WITH_TOOLS)))
    await ledger.stored.wait()
    bench.settle.give_back()
    ledger.answers.set()
    assert await settling == "fenced"
    assert not bench.wire.verbs


async def test_what_a_task_left_is_cleared_away_once_it_is_acked():
    bench = Bench(tools=Turns(nothing, ValueError("oops")), pool=PoolConfig(max_attempts=1))
    assert await bench.settle(delivery(WITH_TOOLS)) == "failed"
    assert bench.wire.verbs[-1] == "ack"
    await bench.settle.cleared()
    assert bench.cleared == [("t-1", "failed")]


async def test_what_a_task_left_whose_actor_died_is_cleared_away_when_it_is_announced_again():
    dead = Bench(tools=Turns(nothing))
    await dead.settle(delivery(WITH_TOOLS))
    bench = Bench(ledger=dead.ledger)
    assert await bench.settle(delivery(WITH_TOOLS, num_delivered=2)) == "announced"
    await bench.settle.cleared()
    assert bench.cleared == [("t-1", "completed")]


async def test_turns_in_the_object_store_are_deleted_once_the_task_is_acked():
    class Big(Turns):
        async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
            await record.journal.append(b"x" * 100_000)

    bench = Bench(tools=Big())
    bench.clearing_fails = [OSError(28, "No space left on device")]
    seen: list[int] = []
    publish = bench.wire.publish

    async def count_objects(message: Message) -> None:
        seen.append(len(bench.wire.objects))
        await publish(message)

    bench.wire.publish = count_objects
    assert await bench.settle(delivery(WITH_TOOLS)) == "completed"
    await bench.settle.cleared()
    assert seen == [1]
    assert not bench.wire.objects


async def test_a_task_without_tools_clears_nothing_and_writes_twice():
    bench = Bench(tools=Turns())
    await bench.settle(delivery())
    await bench.settle.cleared()
    assert not bench.cleared
    assert len(bench.ledger.history) == 2


async def test_what_an_agent_tells_of_its_work_is_an_event_of_its_attempt():
    class Telling(Turns):
        async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
            await record.progress("token", text="I will")
            await record.progress("tool_call", tool="files", params={"content": "x" * 100_000})

    bench = Bench(tools=Telling())
    await bench.settle(delivery(WITH_TOOLS))
    _, token, call, _ = bench.wire.events
    assert (token.kind, token.detail) == ("token", {"text": "I will"})
    assert (token.task_id, token.agent_id, token.attempt) == ("t-1", "dev-0", 1)
    assert call.detail["tool"] == "files"
    assert call.detail["params"]["content"] == "x" * 2_000 + "… (100000 characters)"


LONG = "x" * MAX_EVENT_BYTES


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ({"a": "x" * 5_000}, {"a": "x" * 5_000}),
        ({"a": [LONG]}, {"a": ["x" * 2_000 + f"… ({len(LONG)} characters)"]}),
        ({LONG: 1}, {"x" * 2_000 + f"… ({len(LONG)} characters)": 1}),
        ({"a": ["é" * 1_000] * 9}, {"a": ["é" * 200 + "… (1000 characters)"] * 9}),
        ({"a": 1, "b": ["y"] * 9_000}, {"a": 1}),
        ({str(number): 1 for number in range(9_000)}, {}),
    ],
    ids=["fits", "a long text", "a long key", "many texts", "a long list", "many keys"],
)
def test_an_event_is_cut_to_what_it_may_hold(detail: dict, told: dict):
    assert fit_event(detail) == told
    assert len(encode(told)) <= MAX_EVENT_BYTES


def test_a_task_overrides_its_pool_within_its_bounds():
    pool = PoolConfig(model="m", temperature=0.1, max_tokens=100, enable_tools=True)
    task = AgentTask(task_id="t", task_description="x", role="DEV")
    agent = agent_for(task, pool, "a")
    assert (agent.model, agent.temperature, agent.max_tokens) == ("m", 0.1, 100)
    assert agent.enable_tools
    bold = msgspec.structs.replace(
        task, model="n", temperature=1.5, max_tokens=1_000, enable_tools=False
    )
    agent = agent_for(bold, pool, "a")
    assert (agent.model, agent.temperature, agent.max_tokens) == ("n", 1.5, 100)
    assert not agent.enable_tools


def test_a_role_of_the_pool_brings_its_prompt():
    pool = PoolConfig(roles={"DEV": RoleConfig(prompt="Be brief.")})
    task = AgentTask(task_id="t", task_description="x", role="DEV")
    assert agent_for(task, pool, "a").prompt == "Be brief."
