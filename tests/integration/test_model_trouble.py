"""Whatever a model server does, each task ends in one result, and loses no attempt to it.

One service, and one server that does something else wrong with each task, for a while.
"""

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from support.model_client import ANSWER, COMPLETION, failing
from support.nats import NatsServer
from support.raw_http import Answer, Exchange, raw_server, response, sends
from support.ready import free_port
from support.service import RunningService, running_service
from support.streams import END, HEAD, OVERLOADED, says
from support.until import until

from agent_actors.config import VllmConfig
from agent_actors.config_tools import ToolsConfig, WorkspaceConfig
from agent_actors.contract import AgentResult, utc_now

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

SILENCE_S, WHOLE_S = 1.0, 1.5
RETRY_AFTER_S = 2
# An attempt asks twice, unless the server was silent: that is not repeated in place. So this
# takes more than one attempt.
FOR_A_WHILE = 3
VLLM = VllmConfig(
    connect_timeout_s=1.0,
    first_byte_timeout_s=SILENCE_S,
    total_timeout_s=WHOLE_S,
    max_retries=1,
    retry_base_s=0.02,
    retry_cap_s=0.1,
    max_response_bytes=100_000,
    probe_interval_s=0.1,
)


class Trouble(Struct, frozen=True, kw_only=True):
    """What a task's first `times` requests meet, and how the task ends: completed, or failed."""

    answer: Answer
    times: int = FOR_A_WHILE
    error_type: str | None = None
    task: Mapping[str, Any] = {}


def once(answer: Answer, error_type: str | None = None, **task: Any) -> Trouble:
    return Trouble(answer=answer, times=1, error_type=error_type, task=task)


def for_a_while(answer: Answer, **task: Any) -> Trouble:
    return Trouble(answer=answer, task=task)


def changed(**message: Any) -> Answer:
    """Answer with another message than the good one; `finish_reason` belongs to the choice."""
    answer = msgspec.json.decode(COMPLETION)
    (choice,) = answer["choices"]
    choice["finish_reason"] = message.pop("finish_reason", "stop")
    choice["message"] |= message
    return sends(response(msgspec.json.encode(answer)))


def calls(*calls: dict[str, Any]) -> Answer:
    return changed(content=None, tool_calls=list(calls), finish_reason="tool_calls")


def says_json(value: object, status: int = 200, **headers: str) -> Answer:
    return sends(response(msgspec.json.encode(value), status, **headers))


def without(what: bytes) -> Answer:
    assert what in COMPLETION
    return sends(response(COMPLETION.replace(what, b'"nothing":0')))


def then_silence(start: bytes) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(start)
        await exchange.hung_up()

    return answer


async def reset(exchange: Exchange) -> None:
    exchange.reset()


async def close(exchange: Exchange) -> None:
    exchange.close()


async def drip(exchange: Exchange) -> None:
    gone = asyncio.create_task(exchange.hung_up())
    for index in range(len(ANSWER)):
        await exchange.send(ANSWER[index : index + 1])
        if (await asyncio.wait({gone}, timeout=0.05))[0]:
            return


def endless(start: bytes, more: bytes) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(start)
        with suppress(ConnectionError):
            while True:
                await exchange.send(more)

    return answer


LIST_FILES = {"type": "function", "function": {"name": "list_files", "arguments": "{}"}}
UNKNOWN_TOOL = {"id": "a", "type": "function", "function": {"name": "fly", "arguments": "{}"}}
NAMELESS = {"id": "a", "type": "function", "function": {"arguments": '{"path": 7'}}
GATEWAY = response(b"<html>502 Bad Gateway</html>", Content_Type="text/html")
NO_LENGTH = response(Content_Length=None, Connection="close")
TOOLS = {"enable_tools": True}

