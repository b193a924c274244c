"""One attempt at one task: choose the strategy, run it within its time, make the result.

It knows no queue: a delivery from JetStream (`settlement`) and a call from a program
(`library`) end here alike.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import datetime

import structlog
from msgspec import Struct

from agent_actors.contract import MAX_ERROR_CHARS, AgentResult
from agent_actors.errors import (
    DeadlineExceeded,
    FencedOut,
    PermissionDenied,
    StrategyCrashed,
    StrategyUnavailable,
    StreamMissing,
    TaskError,
    TaskTimeout,
)
from agent_actors.ports import (
    AttemptRecord,
    Clock,
    ExecutionRequest,
    Journal,
    Progress,
    Strategy,
    no_progress,
)

log = structlog.get_logger()

PROPOSAL = "proposal"
TOOLS = "tools"

# What a journal may raise: the strategy has not failed, and whoever gave the journal knows more.
OF_THE_JOURNAL = (FencedOut, PermissionDenied, StreamMissing)


StoppedFor = Callable[[], TaskError | None]


def nothing() -> TaskError | None:
    """Give no reason."""


class Outcome(Struct, frozen=True):
    """What an attempt came to: always a result, and the failure that it tells of, if any."""

    result: AgentResult
    failure: TaskError | None = None


class ExecuteAgentTask:
    """Runs the strategy that a request asks for, and turns whatever happens into an `Outcome`."""

    def __init__(self, strategies: Mapping[str, Strategy], clock: Clock) -> None:
        self._strategies = strategies
        self._clock = clock

    async def run(
        self,
        request: ExecutionRequest,
        *,
        journal: Journal | None = None,
        progress: Progress = no_progress,
        stopped_for: StoppedFor = nothing,
    ) -> Outcome:
        """Attempt the task; raises CancelledError, and what the journal raises.

        With a journal the attempt goes on from what earlier ones have kept there. When it is
        told to stop and `stopped_for` says why, that is the outcome, with what was done so far.
        """
        record = AttemptRecord(journal, progress)
        started = time.perf_counter()
        failure = await self._attempt(request, record, stopped_for)
        duration_ms = (time.perf_counter() - started) * 1_000
        result = _result(request, record, failure, round(duration_ms, 3), self._clock())
        return Outcome(result, failure)

    def refuse(self, request: ExecutionRequest, failure: TaskError) -> Outcome:
        """Return the outcome of a task that is not to be attempted any more."""
        return Outcome(_result(request, AttemptRecord(), failure, 0.0, self._clock()), failure)

    async def _attempt(
        self, request: ExecutionRequest, record: AttemptRecord, stopped_for: StoppedFor
    ) -> TaskError | None:
        timeout_s, late = self._time_left(request)
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                await self._strategy_of(request).run(request, record)
        except TaskError as failure:
            return failure
        except OF_THE_JOURNAL:
            raise
        except TimeoutError as error:
            return late if limit.expired() else _crashed(error)
        except asyncio.CancelledError as error:
            if not _is_told_to_stop():
                return _crashed(error)
            if reason := stopped_for():
                return reason
            raise
        except Exception as error:  # noqa: BLE001 - a strategy's bug must not lose its task
            return _crashed(error)
        return None

    def _time_left(self, request: ExecutionRequest) -> tuple[float, TaskError]:
        """Return the seconds that the attempt may take, and the failure of taking longer."""
        timeout_s, deadline = request.timeout_s, request.constraints.deadline
        if deadline is not None:
            left_s = max(0.0, (deadline - self._clock()).total_seconds())
            if left_s <= timeout_s:
                return left_s, DeadlineExceeded(f"the deadline {deadline.isoformat()} has passed")
        return timeout_s, TaskTimeout(f"the attempt took longer than its {timeout_s:g} s")

    def _strategy_of(self, request: ExecutionRequest) -> Strategy:
        name = TOOLS if request.agent.enable_tools else PROPOSAL
        if name not in self._strategies:
            raise StrategyUnavailable(
                f"enable_tools: is true, but this service has no {name!r} strategy; "
                f"it has {', '.join(sorted(self._strategies))}"
            )
        return self._strategies[name]


def _is_told_to_stop() -> bool:
    """Tell a cancellation of this attempt from one that leaked out of the strategy's own tasks."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _crashed(error: BaseException) -> StrategyCrashed:
    log.error("task.strategy_crashed", exc_info=error)
    return StrategyCrashed(f"{type(error).__name__}: {error}")


def _result(
    request: ExecutionRequest,
    record: AttemptRecord,
    failure: TaskError | None,
    duration_ms: float,
    now: datetime,
) -> AgentResult:
    task, agent = request.task, request.agent
    return AgentResult(
        task_id=task.task_id,
        agent_id=agent.agent_id,
        role=str(agent.role),
        status="failed" if failure else "completed",
        success=failure is None,
        duration_ms=duration_ms,
        timestamp=now,
        proposal=record.proposal,
        operations=record.operations,
        artifacts=record.artifacts,
        audit_trail=record.audit_trail,
        error=_told(failure) if failure else None,
        error_type=failure.error_type if failure else None,
        model=record.model or agent.model,
        enable_tools=agent.enable_tools,
        diversity=task.diversity,
        constraints=task.constraints,
        attempt=request.attempt,
        usage=record.usage,
    )


def _told(failure: TaskError) -> str:
    """Return the failure in words that fit into JSON: a file name, say, may not."""
    return str(failure)[:MAX_ERROR_CHARS].encode(errors="replace").decode()
