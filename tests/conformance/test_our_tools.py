"""Our client's tool calls, streams and questions, against a real vLLM and our simulation of one."""

import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from request_table import FAR_TOO_LONG, GET_WEATHER, TOO_LONG, schema_format
from vllm_server import API_KEY, MODEL, MODEL_LENGTH_TOKENS

from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.errors import ContextExceeded, ModelRefused
from agent_actors.ports import (
    CalledFunction,
    ChatMessage,
    ChatRequest,
    FunctionName,
    Listener,
    NamedTool,
    OfferedTool,
    ToolCall,
)

ASKED = ChatMessage(role="user", content="What is the weather in Paris?")
TOOLS = [msgspec.convert(GET_WEATHER, OfferedTool)]
NAMED = NamedTool(function=FunctionName(name="get_weather"))
CHOICES = pytest.mark.parametrize(
    ("choice", "finish_reason"),
    [(None, "tool_calls"), ("auto", "tool_calls"), ("required", "tool_calls"), (NAMED, "stop")],
    ids=["no choice", "auto", "required", "named"],
)
# Six tokens are the start of a call and its name, and not the end of its arguments.
CUT_TOKENS = 6


class Heard(list[str]):
    """A listener that remembers."""

    async def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture(params=["whole", "streamed"])
def listener(request: pytest.FixtureRequest) -> Listener | None:
    return Heard() if request.param == "streamed" else None


@pytest.fixture
async def client(server_url: str) -> AsyncIterator[VLLMHTTPClient]:
    async with VLLMHTTPClient(server_url, api_key=API_KEY, model=MODEL) as asking:
        yield asking


def asking_for(*messages: ChatMessage, **fields: object) -> ChatRequest:
    return ChatRequest(messages=messages, **({"temperature": 0.0, "max_tokens": 500} | fields))


@CHOICES
async def test_tool_is_called_with_arguments_that_fit(
    client: VLLMHTTPClient, listener: Listener | None, choice: str | None, finish_reason: str
):
    reply = await client.chat(asking_for(ASKED, tools=TOOLS, tool_choice=choice), listener)

    assert reply.tool_calls
    assert (reply.finish_reason, reply.content) == (finish_reason, "")
    for call in reply.tool_calls:
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome"}
    assert len({call.id for call in reply.tool_calls}) == len(reply.tool_calls)
    assert reply.usage.completion_tokens > 0


async def test_tool_that_is_forbidden_is_not_called(
    client: VLLMHTTPClient, listener: Listener | None
):
    reply = await client.chat(asking_for(ASKED, tools=TOOLS, tool_choice="none"), listener)

    assert (reply.finish_reason, reply.tool_calls) == ("stop", ())
    assert reply.content


@CHOICES
async def test_result_of_a_call_is_sent_back_and_answered_in_text(
    client: VLLMHTTPClient, listener: Listener | None, choice: str | None, finish_reason: str
):
    turn = await client.chat(asking_for(ASKED, tools=TOOLS, tool_choice=choice), listener)
    results = [
        ChatMessage(role="tool", content="sunny", tool_call_id=call.id) for call in turn.tool_calls
    ]
    made = ChatMessage(role="assistant", content=turn.content, tool_calls=turn.tool_calls)

    reply = await client.chat(asking_for(ASKED, made, *results, tools=TOOLS), listener)

    assert (reply.finish_reason, reply.tool_calls) == ("stop", ())
    assert reply.content


async def test_broken_call_in_the_history_does_not_end_the_conversation(
    client: VLLMHTTPClient, listener: Listener | None
):
    call = ToolCall(id="c-1", function=CalledFunction(name="get_wether", arguments='{"city": '))
    made = ChatMessage(role="assistant", content=None, tool_calls=[call])
    told = ChatMessage(role="tool", content="There is no get_wether.", tool_call_id=call.id)

    reply = await client.chat(asking_for(ASKED, made, told, tools=TOOLS), listener)

    assert reply.finish_reason == "stop"


@pytest.mark.parametrize("choice", [None, "required"])
async def test_call_that_is_cut_off_is_told_from_a_whole_one(
    client: VLLMHTTPClient, listener: Listener | None, choice: str | None
):
    request = asking_for(ASKED, tools=TOOLS, tool_choice=choice, max_tokens=CUT_TOKENS)
    reply = await client.chat(request, listener)

    assert reply.finish_reason == "length"
    assert reply.usage.completion_tokens == CUT_TOKENS
    if listener is None:
        assert reply.tool_calls == ()
    for call in reply.tool_calls:
        with pytest.raises(json.JSONDecodeError):
            json.loads(call.function.arguments)


async def test_streamed_answer_is_the_whole_one_word_by_word(client: VLLMHTTPClient):
    heard = Heard()

    streamed = await client.chat(asking_for(ASKED), heard)

    assert streamed == await client.chat(asking_for(ASKED))
    assert "".join(heard) == streamed.content


async def test_streams_follow_each_other_on_one_client(client: VLLMHTTPClient):
    replies = [await client.chat(asking_for(ASKED), Heard()) for _ in range(3)]

    assert replies[0] == replies[1] == replies[2]


async def test_bad_schema_is_refused_in_a_stream_too(
    client: VLLMHTTPClient, listener: Listener | None
):
    request = asking_for(ASKED, response_format=schema_format({"type": "banana"}))

    with pytest.raises(ModelRefused, match="banana"):
        await client.chat(request, listener)


@pytest.mark.parametrize("text", [TOO_LONG, FAR_TOO_LONG], ids=["too long", "far too long"])
async def test_prompt_too_long_is_recognised(
    client: VLLMHTTPClient, listener: Listener | None, text: str
):
    with pytest.raises(ContextExceeded, match=f"is {MODEL_LENGTH_TOKENS} tokens"):
        await client.chat(asking_for(ChatMessage(role="user", content=text)), listener)


async def test_context_length_is_the_servers(client: VLLMHTTPClient):
    lengths = [await client.context_length(name) for name in (MODEL, "", "nope")]

    assert lengths == [MODEL_LENGTH_TOKENS, MODEL_LENGTH_TOKENS, None]


async def test_context_length_is_unknown_to_who_may_not_ask(server_url: str):
    async with VLLMHTTPClient(server_url, api_key="wrong") as asking:
        assert await asking.context_length(MODEL) is None
