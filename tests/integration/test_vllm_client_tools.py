"""Tool calls on their way from the simulated server to the client and back."""

import pytest
from support.model_client import client

from agent_actors.local.model_server.script import Script, ScriptedCall, ScriptedReply
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings
from agent_actors.ports import (
    ChatMessage,
    ChatReply,
    ChatRequest,
    FunctionName,
    NamedTool,
    OfferedFunction,
    OfferedTool,
)

ASKED = ChatMessage(role="user", content="Write a module")
PATH = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
TOOLS = [
    OfferedTool(function=OfferedFunction(name=name, description="Do it.", parameters=PATH))
    for name in ("read_file", "delete_file")
]
NAMED = NamedTool(function=FunctionName(name="read_file"))


async def nobody(text: str) -> None:
    """Listen to nothing."""


def serving(*replies: ScriptedReply) -> ModelServerSettings:
    return ModelServerSettings(script=Script(replies=replies))


def said(reply: ChatReply) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in reply.tool_calls]


@pytest.mark.parametrize("listener", [None, nobody])
@pytest.mark.parametrize(
    ("choice", "finish_reason"),
    [("auto", "tool_calls"), ("required", "tool_calls"), (NAMED, "stop")],
)
async def test_calls_are_the_same_whatever_led_to_them(
    choice: str | NamedTool, finish_reason: str, listener
):
    calls = (
        ScriptedCall(name="read_file", arguments='{"path": "dèque.py"}'),
        ScriptedCall(name="delete_file", arguments="{}"),
    )
    request = ChatRequest(messages=(ASKED,), tools=TOOLS, tool_choice=choice)
    async with (
        running_model_server(serving(ScriptedReply(tool_calls=calls))) as server,
        client(server.url) as asking,
    ):
        reply = await asking.chat(request, listener)
    assert said(reply) == [("read_file", '{"path": "dèque.py"}'), ("delete_file", "{}")]
    assert (reply.content, reply.finish_reason) == ("", finish_reason)
    assert len({call.id for call in reply.tool_calls}) == 2
    assert reply.usage.completion_tokens > 0


async def test_a_call_cut_off_is_text_and_streamed_a_call_in_part():
    call = ScriptedCall(name="read_file", arguments='{"path": "a/long/path/to/a/file.py"}')
    scripted = ScriptedReply(tool_calls=(call,), times=2)
    request = ChatRequest(messages=(ASKED,), tools=TOOLS, max_tokens=16)
    async with running_model_server(serving(scripted)) as server, client(server.url) as asking:
        whole = await asking.chat(request)
        streamed = await asking.chat(request, nobody)
    assert whole.finish_reason == streamed.finish_reason == "length"
    assert (whole.content[:11], whole.tool_calls) == ("<tool_call>", ())
    ((name, arguments),) = said(streamed)
    assert name == "read_file"
    assert call.arguments.startswith(arguments)
    assert arguments != call.arguments


@pytest.mark.parametrize("listener", [None, nobody])
async def test_a_calls_result_is_sent_back(listener):
    read = ScriptedCall(name="read_file", arguments={"path": "a.py"})
    broken = ScriptedCall(name="read_file", arguments="{'path")
    replies = (ScriptedReply(tool_calls=(read, broken)), ScriptedReply(content="It is empty."))
    async with running_model_server(serving(*replies)) as server, client(server.url) as asking:
        turn = await asking.chat(ChatRequest(messages=(ASKED,), tools=TOOLS), listener)
        messages = [
            ASKED,
            ChatMessage(role="assistant", content=turn.content, tool_calls=turn.tool_calls),
            *(
                ChatMessage(role="tool", content="nothing", tool_call_id=call.id)
                for call in turn.tool_calls
            ),
        ]
        last = await asking.chat(ChatRequest(messages=messages, tools=TOOLS), listener)
    assert (last.content, last.tool_calls) == ("It is empty.", ())
    sent = server.requests[1].json["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["tool_calls"][0] == {
        "type": "function",
        "id": sent[2]["tool_call_id"],
        "function": {"name": "read_file", "arguments": '{"path":"a.py"}'},
    }
    # As the model wrote it, vLLM before 0.26 would refuse the whole conversation.
    assert sent[1]["tool_calls"][1]["function"]["arguments"] == "{}"
