"""A task that is taken over goes on from its last turn, and nothing that writes is done twice."""

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.agents import (
    GRANT,
    Agent,
    Folders,
    Killed,
    MemoryJournal,
    Note,
    ScriptedModel,
    call,
    last,
    raw_call,
    reply,
    told,
    write_note,
)

from agent_actors.contract import Operation
from agent_actors.errors import (
    BudgetExceeded,
    FencedOut,
    ModelUnavailable,
    RepeatedToolCall,
    ToolError,
    ToolFailed,
)
from agent_actors.ports import ChatMessage, ChatReply, ChatRequest, ToolCall
from agent_actors.strategies.saved_turns import Replied, read_pages
from agent_actors.strategies.tool_calls import OUTCOME_UNKNOWN
from agent_actors.tools.registry import Surroundings, Tool, ToolOutput, tool
from agent_actors.tools.toolbox import Toolbox

DONE = reply("Done.")


def write(known: str = "c", text: str = "x") -> ToolCall:
    return call("write_note", known, name="a", text=text)


READ = call("read_note", name="found")


class Resumed:
    """Attempts at one task: each has the journal, and the workspaces, of those before."""

    def __init__(self, root: Path, *script: ChatReply, **settings: object) -> None:
        self.root = root
        self.folders = Folders(root)
        self.script = script
        self.settings = settings
        self.pages: list[bytes] = []

    async def killed_at(
        self, append: int, *, is_stored: bool = True, **constraints: object
    ) -> Agent:
        agent, journal = self._agent(), MemoryJournal(self.pages, append, is_stored=is_stored)
        with pytest.raises(Killed):
            await agent.run(journal, **constraints)
        self.pages = journal.pages
        return agent

    async def finished(self, skipped: int, **constraints: object) -> Agent:
        """Run to the end with a model that is not asked the first turns again."""
        agent, journal = self._agent(skipped), MemoryJournal(self.pages)
        await agent.run(journal, **constraints)
        self.pages = journal.pages
        return agent

    def _agent(self, skipped: int = 0) -> Agent:
        model = ScriptedModel(*self.script[skipped:])
        return Agent(self.root, model, folders=self.folders, **self.settings)


def note(resumed: Resumed) -> str:
    return (resumed.folders.made[0].path / "a").read_text()


async def test_the_journal_is_written_once_a_turn_and_once_a_call_that_writes(tmp_path):
    async def appends(*calls: ToolCall) -> int:
        journal = MemoryJournal()
        folders = Folders(Path(tempfile.mkdtemp(dir=tmp_path)))
        await Agent(tmp_path, ScriptedModel(reply("", *calls), DONE), folders=folders).run(journal)
        return journal.appends

    assert await appends(READ, READ, READ) == 2
    assert await appends(write()) == 3
    assert await appends(write("1"), write("2"), READ, write("3")) == 5


async def test_an_answer_at_once_keeps_nothing(tmp_path):
    journal = MemoryJournal()
    await Agent(tmp_path, ScriptedModel(DONE)).run(journal)
    assert journal.pages == []


async def test_a_task_goes_on_from_its_last_turn_without_paying_for_the_earlier_ones(tmp_path):
    task = Resumed(tmp_path, reply("I read.", READ), reply("", write()), DONE)
    first = await task.killed_at(0)
    second = await task.finished(skipped=1)
    assert second.record.proposal.content == "Done."
    assert len(task.folders.made) == 1
    assert [operation.operation for operation in second.record.operations] == ["read", "write"]
    assert second.record.usage.total_tokens == 330
    assert second.record.artifacts == {"written": ["a"], "files_changed": ["a"]}
    assert second.kinds() == [
        "workspace.prepared",
        "turn.answered",
        "model.said",
        "task.resumed",
        "turn.answered",
        "turn.answered",
    ]
    (asked,) = first.model.asked
    sent = second.model.asked[0].messages[: len(asked.messages)]
    assert msgspec.json.encode(sent) == msgspec.json.encode(asked.messages)
    assert told(second.model.asked[0]) == ["found"]


