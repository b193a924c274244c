"""The client against servers that answer well, badly, late, halfway, or not at all.

Limits are tiny where they are to be met, and far away where they are not.
"""

import asyncio
import contextlib
import gzip
import pickle
import socket
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs
from support.model_client import (
    ANSWER,
    COMPLETION,
    DEAD_URL,
    PATIENCE_S,
    QUESTION,
    client,
    failing,
    noticing_hang_up,
    read_what_was_sent,
)
from support.raw_http import Answer, Exchange, raw_server, response, sends

from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.config import VllmConfig
from agent_actors.config_types import Secret
from agent_actors.contract import Usage, utc_now
from agent_actors.errors import (
    ConfigError,
    ModelRefused,
    ModelReplyInvalid,
    ModelUnavailable,
)
from agent_actors.ports import ChatRequest


async def close(exchange: Exchange) -> None:
    exchange.close()


async def reset(exchange: Exchange) -> None:
    exchange.reset()


class TestAsking:
    async def test_an_answer_is_read(self):
        async with raw_server(sends(ANSWER)) as server, client(server.url) as asking:
            reply = await asking.chat(QUESTION)
        assert (reply.content, reply.finish_reason, reply.model) == (
            "Use a deque.",
            "stop",
            "tiny",
        )
        assert reply.usage == Usage(prompt_tokens=5, completion_tokens=7, total_tokens=12)

    @pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
    async def test_the_request_goes_to_chat_completions(self, ending: str):
        async with raw_server(sends(ANSWER)) as server, client(server.url + ending) as asking:
            await asking.chat(QUESTION)
        assert server.requests[0].method == "POST"
        assert server.requests[0].path == "/v1/chat/completions"
        assert server.requests[0].headers["content-type"] == "application/json"

    async def test_what_is_unset_is_left_to_the_server(self):
        async with raw_server(sends(ANSWER)) as server, client(server.url) as asking:
            await asking.chat(QUESTION)
            await asking.chat(
                ChatRequest(
                    messages=QUESTION.messages,
                    model="big",
                    temperature=0.0,
                    max_tokens=5,
                    response_format={"type": "json_object"},
                )
            )
        messages = [{"role": "user", "content": "Implement a queue"}]
        assert server.requests[0].json == {"messages": messages}
        assert server.requests[1].json == {
            "messages": messages,
            "model": "big",
            "temperature": 0.0,
            "max_tokens": 5,
            "response_format": {"type": "json_object"},
        }

    async def test_the_clients_model_is_for_requests_that_name_none(self):
        async with (
            raw_server(sends(ANSWER)) as server,
            VLLMHTTPClient(server.url, model="tiny") as asking,
        ):
            await asking.chat(QUESTION)
            await asking.chat(msgspec.structs.replace(QUESTION, model="big"))
        assert [request.json["model"] for request in server.requests] == ["tiny", "big"]

    async def test_the_server_is_told_who_asks(self):
        async with (
            raw_server(sends(ANSWER)) as server,
            VLLMHTTPClient(server.url, agent_id="agent (7)\r\nX: y", role="DÉV") as asking,
        ):
            await asking.chat(QUESTION)
        agent = server.requests[0].headers["user-agent"]
        assert agent.startswith("agent-actors/")
        assert agent.endswith(" (agent-7-X:-y; D-V)")

    async def test_the_key_is_a_bearer_token(self):
        async with (
            raw_server(sends(ANSWER)) as server,
            VLLMHTTPClient(server.url, api_key=Secret("sk-1")) as asking,
        ):
            await asking.chat(QUESTION)
        assert server.requests[0].headers["authorization"] == "Bearer sk-1"

    async def test_credentials_in_a_url_are_sent_as_basic_authentication(self):
        async with (
            raw_server(sends(ANSWER)) as server,
            client(server.url.replace("//", "//me:pw@")) as asking,
        ):
            await asking.chat(QUESTION)
        assert server.requests[0].headers["authorization"] == "Basic bWU6cHc="

    async def test_a_body_without_a_length_ends_with_the_connection(self):
        endless = response(COMPLETION, Content_Length=None, Connection="close")
        async with (
            raw_server(sends(endless, then_close=True)) as server,
            client(server.url) as asking,
        ):
            assert (await asking.chat(QUESTION)).content == "Use a deque."


