from hypothesis import given
from hypothesis import strategies as st

from agent_actors.local.model_server.tokens import pieces, prompt_tokens
from agent_actors.local.model_server.wire import ChatRequest, Message, Tool, ToolFunction


@given(st.text())
def test_the_pieces_of_a_text_are_the_text(text: str):
    assert "".join(pieces(text)) == text


def test_a_long_word_takes_several_tokens():
    assert len(pieces("incomprehensibilities")) == 3


def test_tools_count_as_part_of_the_prompt():
    messages = [Message(role="user", content="Hello")]
    plain = ChatRequest(messages=messages)
    with_tools = ChatRequest(
        messages=messages, tools=[Tool(function=ToolFunction(name="write_file"))]
    )
    assert prompt_tokens(with_tools) > prompt_tokens(plain)
