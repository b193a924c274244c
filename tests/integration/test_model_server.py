"""The simulated model server over real HTTP: every shape of an answer, every fault."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientSession
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from support.until import until

from agent_actors.config_types import Secret
from agent_actors.errors import ConfigError
from agent_actors.local.model_server.faults import Fault, Faults
from agent_actors.local.model_server.script import (
    Rule,
    Script,
    ScriptedCall,
    ScriptedReply,
    ScriptedUsage,
    When,
)
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import (
    Behaviour,
    Latency,
    Limits,
    ModelServerSettings,
)

CHAT = "/v1/chat/completions"
TASK = "Implement a binary search tree"
ENDLESS = Behaviour(latency=Latency(between_tokens_ms=60_000))
WRITE_FILE = {
    "type": "function",
    "function": {
        "name": "write_file",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "content": {"type": "string"}},
            "required": ["path", "content"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["pass", "fail"]}, "score": {"type": "integer"}},
    "required": ["verdict", "score"],
}


class Client:
    """Talks to one server, with nothing of our own client in between."""

    def __init__(self, http: ClientSession, server: RunningModelServer) -> None:
        self.http = http
        self.server = server

    def post(self, **fields: Any):
        body = {"messages": [{"role": "user", "content": f"# Task\n\n{TASK}"}], **fields}
        return self.http.post(self.server.url + CHAT, json=body)

    async def ask(self, status: int = 200, **fields: Any) -> Any:
        """Return the decoded answer of a request that is not a stream."""
        async with self.post(**fields) as reply:
            assert reply.status == status, await reply.text()
            assert reply.content_type == "application/json"
            return await reply.json()

    async def stream(self, **fields: Any) -> list[Any]:
        """Return the decoded events of a stream that ends as it should."""
        async with self.post(stream=True, **fields) as reply:
            assert reply.status == 200
            assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            *events, done = (await reply.text()).removesuffix("\n\n").split("\n\n")
            assert done == "data: [DONE]"
            return [json.loads(event.removeprefix("data: ")) for event in events]

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.http.get(self.server.url + path) as reply:
            assert reply.status == status
            return await reply.json()

    async def metric(self, name: str, **labels: str) -> float:
        async with self.http.get(self.server.url + "/metrics") as reply:
            text = await reply.text()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    assert sample.labels["model_name"] == "simulated-model"
                    return sample.value
        raise AssertionError(f"{name} is not told")


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Client]:
    async with (
        running_model_server(ModelServerSettings(**settings)) as server,
        ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
    ):
        yield Client(http, server)


def scripted(**reply: Any) -> Script:
    return Script(default=ScriptedReply(**reply))


def rates(*faults: Fault, **settings: Any) -> Behaviour:
    return Behaviour(faults=Faults(rates=dict.fromkeys(faults, 1.0), **settings))


def message(answer: Any) -> Any:
    (choice,) = answer["choices"]
    return choice["message"]


def finish_reason(answer: Any) -> Any:
    (choice,) = answer["choices"]
    return choice["finish_reason"]


def text_of(events: list[Any]) -> str:
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


# Answers


async def test_an_answer_has_the_keys_of_vllm_and_says_that_it_is_simulated():
    async with serving() as client:
        answer = await client.ask()
    assert list(answer) == [
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint"),
        *("usage", "prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params"),
        *("ec_transfer_params", "metrics"),
    ]
    assert list(message(answer)) == [
        *("role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"),
    ]
    assert (answer["object"], answer["model"]) == ("chat.completion", "simulated-model")
    assert (message(answer)["role"], finish_reason(answer)) == ("assistant", "stop")
    assert TASK in message(answer)["content"]
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_the_same_request_gets_the_same_answer():
    async with serving() as client:
        one, other = await client.ask(), await client.ask()
    assert message(one) == message(other)
    assert one["id"] != other["id"]


async def test_max_tokens_cuts_an_answer():
    async with serving() as client:
        answer = await client.ask(max_tokens=3)
    assert finish_reason(answer) == "length"
    assert answer["usage"]["completion_tokens"] == 3


async def test_an_answer_gets_no_longer_than_the_model():
    async with serving(max_model_len=40) as client:
        answer = await client.ask()
    assert finish_reason(answer) == "length"
    assert answer["usage"]["total_tokens"] == 40


async def test_several_choices_are_given():
    async with serving() as client:
        answer = await client.ask(n=2, max_tokens=3)
        events = await client.stream(n=2, max_tokens=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 6
    assert [event["choices"][0]["index"] for event in events] == [0, 1] * 4


async def test_a_stream_brings_the_role_the_text_and_the_end():
    async with serving() as client:
        whole = message(await client.ask())["content"]
        first, *rest = await client.stream()
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(rest) == whole
    assert rest[-1]["choices"][0] | {"token_ids": None} == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
    }
    assert {event["model"] for event in [first, *rest]} == {"simulated-model"}


async def test_a_stream_brings_usage_only_when_it_is_asked_for():
    async with serving() as client:
        plain = await client.stream(max_tokens=3)
        *events, last = await client.stream(max_tokens=3, stream_options={"include_usage": True})
    assert all("usage" not in event for event in [*plain, *events])
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)


async def test_a_stream_brings_usage_all_along_when_that_is_asked_for():
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with serving() as client:
        events = await client.stream(max_tokens=3, stream_options=options)
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 1, 2, 3, 3]


async def test_a_stop_string_ends_an_answer():
    async with serving(script=scripted(content="one two three")) as client:
        answer = await client.ask(stop=["three"])
        events = await client.stream(stop=["three"])
    assert message(answer)["content"] == text_of(events) == "one two "
    assert answer["choices"][0]["stop_reason"] == "three"
    assert events[-1]["choices"][0]["stop_reason"] == "three"


async def test_json_fits_the_schema_that_was_asked_for():
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": SCHEMA}}
    async with serving() as client:
        content = message(await client.ask(response_format=form))["content"]
        streamed = text_of(await client.stream(response_format=form))
    Draft202012Validator(SCHEMA).validate(json.loads(content))
    assert streamed == content


async def test_a_bad_schema_is_a_400_or_the_only_event_of_a_stream():
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}}
    async with serving() as client:
        answer = await client.ask(400, response_format=form)
        (event,) = await client.stream(response_format=form)
    assert answer == event
    assert answer["error"]["message"] == "Grammar error: Invalid type: banana"
    assert answer["error"]["type"] == "BadRequestError"


@pytest.mark.parametrize(
    ("choice", "content", "finish"),
    [
        ("auto", None, "tool_calls"),
        ("required", "", "tool_calls"),
        ({"type": "function", "function": {"name": "write_file"}}, "", "stop"),
    ],
)
async def test_a_tool_is_called(choice: Any, content: str | None, finish: str):
    async with serving() as client:
        answer = await client.ask(tools=[WRITE_FILE], tool_choice=choice)
        events = await client.stream(tools=[WRITE_FILE], tool_choice=choice)

    (call,) = message(answer)["tool_calls"]
    assert (message(answer)["content"], finish_reason(answer)) == (content, finish)
    assert (call["type"], call["function"]["name"]) == ("function", "write_file")
    assert json.loads(call["function"]["arguments"]).keys() == {"path", "content"}

    first, *more = [
        call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert first["function"] == {"name": "write_file"}
    assert first["id"].startswith("chatcmpl-tool-")
    assert {"id", "type"}.isdisjoint(more[0])
    arguments = "".join(call["function"]["arguments"] for call in more)
    assert arguments == call["function"]["arguments"]
    assert finish_reason(events[-1]) == finish
    assert text_of(events) == ""


async def test_a_required_call_that_is_cut_off_is_raw_text():
    async with serving() as client:
        answer = await client.ask(tools=[WRITE_FILE], tool_choice="required", max_tokens=7)
    assert message(answer)["content"].startswith("<tool_call>\n")
    assert "tool_calls" not in message(answer)
    assert finish_reason(answer) == "length"


async def test_a_tool_loop_ends_with_a_text():
    messages: list[Any] = [{"role": "user", "content": f"Task: {TASK}"}]
    async with serving() as client:
        for _ in range(10):
            said = message(await client.ask(messages=messages, tools=[WRITE_FILE]))
            if "tool_calls" not in said:
                break
            messages.append(said)
            for call in said["tool_calls"]:
                result = {"role": "tool", "tool_call_id": call["id"], "content": "written"}
                messages.append(result)
    assert [entry["role"] for entry in messages] == ["user", *("assistant", "tool") * 3]
    assert "written" in said["content"]


# Errors and the other routes


@pytest.mark.parametrize(
    ("fields", "status", "kind", "param"),
    [
        ({"model": "nope"}, 404, "NotFoundError", "model"),
        ({"temperature": "hot"}, 400, "Bad Request", "body.temperature"),
        ({"max_tokens": 10**9}, 400, "BadRequestError", "max_tokens"),
        ({"messages": []}, 400, "BadRequestError", None),
    ],
)
async def test_a_bad_request_is_refused_whether_or_not_it_wants_a_stream(
    fields: dict[str, Any], status: int, kind: str, param: str | None
):
    async with serving() as client:
        for stream in (False, True):
            error = (await client.ask(status, stream=stream, **fields))["error"]
            assert list(error) == ["message", "type", "param", "code"]
            assert (error["type"], error["param"], error["code"]) == (kind, param, status)


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/nope", 404, {"detail": "Not Found"}),
        ("GET", CHAT, 405, {"detail": "Method Not Allowed"}),
        ("POST", "/v1/models", 405, {"detail": "Method Not Allowed"}),
        ("HEAD", "/health", 405, None),
    ],
)
async def test_a_wrong_route_is_told_as_the_framework_under_vllm_does(
    method: str, path: str, status: int, body: Any
):
    async with (
        serving() as client,
        client.http.request(method, client.server.url + path) as reply,
    ):
        assert reply.status == status
        text = await reply.text()
    assert (json.loads(text) if body else text or None) == body


async def test_the_models_are_listed_with_their_length():
    async with serving(aliases=("tiny",), max_model_len=99) as client:
        models = await client.get("/v1/models")
        answer = await client.ask(model="tiny")
    assert [(card["id"], card["max_model_len"]) for card in models["data"]] == [
        ("simulated-model", 99),
        ("tiny", 99),
    ]
    assert answer["model"] == "simulated-model"


async def test_health_is_empty_and_the_version_says_simulated():
    async with serving() as client:
        async with client.http.get(client.server.url + "/health") as reply:
            assert (reply.status, await reply.read()) == (200, b"")
            assert "Content-Type" not in reply.headers
        assert "simulated" in (await client.get("/version"))["version"]
        assert await client.get("/load") == {"server_load": 0}


async def test_a_key_is_needed_below_v1_and_simulated_and_nowhere_else():
    async with serving(api_key=Secret("sesame")) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sesame"}):
            for path in ("/v1/models", "/v1/nope", "/simulated/requests"):
                async with client.http.get(client.server.url + path, headers=headers) as reply:
                    assert reply.status == 401
                    assert await reply.json() == {"error": "Unauthorized"}
        for path in ("/health", "/version", "/metrics", "/load"):
            async with client.http.get(client.server.url + path) as reply:
                assert reply.status == 200
        key = {"Authorization": "bearer sesame"}
        async with client.http.get(client.server.url + "/v1/models", headers=key) as reply:
            assert reply.status == 200


async def test_metrics_count_what_was_answered():
    async with serving(script=scripted(content="one two three")) as client:
        usage = (await client.ask())["usage"]
        await client.ask(max_tokens=1)
        await client.stream(tools=[WRITE_FILE], max_tokens=1)
        assert await client.metric("vllm:generation_tokens_total") == 4 + 1 + 1
        assert await client.metric("vllm:prompt_tokens_total") > 2 * usage["prompt_tokens"]
        success = "vllm:request_success_total"
        assert await client.metric(success, finished_reason="stop") == 1
        assert await client.metric(success, finished_reason="length") == 2
        assert await client.metric(success, finished_reason="abort") == 0
        assert await client.metric("vllm:time_to_first_token_seconds_count") == 3


async def test_metrics_show_what_runs_and_waits():
    async with serving(behaviour=ENDLESS, limits=Limits(max_num_seqs=1)) as client:
        tasks = [asyncio.create_task(client.ask()) for _ in range(3)]
        await until(lambda: client.server.engine.waiting == 2)
        assert await client.metric("vllm:num_requests_running") == 1
        assert await client.metric("vllm:num_requests_waiting") == 2
        assert await client.metric("vllm:kv_cache_usage_perc") > 0
        client.server.stop()
        await asyncio.gather(*tasks)


# Load, hanging up, stopping


async def test_too_many_requests_are_refused_in_the_words_of_vllm():
    limits = Limits(max_num_seqs=1, max_num_queued_reqs=1)
    async with serving(behaviour=ENDLESS, limits=limits) as client:
        running = asyncio.create_task(client.ask())
        await until(lambda: client.server.engine.running == 1)

        answer = await client.ask(503)
        (event,) = await client.stream()
        assert answer == event
        assert answer["error"]["type"] == "Service Unavailable"
        assert await client.metric("vllm:admission_rejections_total") == 2
        client.server.stop()
        await running


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_aborts_its_request(*, stream: bool):
    async with serving(behaviour=ENDLESS) as client:
        asking = asyncio.create_task(client.stream() if stream else client.ask())
        await until(lambda: client.server.engine.running == 1)

        asking.cancel()
        hung_up = time.monotonic()
        await client.server.requests.until(lambda seen: seen[0].aborted)
        assert time.monotonic() - hung_up < 0.25
        assert await client.metric("vllm:num_requests_running") == 0
        assert client.server.engine.tokens_held == 0
        assert client.server.requests[0].status is None
        assert await client.metric("vllm:request_success_total", finished_reason="abort") == 0


async def test_a_client_that_hangs_up_while_waiting_frees_its_place_in_the_queue():
    async with serving(behaviour=ENDLESS, limits=Limits(max_num_seqs=1)) as client:
        running = asyncio.create_task(client.ask())
        await until(lambda: client.server.engine.running == 1)
        waiting = asyncio.create_task(client.ask())
        await until(lambda: client.server.engine.waiting == 1)
        waiting.cancel()
        await until(lambda: client.server.engine.waiting == 0)
        client.server.stop()
        assert finish_reason(await running) == "abort"


async def test_stopping_answers_running_and_waiting_requests_with_abort():
    async with serving(behaviour=ENDLESS, limits=Limits(max_num_seqs=2)) as client:
        whole = asyncio.create_task(client.ask())
        stream = asyncio.create_task(client.stream())
        await until(lambda: client.server.engine.running == 2)
        waiting = asyncio.create_task(client.ask())
        await until(lambda: client.server.engine.waiting == 1)

        client.server.stop()
        answer, events, late = await asyncio.gather(whole, stream, waiting)
        assert (finish_reason(answer), answer["usage"]["completion_tokens"]) == ("abort", 1)
        assert finish_reason(events[-1]) == "abort"
        assert text_of(events) == message(answer)["content"]
        assert (finish_reason(late), message(late)["content"]) == ("abort", "")
        assert await client.metric("vllm:request_success_total", finished_reason="abort") == 3


async def test_latency_is_kept_over_http():
    behaviour = Behaviour(latency=Latency(first_token_ms=50, between_tokens_ms=10))
    async with serving(behaviour=behaviour) as client:
        begun = time.monotonic()
        await client.ask(max_tokens=6)
        assert time.monotonic() - begun >= 0.1


async def test_events_of_a_slow_stream_come_one_by_one():
    behaviour = Behaviour(latency=Latency(between_tokens_ms=20))
    async with serving(behaviour=behaviour) as client, client.post(stream=True) as reply:
        assert b'"role"' in await reply.content.readuntil(b"\n\n")
        await reply.content.readuntil(b"\n\n")
        assert client.server.engine.running == 1


# Faults


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (Fault.TOO_MANY_REQUESTS, 429, "Too Many Requests"),
        (Fault.INTERNAL_ERROR, 500, "InternalServerError"),
        (Fault.UNAVAILABLE, 503, "Service Unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_can_be_a_status(*, fault: Fault, status: int, kind: str, stream: bool):
    async with serving(behaviour=rates(fault)) as client, client.post(stream=stream) as reply:
        assert reply.status == status
        assert "Retry-After" not in reply.headers
        error = (await reply.json())["error"]
    assert (error["type"], error["code"]) == (kind, status)


@pytest.mark.parametrize(
    ("fault", "told"),
    [(Fault.TOO_MANY_REQUESTS, "3"), (Fault.UNAVAILABLE, "3"), (Fault.INTERNAL_ERROR, None)],
)
async def test_retry_after_is_told_when_it_is_set(fault: Fault, told: str | None):
    async with serving(behaviour=rates(fault, retry_after_s=3)) as client, client.post() as reply:
        assert reply.headers.get("Retry-After") == told


async def test_a_fault_can_be_silence_until_the_client_gives_up():
    async with serving(behaviour=rates(Fault.HANG)) as client:
        asking = asyncio.create_task(client.ask())
        await client.server.requests.until(lambda seen: seen.total == 1)
        asking.cancel()
        await client.server.requests.until(lambda seen: seen[0].aborted)
    assert client.server.requests[0].fault is Fault.HANG


async def test_a_hanging_request_does_not_keep_the_server_from_stopping():
    async with serving(behaviour=rates(Fault.HANG)) as client:
        asking = asyncio.create_task(client.ask())
        await client.server.requests.until(lambda seen: seen.total == 1)
        client.server.stop()
        with pytest.raises(aiohttp.ClientConnectionError):
            await asking


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_can_be_a_reset(*, stream: bool):
    async with serving(behaviour=rates(Fault.RESET)) as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.post(stream=stream)
        await client.server.requests.until(lambda seen: seen[0].fault is Fault.RESET)
        assert client.server.requests[0].status is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_can_be_garbage(*, stream: bool):
    behaviour = rates(Fault.GARBAGE)
    async with serving(behaviour=behaviour) as client, client.post(stream=stream) as reply:
        assert (reply.status, reply.content_type) == (200, "text/html")
        assert (await reply.text()).startswith("<html>")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_can_be_half_an_answer(*, stream: bool):
    behaviour, got = rates(Fault.TRUNCATED), bytearray()

    async def read_all(reply: aiohttp.ClientResponse) -> None:
        async for part in reply.content.iter_any():
            got.extend(part)

    async with serving(behaviour=behaviour) as client, client.post(stream=stream) as reply:
        assert reply.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await read_all(reply)
    assert got
    assert b"[DONE]" not in got


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_can_be_silence_half_way(*, stream: bool):
    behaviour = rates(Fault.HANG_BODY)
    async with serving(behaviour=behaviour) as client, client.post(stream=stream) as reply:
        assert reply.status == 200
        assert await reply.content.readany()
        client.server.stop()
        with pytest.raises(aiohttp.ClientPayloadError):
            await reply.read()


async def test_a_fault_can_be_an_error_in_the_midst_of_a_stream():
    async with serving(behaviour=rates(Fault.STREAM_ERROR)) as client:
        *events, last = await client.stream()
        answer = await client.ask(500)
    assert text_of(events)
    assert (last["error"]["type"], last["error"]["code"]) == ("InternalServerError", 500)
    assert answer == last


async def test_a_fault_can_be_an_abort():
    async with serving(behaviour=rates(Fault.ABORT), script=scripted(content="1 2 3")) as client:
        answer = await client.ask()
        events = await client.stream()
    assert (finish_reason(answer), message(answer)["content"]) == ("abort", "1 2")
    assert (finish_reason(events[-1]), text_of(events)) == ("abort", "1 2")


async def test_a_fault_can_be_missing_choices():
    async with serving(behaviour=rates(Fault.NO_CHOICES)) as client:
        answer = await client.ask()
        events = await client.stream()
    assert all("choices" not in body for body in [answer, *events])


async def test_a_fault_can_be_a_missing_finish_reason():
    async with serving(behaviour=rates(Fault.NO_FINISH_REASON)) as client:
        answer = await client.ask()
        events = await client.stream()
    assert all("finish_reason" not in body["choices"][0] for body in [answer, *events])
    assert TASK in message(answer)["content"]


async def test_faults_come_at_their_rate():
    behaviour = Behaviour(faults=Faults(rates={Fault.TOO_MANY_REQUESTS: 0.5}))
    async with serving(behaviour=behaviour, seed=1) as client:
        statuses = []
        for _ in range(40):
            async with client.post(max_tokens=1) as reply:
                statuses.append(reply.status)
        again = []
    async with serving(behaviour=behaviour, seed=1) as client:
        for _ in range(40):
            async with client.post(max_tokens=1) as reply:
                again.append(reply.status)
    assert {200, 429} == set(statuses)
    assert statuses == again


# Scripts


async def test_a_script_says_what_is_said():
    usage = ScriptedUsage(prompt_tokens=5, completion_tokens=7)
    script = scripted(
        content="Cut", finish_reason="length", usage=usage, headers={"X-Request-Id": "abc"}
    )
    async with serving(script=script) as client:
        async with client.post() as reply:
            assert reply.headers["X-Request-Id"] == "abc"
            answer = await reply.json()
        events = await client.stream(stream_options={"include_usage": True})
    assert (message(answer)["content"], finish_reason(answer)) == ("Cut", "length")
    assert (answer["usage"]["total_tokens"], events[-1]["usage"]["total_tokens"]) == (12, 12)
    assert finish_reason(events[-2]) == "length"


async def test_a_script_can_call_tools_with_broken_arguments():
    calls = (ScriptedCall(name="a", arguments={"x": 1}), ScriptedCall(name="b", arguments="{no"))
    async with serving(script=scripted(content="Let me see", tool_calls=calls)) as client:
        said = message(await client.ask(tools=[WRITE_FILE]))
    functions = [call["function"] for call in said["tool_calls"]]
    assert functions == [
        {"name": "a", "arguments": '{"x":1}'},
        {"name": "b", "arguments": "{no"},
    ]
    assert said["content"] == "Let me see"


async def test_a_script_can_give_an_error_and_its_headers():
    script = scripted(status=429, error={"message": "slow"}, headers={"Retry-After": "1"})
    async with serving(script=script) as client, client.post() as reply:
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        assert await reply.json() == {"error": {"message": "slow"}}


async def test_a_script_can_spoil_the_first_request_of_every_task():
    spoil = Rule(when=When(repeat=1), reply=ScriptedReply(fault=Fault.UNAVAILABLE))
    async with serving(script=Script(rules=(spoil,))) as client:
        await client.ask(503)
        assert TASK in message(await client.ask())["content"]
        await client.ask(503, messages=[{"role": "user", "content": "Another"}])


async def test_a_scripted_delay_holds_the_answer_back():
    async with serving(script=scripted(content="late", delay_ms=50)) as client:
        begun = time.monotonic()
        assert message(await client.ask())["content"] == "late"
        assert time.monotonic() - begun >= 0.05


# What tests and demos see and change


async def test_requests_can_be_looked_at_in_the_same_process():
    async with serving() as client:
        await client.ask(max_tokens=5)
        await client.ask(400, temperature="hot")
    good, bad = client.server.requests
    assert (good.number, good.status, good.aborted, good.task) == (1, 200, False, TASK)
    assert good.json["max_tokens"] == 5
    assert good.headers["Content-Type"] == "application/json"
    assert (bad.number, bad.status, bad.task) == (2, 400, "")


async def test_requests_can_be_looked_at_from_outside():
    async with serving(keep_requests=2) as client:
        for _ in range(3):
            await client.ask()
        seen = await client.get("/simulated/requests?last=1")
        assert (seen["total"], seen["kept"], seen["by_task"]) == (3, 2, {TASK: 2})
        assert list(seen["by_conversation"].values()) == [2]
        (last,) = seen["last"]
        assert (last["number"], last["status"], last["task"]) == (3, 200, TASK)
        await client.get("/simulated/requests?last=many", status=400)


async def test_behaviour_can_be_changed_from_outside():
    async with serving() as client:

        async def change(status: int = 200, **parts: Any) -> Any:
            url = client.server.url + "/simulated/faults"
            async with client.http.post(url, json=parts) as reply:
                assert reply.status == status
                return await reply.json()

        await change(faults={"rates": {"429": 1.0}, "retry_after_s": 2}, healthy=False)
        await client.ask(429)
        async with client.http.get(client.server.url + "/health") as reply:
            assert reply.status == 503
        now = await change(latency={"first_token_ms": 1})
        assert now == await client.get("/simulated/faults")
        assert now["faults"] == {"rates": {"429": 1.0}, "retry_after_s": 2}
        assert now["latency"]["first_token_ms"] == 1

        await change(faults={})
        await client.ask()
        wrong = await change(400, faults={"rates": {"flood": 0.1}})
        assert "flood" in wrong["detail"]
        await change(400, faults={"rates": {"429": 0.9, "hang": 0.9}})


# Its own process


class Process:
    """`agent-actors model-server` as a child."""

    def __init__(self, folder: Path, *arguments: str, key: str = "") -> None:
        self.port_file = folder / "port"
        command = "from agent_actors.local.model_server.command import model_server as m; m()"
        self.child = subprocess.Popen(
            [
                *(sys.executable, "-c", command, "--port", "0"),
                *("--port-file", str(self.port_file), *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"AGENT_ACTORS_VLLM_API_KEY": key},
        )

    async def url(self) -> str:
        await until(lambda: self.port_file.exists() or self.child.poll() is not None)
        assert self.child.poll() is None, self.child.communicate()
        return f"http://127.0.0.1:{self.port_file.read_text()}"

    def ended(self) -> tuple[int, str, str]:
        out, err = self.child.communicate(timeout=10)
        return self.child.returncode, out, err


@asynccontextmanager
async def process(folder: Path, *arguments: str, key: str = "") -> AsyncIterator[Process]:
    started = Process(folder, *arguments, key=key)
    try:
        yield started
    finally:
        if started.child.poll() is None:
            started.child.kill()
            started.child.communicate()


async def test_sigterm_answers_with_abort_and_exits_with_zero(tmp_path: Path):
    async with process(tmp_path, "--between-tokens-ms", "60000") as server, ClientSession() as http:
        url = await server.url()
        body = {"messages": [{"role": "user", "content": TASK}]}

        async def ask(**fields: Any) -> str:
            async with http.post(url + CHAT, json=body | fields) as reply:
                assert reply.status == 200
                return await reply.text()

        async def running() -> bool:
            async with http.get(url + "/load") as reply:
                return (await reply.json())["server_load"] == 2

        whole, stream = asyncio.create_task(ask()), asyncio.create_task(ask(stream=True))
        await until(running)
        server.child.send_signal(signal.SIGTERM)

        assert finish_reason(json.loads(await whole)) == "abort"
        assert '"finish_reason":"abort"' in await stream
        code, out, err = await asyncio.to_thread(server.ended)
    assert code == 0, err
    assert out == f"Simulated model server ready at {url}, model simulated-model (no real one).\n"
    assert "model_server.ready" in err
    assert '"simulated":true' in err


async def test_the_key_comes_from_the_environment_and_is_never_shown(tmp_path: Path):
    async with process(tmp_path, key="s3cret-key") as server, ClientSession() as http:
        url = await server.url()
        async with http.get(url + "/v1/models") as reply:
            assert reply.status == 401
        headers = {"Authorization": "Bearer s3cret-key"}
        async with http.get(url + "/v1/models", headers=headers) as reply:
            assert reply.status == 200
        server.child.send_signal(signal.SIGINT)
        code, out, err = await asyncio.to_thread(server.ended)
    assert code == 0
    assert "s3cret" not in out + err


async def test_options_of_the_command_reach_the_server(tmp_path: Path):
    script, key = tmp_path / "script.yaml", tmp_path / "key"
    script.write_text("replies: [{content: scripted}]")
    key.write_text("from-file\n")
    arguments = [
        *("--script", str(script), "--api-key-file", str(key), "--model", "llama"),
        *("--fault", "429=0.25", "--fault", "no-choices=0.25", "--retry-after-s", "4"),
        *("--first-token-ms", "2", "--spread", "0.1", "--slowdown", "2", "--max-model-len", "77"),
    ]
    headers = {"Authorization": "Bearer from-file"}
    async with process(tmp_path, *arguments) as server, ClientSession(headers=headers) as http:
        url = await server.url()
        async with http.get(url + "/v1/models") as reply:
            cards = (await reply.json())["data"]
        async with http.get(url + "/simulated/faults") as reply:
            behaviour = await reply.json()
    assert [(card["id"], card["max_model_len"]) for card in cards][1] == ("llama", 77)
    assert behaviour["faults"] == {"rates": {"429": 0.25, "no-choices": 0.25}, "retry_after_s": 4}
    assert behaviour["latency"]["slowdown"] == 2


async def test_sigterm_during_start_up_ends_it_at_once(tmp_path: Path):
    async with process(tmp_path, "--start-up-ms", "60000") as server:
        line = await asyncio.to_thread(server.child.stderr.readline)
        assert "model_server.starting" in line
        assert not server.port_file.exists()
        server.child.send_signal(signal.SIGTERM)
        code, out, _ = await asyncio.to_thread(server.ended)
    assert (code, out) == (0, "")


async def test_a_taken_port_is_told():
    async with running_model_server() as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with running_model_server(port=port):
                pass