class TestSession:
    async def test_one_connection_serves_one_request_after_the_other(self):
        async with raw_server(sends(ANSWER)) as server, client(server.url) as asking:
            for _ in range(20):
                await asking.chat(QUESTION)
        assert (server.connections, len(server.requests)) == (1, 20)

    async def test_as_many_requests_are_under_way_as_are_asked(self):
        # More than the hundred connections that aiohttp allows unless told otherwise.
        everyone = asyncio.Barrier(150)

        async def answer_when_all_are_here(exchange: Exchange) -> None:
            await everyone.wait()
            await exchange.send(ANSWER)

        async with raw_server(answer_when_all_are_here) as server, client(server.url) as asking:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*(asking.chat(QUESTION) for _ in range(150)))
        assert server.connections == 150

    def test_it_can_be_made_outside_of_a_loop_and_used_in_one_after_the_other(self):
        async def ask_a_new_server(asking: VLLMHTTPClient) -> str:
            async with raw_server(sends(ANSWER), port=port) as _, asking:
                return (await asking.chat(QUESTION)).content

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        asking = client(f"http://127.0.0.1:{port}")
        assert [asyncio.run(ask_a_new_server(asking)) for _ in range(2)] == ["Use a deque."] * 2

    async def test_it_can_be_sent_to_another_process_before_it_is_used(self):
        async with raw_server(sends(ANSWER)) as server:
            sent = pickle.loads(pickle.dumps(client(server.url, api_key="sk-1")))
            async with sent as asking:
                await asking.chat(QUESTION)
        assert server.requests[0].headers["authorization"] == "Bearer sk-1"

    @pytest.mark.parametrize("start", [b"", ANSWER[:-9]])
    async def test_closing_aborts_what_is_under_way_and_asks_nobody_again(self, start: bytes):
        answer, begun, hung_up = noticing_hang_up(start)
        async with raw_server(answer) as server:
            asking = client(server.url)
            under_way = asyncio.create_task(asking.chat(QUESTION))
            async with asyncio.timeout(PATIENCE_S):
                await begun.wait()
                await read_what_was_sent()
                await asking.close()
                with pytest.raises(ModelUnavailable, match="the client was closed"):
                    await under_way
                await hung_up.wait()
            assert asyncio.all_tasks() <= {asyncio.current_task(), *server.tasks}
        assert len(server.requests) == 1

    async def test_closing_ends_the_wait_for_a_retry(self):
        probed = asyncio.Event()

        async def health(exchange: Exchange) -> None:
            probed.set()
            await exchange.send(response())

        async with raw_server(failing(503, Retry_After="0.3"), health=health) as server:
            asking = client(server.url, probe_interval_s=0.001)
            under_way = asyncio.create_task(asking.chat(QUESTION))
            async with asyncio.timeout(PATIENCE_S):
                await probed.wait()
                await asking.close()
                with pytest.raises(ModelUnavailable, match="the client was closed"):
                    await under_way
        assert len(server.requests) == 1

    async def test_a_new_session_trusts_everybody_anew(self):
        async with (
            raw_server(failing(500), sends(ANSWER)) as recovered,
            raw_server(sends(ANSWER)) as sound,
            client(recovered.url, sound.url) as asking,
        ):
            await asking.chat(QUESTION)
            await asking.close()
            await asking.chat(QUESTION)
        assert (len(recovered.requests), len(sound.requests)) == (2, 1)

    async def test_closing_twice_or_unused_is_fine(self):
        asking = client(DEAD_URL)
        await asking.close()
        with pytest.raises(ModelUnavailable):
            await asking.chat(QUESTION)
        await asking.close()
        await asking.close()


