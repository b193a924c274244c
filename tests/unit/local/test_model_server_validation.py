import json
from typing import Any

import pytest

from agent_actors.local.model_server.refusal import Refusal
from agent_actors.local.model_server.settings import ModelServerSettings
from agent_actors.local.model_server.validation import check_chat_request, read_chat_request
from agent_actors.local.model_server.wire import ChatRequest

SETTINGS = ModelServerSettings(aliases=("tiny",), max_model_len=2048)
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
DEVELOPER = "ChatCompletionDeveloperMessageParam"
CALL = "ChatCompletionMessageFunctionToolCallParam"


def says(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def called(**call: Any) -> list[dict[str, Any]]:
    return [*says("Hi"), {"role": "assistant", "content": None, "tool_calls": [call]}]


def read(**fields: Any) -> ChatRequest:
    body = {"model": "tiny", "messages": says("Hello"), **fields}
    return read_raw(json.dumps(body).encode())


def read_raw(body: bytes, content_type: str = "application/json") -> ChatRequest:
    chat = read_chat_request(content_type, body)
    check_chat_request(chat, SETTINGS)
    return chat


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": None},
        {"model": "simulated-model"},
        {"max_tokens": "5"},
        {"max_tokens": 5.0},
        {"max_tokens": 2048},
        {"messages": [{"role": "wizard", "content": "Hail"}]},
        {"messages": [{"role": "user"}]},
        {"messages": says([{"type": "text", "text": "Hi"}])},
        {"messages": [*says("Hi"), {"role": "assistant", "content": None}]},
        {"messages": called(id="1", type="function", function={"name": "x", "arguments": "{no"})},
        {"banana": 1},
        {"guided_choice": ["red"]},
        {"tool_choice": "none"},
        {"tools": None},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"response_format": {"type": "text"}},
        {"n": 2, "temperature": 0.5},
    ],
)
def test_a_good_request_is_taken(fields: dict[str, Any]):
    assert read(**fields).messages


# Each row was asked of a vLLM 0.32: status 400, its type and its param.
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "body.model"),
        ({"messages": "Hi"}, "body.messages"),
        ({"messages": ["Hi"]}, f"body.messages.0.{DEVELOPER}"),
        ({"messages": [{"content": "Hi"}]}, f"body.messages.0.{DEVELOPER}.role"),
        ({"messages": says(5)}, f"body.messages.0.{DEVELOPER}.content"),
        ({"messages": says(None)}, f"body.messages.0.{DEVELOPER}.content"),
        (
            {"messages": called(type="function", function={"name": "x", "arguments": ""})},
            f"body.0.{CALL}.id",
        ),
        (
            {"messages": called(id="1", type="function", function={"name": "x", "arguments": {}})},
            f"body.0.{CALL}.function",
        ),
        ({"max_tokens": "many"}, "body.max_tokens"),
        ({"max_tokens": 5.5}, "body.max_tokens"),
        ({"temperature": "hot"}, "body.temperature"),
        ({"stream": "maybe"}, "body.stream"),
        ({"seed": "x"}, "body.seed"),
        ({"user": 5}, "body.user"),
        ({"stop": 5}, "body.stop"),
        ({"tools": "x"}, "body.tools"),
        ({"tools": [{"type": "function"}]}, "body.tools.0.function"),
        ({"tools": [{"type": "function", "function": {}}]}, "body.tools.0.function.name"),
        ({"tools": [{"type": "x", "function": {"name": "y"}}]}, "body.tools.0.type"),
        (
            {"tools": [{"type": "function", "function": {"name": "y", "parameters": "s"}}]},
            "body.tools.0.function.parameters",
        ),
        ({"response_format": "json"}, "body.response_format"),
        ({"response_format": {}}, "body.response_format.type"),
        ({"response_format": {"type": "xml"}}, "body.response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "body.response_format.json_schema.name",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": []},
                }
            },
            "body.response_format.json_schema.schema",
        ),
    ],
)
def test_a_wrong_form_is_refused_with_the_path(fields: dict[str, Any], param: str):
    with pytest.raises(Refusal) as refused:
        read(**fields)
    assert (refused.value.status, refused.value.kind) == (400, "Bad Request")
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, None),
        ({"messages": says([{"type": "image_url", "image_url": {"url": "x"}}])}, None),
        ({"messages": says([{"type": "text"}])}, None),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": []}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "banana"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {}}, "tool_choice.function"),
        ({"tools": [TOOL], "tool_choice": {"function": {}}}, "tool_choice.function.name"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "gone"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, None),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, None),
        (
            {"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "json_object"}},
            None,
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2049}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 2049}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -5}, None),
        ({"min_p": 2}, None),
        ({"presence_penalty": 5}, None),
        ({"repetition_penalty": 0}, None),
        ({"stop": ""}, None),
        ({"stop": ["a", ""]}, None),
        ({"n": 0}, None),
        ({"n": 2, "temperature": 0}, None),
        ({"messages": says("word " * 2048)}, "input_tokens"),
        ({"messages": says("word " * 20_000)}, "input_text"),
    ],
)
def test_what_the_model_cannot_do_is_refused(fields: dict[str, Any], param: str | None):
    with pytest.raises(Refusal) as refused:
        read(**fields)
    assert (refused.value.status, refused.value.kind) == (400, "BadRequestError")
    assert refused.value.param == param
    assert not refused.value.late


def test_a_wrong_model_is_not_found_whatever_else_is_wrong():
    with pytest.raises(Refusal, match="`nope` does not exist"):
        read(model="nope", temperature=-1, messages=[])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", "body"),
        (b"null", "body"),
        (b"[]", "body"),
        (b"{}", "body.messages"),
        (b"{no", "body.1"),
        (b'{"model": ', "body.10"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, param: str):
    with pytest.raises(Refusal) as refused:
        read_raw(body)
    assert (refused.value.kind, refused.value.param) == ("Bad Request", param)


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [], "response_format": {"type": "json_schema", "json_schema": {"name": "x", '
        b'"schema": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}}",
    ],
)
def test_a_body_that_cannot_be_read_is_refused_by_the_framework(body: bytes):
    with pytest.raises(Refusal) as refused:
        read_raw(body)
    assert json.loads(refused.value.body()) == {"detail": "There was an error parsing the body"}


def test_another_content_type_is_refused():
    with pytest.raises(Refusal, match="Unsupported Media Type"):
        read_raw(b"{}", content_type="text/plain")


def test_an_error_body_has_the_keys_of_vllm():
    with pytest.raises(Refusal) as refused:
        read(temperature=-1)
    assert json.loads(refused.value.body()) == {
        "error": {
            "message": "temperature must be in [0, 2], got -1.0. "
            "(parameter=temperature, value=-1.0)",
            "type": "BadRequestError",
            "param": "temperature",
            "code": 400,
        }
    }
