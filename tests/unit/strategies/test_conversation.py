"""What a chat takes of the model's context, and what is dropped when that runs out."""

from collections.abc import Sequence

import msgspec
import pytest
from support.agents import Agent, Folders, Killed, MemoryJournal, call, last, reply

from agent_actors.contract import Usage
from agent_actors.errors import ContextExceeded
from agent_actors.ports import ChatMessage, ChatReply, ChatRequest
from agent_actors.strategies.conversation import Conversation

USAGE = Usage(prompt_tokens=1_000, completion_tokens=50, total_tokens=1_050)
LONG = "x" * 3_000


def said(role: str, content: str) -> ChatMessage:
    return ChatMessage(role=role, content=content)


def conversation(*outputs: str) -> Conversation:
    chat = Conversation()
    chat.add(said("system", "s"), said("user", "u"))
    for output in outputs:
        chat.add_reply(said("assistant", ""), USAGE)
        chat.add(said("tool", output))
    return chat


def test_before_the_first_answer_all_is_estimated_with_the_tools():
    chat = conversation()
    assert chat.expected_tokens([]) < 20
    chat.add(said("user", "ü" * 300))
    assert 200 < chat.expected_tokens([]) < 230  # bytes: other scripts have more tokens a letter


def test_after_an_answer_only_what_came_since_is_estimated():
    assert conversation("x" * 288).expected_tokens([]) == 1_050 + 100


def test_a_server_that_counts_nothing_is_not_believed():
    chat = Conversation()
    chat.add(said("user", LONG))
    chat.add_reply(said("assistant", LONG), Usage())
    assert chat.expected_tokens([]) > 2_000


def test_the_oldest_outputs_are_dropped_first_and_the_newest_only_when_it_has_to_be():
    chat = conversation(LONG, LONG, "short", LONG)
    assert chat.oldest_outputs(1) == (3,)
    assert chat.oldest_outputs(10**9) == (3, 5)
    assert chat.oldest_outputs(10**9, newest=True) == (3, 5, 9)


def test_dropping_makes_room_and_says_how_much_was_there():
    chat = conversation(LONG, LONG)
    before = chat.expected_tokens([])
    chat.drop([3])
    assert chat.messages[3].content == "[output dropped: 3000 characters]"
    assert 500 < before - chat.expected_tokens([]) < 1_000


def wrote(*texts: str) -> Conversation:
    chat = Conversation()
    for text in texts:
        chat.add(ChatMessage(role="user", content="Write."))
        calls = [call("write_note", name="a", text=text, lines=[1, 2])]
        chat.add_reply(ChatMessage(role="assistant", content=None, tool_calls=calls), USAGE)
    return chat


def test_the_oldest_calls_with_long_arguments_are_found_like_outputs():
    chat = wrote(LONG, "short", LONG, LONG)
    assert chat.oldest_calls(0) == ()
    assert chat.oldest_calls(1) == (1,)
    assert chat.oldest_calls(10**9) == (1, 5)
    assert chat.oldest_calls(10**9, newest=True) == (1, 5, 7)


def test_a_call_that_is_shortened_stays_a_call_with_an_object():
    chat = wrote(LONG, "short")
    before = chat.expected_tokens([]), chat.characters
    chat.shorten_calls([1])
    (shortened,) = chat.messages[1].tool_calls
    assert (shortened.id, shortened.function.name) == ("c", "write_note")
    assert msgspec.json.decode(shortened.function.arguments) == {
        "name": "a",
        "text": "[dropped: 3000 characters]",
        "lines": [1, 2],
    }
    assert 500 < before[0] - chat.expected_tokens([]) < 1_000
    assert before[1] - chat.characters == 3_000 - len("[dropped: 3000 characters]")
    assert chat.oldest_calls(10**9) == ()


# In the loop: a model that counts for itself, a token for every four characters.


class Counting:
    """Writes and reads notes for some turns, then answers; refuses what is too long."""

    def __init__(self, turns: int, *, limit: int, note: str = LONG, says_limit: bool = True):
        self.asked: list[ChatRequest] = []
        self.refusals = 0
        self._turns = turns
        self._limit = limit
        self._note = note
        self._says_limit = says_limit

    async def chat(self, request: ChatRequest, listener: object = None) -> ChatReply:
        prompt = sum(len(message.content or "") for message in request.messages) // 4 + 300
        if prompt + request.max_tokens > self._limit:
            self.refusals += 1
            raise ContextExceeded(f"{prompt} tokens are too many")
        self.asked.append(request)
        usage = Usage(prompt_tokens=prompt, completion_tokens=10, total_tokens=prompt + 10)
        turn = len(self.asked)
        if turn > self._turns:
            return reply("Done.", usage=usage)
        if turn == 1:
            write = call("write_note", name="a", text=self._note)
            return reply("", write, usage=usage)
        return reply("", call("read_note", name="a"), usage=usage)

    async def context_length(self, model: str = "") -> int | None:
        return self._limit if self._says_limit else None


async def test_a_long_task_stays_within_the_context_and_says_what_it_dropped(tmp_path):
    model = Counting(20, limit=6_000)
    record = await Agent(tmp_path, model).run()
    assert record.proposal is not None
    assert model.refusals == 0
    trimmed = [event.detail for event in record.audit_trail if event.event == "context.trimmed"]
    assert trimmed
    assert all(detail["outputs"] >= 1 for detail in trimmed)
    assert not trimmed[0]["calls"]  # there were outputs enough
    assert all(detail["characters"] > 2_000 for detail in trimmed)
    assert all(last(asked).content in {LONG, "written"} for asked in model.asked[1:])