class TestRefusals:
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
    async def test_a_refusal_is_final_and_carries_what_vllm_said(self, status: int):
        async with raw_server(failing(status)) as server, client(server.url) as asking:
            with pytest.raises(ModelRefused) as raised:
                await asking.chat(QUESTION)
        assert str(raised.value) == (
            f"{server.url} refused the request: HTTP {status}: oh (type E, code {status})"
        )
        assert len(server.requests) == 1

    async def test_a_refusal_says_nothing_of_the_servers_health(self):
        async with raw_server(failing(400)) as server, client(server.url) as asking:
            with capture_logs() as logs, pytest.raises(ModelRefused):
                await asking.chat(QUESTION)
        assert "model.endpoint_unhealthy" not in {line["event"] for line in logs}

    async def test_a_redirection_is_not_followed(self):
        async with raw_server(sends(ANSWER)) as elsewhere:
            moved = sends(response(b"", 307, Location=elsewhere.url))
            async with raw_server(moved) as server, client(server.url, api_key="sk-1") as asking:
                with pytest.raises(ModelRefused, match="which is not followed"):
                    await asking.chat(QUESTION)
        assert elsewhere.requests == []

    async def test_an_endless_error_body_is_cut(self):
        endless = response(b"no" * 4_000, 400, Content_Length="8000000")
        async with (
            raw_server(sends(endless)) as server,
            client(server.url, max_response_bytes=1_000) as asking,
        ):
            with pytest.raises(ModelRefused, match="HTTP 400: 'nono"):
                await asking.chat(QUESTION)


class TestRetries:
    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    async def test_a_busy_or_broken_server_is_asked_again(self, status: int):
        async with (
            raw_server(failing(status), sends(ANSWER)) as server,
            client(server.url) as asking,
        ):
            assert (await asking.chat(QUESTION)).content == "Use a deque."
        assert len(server.requests) == 2

    async def test_retries_end(self):
        async with (
            raw_server(failing(503)) as server,
            client(server.url, max_retries=3) as asking,
        ):
            with pytest.raises(ModelUnavailable, match=r"answered HTTP 503: oh") as raised:
                await asking.chat(QUESTION)
        assert len(server.requests) == 4
        assert raised.value.retry_after_s is None

    async def test_without_retries_a_request_is_sent_once(self):
        async with (
            raw_server(failing(503)) as server,
            client(server.url, max_retries=0) as asking,
        ):
            with pytest.raises(ModelUnavailable):
                await asking.chat(QUESTION)
        assert len(server.requests) == 1

    async def test_a_retry_waits_as_long_as_the_server_asks(self):
        async with (
            raw_server(failing(429, Retry_After="0.25"), sends(ANSWER)) as server,
            client(server.url) as asking,
        ):
            await asking.chat(QUESTION)
        first, second = server.requests
        assert second.at - first.at >= 0.25

    async def test_a_longer_wait_than_the_cap_is_left_to_the_caller(self):
        async with (
            raw_server(failing(503, Retry_After="7")) as server,
            client(server.url, retry_cap_s=6.0) as asking,
        ):
            with pytest.raises(ModelUnavailable) as raised:
                await asking.chat(QUESTION)
        assert raised.value.retry_after_s == 7.0
        assert len(server.requests) == 1

    async def test_a_wait_until_a_date_is_understood(self):
        then = format_datetime(utc_now().replace(year=utc_now().year + 1), usegmt=True)
        async with (
            raw_server(failing(429, Retry_After=then)) as server,
            client(server.url) as asking,
        ):
            with pytest.raises(ModelUnavailable) as raised:
                await asking.chat(QUESTION)
        assert raised.value.retry_after_s == 86_400.0

    async def test_another_server_is_asked_instead_of_waiting(self):
        async with (
            raw_server(failing(429, Retry_After="600")) as busy,
            raw_server(sends(ANSWER)) as free,
            client(busy.url, free.url) as asking,
        ):
            async with asyncio.timeout(PATIENCE_S):
                assert (await asking.chat(QUESTION)).content == "Use a deque."
        assert (len(busy.requests), len(free.requests)) == (1, 1)

    @pytest.mark.parametrize("failure", [close, reset])
    async def test_a_lost_connection_is_tried_again(self, failure: Answer):
        async with raw_server(failure, sends(ANSWER)) as server, client(server.url) as asking:
            assert (await asking.chat(QUESTION)).content == "Use a deque."

    @pytest.mark.parametrize("failure", [close, reset])
    async def test_a_connection_that_is_always_lost_is_named(self, failure: Answer):
        async with raw_server(failure) as server, client(server.url) as asking:
            with pytest.raises(ModelUnavailable, match="the connection was lost before the answer"):
                await asking.chat(QUESTION)
        assert len(server.requests) == 3

    async def test_a_refused_connection_is_named(self):
        async with client(DEAD_URL) as asking:
            with pytest.raises(ModelUnavailable, match=r"http://127\.0\.0\.1:1: no connection: "):
                await asking.chat(QUESTION)

    async def test_a_host_without_an_address_is_named(self):
        async with client("http://nowhere.invalid:8000") as asking:
            with pytest.raises(ModelUnavailable, match=r"no connection: .*nowhere\.invalid"):
                await asking.chat(QUESTION)


