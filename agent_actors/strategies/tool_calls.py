"""The calls of one turn: those that only read side by side, the others alone and in order.

What fails in a call is told to the model, which may try again. A call that may change something
is stored as begun before it runs, so that nobody ever runs it twice.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import groupby

from msgspec.structs import replace

from agent_actors.contract import Operation
from agent_actors.errors import RepeatedToolCall, ToolError, ToolFailed, ToolRefused
from agent_actors.ports import ToolCall
from agent_actors.strategies.budget import Budget
from agent_actors.strategies.course import Course
from agent_actors.strategies.finish import Tools
from agent_actors.strategies.saved_turns import CallBegun, CallDone, CallsDone
from agent_actors.strategies.shortening import head_and_tail, head_of, short_parameters
from agent_actors.tools.registry import ToolOutput
from agent_actors.tools.toolbox import parameters_of

MAX_SIDE_BY_SIDE = 8
MAX_SAME_FAILURES = 3
MAX_NAME_CHARS = 64
MAX_TOLD_ARGUMENTS_CHARS = 200
UNKNOWN_TOOL = "unknown"

INTERRUPTED = "interrupted while it ran; what it has done is unknown"
OUTCOME_UNKNOWN = (
    "outcome unknown: the agent was interrupted while this call ran; check before repeating it"
)

Results = dict[str, CallDone]


class ToolCalls:
    """Runs what the model's replies ask for, and takes note of it in the task's course.

    Calls for which `ends_task` holds are left pending.
    """

    def __init__(
        self,
        tools: Tools,
        course: Course,
        budget: Budget,
        *,
        max_output_chars: int,
        abort_on_error: bool,
        ends_task: Callable[[ToolCall], bool],
    ) -> None:
        self._tools = tools
        self._course = course
        self._record = course.record
        self._budget = budget
        self._max_output_chars = max_output_chars
        self._abort_on_error = abort_on_error
        self._ends_task = ends_task

    async def run(self) -> None:
        """Run the calls of the last reply that have no result yet.

        Raises BudgetExceeded, RepeatedToolCall, ToolFailed, FencedOut.
        """
        self._give_up_on_interrupted()
        for reads, calls in self._groups():
            permitted = calls[: self._budget.operations_left(self._course.spent)]
            if permitted and not reads:
                self._course.happened(CallBegun(call_id=permitted[0].id))
                await self._course.save()
            await self._run_side_by_side(permitted)
            self._judge(permitted)
            if len(permitted) < len(calls):
                raise self._budget.no_operations_left(len(calls) - len(permitted))

    def _give_up_on_interrupted(self) -> None:
        """Answer for calls that an earlier attempt began, and of which nothing more is known."""
        calls = [call for call in self._course.pending.values() if call.id in self._course.begun]
        results = [self._failed(call, self._operation(call), OUTCOME_UNKNOWN) for call in calls]
        if results:
            self._course.happened(CallsDone(results=results))
            self._judge(calls)

    def _groups(self) -> list[tuple[bool, list[ToolCall]]]:
        """Return the calls in order: neighbours that only read together, each other one alone."""
        groups: list[tuple[bool, list[ToolCall]]] = []
        calls = [call for call in self._course.pending.values() if not self._ends_task(call)]
        for reads, neighbours in groupby(calls, key=self._only_reads):
            if reads:
                groups.append((True, list(neighbours)))
            else:
                groups.extend((False, [call]) for call in neighbours)
        return groups

    def _only_reads(self, call: ToolCall) -> bool:
        tool = self._tools.find(call.function.name)
        return tool is None or tool.reads

    async def _run_side_by_side(self, calls: Sequence[ToolCall]) -> None:
        """Run the calls at once, and note their results in order, even if a bug ends them."""
        results: Results = {}
        limit = asyncio.Semaphore(MAX_SIDE_BY_SIDE)
        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(self._run_one(call, results, limit))
        except BaseExceptionGroup as bugs:
            bug = bugs.exceptions[0]
            raise bug from bug.__cause__
        finally:
            known = [results[call.id] for call in calls if call.id in results]
            if known:
                self._course.happened(CallsDone(results=known))

    async def _run_one(self, call: ToolCall, results: Results, limit: asyncio.Semaphore) -> None:
        async with limit:
            asked = self._operation(call)
            name = {"tool": asked.tool, "operation": asked.operation}
            await self._record.progress("tool_call", **name, params=asked.params)
            started = time.perf_counter()
            # What stands when neither an output nor an error comes: a bug, or the attempt's end.
            results[call.id] = self._failed(call, asked, INTERRUPTED)
            try:
                output = await self._output(call)
                results[call.id] = self._succeeded(call, asked, output)
            except ToolError as error:
                results[call.id] = self._failed(call, asked, str(error))
                if isinstance(error, ToolRefused):
                    self._record.note("tool.refused", **name, error=head_of(str(error)))
            finally:
                done = _timed(results[call.id], started)
                results[call.id] = done
            await self._record.progress("tool_result", **name, **_outcome(done.operation))

    async def _output(self, call: ToolCall) -> ToolOutput:
        reply = self._course.reply
        if reply is not None and reply.finish_reason == "length":
            _check_whole(call)
        return await self._tools.run(call)

    def _operation(self, call: ToolCall) -> Operation:
        name = call.function.name
        tool = self._tools.find(name)
        return Operation(
            tool=tool.group if tool else UNKNOWN_TOOL,
            operation=tool.operation if tool else head_of(name, MAX_NAME_CHARS),
            params=short_parameters(call),
        )

    def _succeeded(self, call: ToolCall, asked: Operation, output: ToolOutput) -> CallDone:
        return CallDone(
            call_id=call.id,
            told=head_and_tail(output.text, self._max_output_chars) or "(no output)",
            operation=replace(asked, success=True, summary=head_of(output.summary) or None),
            artifacts=output.artifacts,
        )

    def _failed(self, call: ToolCall, asked: Operation, error: str) -> CallDone:
        return CallDone(
            call_id=call.id,
            told=head_and_tail(f"Error: {error}", self._max_output_chars),
            operation=replace(asked, error=head_of(error)),
        )

    def _judge(self, calls: Sequence[ToolCall]) -> None:
        """End the task at failures that it is not to go on after."""
        done = self._record.operations[len(self._record.operations) - len(calls) :]
        for call, operation in zip(calls, done, strict=True):
            if operation.success:
                continue
            what = f"{operation.tool}.{operation.operation}: {operation.error}"
            if self._abort_on_error:
                raise ToolFailed(f"{what} (constraints.abort_on_error is true)")
            if self._course.failures_of(call) >= MAX_SAME_FAILURES:
                given = head_of(call.function.arguments, MAX_TOLD_ARGUMENTS_CHARS)
                raise RepeatedToolCall(
                    f"the model made the same failing call in {MAX_SAME_FAILURES} turns running, "
                    f"{operation.operation} with {given}: {what}"
                )


def _check_whole(call: ToolCall) -> None:
    """Raise ToolError for a call that the end of the reply has cut off."""
    try:
        parameters_of(call)
    except ToolError:
        raise ToolError(
            f"the call of {call.function.name} was cut off at max_tokens: its arguments are not "
            "whole, and it was not made; make it again with less in it, in several calls"
        ) from None


def _outcome(operation: Operation) -> dict[str, object]:
    words = {"summary": operation.summary, "error": operation.error}
    return {
        "success": operation.success,
        "duration_ms": operation.duration_ms,
        **{key: text for key, text in words.items() if text},
    }


def _timed(done: CallDone, started: float) -> CallDone:
    duration_ms = round((time.perf_counter() - started) * 1_000, 3)
    return replace(done, operation=replace(done.operation, duration_ms=duration_ms))