async def test_what_was_sent_once_seldom_changes(tmp_path):
    model = Counting(20, limit=6_000)
    await Agent(tmp_path, model).run()
    changes = [
        later.messages[: len(sooner.messages)] != sooner.messages
        for sooner, later in zip(model.asked, model.asked[1:], strict=False)
    ]
    assert 1 <= sum(changes) <= len(changes) // 2


@pytest.mark.parametrize("max_tokens", [500, 5_500])
async def test_an_answer_gets_what_is_left_of_the_context(tmp_path, max_tokens):
    model = Counting(3, limit=6_000)
    record = await Agent(tmp_path, model).run(max_tokens=max_tokens)
    assert model.refusals == 0
    assert "context.trimmed" not in [event.event for event in record.audit_trail]
    assert all(asked.max_tokens <= max_tokens for asked in model.asked)


async def test_a_server_that_refuses_for_length_is_asked_once_more_with_less(tmp_path):
    model = Counting(6, limit=3_400, says_limit=False)
    record = await Agent(tmp_path, model).run()
    assert record.proposal is not None
    assert model.refusals >= 1
    assert "context.trimmed" in [event.event for event in record.audit_trail]


@pytest.mark.parametrize("append", [2, 5, 8, 11])
async def test_who_takes_over_sends_what_would_have_been_sent(tmp_path, append):
    (whole_folder := tmp_path / "whole").mkdir()
    whole = Counting(12, limit=6_000)
    await Agent(whole_folder, whole).run()
    assert any("dropped" in (message.content or "") for message in last_messages(whole))

    folders, journal = Folders(tmp_path), MemoryJournal(dies_at=append)
    model = Counting(12, limit=6_000)
    with pytest.raises(Killed):
        await Agent(tmp_path, model, folders=folders).run(journal)
    await Agent(tmp_path, model, folders=folders).run(MemoryJournal(journal.pages))
    assert [asked.messages for asked in model.asked] == [asked.messages for asked in whole.asked]


def last_messages(model: Counting) -> Sequence[ChatMessage]:
    return model.asked[-1].messages


class Writing:
    """Writes another file in each turn; counts what calls are given, and how it is asked."""

    def __init__(self, turns: int, *, limit: int) -> None:
        self.asked: list[ChatRequest] = []
        self._turns = turns
        self._limit = limit

    async def chat(self, request: ChatRequest, listener: object = None) -> ChatReply:
        prompt = len(msgspec.json.encode(request.messages)) // 4
        assert prompt + request.max_tokens <= self._limit
        self.asked.append(request)
        usage = Usage(prompt_tokens=prompt, completion_tokens=800, total_tokens=prompt + 800)
        turn = len(self.asked)
        if turn > self._turns:
            return reply("Done.", usage=usage)
        return reply("", call("write_note", name=f"n{turn}", text=LONG), usage=usage)

    async def context_length(self, model: str = "") -> int | None:
        return self._limit


async def test_an_agent_that_writes_much_has_room_for_its_answers(tmp_path):
    model = Writing(30, limit=8_000)
    record = await Agent(tmp_path, model).run(max_tokens=1_000)
    assert record.proposal is not None
    assert min(asked.max_tokens for asked in model.asked) == 1_000
    trimmed = [event.detail for event in record.audit_trail if event.event == "context.trimmed"]
    assert 1 <= len(trimmed) <= 10
    assert all(detail["calls"] >= 1 and detail["outputs"] == 0 for detail in trimmed)
    for message in model.asked[-1].messages:
        for sent in message.tool_calls:
            assert set(msgspec.json.decode(sent.function.arguments)) == {"name", "text"}
    assert LONG in model.asked[-1].messages[-2].tool_calls[0].function.arguments


@pytest.mark.parametrize("append", [9, 20, 33])
async def test_who_takes_over_sends_shortened_calls_alike(tmp_path, append):
    (whole_folder := tmp_path / "whole").mkdir()
    whole = Writing(20, limit=8_000)
    await Agent(whole_folder, whole).run()

    folders, journal = Folders(tmp_path), MemoryJournal(dies_at=2 * (append // 2) + 1)
    model = Writing(20, limit=8_000)
    with pytest.raises(Killed):
        await Agent(tmp_path, model, folders=folders).run(journal)
    await Agent(tmp_path, model, folders=folders).run(MemoryJournal(journal.pages))
    assert [asked.messages for asked in model.asked] == [asked.messages for asked in whole.asked]


async def test_an_output_too_long_by_itself_is_dropped_when_the_server_refuses_it(tmp_path):
    model = Counting(2, limit=1_400, says_limit=False)
    record = await Agent(tmp_path, model).run()
    assert record.proposal is not None
    assert model.refusals == 2
    told = last_messages(model)[-1].content or ""
    assert told.startswith("[output dropped before you saw it: 3000 characters")
    assert told.endswith("ask for less]")


async def test_what_does_not_fit_with_nothing_left_to_drop_fails_as_the_server_says(tmp_path):
    model = Counting(1, limit=500)
    with pytest.raises(ContextExceeded, match="tokens are too many"):
        await Agent(tmp_path, model).run()
    assert model.refusals in {1, 2}