class TestTimeouts:
    async def test_no_connection_in_time(self, unanswering_url: str):
        async with client(unanswering_url, connect_timeout_s=0.05, max_retries=1) as asking:
            with pytest.raises(ModelUnavailable, match=r"no connection within 0\.05 s"):
                await asking.chat(QUESTION)

    async def test_no_connection_in_time_is_tried_elsewhere(self, unanswering_url: str):
        async with (
            raw_server(sends(ANSWER)) as server,
            client(unanswering_url, server.url, connect_timeout_s=0.05) as asking,
        ):
            assert (await asking.chat(QUESTION)).content == "Use a deque."

    async def test_no_first_byte_in_time_is_not_tried_again(self):
        answer, _, hung_up = noticing_hang_up()
        async with (
            raw_server(answer) as server,
            client(server.url, first_byte_timeout_s=0.05) as asking,
        ):
            with pytest.raises(ModelUnavailable, match=r"sent no byte for 0\.05 s"):
                await asking.chat(QUESTION)
            async with asyncio.timeout(PATIENCE_S):
                await hung_up.wait()
        assert len(server.requests) == 1

    async def test_no_whole_answer_in_time_is_not_tried_again(self):
        hung_up = asyncio.Event()

        async def one_byte_after_the_other(exchange: Exchange) -> None:
            gone = asyncio.create_task(exchange.hung_up())
            for index in range(len(ANSWER)):
                await exchange.send(ANSWER[index : index + 1])
                if (await asyncio.wait({gone}, timeout=0.02))[0]:
                    hung_up.set()
                    return

        async with (
            raw_server(one_byte_after_the_other) as server,
            client(server.url, first_byte_timeout_s=5.0, total_timeout_s=0.2) as asking,
        ):
            with pytest.raises(ModelUnavailable, match=r"no whole answer within 0\.2 s"):
                await asking.chat(QUESTION)
            async with asyncio.timeout(PATIENCE_S):
                await hung_up.wait()
        assert len(server.requests) == 1

    @pytest.mark.parametrize("missing", [9, len(COMPLETION)])
    async def test_a_body_that_stands_still_is_named(self, missing: int):
        answer, _, _ = noticing_hang_up(ANSWER[:-missing])
        async with (
            raw_server(answer) as server,
            client(server.url, first_byte_timeout_s=0.05) as asking,
        ):
            with pytest.raises(ModelUnavailable, match=r"sent no byte for 0\.05 s"):
                await asking.chat(QUESTION)


