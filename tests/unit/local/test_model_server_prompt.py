import pytest

from agent_actors.contract import AgentRole
from agent_actors.local.model_server.prompt import fingerprint, role_in, task_in, tool_results
from agent_actors.local.model_server.wire import ChatRequest, Message
from agent_actors.strategies.prompts import GENERIC_PROMPT, ROLE_PROMPTS


def asked(*texts: str, role: str = "user") -> ChatRequest:
    return ChatRequest(messages=[Message(role=role, content=text) for text in texts])


@pytest.mark.parametrize("role", list(AgentRole))
def test_our_own_prompts_give_their_role_away(role: AgentRole):
    assert role_in(asked(ROLE_PROMPTS[role], role="system")) is role


@pytest.mark.parametrize("role", list(AgentRole))
def test_a_role_is_known_by_its_name(role: AgentRole):
    assert role_in(asked(f"Role: {role}. Answer the task.", role="system")) is role


def test_another_role_is_none_of_ours():
    assert role_in(asked(GENERIC_PROMPT.format(role="LAWYER"), role="system")) is None


def test_a_task_is_the_section_of_that_name():
    text = "# Rubric\n\nBe brief\n\n# Task\n\nSort a list.\nKeep it stable.\n\n# Metadata\n\nid: 7"
    assert task_in(asked(text)) == "Sort a list.\nKeep it stable."


def test_headings_within_a_task_belong_to_it():
    text = "# Task\n\nSort.\n\n# Examples\n\n1 2 3\n\n# Answer format\n\nJSON"
    assert task_in(asked(text)) == "Sort.\n\n# Examples\n\n1 2 3"


def test_a_task_may_be_a_line():
    assert task_in(asked("Context: none\nTask: Sort a list")) == "Sort a list"


def test_without_any_mark_all_of_the_last_user_message_is_the_task():
    assert task_in(asked("Hello", "Sort a list")) == "Sort a list"


def test_tool_results_are_those_since_the_user_spoke_last():
    chat = ChatRequest(
        messages=[
            Message(role="user", content="Go"),
            Message(role="tool", content="old"),
            Message(role="user", content="Again"),
            Message(role="assistant", content=None),
            Message(role="tool", content="first"),
            Message(role="assistant", content=None),
            Message(role="tool", content="second"),
        ]
    )
    assert [result.content for result in tool_results(chat)] == ["first", "second"]


def test_a_fingerprint_is_that_of_the_messages_alone():
    messages = [Message(role="user", content="Go")]
    one, other = ChatRequest(messages=messages), ChatRequest(messages=messages, temperature=0.5)
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(asked("Stop"))