@pytest.mark.parametrize("tool_choice", ["auto", "required"])
async def test_an_answer_that_is_not_told_yet_is_not_asked_for_again(tmp_path, tool_choice):
    answer = {"auto": DONE, "required": reply("", call("finish", answer="Done."))}[tool_choice]
    task = Resumed(tmp_path, reply("", write()), answer, tool_choice=tool_choice)
    await task.killed_at(2)
    second = await task.finished(skipped=2)
    assert second.model.asked == []
    assert second.record.proposal.content == "Done."
    assert (second.record.usage.total_tokens, len(second.record.operations)) == (220, 1)
    assert second.record.artifacts == {"written": ["a"], "files_changed": ["a"]}


async def test_an_answer_after_one_that_was_cut_off_is_not_asked_for_again(tmp_path):
    task = Resumed(tmp_path, reply("One, ", finish_reason="length"), reply("two."))
    await task.killed_at(1)
    second = await task.finished(skipped=2)
    assert second.record.proposal.content == "One, two."


async def test_calls_that_are_left_find_tools_that_come_and_go(tmp_path):
    @tool("notes", reads=False)
    async def remote(surroundings: Surroundings, arguments: Note) -> ToolOutput:
        """Lie elsewhere."""
        return ToolOutput(text="done elsewhere")

    class Elsewhere:
        async def tools(self) -> list[Tool]:
            return [remote]

    class WithRemote(Agent):
        def _toolbox(self, _request, workspace):
            surroundings = Surroundings(workspace=workspace, settings=self.settings, web=None)
            return Toolbox([write_note], GRANT, surroundings, [Elsewhere()])

    folders, journal = Folders(tmp_path), MemoryJournal(dies_at=0)
    both = reply("", write("1"), call("remote", "2", name="x"))
    with pytest.raises(Killed):
        await WithRemote(tmp_path, ScriptedModel(both), folders=folders).run(journal)
    second = WithRemote(tmp_path, ScriptedModel(DONE), folders=folders)
    await second.run(MemoryJournal(journal.pages))
    assert told(second.model.asked[0]) == [f"Error: {OUTCOME_UNKNOWN}", "done elsewhere"]


async def test_a_writing_call_that_was_begun_is_not_run_again_and_told_as_unknown(tmp_path):
    task = Resumed(tmp_path, reply("", write("1", "one "), write("2", "two")), DONE)
    await task.killed_at(1)  # the first one is done, the second is begun
    second = await task.finished(skipped=1)
    assert told(second.model.asked[0]) == ["written", f"Error: {OUTCOME_UNKNOWN}"]
    assert note(task) == "one "
    failed = second.record.operations[1]
    assert failed == Operation(
        tool="notes",
        operation="write",
        params={"name": "a", "text": "two"},
        error=OUTCOME_UNKNOWN,
    )


async def test_a_writing_call_that_was_done_and_not_noted_is_not_run_again(tmp_path):
    task = Resumed(tmp_path, reply("", write()), DONE)
    await task.killed_at(1, is_stored=False)
    assert note(task) == "x"
    second = await task.finished(skipped=1)
    assert told(second.model.asked[0]) == [f"Error: {OUTCOME_UNKNOWN}"]
    assert note(task) == "x"


async def test_calls_after_the_one_that_was_cut_off_are_run(tmp_path):
    calls = write("1", "one "), READ, write("2", "two")
    task = Resumed(tmp_path, reply("", *calls), DONE)
    await task.killed_at(0)
    second = await task.finished(skipped=1)
    assert told(second.model.asked[0]) == [f"Error: {OUTCOME_UNKNOWN}", "found", "written"]
    assert note(task) == "two"


async def test_a_call_whose_outcome_is_unknown_has_failed(tmp_path):
    task = Resumed(tmp_path, reply("", write()), DONE)
    await task.killed_at(0)
    with pytest.raises(ToolFailed, match="outcome unknown"):
        await task.finished(skipped=1, abort_on_error=True)


async def test_budgets_go_on_from_where_they_were(tmp_path):
    turns = [reply("", write(text=str(n))) for n in range(3)]
    for bounds in ({"max_operations": 2}, {"max_iterations": 2}):
        task = Resumed(Path(tempfile.mkdtemp(dir=tmp_path)), *turns)
        await task.killed_at(1)
        with pytest.raises(BudgetExceeded):
            await task.finished(skipped=1, **bounds)
        assert note(task) == "01"


async def test_failures_are_counted_on(tmp_path):
    wrong = reply("", raw_call("write_note", "{"))
    task = Resumed(tmp_path, wrong, wrong, wrong)
    await task.killed_at(3)
    with pytest.raises(RepeatedToolCall):
        await task.finished(skipped=2)