class TestBadAnswers:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (sends(ANSWER[:-9], then_close=True), "the answer was cut off"),
            (
                sends(
                    response(b'9\r\n{"choices', Content_Length=None, Transfer_Encoding="chunked"),
                    then_close=True,
                ),
                "the answer was cut off",
            ),
            (
                sends(
                    response(COMPLETION[:-9], Content_Length=None, Connection="close"),
                    then_close=True,
                ),
                "answered JSON that is cut off",
            ),
            (sends(response(b"not compressed", Content_Encoding="gzip")), "was cut off"),
            (sends(response(b"Hello")), "answered no JSON"),
            (sends(response(b"<p>", Content_Type="text/html")), "answered text/html, not JSON"),
            (sends(response(b"{}")), "answered without choices"),
            (sends(response(b'{"choices": []}')), "answered with no choice in choices"),
            (
                sends(response(COMPLETION.replace(b'"Use a deque."', b"null"))),
                "answered null content",
            ),
            (
                sends(response(b'{"error": {"message": "oh"}}')),
                "answered HTTP 200 with an error inside: oh",
            ),
            (
                sends(response(COMPLETION.replace(b'"finish_reason":"stop"', b'"x":1'))),
                "answered without a finish_reason",
            ),
            (sends(b"SSH-2.0-OpenSSH_9.2\r\n", then_close=True), "answered no HTTP"),
            (
                sends(response(COMPLETION.replace(b'"stop"', b'"abort"'))),
                "aborted the answer",
            ),
            (sends(response(b"", 204)), "answered HTTP 204 where 200 is due"),
        ],
    )
    async def test_a_bad_answer_is_tried_again_and_named(self, answer: Answer, message: str):
        async with raw_server(answer) as server, client(server.url) as asking:
            with pytest.raises(ModelUnavailable, match=message):
                await asking.chat(QUESTION)
        assert len(server.requests) == 3

    async def test_a_bad_answer_may_be_followed_by_a_good_one(self):
        async with (
            raw_server(sends(ANSWER[:-9], then_close=True), sends(ANSWER)) as server,
            client(server.url) as asking,
        ):
            assert (await asking.chat(QUESTION)).content == "Use a deque."

    async def test_an_answer_cut_short_by_a_shutdown_is_asked_for_elsewhere(self):
        aborted = sends(response(COMPLETION.replace(b'"stop"', b'"abort"')))
        async with (
            raw_server(aborted) as stopping,
            raw_server(sends(ANSWER)) as other,
            client(stopping.url, other.url) as asking,
        ):
            assert (await asking.chat(QUESTION)).content == "Use a deque."
        assert (len(stopping.requests), len(other.requests)) == (1, 1)

    async def test_an_endless_body_is_dropped_and_not_asked_for_again(self):
        hung_up = asyncio.Event()

        async def endless(exchange: Exchange) -> None:
            await exchange.send(response(Content_Length=None, Connection="close"))
            with contextlib.suppress(ConnectionError):
                while True:
                    await exchange.send(b" " * 65_536)
            hung_up.set()

        async with (
            raw_server(endless) as server,
            client(server.url, max_response_bytes=1_000_000) as asking,
        ):
            with pytest.raises(ModelReplyInvalid, match="more than 1000000 bytes"):
                await asking.chat(QUESTION)
            async with asyncio.timeout(PATIENCE_S):
                await hung_up.wait()
        assert len(server.requests) == 1

    async def test_endless_headers_are_dropped(self):
        async def endless(exchange: Exchange) -> None:
            await exchange.send(b"HTTP/1.1 200 OK\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    await exchange.send(b"X-More: yes\r\n" * 5_000)

        async with raw_server(endless) as server, client(server.url, max_retries=0) as asking:
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(ModelReplyInvalid, match="answered no HTTP"):
                    await asking.chat(QUESTION)

    async def test_calls_without_ids_get_some(self):
        call = {"type": "function", "function": {"name": "list_files", "arguments": "{}"}}
        answer = msgspec.json.decode(COMPLETION)
        answer["choices"][0] |= {
            "message": {"role": "assistant", "content": None, "tool_calls": [call, call]},
            "finish_reason": "tool_calls",
        }
        async with (
            raw_server(sends(response(msgspec.json.encode(answer)))) as server,
            client(server.url) as asking,
        ):
            reply = await asking.chat(QUESTION)
        first, second = reply.tool_calls
        assert first.id
        assert second.id not in {"", first.id}

    async def test_the_limit_counts_what_the_body_unpacks_to(self):
        bomb = response(gzip.compress(b" " * 5_000_000), Content_Encoding="gzip")
        async with (
            raw_server(sends(bomb)) as server,
            client(server.url, max_response_bytes=1_000_000) as asking,
        ):
            with pytest.raises(ModelReplyInvalid, match="more than 1000000 bytes"):
                await asking.chat(QUESTION)

    async def test_a_body_of_exactly_the_limit_is_read(self):
        async with (
            raw_server(sends(ANSWER)) as server,
            client(server.url, max_response_bytes=len(COMPLETION)) as asking,
        ):
            assert (await asking.chat(QUESTION)).content == "Use a deque."


class TestCancelling:
    @pytest.mark.parametrize("start", [b"", ANSWER[:-9]])
    async def test_a_cancelled_request_hangs_up_at_once(self, start: bytes):
        answer, begun, hung_up = noticing_hang_up(start)
        async with raw_server(answer) as server, client(server.url) as asking:
            under_way = asyncio.create_task(asking.chat(QUESTION))
            async with asyncio.timeout(PATIENCE_S):
                await begun.wait()
                under_way.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await under_way
                await hung_up.wait()
        assert len(server.requests) == 1

    async def test_a_cancelled_request_leaves_the_others_alone(self):
        release = asyncio.Event()

        async def answer_when_released(exchange: Exchange) -> None:
            await release.wait()
            await exchange.send(ANSWER)

        answer, begun, hung_up = noticing_hang_up()
        async with (
            raw_server(answer, answer_when_released) as server,
            client(server.url) as asking,
            asyncio.timeout(PATIENCE_S),
        ):
            cancelled = asyncio.create_task(asking.chat(QUESTION))
            await begun.wait()
            other = asyncio.create_task(asking.chat(QUESTION))
            cancelled.cancel()
            await hung_up.wait()
            release.set()
            assert (await other).content == "Use a deque."


class TestHealth:
    async def test_an_unhealthy_server_is_left_out(self):
        async with (
            raw_server(failing(500)) as broken,
            raw_server(sends(ANSWER)) as sound,
            client(broken.url, sound.url) as asking,
        ):
            for _ in range(10):
                await asking.chat(QUESTION)
        assert (len(broken.requests), len(sound.requests)) == (1, 10)

    async def test_an_overloaded_server_that_says_so_stays_in(self):
        async with (
            raw_server(failing(429), sends(ANSWER)) as busy,
            raw_server(sends(ANSWER)) as other,
            client(busy.url, other.url) as asking,
        ):
            for _ in range(4):
                await asking.chat(QUESTION)
        assert len(busy.requests) == 3

    async def test_it_is_probed_until_it_is_well_and_then_trusted_again(self):
        sick = 2

        async def health(exchange: Exchange) -> None:
            nonlocal sick
            sick -= 1
            await exchange.send(response(b"", 503 if sick >= 0 else 200))

        async with (
            raw_server(failing(500), sends(ANSWER), health=health) as recovering,
            raw_server(sends(ANSWER)) as sound,
            client(recovering.url, sound.url, probe_interval_s=0.01) as asking,
        ):
            await asking.chat(QUESTION)
            async with asyncio.timeout(PATIENCE_S):
                while len(recovering.requests) < 2:
                    await asking.chat(QUESTION)
        assert [probe.path for probe in recovering.probes] == ["/health"] * 3
        assert sound.probes == []

    async def test_a_gateway_without_a_health_page_is_trusted_when_it_answers(self):
        async with (
            raw_server(failing(500), sends(ANSWER), health=failing(404)) as gateway,
            raw_server(sends(ANSWER)) as sound,
            client(gateway.url, sound.url, probe_interval_s=0.01) as asking,
        ):
            await asking.chat(QUESTION)
            async with asyncio.timeout(PATIENCE_S):
                while len(gateway.requests) < 2:
                    await asking.chat(QUESTION)

    async def test_while_nobody_is_healthy_somebody_is_asked(self):
        async with (
            raw_server(failing(500), sends(ANSWER)) as server,
            client(DEAD_URL, server.url, max_retries=1) as asking,
        ):
            with pytest.raises(ModelUnavailable):
                await asking.chat(QUESTION)
            assert (await asking.chat(QUESTION)).content == "Use a deque."

    async def test_while_nobody_is_healthy_the_one_that_answers_at_times_is_asked(self):
        by_turns = [failing(500), sends(ANSWER)] * 20
        async with (
            raw_server(failing(500)) as broken,
            raw_server(*by_turns) as overloaded,
            client(broken.url, overloaded.url, max_retries=0) as asking,
        ):
            for _ in range(30):
                with contextlib.suppress(ModelUnavailable):
                    await asking.chat(QUESTION)
        assert len(broken.requests) <= 3

    async def test_requests_go_where_the_fewest_are_under_way(self):
        answer, begun, _ = noticing_hang_up()
        async with (
            raw_server(answer) as slow,
            raw_server(sends(ANSWER)) as fast,
            client(slow.url, fast.url) as asking,
        ):
            waiting = asyncio.create_task(asking.chat(QUESTION))
            async with asyncio.timeout(PATIENCE_S):
                await begun.wait()
                for _ in range(5):
                    await asking.chat(QUESTION)
            waiting.cancel()
        assert (len(slow.requests), len(fast.requests)) == (1, 5)

    async def test_closing_ends_all_that_runs_in_the_background(self):
        async with raw_server(failing(500), sends(ANSWER)) as server:
            async with client(server.url) as asking:
                await asking.chat(QUESTION)
                running = asyncio.all_tasks() - {asyncio.current_task(), *server.tasks}
            assert running
            assert all(task.cancelled() for task in running)


class TestSecrecy:
    async def test_a_key_that_the_server_echoes_is_masked(self):
        async def echo(exchange: Exchange) -> None:
            said = f'{{"error": "who is {exchange.headers["authorization"]}?"}}'
            await exchange.send(response(said.encode(), 401))

        async with raw_server(echo) as server, client(server.url, api_key="sk-1") as asking:
            with pytest.raises(ModelRefused, match=r"who is Bearer \*\*\*\?"):
                await asking.chat(QUESTION)

    async def test_no_log_line_and_no_repr_has_the_key(self):
        async with raw_server(failing(503), sends(ANSWER)) as server:
            url = server.url.replace("//", "//me:hunter2@")
            for asking in (client(server.url, api_key="sk-1"), client(url)):
                server.requests.clear()
                with capture_logs() as logs:
                    async with asking:
                        await asking.chat(QUESTION)
                assert logs
                assert "sk-1" not in repr((logs, asking))
                assert "hunter2" not in repr((logs, asking))

    async def test_no_failure_drags_the_key_along(self):
        no_http = sends(b"SSH-2.0-OpenSSH_9.2\r\n", then_close=True)
        async with raw_server(no_http) as server, client(server.url, api_key="sk-1") as asking:
            with pytest.raises(ModelReplyInvalid) as raised:
                await asking.chat(QUESTION)
        assert all("sk-1" not in repr(error) for error in chain(raised.value))

    async def test_one_tasks_cookies_are_not_sent_with_the_next(self):
        cookie = sends(response(COMPLETION, Set_Cookie="session=1"))
        async with raw_server(cookie) as server:
            # Cookies of a host that is only an address are not kept in any case.
            url = server.url.replace("127.0.0.1", "localhost")
            async with client(url) as asking:
                await asking.chat(QUESTION)
                await asking.chat(QUESTION)
        assert "cookie" not in server.requests[1].headers

    async def test_prompts_and_answers_are_logged_at_debug_level_only(self):
        async with raw_server(failing(500), sends(ANSWER)) as server, client(server.url) as asking:
            with capture_logs() as logs:
                await asking.chat(QUESTION)
        quoting = [
            line for line in logs if "deque" in repr(line) or "Implement a queue" in repr(line)
        ]
        assert [line["event"] for line in quoting] == ["model.request", "model.reply"]
        assert {line["log_level"] for line in quoting} == {"debug"}

    async def test_changes_of_health_are_logged_once(self):
        answered, probed = asyncio.Event(), asyncio.Event()

        async def health(exchange: Exchange) -> None:
            await answered.wait()
            await exchange.send(response())
            probed.set()

        async with raw_server(failing(500), failing(500), sends(ANSWER), health=health) as server:
            with capture_logs() as logs:
                async with client(server.url, probe_interval_s=0.01) as asking:
                    await asking.chat(QUESTION)
                    answered.set()
                    async with asyncio.timeout(PATIENCE_S):
                        await probed.wait()
                        await asking.chat(QUESTION)
        shown = [line for line in logs if line["log_level"] != "debug"]
        assert [(line["event"], line["log_level"]) for line in shown] == [
            ("model.endpoint_unhealthy", "warning"),
            ("model.endpoint_healthy", "info"),
        ]
        assert all(line["endpoint"] == server.url for line in shown)


class TestConfiguration:
    async def test_a_client_is_made_from_the_configuration(self, tmp_path: Path):
        key_file = tmp_path / "key"
        key_file.write_text("sk-from-file\n")
        async with raw_server(sends(ANSWER)) as server:
            config = VllmConfig(urls=(server.url,), model="tiny", api_key_file=str(key_file))
            async with VLLMHTTPClient.from_config(config) as asking:
                await asking.chat(QUESTION)
        assert server.requests[0].headers["authorization"] == "Bearer sk-from-file"
        assert server.requests[0].json["model"] == "tiny"

    def test_a_key_file_that_is_not_there_is_named(self, tmp_path: Path):
        config = VllmConfig(urls=(DEAD_URL,), api_key_file=str(tmp_path / "none"))
        with pytest.raises(ConfigError, match=r"vllm\.api_key_file: cannot read .*none"):
            VLLMHTTPClient.from_config(config)

    def test_no_url_is_an_error(self):
        with pytest.raises(ConfigError, match=r"vllm\.urls: is empty"):
            VLLMHTTPClient.from_config(VllmConfig())

    @pytest.mark.parametrize("key", ["sk-1\r\nX-Other: 1", "schlüssel"])
    def test_a_key_that_no_header_can_carry_is_an_error_that_does_not_show_it(self, key: str):
        with pytest.raises(ConfigError) as raised:
            VLLMHTTPClient(DEAD_URL, api_key=key)
        assert str(raised.value).startswith("vllm.api_key: must be printable ASCII")
        assert key not in str(raised.value)


@pytest.fixture
def unanswering_url() -> Iterator[str]:
    """A port whose queue of connections is full, so that the next one is never accepted."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex((host, port))
        yield f"http://{host}:{port}"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
