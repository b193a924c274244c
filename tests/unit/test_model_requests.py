"""What goes out to a model server, byte for byte."""

import pytest

from agent_actors.adapters.vllm.requests import encode_request
from agent_actors.ports import (
    CalledFunction,
    ChatMessage,
    ChatRequest,
    FunctionName,
    NamedTool,
    OfferedFunction,
    OfferedTool,
    ToolCall,
)

HAIL = ChatMessage(role="user", content="Hail")
HAIL_BYTES = b'{"messages":[{"role":"user","content":"Hail"}]'
WEATHER = OfferedTool(
    function=OfferedFunction(
        name="get_weather", description="Tell it.", parameters={"type": "object"}
    )
)
WEATHER_BYTES = (
    b'{"type":"function","function":{"name":"get_weather","description":"Tell it.",'
    b'"parameters":{"type":"object"}}}'
)


def calling(arguments: str) -> ChatMessage:
    function = CalledFunction(name="get_weather", arguments=arguments)
    return ChatMessage(
        role="assistant", content=None, tool_calls=(ToolCall(id="c-1", function=function),)
    )


def test_a_request_without_tools_has_nothing_of_them():
    request = ChatRequest(messages=(HAIL,), model="big", temperature=0.0, max_tokens=5)
    assert encode_request(request) == (
        HAIL_BYTES + b',"model":"big","temperature":0.0,"max_tokens":5}'
    )


@pytest.mark.parametrize("tools", [(), []])
@pytest.mark.parametrize("choice", [None, "auto", "required"])
def test_no_tools_are_left_out_with_the_choice_among_them(tools: list[OfferedTool], choice: str):
    request = ChatRequest(messages=(HAIL,), tools=tools, tool_choice=choice)
    assert encode_request(request) == HAIL_BYTES + b"}"


def test_tools_and_the_choice_among_them_go_out():
    request = ChatRequest(messages=(HAIL,), tools=(WEATHER,), tool_choice="required")
    assert encode_request(request) == (
        HAIL_BYTES + b',"tools":[' + WEATHER_BYTES + b'],"tool_choice":"required"}'
    )


def test_the_tool_to_call_is_named_as_vllm_wants_it():
    named = NamedTool(function=FunctionName(name="get_weather"))
    request = ChatRequest(messages=(HAIL,), tools=(WEATHER,), tool_choice=named)
    assert encode_request(request).endswith(
        b'"tool_choice":{"type":"function","function":{"name":"get_weather"}}}'
    )


def test_a_call_and_its_result_go_out_as_they_came():
    arguments = '{"city": "Paris",  "day": 1.50}'
    result = ChatMessage(role="tool", content="sunny", tool_call_id="c-1")
    assert encode_request(ChatRequest(messages=(HAIL, calling(arguments), result))) == (
        b'{"messages":[{"role":"user","content":"Hail"},'
        b'{"role":"assistant","content":null,"tool_calls":[{"type":"function","id":"c-1",'
        b'"function":{"name":"get_weather",'
        b'"arguments":"{\\"city\\": \\"Paris\\",  \\"day\\": 1.50}"}}]},'
        b'{"role":"tool","content":"sunny","tool_call_id":"c-1"}]}'
    )


@pytest.mark.parametrize(
    "arguments",
    ["", "Paris", "[1]", "3", "null", '{"city": "Par', '{"city": tru}', '{"a": ' + "[" * 100_000],
    ids=lambda arguments: arguments[:12] or "nothing",
)
def test_arguments_that_are_no_object_go_out_as_an_empty_one(arguments: str):
    # Else vLLM before 0.26 answers 400 to this request and to all that follow.
    assert encode_request(ChatRequest(messages=(calling(arguments),))) == (
        encode_request(ChatRequest(messages=(calling("{}"),)))
    )


def test_a_stream_is_asked_for_with_its_usage():
    request = ChatRequest(messages=(HAIL,), tools=(WEATHER,), tool_choice="auto")
    streamed = b',"stream":true,"stream_options":{"include_usage":true}}'
    assert encode_request(request, stream=True) == encode_request(request)[:-1] + streamed