async def test_an_answer_that_was_cut_off_is_gone_on_with(tmp_path):
    task = Resumed(tmp_path, reply("One, ", finish_reason="length"), reply("two."))
    await task.killed_at(0)
    second = await task.finished(skipped=1)
    assert second.record.proposal.content == "One, two."
    assert last(second.model.asked[0]).role == "user"


async def test_a_task_whose_model_is_away_keeps_its_workspace_for_the_next_attempt(tmp_path):
    folders, journal = Folders(tmp_path), MemoryJournal()
    with pytest.raises(ModelUnavailable):
        await Agent(tmp_path, ScriptedModel(ModelUnavailable()), folders=folders).run(journal)
    await Agent(tmp_path, ScriptedModel(DONE), folders=folders).run(MemoryJournal(journal.pages))
    assert len(folders.made) == 1


async def test_without_its_workspace_a_task_starts_anew(tmp_path):
    task = Resumed(tmp_path, reply("", write()), DONE)
    await task.killed_at(1)
    shutil.rmtree(task.folders.made[0].path)
    second = await task.finished(skipped=0)
    assert second.kinds()[0] == "task.restarted"
    assert len(task.folders.made) == 2
    assert [operation.success for operation in second.record.operations] == [True]
    assert second.record.usage.total_tokens == 330


async def test_a_task_that_started_anew_goes_on_from_its_new_beginning(tmp_path):
    task = Resumed(tmp_path, reply("", write()), DONE)
    await task.killed_at(1)
    shutil.rmtree(task.folders.made[0].path)
    await task.killed_at(1)
    third = await task.finished(skipped=1)
    assert third.record.usage.total_tokens == 330
    assert len(task.folders.made) == 2
    assert len(task.pages) == 3  # of the first beginning none is left


@pytest.mark.parametrize(
    ("bounds", "turns"),
    [({"max_iterations": 5}, 5), ({"max_operations": 4}, 5), ({"token_budget": 900}, 4)],
)
async def test_budgets_hold_however_often_a_task_starts_anew(tmp_path, bounds, turns):
    journal, folders, asked = MemoryJournal(), Folders(tmp_path), 0
    while True:
        model = ScriptedModel(reply("", READ), reply("", READ), ModelUnavailable("away"))
        agent = Agent(tmp_path, model, folders=folders)
        try:
            await agent.run(journal, max_tokens=64, **bounds)
        except ModelUnavailable:
            asked += 2
            shutil.rmtree(folders.made[-1].path)
        except BudgetExceeded:
            asked += len(model.asked)
            break
    assert asked == turns
    assert agent.record.usage.total_tokens == 110 * asked
    (restarted,) = [e.detail for e in agent.record.audit_trail if e.event == "task.restarted"]
    assert (restarted["turns"], restarted["operations"], restarted["tokens"]) == (4, 4, 440)
    assert sum(map(len, journal.pages)) < 3 * len(journal.pages[0])


@pytest.mark.parametrize(
    "page", [b"", b"\xff", b"[]", b'{"entries": [{"type": "replied.9"}]}', b"[" * 9_000]
)
async def test_a_journal_that_cannot_be_read_starts_the_task_anew(tmp_path, page):
    task = Resumed(tmp_path, reply("", READ), DONE)
    await task.killed_at(0)
    task.pages.append(page)
    second = await task.finished(skipped=0)
    assert second.kinds()[0] == "task.restarted"
    assert second.record.usage.total_tokens == 330


async def test_who_has_lost_the_task_touches_nothing_more(tmp_path):
    agent = Agent(tmp_path, ScriptedModel(reply("", write())))
    with pytest.raises(FencedOut):
        await agent.run(MemoryJournal(dies_at=0, is_stored=False, error=FencedOut()))
    assert not (agent.folder.path / "a").exists()
    assert agent.record.artifacts == {}
    assert agent.folder.is_closed


