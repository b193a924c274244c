"""The client with a listener: what it hears and when, and what goes wrong half way."""

import asyncio
import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from support.model_client import (
    ANSWER,
    PATIENCE_S,
    QUESTION,
    client,
    failing,
    noticing_hang_up,
)
from support.raw_http import Answer, Exchange, raw_server, sends
from support.streams import DONE, END, HEAD, OVERLOADED, chunk, event, says

from agent_actors.adapters.vllm.teller import TELL_EVERY_S
from agent_actors.contract import Usage
from agent_actors.errors import (
    ContextExceeded,
    FencedOut,
    ModelRefused,
    ModelReplyInvalid,
    ModelUnavailable,
)
from agent_actors.local.model_server.faults import Fault
from agent_actors.local.model_server.script import Script, ScriptedReply
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


class Heard:
    """A listener that remembers what it was told, and when."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.at: list[float] = []
        self._more = asyncio.Event()

    async def __call__(self, text: str) -> None:
        self.told.append(text)
        self.at.append(time.monotonic())
        self._more.set()

    @property
    def text(self) -> str:
        """What stands after the last time that all was void."""
        last = len(self.told) - self.told[::-1].index("") if "" in self.told else 0
        return "".join(self.told[last:])

    async def until(self, text: str) -> None:
        while self.text != text:
            self._more.clear()
            await self._more.wait()


USED = event({"model": "tiny", "choices": [], "usage": USAGE})
REST = says(None, "stop") + USED + chunk(DONE) + END
STREAM = HEAD + says("Use ") + says("a deque.") + REST


async def test_a_stream_is_asked_for_and_told_as_it_comes():
    heard = Heard()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(HEAD + says("Use "))
        await heard.until("Use ")
        await exchange.send(says("a ") + says("deque."))
        await heard.until("Use a deque.")  # and not only when the answer is whole
        await exchange.send(REST)

    async with raw_server(answer) as server, client(server.url) as asking:
        async with asyncio.timeout(PATIENCE_S):
            reply = await asking.chat(QUESTION, heard)
    assert heard.told == ["Use ", "a deque."]
    assert (reply.content, reply.finish_reason, reply.model) == ("Use a deque.", "stop", "tiny")
    assert reply.usage == Usage(prompt_tokens=5, completion_tokens=7, total_tokens=12)
    body = server.requests[0].json
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})
    assert server.requests[0].headers["accept"] == "text/event-stream, application/json"


async def test_without_a_listener_nothing_is_streamed():
    async with raw_server(sends(ANSWER)) as server, client(server.url) as asking:
        await asking.chat(QUESTION)
    assert server.requests[0].json == {
        "messages": [{"role": "user", "content": "Implement a queue"}]
    }
    assert server.requests[0].headers["accept"] == "application/json"


async def test_a_fast_stream_is_told_in_bundles():
    heard = Heard()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(HEAD)
        for number in range(500):
            await exchange.send(says(f"{number} "))
        await heard.until("".join(f"{number} " for number in range(500)))
        await exchange.send(REST)

    async with raw_server(answer) as server, client(server.url) as asking:
        async with asyncio.timeout(PATIENCE_S):
            reply = await asking.chat(QUESTION, heard)
    assert "".join(heard.told) == reply.content
    assert heard.told[0].startswith("0 ")
    assert len(heard.told) < 50
    assert min(after - before for before, after in pairwise(heard.at)) > 0.9 * TELL_EVERY_S


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_however_the_answer_is_cut_into_packets(size: int):
    async def answer(exchange: Exchange) -> None:
        for at in range(0, len(STREAM), size):
            await exchange.send(STREAM[at : at + size])

    heard = Heard()
    async with raw_server(answer) as server, client(server.url) as asking:
        reply = await asking.chat(QUESTION, heard)
    assert reply.content == heard.text == "Use a deque."


async def test_one_connection_serves_one_stream_after_the_other():
    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM.removesuffix(END))
        await asyncio.sleep(0.02)  # the end comes in a packet of its own, a little later
        await exchange.send(END)

    async with raw_server(answer) as server, client(server.url) as asking:
        for _ in range(5):
            await asking.chat(QUESTION, Heard())
    assert (server.connections, len(server.requests)) == (1, 5)


async def test_a_body_that_does_not_end_behind_the_answer_is_not_waited_for():
    answer, _, hung_up = noticing_hang_up(STREAM.removesuffix(END))
    async with raw_server(answer) as server, client(server.url) as asking:
        async with asyncio.timeout(PATIENCE_S):
            assert (await asking.chat(QUESTION, Heard())).content == "Use a deque."
            await hung_up.wait()


async def test_a_gateway_that_does_not_stream_is_told_at_once():
    heard = Heard()
    async with raw_server(sends(ANSWER)) as server, client(server.url) as asking:
        reply = await asking.chat(QUESTION, heard)
    assert reply.content == "Use a deque."
    assert heard.told == ["Use a deque."]


class TestFaults:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (sends(HEAD + says("Use"), then_close=True), "the answer was cut off"),
            (sends(HEAD + says("Use") + END), r"a stream that ends without \[DONE\]"),
            (sends(HEAD + says("Use") + says("", "stop") + END), r"without \[DONE\]"),
            (sends(HEAD + says("Use") + chunk(DONE) + END), "answered without a finish_reason"),
            (sends(HEAD + says("Use") + chunk(b"data: <p>\n\n") + END), "answered no JSON"),
            (sends(HEAD + says("Use", "abort") + chunk(DONE) + END), "aborted the answer"),
            (sends(HEAD + OVERLOADED + chunk(DONE) + END), "error 503 inside: busy"),
            (sends(HEAD + says("Use") + OVERLOADED + END), "error 503 inside: busy"),
            (failing(503), "HTTP 503: oh"),
        ],
    )
    async def test_a_stream_that_fails_is_tried_again_and_named(self, answer: Answer, message: str):
        async with raw_server(answer) as server, client(server.url) as asking:
            with pytest.raises(ModelUnavailable, match=message):
                await asking.chat(QUESTION, Heard())
        assert len(server.requests) == 3

    async def test_what_was_told_is_void_when_another_answer_begins(self):
        heard = Heard()

        async def breaks_off(exchange: Exchange) -> None:
            await exchange.send(HEAD + says("Try "))
            await heard.until("Try ")
            exchange.reset()

        async with (
            raw_server(breaks_off) as broken,
            raw_server(sends(STREAM)) as sound,
            client(broken.url, sound.url) as asking,
            asyncio.timeout(PATIENCE_S),
        ):
            reply = await asking.chat(QUESTION, heard)
        assert reply.content == heard.text == "Use a deque."
        assert heard.told[:2] == ["Try ", ""]
        assert (len(broken.requests), len(sound.requests)) == (1, 1)

    async def test_nothing_is_void_when_nothing_was_told(self):
        heard = Heard()
        overloaded = sends(HEAD + OVERLOADED + chunk(DONE) + END)
        async with (
            raw_server(failing(503), overloaded, sends(STREAM)) as server,
            client(server.url) as asking,
        ):
            await asking.chat(QUESTION, heard)
        assert "" not in heard.told

    async def test_a_refusal_in_a_stream_is_final(self):
        refused = event({"error": {"message": "Grammar error", "param": None, "code": 400}})
        async with (
            raw_server(sends(HEAD + refused + chunk(DONE) + END)) as server,
            client(server.url) as asking,
        ):
            with pytest.raises(ModelRefused, match="Grammar error"):
                await asking.chat(QUESTION, Heard())
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        "more", [says("more and more "), chunk(b": ping\n\n"), chunk(b"x" * 99)]
    )
    async def test_an_endless_stream_is_dropped_and_not_asked_for_again(self, more: bytes):
        async def endless(exchange: Exchange) -> None:
            await exchange.send(HEAD)
            while True:
                await exchange.send(more * 100)

        async with (
            raw_server(endless) as server,
            client(server.url, max_response_bytes=100_000) as asking,
        ):
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(ModelReplyInvalid, match="more than 100000 bytes"):
                    await asking.chat(QUESTION, Heard())
        assert len(server.requests) == 1

    async def test_a_stream_that_only_drips_ends_with_the_time_for_the_whole(self):
        async def drips(exchange: Exchange) -> None:
            await exchange.send(HEAD)
            gone = asyncio.create_task(exchange.hung_up())
            while not (await asyncio.wait({gone}, timeout=0.01))[0]:
                await exchange.send(chunk(b":"))

        async with (
            raw_server(drips) as server,
            client(server.url, first_byte_timeout_s=5.0, total_timeout_s=0.2) as asking,
        ):
            with pytest.raises(ModelUnavailable, match=r"no whole answer within 0\.2 s"):
                await asking.chat(QUESTION, Heard())
        assert len(server.requests) == 1

    @pytest.mark.parametrize("start", [HEAD, HEAD + says("Use "), HEAD + says("a") + says("b")])
    async def test_a_stream_that_falls_silent_is_named(self, start: bytes):
        answer, _, hung_up = noticing_hang_up(start)
        async with (
            raw_server(answer) as server,
            client(server.url, first_byte_timeout_s=0.2) as asking,
        ):
            with pytest.raises(ModelUnavailable, match=r"sent no byte for 0\.2 s"):
                await asking.chat(QUESTION, Heard())
            async with asyncio.timeout(PATIENCE_S):
                await hung_up.wait()


class TestListeners:
    @pytest.mark.parametrize("error", [FencedOut(), TimeoutError(), ConnectionError()])
    async def test_what_a_listener_raises_comes_through_and_hangs_up(self, error: Exception):
        async def failing_listener(text: str) -> None:
            raise error

        answer, _, hung_up = noticing_hang_up(HEAD + says("Use "))
        async with raw_server(answer) as server, client(server.url) as asking:
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(type(error)) as raised:
                    await asking.chat(QUESTION, failing_listener)
                await hung_up.wait()
        assert raised.value is error
        assert len(server.requests) == 1

    @pytest.mark.parametrize("start", [HEAD, HEAD + says("Use ")])
    async def test_a_cancelled_stream_hangs_up_at_once(self, start: bytes):
        answer, begun, hung_up = noticing_hang_up(start)
        async with raw_server(answer) as server, client(server.url) as asking:
            under_way = asyncio.create_task(asking.chat(QUESTION, Heard()))
            async with asyncio.timeout(PATIENCE_S):
                await begun.wait()
                under_way.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await under_way
                await hung_up.wait()
        assert len(server.requests) == 1

    async def test_a_stream_is_cancelled_while_its_listener_listens(self):
        listening = asyncio.Event()

        async def slow(text: str) -> None:
            listening.set()
            await asyncio.Event().wait()

        answer, _, hung_up = noticing_hang_up(HEAD + says("Use "))
        async with raw_server(answer) as server, client(server.url) as asking:
            under_way = asyncio.create_task(asking.chat(QUESTION, slow))
            async with asyncio.timeout(PATIENCE_S):
                await listening.wait()
                under_way.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await under_way
                await hung_up.wait()

    async def test_closing_aborts_a_stream(self):
        heard = Heard()
        answer, _, hung_up = noticing_hang_up(HEAD + says("Use "))
        async with raw_server(answer) as server:
            asking = client(server.url)
            under_way = asyncio.create_task(asking.chat(QUESTION, heard))
            async with asyncio.timeout(PATIENCE_S):
                await heard.until("Use ")
                await asking.close()
                with pytest.raises(ModelUnavailable, match="the client was closed"):
                    await under_way
                await hung_up.wait()


class TestAgainstTheSimulatedServer:
    async def test_the_answer_is_the_same_streamed_or_not(self):
        async with running_model_server() as server, client(server.url) as asking:
            whole = await asking.chat(QUESTION)
            heard = Heard()
            streamed = await asking.chat(QUESTION, heard)
        assert streamed == whole
        assert heard.text == whole.content
        assert whole.usage.completion_tokens > 0

    @pytest.mark.parametrize(
        "fault",
        [
            *(Fault.TRUNCATED, Fault.STREAM_ERROR, Fault.ABORT, Fault.RESET, Fault.GARBAGE),
            *(Fault.NO_CHOICES, Fault.NO_FINISH_REASON, Fault.UNAVAILABLE),
        ],
    )
    async def test_a_fault_half_way_costs_a_retry_and_no_words(self, fault: Fault):
        script = Script(replies=(ScriptedReply(fault=fault), ScriptedReply(content="Use a deque.")))
        pace = Behaviour(latency=Latency(between_tokens_ms=1))
        settings = ModelServerSettings(script=script, behaviour=pace)
        heard = Heard()
        async with running_model_server(settings) as server, client(server.url) as asking:
            reply = await asking.chat(QUESTION, heard)
        assert reply.content == heard.text == "Use a deque."
        assert len(server.requests) == 2

    async def test_a_server_that_is_stopped_is_no_answer(self):
        settings = ModelServerSettings(behaviour=Behaviour(latency=Latency(between_tokens_ms=20)))
        async with (
            running_model_server(settings) as server,
            client(server.url, max_retries=0) as asking,
        ):

            async def stop(text: str) -> None:
                server.stop()

            with pytest.raises(ModelUnavailable, match="aborted the answer"):
                await asking.chat(QUESTION, stop)

    @pytest.mark.parametrize("listener", [None, Heard])
    async def test_a_prompt_that_is_too_long_is_told_from_other_refusals(self, listener: Any):
        settings = ModelServerSettings(max_model_len=64)
        async with running_model_server(settings) as server, client(server.url) as asking:
            for words in (70, 7_000):
                message = msgspec.structs.replace(QUESTION.messages[0], content="word " * words)
                question = msgspec.structs.replace(QUESTION, messages=(message,))
                with pytest.raises(ContextExceeded, match="maximum context length is 64 tokens"):
                    await asking.chat(question, listener and listener())
            with pytest.raises(ModelRefused) as raised:
                await asking.chat(msgspec.structs.replace(QUESTION, max_tokens=65))
        assert type(raised.value) is ModelRefused
        assert len(server.requests) == 3
