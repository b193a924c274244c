"""The strategy with tools: an agent that works in a workspace until it has an answer.

Read `_work`, the loop itself. What happens in it is written into the task's `Course`, which the
journal keeps turn by turn, so that another attempt goes on from the last one.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Protocol

from agent_actors.config_tools import ToolsConfig
from agent_actors.contract import utc_now
from agent_actors.disposition import POSTPONED
from agent_actors.errors import FencedOut, ToolError, WorkspaceUnavailable
from agent_actors.ports import AttemptRecord, ExecutionRequest, ToolCall, VLLMClient
from agent_actors.strategies.answer_format import Check, answer_check
from agent_actors.strategies.budget import Budget, Spent, budget_of
from agent_actors.strategies.course import Course
from agent_actors.strategies.final_answer import objection_to
from agent_actors.strategies.finish import Tools, WithFinish, is_finish
from agent_actors.strategies.model_turns import NO_CALLS, ModelTurns
from agent_actors.strategies.prompts import agent_messages
from agent_actors.strategies.proposal import proposal_of, sampling_temperature
from agent_actors.strategies.saved_turns import AskedAgain, Opened, read_pages, spent_in
from agent_actors.strategies.tool_calls import ToolCalls
from agent_actors.tools.workspace import Workspace, WorkspaceId

REQUIRED = "required"
ARTIFACTS_TIMEOUT_S = 10.0

# The clock of whoever set the attempt's time began a moment before ours.
CLOCK_TOLERANCE_S = 0.1


class Workspaces(Protocol):
    """Where workspaces come from: `tools.workspace.Workspaces`."""

    async def make(self, task_id: str) -> Workspace:
        """Return a new empty workspace. Raises WorkspaceUnavailable."""
        ...

    async def reopen(self, known: WorkspaceId) -> Workspace | None:
        """Return the workspace if it is there and no other attempt holds it."""
        ...


class ToolLoop:
    """Works on tasks with tools, each in its own workspace.

    `prepare` makes the repository of a new workspace, and returns what is noted of it.
    """

    def __init__(
        self,
        *,
        client: VLLMClient,
        settings: ToolsConfig,
        workspaces: Workspaces,
        toolbox_for: Callable[[ExecutionRequest, Workspace], Tools],
        prepare: Callable[[ExecutionRequest, Workspace], Awaitable[dict[str, Any]]],
    ) -> None:
        self._client = client
        self._settings = settings
        self._workspaces = workspaces
        self._toolbox_for = toolbox_for
        self._prepare = prepare
        self._must_call = settings.tool_choice == REQUIRED
        self._may_call = settings.tool_choice != NO_CALLS

    async def run(self, request: ExecutionRequest, record: AttemptRecord) -> None:
        """Do the task, or go on with it, and write down all that was done, also when it fails.

        Raises InvalidTask, WorkspaceUnavailable, BudgetExceeded, RepeatedToolCall, ToolFailed,
        AnswerEmpty, AnswerTruncated, AnswerInvalid, FencedOut, and what `VLLMClient` raises.
        """
        started = time.monotonic()
        check = answer_check(request.constraints.response_format)
        course, workspace = await self._open(request, record)
        result_is_due = True
        try:
            await self._work(course, request, check, self._tools(request, workspace))
        except asyncio.CancelledError:
            result_is_due = _time_is_up(request, started)
            raise
        except FencedOut:
            result_is_due = False
            raise
        except POSTPONED:
            # The task will be tried again: in this workspace, even if no turn was finished.
            result_is_due = False
            await course.save()
            raise
        finally:
            try:
                if result_is_due:
                    await _collect_artifacts(workspace, record)
            finally:
                workspace.close()

    async def _work(
        self, course: Course, request: ExecutionRequest, check: Check, tools: Tools
    ) -> None:
        """Ask, run the calls, append the results, until the model answers or a budget ends it."""
        budget = budget_of(self._settings, request.constraints)
        turns, calls = await self._turns_and_calls(course, request, tools, budget)
        if course.pending:
            await turns.look_for_tools()
        while True:
            if course.is_models_turn:
                await turns.ask()
            await calls.run()
            if course.answer is None:
                turns.warn_if_last()
            elif self._is_accepted(course.answer, course, request, check):
                break
            await course.save()
        if course.record.operations or course.spent.turns > 1:
            # Not yet the result: whoever is killed before that exists need not ask again.
            await course.save()

    async def _open(
        self, request: ExecutionRequest, record: AttemptRecord
    ) -> tuple[Course, Workspace]:
        """Return the task as an earlier attempt has left it, with its workspace, or a new one."""
        stored = await record.journal.entries()
        pages = read_pages(stored)
        if pages and (opened := pages[0].opened):
            workspace = await self._workspaces.reopen(opened.workspace)
            if workspace is not None:
                course = Course(record)
                course.replay(pages)
                record.note(
                    "task.resumed", turns=course.spent.turns, operations=len(record.operations)
                )
                return course, workspace
        spent = spent_in(stored)
        if stored:
            record.note(
                "task.restarted",
                why="what an earlier attempt has left cannot be used",
                turns=spent.turns,
                operations=spent.operations,
                tokens=spent.tokens,
            )
        return await self._begin(request, record, spent)

    async def _begin(
        self, request: ExecutionRequest, record: AttemptRecord, spent: Spent
    ) -> tuple[Course, Workspace]:
        workspace = await self._workspaces.make(request.task.task_id)
        try:
            record.note("workspace.prepared", **await self._prepare(request, workspace))
            await workspace.mark_baseline()
        except BaseException:
            workspace.close()
            raise
        course = Course(record)
        opening = agent_messages(request, must_finish=self._must_call)
        course.happened(Opened(workspace=workspace.id, messages=opening, spent=spent))
        return course, workspace

    async def _turns_and_calls(
        self, course: Course, request: ExecutionRequest, tools: Tools, budget: Budget
    ) -> tuple[ModelTurns, ToolCalls]:
        settings = self._settings
        context_tokens = await self._client.context_length(request.agent.model)
        turns = ModelTurns(
            self._client,
            tools,
            course,
            budget,
            request,
            temperature=sampling_temperature(request),
            tool_choice=settings.tool_choice,
            live_tokens=settings.live_tokens,
            context_tokens=context_tokens,
        )
        calls = ToolCalls(
            tools,
            course,
            budget,
            # No output fills a small context: as many characters as it has tokens are a third.
            max_output_chars=min(settings.max_output_chars, context_tokens or sys.maxsize),
            abort_on_error=bool(request.constraints.abort_on_error),
            ends_task=is_finish if self._must_call else _never,
        )
        return turns, calls

    def _tools(self, request: ExecutionRequest, workspace: Workspace) -> Tools:
        tools = self._toolbox_for(request, workspace)
        return WithFinish(tools) if self._must_call else tools

    def _is_accepted(
        self, answer: str, course: Course, request: ExecutionRequest, check: Check
    ) -> bool:
        """Propose the answer; tell the model what is wrong with it, or raise if that is vain."""
        record = course.record
        record.proposal = proposal_of(
            request.agent,
            answer,
            model=record.model,
            temperature=sampling_temperature(request),
            tokens=course.reply.usage.completion_tokens if course.reply else 0,
        )
        objection = objection_to(
            course, answer, check, must_call=self._must_call, may_call=self._may_call
        )
        if objection is None:
            return True
        if course.flaws[objection.flaw] >= objection.patience:
            raise objection.error
        record.note("answer.refused", flaw=objection.flaw, told=objection.told)
        course.happened(AskedAgain(flaw=objection.flaw, text=objection.told))
        return False


def _never(_call: ToolCall) -> bool:
    return False


def _time_is_up(request: ExecutionRequest, started: float) -> bool:
    """Tell the end of the attempt's time, which is a result, from the order to stop at once."""
    if time.monotonic() - started >= request.timeout_s - CLOCK_TOLERANCE_S:
        return True
    deadline = request.constraints.deadline
    return deadline is not None and utc_now() >= deadline - timedelta(seconds=CLOCK_TOLERANCE_S)


async def _collect_artifacts(workspace: Workspace, record: AttemptRecord) -> None:
    """Add to the result what the workspace has become, as far as it can be told in time."""
    try:
        record.artifacts.update(await workspace.artifacts(ARTIFACTS_TIMEOUT_S))
    except (TimeoutError, OSError, ToolError, WorkspaceUnavailable) as error:
        record.note("artifacts.incomplete", error=str(error) or "took too long")
