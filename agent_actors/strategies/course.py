"""The course of one task: all that has happened, from which everything else follows.

Whatever happens is an entry, applied here and kept in the journal. Who takes the task over
applies the same entries, and so has the same conversation, record and counts to go on from.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from agent_actors.errors import ToolError
from agent_actors.ports import (
    AttemptRecord,
    CalledFunction,
    ChatMessage,
    ChatReply,
    ToolCall,
)
from agent_actors.strategies.budget import Spent
from agent_actors.strategies.conversation import Conversation
from agent_actors.strategies.finish import answer_in
from agent_actors.strategies.saved_turns import (
    AskedAgain,
    CallBegun,
    CallDone,
    CallsDone,
    Entry,
    Flaw,
    Opened,
    Page,
    Replied,
    Shortened,
    Trimmed,
    Warned,
    spent_after,
    written,
)
from agent_actors.strategies.shortening import short_parameters
from agent_actors.tools.toolbox import parameters_of

# In how many turns running each call has failed, by its name and arguments.
Failures = dict[tuple[str, str], int]


class Course:
    """Where a task stands.

    `reply` is the model's last one, until it was asked again; `pending` are those of its calls
    that have no result yet.
    """

    def __init__(self, record: AttemptRecord) -> None:
        self.record = record
        self.conversation = Conversation()
        self.spent = Spent()
        self.is_estimated = False
        self.reply: ChatReply | None = None
        self.pending: dict[str, ToolCall] = {}
        self.begun: set[str] = set()
        self.flaws: Counter[Flaw] = Counter()
        self._cut_off_text = ""
        self._failures: Failures = {}
        self._earlier_failures: Failures = {}
        self._unsaved: list[Entry] = []
        self._saved_events = 0

    @property
    def is_models_turn(self) -> bool:
        """Whether the model is to go on: all that it has said was answered."""
        return self.reply is None or (bool(self.reply.tool_calls) and not self.pending)

    @property
    def answer(self) -> str | None:
        """What the model answers the task with; None when it made calls and has their results.

        The calls of its reply must have been run: what is still pending is `finish`.
        """
        if self.pending:
            return answer_in(next(iter(self.pending.values())))
        if self.reply is None or self.reply.tool_calls:
            return None
        return self._cut_off_text + self.reply.content

    def failures_of(self, call: ToolCall) -> int:
        """Return in how many turns running this call has failed, the last turn included."""
        return self._failures.get(_key(call), 0)

    def happened(self, entry: Entry) -> None:
        """Take note; nothing is stored before `save`."""
        self._apply(entry)
        self._unsaved.append(entry)

    async def save(self) -> None:
        """Store what has happened since the last time. Raises FencedOut."""
        if not self._unsaved:
            return
        events = self.record.audit_trail[self._saved_events :]
        page = Page(entries=tuple(self._unsaved), audit_trail=events)
        self._unsaved, self._saved_events = [], len(self.record.audit_trail)
        journal = self.record.journal
        store = journal.begin_anew if page.opened else journal.append
        await store(written(page))

    def replay(self, pages: Iterable[Page]) -> None:
        """Take over what an earlier attempt has stored."""
        for page in pages:
            for entry in page.entries:
                self._apply(entry)
            self.record.audit_trail.extend(page.audit_trail)
        self._saved_events = len(self.record.audit_trail)

    def _apply(self, entry: Entry) -> None:
        self.spent = spent_after(self.spent, entry)
        self.record.usage = self.spent.usage
        match entry:
            case Opened(messages=messages):
                self.conversation.add(*messages)
            case Trimmed(indices=indices):
                self.conversation.drop(indices)
            case Shortened(indices=indices):
                self.conversation.shorten_calls(indices)
            case Replied(reply=reply, estimate=estimate):
                self.is_estimated = self.is_estimated or estimate is not None
                self._apply_reply(reply)
            case CallBegun(call_id=call_id):
                self.begun.add(call_id)
            case CallsDone(results=results):
                for result in results:
                    self._apply_result(result)
            case Warned(text=text):
                self.conversation.add_to_last(text)
            case AskedAgain(flaw=flaw, text=text):
                self._apply_objection(flaw, text)

    def _apply_reply(self, reply: ChatReply) -> None:
        self.reply = reply
        self.record.model = reply.model or self.record.model
        calls = _with_different_ids(reply.tool_calls)
        self.pending = {call.id: call for call in calls}
        if calls:
            self._cut_off_text = ""
            self._earlier_failures, self._failures = self._failures, {}
        message = ChatMessage(
            role="assistant",
            content=reply.content or (None if calls else ""),
            tool_calls=[_readable(call) for call in calls],
        )
        self.conversation.add_reply(message, reply.usage)

    def _apply_result(self, result: CallDone) -> None:
        call = self.pending.pop(result.call_id)
        self.begun.discard(result.call_id)
        self._answer_call(call, result.told)
        self.record.operations.append(result.operation)
        for name, values in result.artifacts.items():
            self.record.artifacts.setdefault(name, []).extend(values)
        if not result.operation.success:
            self._failures[_key(call)] = self._earlier_failures.get(_key(call), 0) + 1

    def _apply_objection(self, flaw: Flaw, text: str) -> None:
        self.flaws[flaw] += 1
        if flaw == "cut_off" and self.reply is not None:
            self._cut_off_text += self.reply.content
        else:
            self._cut_off_text = ""
        self.reply = None
        if not self.pending:
            self.conversation.add(ChatMessage(role="user", content=text))
        for call in self.pending.values():
            self._answer_call(call, text)
        self.pending = {}

    def _answer_call(self, call: ToolCall, text: str) -> None:
        self.conversation.add(ChatMessage(role="tool", content=text, tool_call_id=call.id))


def _key(call: ToolCall) -> tuple[str, str]:
    return call.function.name, call.function.arguments


def _with_different_ids(calls: Sequence[ToolCall]) -> list[ToolCall]:
    """Return the calls, each with an id of its own, so that each result has its call."""
    taken: dict[str, ToolCall] = {}
    for number, call in enumerate(calls):
        known = call.id
        while not known or known in taken:
            known = f"{known or 'call'}-{number}"
        taken[known] = replace(call, id=known)
    return list(taken.values())


def _readable(call: ToolCall) -> ToolCall:
    """Return the call as it can be sent back.

    vLLM parses the arguments of earlier calls, and refuses the whole chat when they are no JSON.
    """
    try:
        parameters_of(call)
    except ToolError:
        arguments = msgspec.json.encode(short_parameters(call)).decode()
    else:
        arguments = call.function.arguments or "{}"
    return replace(call, function=CalledFunction(name=call.function.name, arguments=arguments))
