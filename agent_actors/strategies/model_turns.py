"""One turn of the model: within the budget, and with room for its answer in the context."""

from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from agent_actors.contract import Usage
from agent_actors.errors import ContextExceeded
from agent_actors.ports import ChatReply, ChatRequest, ExecutionRequest, OfferedTool, VLLMClient
from agent_actors.strategies.budget import MIN_ANSWER_TOKENS, Budget
from agent_actors.strategies.course import Course
from agent_actors.strategies.finish import Tools
from agent_actors.strategies.saved_turns import Replied, Shortened, Trimmed, Warned
from agent_actors.strategies.shortening import head_of

log = structlog.get_logger()

# Shares of the context: how full it may get, how full it is after outputs were dropped (so that
# not each turn drops some), and what is kept free for an answer that might take much.
FULL = 0.95
AFTER_DROPPING = 0.7
ANSWER = 0.25

NO_CALLS = "none"


class ModelTurns:
    """Asks the model for its next turn, and takes note of it in the task's course."""

    def __init__(  # noqa: PLR0913 - a request has many parts
        self,
        client: VLLMClient,
        tools: Tools,
        course: Course,
        budget: Budget,
        request: ExecutionRequest,
        *,
        temperature: float,
        tool_choice: str,
        live_tokens: bool,
        context_tokens: int | None,
    ) -> None:
        self._client = client
        self._tools = tools
        self._course = course
        self._record = course.record
        self._budget = budget
        self._agent = request.agent
        self._response_format = request.constraints.response_format
        self._temperature = temperature
        self._tool_choice = tool_choice
        self._listener = self._hear if live_tokens else None
        self._context_tokens = context_tokens
        self._offered: Sequence[OfferedTool] = ()

    async def ask(self) -> None:
        """Have the model go on from what has happened so far.

        Raises BudgetExceeded, ModelRefused (ContextExceeded when dropping outputs does not help),
        ModelUnavailable.
        """
        await self.look_for_tools()
        reply = await self._reply()
        estimate = self._estimate(reply)
        if not self._calls_allowed:
            reply = replace(reply, tool_calls=())
        self._course.happened(Replied(reply=reply, estimate=estimate))
        self._record.note(
            "turn.answered",
            model=reply.model or self._agent.model,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
            calls=len(reply.tool_calls),
        )
        if reply.tool_calls and reply.content.strip():
            self._record.note("model.said", text=head_of(reply.content))

    async def look_for_tools(self) -> None:
        """Find out which tools there are now."""
        self._offered = await self._tools.offered()

    def warn_if_last(self) -> None:
        """Tell the model, beneath its newest result, when its next turn has to be the last."""
        if warning := self._budget.warning(self._course.spent, self._expected()):
            self._course.happened(Warned(text=f"\n\n[{warning}]"))
            self._record.note("budget.warned", text=warning)

    @property
    def _calls_allowed(self) -> bool:
        return self._tool_choice != NO_CALLS and not self._course.flaws["wrong_form"]

    def _estimate(self, reply: ChatReply) -> Usage | None:
        """Return what to count for a reply that comes without a count of its tokens."""
        if reply.usage.total_tokens:
            return None
        if not self._course.is_estimated:
            self._record.note("usage.estimated", why="the model server counts no tokens")
        return self._course.conversation.estimated_usage(self._offered, reply)

    async def _reply(self) -> ChatReply:
        """Ask; when the server says that it is too much, drop outputs, in the end the newest."""
        max_tokens = self._room_for_answer()
        for newest in (max_tokens <= MIN_ANSWER_TOKENS, True):
            try:
                return await self._chat(max_tokens)
            except ContextExceeded as error:
                log.warning("context.exceeded", expected=self._expected(), error=str(error))
                if not self._drop(self._expected() // 2, newest=newest) and newest:
                    raise
            max_tokens = max(max_tokens // 2, min(max_tokens, MIN_ANSWER_TOKENS))
        return await self._chat(max_tokens)

    async def _chat(self, max_tokens: int) -> ChatReply:
        # Guided decoding would forbid calls, so the form is forced only once the answer is due.
        in_form = bool(self._course.flaws["wrong_form"])
        request = ChatRequest(
            messages=tuple(self._course.conversation.messages),
            model=self._agent.model,
            temperature=self._temperature,
            max_tokens=max_tokens,
            response_format=self._response_format if in_form else None,
            tools=self._offered,
            tool_choice=self._choice() if self._offered else None,
        )
        return await self._client.chat(request, self._listener)

    def _choice(self) -> str:
        return self._tool_choice if self._calls_allowed else NO_CALLS

    def _room_for_answer(self) -> int:
        """Return how many tokens the answer may have; drop outputs that are in its way.

        The least when there is no room: the estimate is cautious, and the server knows better.
        """
        wanted, limit = self._agent.max_tokens, self._context_tokens
        if limit is not None:
            kept_free = min(wanted, int(limit * ANSWER))
            if self._expected() + kept_free > limit * FULL:
                self._drop(self._expected() + kept_free - int(limit * AFTER_DROPPING))
            room = int(limit * FULL) - self._expected()
            wanted = min(wanted, max(room, MIN_ANSWER_TOKENS))
        return self._budget.answer_tokens(self._course.spent, self._expected(), wanted)

    def _drop(self, tokens: int, *, newest: bool = False) -> bool:
        """Drop the oldest outputs, and what old calls were given, of about so many tokens.

        Tell whether there are any.
        """
        conversation = self._course.conversation
        before, expected = conversation.characters, self._expected()
        if outputs := conversation.oldest_outputs(tokens, newest=newest):
            self._course.happened(Trimmed(indices=outputs))
        tokens -= expected - self._expected()
        if calls := conversation.oldest_calls(tokens, newest=newest):
            self._course.happened(Shortened(indices=calls))
        if not outputs and not calls:
            return False
        dropped = before - conversation.characters
        self._record.note(
            "context.trimmed", outputs=len(outputs), calls=len(calls), characters=dropped
        )
        return True

    def _expected(self) -> int:
        return self._course.conversation.expected_tokens(self._offered)

    async def _hear(self, text: str) -> None:
        await self._record.progress("token", text=text)