def test_pages_of_this_version_stay_readable():
    opened = {
        "type": "opened.1",
        "workspace": {"path": "/w", "token": "t"},
        "messages": [{"role": "system", "content": "s"}],
    }
    called = {"type": "function", "id": "c", "function": {"name": "n", "arguments": "{}"}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    answer = {
        "content": "",
        "finish_reason": "tool_calls",
        "model": "m",
        "usage": usage,
        "tool_calls": [called],
    }
    result = {
        "call_id": "c",
        "told": "t",
        "operation": {"tool": "notes", "operation": "write", "success": True},
        "artifacts": {"written": ["a"]},
    }
    entries = [
        opened,
        {"type": "trimmed.1", "indices": [1]},
        {"type": "shortened.1", "indices": [1]},
        {"type": "replied.1", "reply": answer},
        {"type": "call_begun.1", "call_id": "c"},
        {"type": "calls_done.1", "results": [result]},
        {"type": "warned.1", "text": "w"},
        {"type": "asked_again.1", "flaw": "empty", "text": "t"},
    ]
    (page,) = read_pages([msgspec.json.encode({"entries": entries})])
    assert len(page.entries) == len(entries)


# Any task, killed anywhere.

KINDS = ("read", "write", "failing read", "failing write", "unreadable", "unknown", "refused")


def make_call(kind: str, turn: int, number: int) -> ToolCall:
    key = f"{turn}-{number}"
    match kind:
        case "read":
            return call("read_note", key, name="found")
        case "write":
            return call("jot", key, name="ok", text=key)
        case "failing read":
            return call("read_note", key, name=key)
        case "failing write":
            return call("jot", key, name="fail", text=key)
        case "unreadable":
            return raw_call("jot", f'{{"{key}', key)
        case "unknown":
            return call("nothing", key, name=key)
        case _:
            return call("read_secret", key, name=key)


@dataclass
class World:
    """A model that answers by how far the talk is, and what was seen over all attempts."""

    script: list[ChatReply]
    asked: list[tuple[int, list[ChatMessage]]] = field(default_factory=list)
    jotted: Counter[str] = field(default_factory=Counter)

    async def chat(self, request: ChatRequest, listener: object = None) -> ChatReply:
        turn = sum(message.role == "assistant" for message in request.messages)
        self.asked.append((turn, list(request.messages)))
        return self.script[turn]

    async def context_length(self, model: str = "") -> int | None:
        return None


def journalled(pages: list[bytes]) -> int:
    entries = [entry for page in read_pages(pages) for entry in page.entries]
    return sum(isinstance(entry, Replied) for entry in entries)


kills = st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=4)
turns = st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), max_size=4)


@settings(max_examples=150, deadline=None)
@given(turns=turns, kills=kills)
async def test_whenever_a_task_is_killed_nothing_is_written_or_asked_twice(turns, kills):
    calls = [
        [make_call(kind, turn, number) for number, kind in enumerate(kinds)]
        for turn, kinds in enumerate(turns)
    ]
    world = World([*(reply("Said.", *each) for each in calls), DONE])

    @tool("notes", reads=False)
    async def jot(surroundings: Surroundings, arguments: Note) -> ToolOutput:
        """Count, and fail if told to."""
        world.jotted[arguments.text] += 1
        if arguments.name == "fail":
            raise ToolError("told to fail")
        return ToolOutput(text="jotted", artifacts={"jotted": [arguments.text]})

    with tempfile.TemporaryDirectory() as root:
        folders, pages = Folders(Path(root)), []
        for at, is_stored in [*kills, (-1, True)]:
            known = journalled(pages)
            journal = MemoryJournal(pages, at, is_stored=is_stored)
            before = len(world.asked)
            agent = Agent(Path(root), world, jot, folders=folders)
            try:
                await agent.run(journal)
            except Killed:
                pages = journal.pages
                continue
            finally:
                assert all(turn >= known for turn, _ in world.asked[before:])
            break

    record = agent.record
    assert record.proposal is not None
    assert max(world.jotted.values(), default=0) <= 1
    expected = [made for each in calls for made in each]
    assert len(record.operations) == len(expected)
    for operation, made in zip(record.operations, expected, strict=True):
        tool_of_it = {"read_note": "read", "read_secret": "read_secret"}.get(made.function.name)
        assert operation.operation == (tool_of_it or made.function.name)
        if operation.success and operation.operation == "jot":
            assert world.jotted[made.id] == 1
            assert made.id in record.artifacts["jotted"]
    assert record.usage.total_tokens == 110 * len(world.script)
    assert agent.kinds().count("turn.answered") == len(world.script)
    for (sooner, start), (later, messages) in zip(world.asked, world.asked[1:], strict=False):
        assert later >= sooner
        assert messages[: len(start)] == start
