"""The requests that a real vLLM and our simulated one must answer alike, one row a sentence."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from vllm_server import API_KEY, MODEL, MODEL_LENGTH_TOKENS


class Row(Struct, frozen=True, kw_only=True):
    """One request, and what makes its sentence true of a real vLLM: a status, a finish_reason.

    So two servers do not pass by being wrong alike. `tolerated` maps the path of an observation
    at which ours may differ to the reason; a tolerance that is not needed fails the row.
    """

    sentence: str
    method: str = "POST"
    path: str = "/v1/chat/completions"
    body: bytes | None = None
    api_key: str | None = API_KEY
    status: int = 200
    finish: str | None = None
    tolerated: Mapping[str, str] = {}


def chat(
    sentence: str,
    finish: str,
    *,
    without: Sequence[str] = (),
    tolerated: Mapping[str, str] | None = None,
    **fields: Any,
) -> Row:
    """Return a row that asks for the weather, with `fields` put over the plain request."""
    return Row(
        sentence=sentence,
        body=chat_body(without, fields),
        finish=finish,
        tolerated=tolerated or {},
    )


def refused(
    sentence: str,
    status: int = 400,
    *,
    without: Sequence[str] = (),
    api_key: str | None = API_KEY,
    **fields: Any,
) -> Row:
    """Return a row with something wrong in the plain request."""
    body = chat_body(without, fields)
    return Row(sentence=sentence, body=body, api_key=api_key, status=status)


def chat_body(without: Sequence[str], fields: Mapping[str, Any]) -> bytes:
    plain = {
        "model": MODEL,
        "messages": says("What is the weather in Paris?"),
        "max_tokens": MODEL_LENGTH_TOKENS // 2,
        "temperature": 0,
    }
    body = {name: value for name, value in (plain | dict(fields)).items() if name not in without}
    return json.dumps(body).encode()


def get(sentence: str, path: str, status: int = 200, *, api_key: str | None = API_KEY) -> Row:
    return Row(sentence=sentence, method="GET", path=path, api_key=api_key, status=status)


def no_chat(sentence: str, body: bytes) -> Row:
    return Row(sentence=sentence, body=body, status=400)


def says(text: str) -> Sequence[Mapping[str, str]]:
    return [{"role": "user", "content": text}]


def schema_format(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TOOLS = [GET_WEATHER]
NOT_OFFERED = {"type": "function", "function": {"name": "get_money"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL_MADE = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call-1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        }
    ],
}
BROKEN_CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": f"call-{number}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": arguments},
        }
        for number, arguments in enumerate(['{"city": "Par', "Paris", '["Paris"]', ""], start=1)
    ],
}
NO_CALLS = {"role": "assistant", "content": "Let me see.", "tool_calls": []}
CALL_ANSWERED = {"role": "tool", "tool_call_id": "call-1", "content": "sunny"}
VERDICT = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": ["pass", "fail"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["verdict", "score"],
    "additionalProperties": False,
}
NO_SCHEMA = {"type": "banana"}
TO_NOTHING = schema_format({"$ref": "#/$defs/nothing"})
NO_GRAMMAR = schema_format(
    {"type": "object", "properties": {"score": {"type": "integer", "multipleOf": 7}}}
)
IN_PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hail"}]}]
USAGE = {"include_usage": True}
# vLLM counts characters before it counts tokens, and says which of them was too much.
TOO_LONG = "word " * MODEL_LENGTH_TOKENS
FAR_TOO_LONG = TOO_LONG * 10

CHATS = [
    chat("a plain chat is answered", "stop"),
    chat("a chat that names no model is answered by the one there is", "stop", without=["model"]),
    chat("a role nobody knows is taken", "stop", messages=[{"role": "wizard", "content": "Hail"}]),
    chat("a field nobody knows is ignored", "stop", banana=1),
    chat("an answer without max_tokens ends by itself", "stop", without=["max_tokens"]),
    chat("a message in parts is taken", "stop", messages=IN_PARTS),
    chat("a message without content is taken", "stop", messages=[{"role": "user"}]),
    chat("max_tokens may be the model's length", "stop", max_tokens=MODEL_LENGTH_TOKENS),
    chat("max_tokens of one cuts the answer", "length", max_tokens=1),
    chat("max_completion_tokens of one cuts the answer", "length", max_completion_tokens=1),
    chat("a stop string ends the answer and is told", "stop", stop=[" "]),
    chat("a stop string that never comes changes nothing", "stop", stop=["\u2603"]),
    chat("n of two gives two choices", "stop", n=2, temperature=0.5),
]

STRUCTURED = [
    chat("a JSON schema is answered", "stop", response_format=schema_format(VERDICT)),
    chat("any JSON object is answered", "stop", response_format={"type": "json_object"}),
    chat("plain text may be asked for by name", "stop", response_format={"type": "text"}),
    chat(
        "an answer to a JSON schema is cut by length",
        "length",
        response_format=schema_format(VERDICT),
        max_tokens=2,
    ),
    refused("a bad JSON schema is refused", response_format=schema_format(NO_SCHEMA)),
    refused("a JSON schema that refers to nothing is refused", response_format=TO_NOTHING),
    refused("a JSON schema that no grammar can hold is refused", response_format=NO_GRAMMAR),
    refused("a JSON schema that is not there is refused", response_format={"type": "json_schema"}),
    refused("a response format nobody knows is refused", response_format={"type": "banana"}),
]

TOOL_CALLS = [
    chat("a tool that may be called is called", "tool_calls", tools=TOOLS, tool_choice="auto"),
    chat("a tool is called when no choice is given", "tool_calls", tools=TOOLS),
    chat("a required tool is called", "tool_calls", tools=TOOLS, tool_choice="required"),
    chat("a tool called by name ends with stop", "stop", tools=TOOLS, tool_choice=NAMED),
    chat("a forbidden tool is not called", "stop", tools=TOOLS, tool_choice="none"),
    chat(
        "a conversation with a tool's answer is answered in text",
        "stop",
        tools=TOOLS,
        messages=[*says("What is the weather in Paris?"), CALL_MADE, CALL_ANSWERED],
    ),
    chat(
        "a conversation with arguments that are no object is answered",
        "stop",
        tools=TOOLS,
        messages=[*says("What is the weather in Paris?"), BROKEN_CALLS, CALL_ANSWERED],
    ),
    chat(
        "an empty list of calls made is taken",
        "tool_calls",
        tools=TOOLS,
        messages=[*says("What is the weather in Paris?"), NO_CALLS],
    ),
    chat("a call cut by length is text", "length", tools=TOOLS, max_tokens=3),
    chat(
        "a required call cut by length is text",
        "length",
        tools=TOOLS,
        tool_choice="required",
        max_tokens=3,
    ),
    chat(
        "a call by name cut by length is text",
        "length",
        tools=TOOLS,
        tool_choice=NAMED,
        max_tokens=3,
    ),
    refused("a choice without tools is refused", tool_choice="required"),
    refused("a call by a name not offered is refused", tools=TOOLS, tool_choice=NOT_OFFERED),
    refused("an empty list of tools is refused", tools=[]),
    refused("tools that are no list are refused", tools="get_weather"),
]

STREAMS = [
    chat("a stream brings text, its end and DONE", "stop", stream=True),
    chat("a stream brings the usage when asked", "stop", stream=True, stream_options=USAGE),
    chat("a stream is cut by length", "length", stream=True, max_tokens=2),
    chat(
        "a stream with usage is cut by length",
        "length",
        stream=True,
        stream_options=USAGE,
        max_tokens=2,
    ),
    chat("a stream ends at a stop string", "stop", stream=True, stop=[" "]),
    chat(
        "a stream answers a JSON schema",
        "stop",
        stream=True,
        response_format=schema_format(VERDICT),
    ),
    chat("a stream brings a tool call", "tool_calls", stream=True, tools=TOOLS),
    chat(
        "a stream brings a required call",
        "tool_calls",
        stream=True,
        tools=TOOLS,
        tool_choice="required",
    ),
    chat("a stream brings a call by name", "stop", stream=True, tools=TOOLS, tool_choice=NAMED),
    chat("a stream brings no forbidden call", "stop", stream=True, tools=TOOLS, tool_choice="none"),
    Row(
        sentence="a stream brings a bad JSON schema's error as an event",
        body=chat_body([], {"stream": True, "response_format": schema_format(NO_SCHEMA)}),
    ),
    refused("a stream for a wrong model is refused at once", 404, stream=True, model="nope"),
    refused(
        "a stream for a prompt too long is refused at once", stream=True, messages=says(TOO_LONG)
    ),
    refused("the usage of no stream is refused", stream_options=USAGE),
]

REFUSALS = [
    refused("a wrong model is refused", 404, model="nope"),
    refused("missing messages are refused", without=["messages"]),
    refused("messages that are no list are refused", messages="Hail"),
    refused("a chat without a message is refused", messages=[]),
    refused("a message without a role is refused", messages=[{"content": "Hail"}]),
    refused("a temperature of the wrong type is refused", temperature="hot"),
    refused("a temperature below zero is refused", temperature=-1),
    refused("a top_p above one is refused", top_p=2),
    refused("max_tokens of the wrong type is refused", max_tokens="many"),
    refused("max_tokens of zero is refused", max_tokens=0),
    refused("max_tokens below zero is refused", max_tokens=-1),
    refused("max_tokens over the model's length is refused", max_tokens=10 * MODEL_LENGTH_TOKENS),
    refused("an empty stop string is refused", stop=[""]),
    refused("a presence_penalty above two is refused", presence_penalty=3),
    refused("n of zero is refused", n=0),
    refused("n of two at temperature zero is refused", n=2),
    refused("a prompt too long is refused", messages=says(TOO_LONG)),
    refused("a prompt far too long is refused", messages=says(FAR_TOO_LONG)),
    no_chat("a body that is not JSON is refused", b'{"model": '),
    no_chat("an empty body is refused", b""),
    no_chat("a body that is no object is refused", b"[]"),
]

ROUTES = [
    get("the models are listed", "/v1/models"),
    get("health is an empty 200", "/health"),
    get("the version is told", "/version"),
    get("an unknown route is not found", "/nope", 404),
    get("an unknown route below v1 is not found", "/v1/nope", 404),
    get("getting a chat is not allowed", "/v1/chat/completions", 405),
    Row(sentence="posting a model is not allowed", path="/v1/models", body=b"{}", status=405),
]

KEYS = [
    refused("a chat without a key is unauthorized", 401, api_key=None),
    refused("a chat with a wrong key is unauthorized", 401, api_key="wrong"),
    get("the models without a key are unauthorized", "/v1/models", 401, api_key=None),
    get("an unknown route below v1 needs a key", "/v1/nope", 401, api_key=None),
    get("an unknown route elsewhere needs no key", "/nope", 404, api_key=None),
    get("health needs no key", "/health", api_key=None),
    get("the version needs no key", "/version", api_key=None),
]

ROWS = [*CHATS, *STRUCTURED, *TOOL_CALLS, *STREAMS, *REFUSALS, *ROUTES, *KEYS]
