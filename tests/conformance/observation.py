"""What of an answer is compared: every key with its kind, and the values that clients decide on."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from aiohttp import ClientSession
from request_table import Row

# A flat picture of an answer: from each path to the kind of what stands there, or to the value
# itself, such as "number" for body.usage.total_tokens and "200" for status.
Observation = dict[str, str]

COMPARED_BY_VALUE = frozenset(
    ["object", "role", "type", "finish_reason", "stop_reason", "error", "param", "code", "detail"]
)


async def observe(http: ClientSession, url: str, row: Row) -> Observation:
    """Send the row's request to the server at `url` and describe the answer."""
    headers = {"Content-Type": "application/json"}
    if row.api_key is not None:
        headers["Authorization"] = f"Bearer {row.api_key}"
    async with http.request(row.method, url + row.path, data=row.body, headers=headers) as reply:
        content_type = reply.headers.get("Content-Type", "none")
        return {
            "status": str(reply.status),
            "content type": content_type,
            **describe_body(content_type, await reply.text()),
        }


def differences(real: Observation, simulated: Observation) -> dict[str, str]:
    """Return the paths at which two observations differ, each with both sides in a sentence."""
    return {
        path: f"real {real.get(path, 'has none')}, simulated {simulated.get(path, 'has none')}"
        for path in real | simulated
        if real.get(path) != simulated.get(path)
    }


def describe_body(content_type: str, text: str) -> Observation:
    if content_type.startswith("application/json"):
        return dict(walk("body", json.loads(text)))
    if content_type.startswith("text/event-stream"):
        return dict(walk_events(text))
    return {"body": kind_of(text)}


def walk_events(stream: str) -> Iterator[tuple[str, str]]:
    """Describe the events of a stream, equal neighbours as one.

    So two streams are alike in however many pieces the text came.
    """
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    events = [line if line == "[DONE]" else dict(walk("", json.loads(line))) for line in lines]
    for number, (event, _) in enumerate(groupby(events)):
        if isinstance(event, str):
            yield f"event {number}", event
        else:
            yield from ((f"event {number}{path}", kind) for path, kind in event.items())


def walk(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every leaf below `path`, with its kind or its value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from walk(f"{path}.{key}", item)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from walk(f"{path}[{index}]", item)
    elif path.rpartition(".")[2] in COMPARED_BY_VALUE:
        yield path, json.dumps(value)
    else:
        yield path, kind_of(value)


def kind_of(value: Any) -> str:
    match value:
        case None | "" | [] | {}:
            return json.dumps(value)
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case _:
            return "text"