TROUBLES = {
    # What does not end before the task's deadline; the first, so that it does not wait for others.
    "for ever": Trouble(answer=failing(500), times=1_000, error_type="DeadlineExceeded"),
    "reset": for_a_while(reset),
    "closed": for_a_while(close),
    "silent before the headers": for_a_while(then_silence(b"")),
    "silent after the headers": for_a_while(then_silence(ANSWER[: -len(COMPLETION)])),
    "silent within the body": for_a_while(then_silence(ANSWER[:-9])),
    "silent within a stream": for_a_while(then_silence(HEAD + says("Use")), **TOOLS),
    "a byte after the other": for_a_while(drip),
    "429": for_a_while(failing(429)),
    "429 with Retry-After": once(failing(429, Retry_After=str(RETRY_AFTER_S))),
    "503 with Retry-After": once(failing(503, Retry_After=str(RETRY_AFTER_S))),
    "500": for_a_while(failing(500)),
    "503": for_a_while(failing(503)),
    "a body that is cut off": for_a_while(sends(ANSWER[:-9], then_close=True)),
    "JSON that is cut off": for_a_while(sends(response(COMPLETION[:-9]))),
    "a stream that is cut off": for_a_while(sends(HEAD + says("Use"), then_close=True), **TOOLS),
    "no JSON": for_a_while(sends(response(b"Use a deque."))),
    "no HTTP": for_a_while(sends(b"SSH-2.0-OpenSSH_9.2\r\n", then_close=True)),
    "not even text": for_a_while(sends(response(bytes(range(256))))),
    "a page in place of JSON": for_a_while(sends(GATEWAY)),
    "JSON that says it is text": for_a_while(
        sends(response(COMPLETION, Content_Type="text/plain"))
    ),
    "an endless body": for_a_while(endless(NO_LENGTH, b" " * 65_536)),
    "endless headers": for_a_while(endless(b"HTTP/1.1 200 OK\r\n", b"X-More: yes\r\n" * 5_000)),
    "an endless stream": for_a_while(endless(HEAD, says("more ") * 1_000), **TOOLS),
    "an error inside a 200": for_a_while(says_json({"error": {"message": "oh"}})),
    "a 503 inside a 200": for_a_while(says_json({"error": {"message": "oh", "code": 503}})),
    "a 503 inside a stream": for_a_while(sends(HEAD + says("Use") + OVERLOADED + END), **TOOLS),
    "another success than 200": for_a_while(sends(response(b"", 204))),
    "no choices": for_a_while(without(b'"choices":')),
    "no choice in choices": for_a_while(says_json({"model": "tiny", "choices": []})),
    "a choice without a message": for_a_while(without(b'"message":')),
    "no finish_reason": for_a_while(without(b'"finish_reason":"stop"')),
    "null content": for_a_while(changed(content=None)),
    "content that is no text": for_a_while(changed(content=["Use", "a", "deque."])),
    "an aborted answer": for_a_while(changed(finish_reason="abort")),
    "calls that are none": for_a_while(changed(tool_calls="list_files"), **TOOLS),
    # What the model can be told of, or what does no harm.
    "calls without ids": once(calls(LIST_FILES, LIST_FILES), **TOOLS),
    "calls with one id": once(calls(LIST_FILES | {"id": "a"}, LIST_FILES | {"id": "a"}), **TOOLS),
    "a call of no tool": once(calls(UNKNOWN_TOOL), **TOOLS),
    "a call without a name": once(calls(NAMELESS), **TOOLS),
    "another model answers": once(sends(response(COMPLETION.replace(b"tiny", b"huge")))),
    # What asking again does not help.
    "400": once(failing(400), "ModelRefused"),
    "wrong model": once(failing(404), "ModelRefused", model="no-such-model"),
    "wrong key": once(failing(401), "ModelRefused"),
    "501": once(failing(501), "ModelRefused"),
    "a redirection": once(sends(response(b"", 307, Location="/elsewhere")), "ModelRefused"),
    "a 400 inside a 200": once(
        says_json({"error": {"message": "oh", "code": 400}}), "ModelRefused"
    ),
    "too long a prompt": once(
        says_json({"error": {"message": "oh", "param": "input_tokens", "code": 400}}, 400),
        "ContextExceeded",
    ),
    "no text at all": once(changed(content=""), "AnswerEmpty"),
    "an answer cut at max_tokens": once(changed(finish_reason="length"), "AnswerTruncated"),
}
UNREACHABLE = "a refused connection"


class TroubledModel:
    """Meets each task with its own trouble, which is over after some requests."""

    def __init__(self) -> None:
        self.asked: defaultdict[str, list[float]] = defaultdict(list)

    async def __call__(self, exchange: Exchange) -> None:
        found = re.search(rb"trouble: ([^.\\]+)\.", exchange.body)
        assert found, exchange.body
        name = found[1].decode()
        self.asked[name].append(exchange.at)
        trouble = TROUBLES.get(name)
        if trouble is None or len(self.asked[name]) > trouble.times:
            await exchange.send(ANSWER)
        else:
            await trouble.answer(exchange)


async def publish(running: RunningService, name: str, task: Mapping[str, Any]) -> None:
    await running.publish(name, f"Tell of this trouble: {name}.", **task)


async def is_paused(running: RunningService) -> bool:
    (pool,) = (await asyncio.to_thread(running.service.status)).pools
    return pool.state == "paused"


async def test_each_trouble_of_a_model_server_ends_in_one_result(
    nats_server: NatsServer, tmp_path: Path
):
    model, port = TroubledModel(), free_port()
    tools = ToolsConfig(workspace=WorkspaceConfig(root=str(tmp_path)))
    async with AsyncExitStack() as first_life:
        server = await first_life.enter_async_context(raw_server(model, port=port))
        async with running_service(
            nats_server,
            server.url,
            vllm=VLLM,
            actors=1,
            slots=len(TROUBLES),
            # A trouble that counted would end its task.
            max_attempts=1,
            retry_base_s=0.1,
            retry_cap_s=0.2,
            tools=tools,
        ) as running:
            deadline = {"constraints": {"deadline": utc_now() + timedelta(seconds=8)}}
            for name, trouble in TROUBLES.items():
                more = deadline if trouble.error_type == "DeadlineExceeded" else {}
                await publish(running, name, {**trouble.task, **more})
            ended = await running.results(len(TROUBLES), timeout_s=90)
            results = {each.task_id: each for each in ended}
            assert unexpected(results) == {}

            await first_life.aclose()
            await publish(running, UNREACHABLE, {})
            await until(lambda: is_paused(running))
            async with raw_server(model, port=port):
                assert await running.announced() == Counter([*TROUBLES, UNREACHABLE])
            records = [await running.record(name) for name in (*TROUBLES, UNREACHABLE)]
            assert {record.failures for record in records} == {0}
            assert await running.dead_letters() == []

    postponed = {record.task_id for record in records if record.postponed}
    lasting = {name for name, trouble in TROUBLES.items() if trouble.times > 1}
    told_to_wait = {name for name in TROUBLES if "Retry-After" in name}
    assert postponed >= {UNREACHABLE, *lasting, *told_to_wait}
    for name in told_to_wait:
        first, second, *_ = model.asked[name]
        assert second - first >= RETRY_AFTER_S
    for name, trouble in TROUBLES.items():
        if trouble.error_type and trouble.times == 1:
            assert len(model.asked[name]) == 1, name
    called = results["calls without ids"]
    assert [each.operation for each in called.operations] == ["list_files", "list_files"]
    assert results["another model answers"].model == "huge"


def unexpected(results: Mapping[str, AgentResult]) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (results[name].error_type, results[name].error)
        for name, trouble in TROUBLES.items()
        if results[name].error_type != trouble.error_type
    }
