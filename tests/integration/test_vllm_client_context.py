"""How the client learns how many tokens a model takes."""

import asyncio
import pickle
import socket
from typing import Any

import msgspec
import pytest
from support.model_client import (
    DEAD_URL,
    PATIENCE_S,
    client,
    noticing_hang_up,
    read_what_was_sent,
)
from support.raw_http import Answer, Exchange, raw_server, response, sends
from support.until import until

from agent_actors.adapters.vllm import VLLMHTTPClient, context
from agent_actors.config_types import Secret
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings


def card(name: str, length: object = None, **more: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "max_model_len": length, **more}


def listing(*cards: object) -> Answer:
    return sends(response(msgspec.json.encode({"object": "list", "data": cards})))


def in_turn(*answers: Answer) -> Answer:
    left = list(answers)

    async def answer(exchange: Exchange) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(exchange)

    return answer


@pytest.fixture
def asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "ASK_AGAIN_S", 0.0)


async def test_the_server_says_it_once_for_the_clients_life():
    async with (
        raw_server(health=listing(card("tiny", 4096))) as server,
        client(server.url + "/v1", api_key="sk-1") as asking,
    ):
        assert [await asking.context_length("tiny") for _ in range(3)] == [4096] * 3
    assert [question.path for question in server.probes] == ["/v1/models"]
    assert server.probes[0].headers["authorization"] == "Bearer sk-1"


async def test_each_model_has_its_own():
    models = listing(card("big", 8192), card("tiny", 4096), card("lora", parent="tiny"))
    async with raw_server(health=models) as server, client(server.url) as asking:
        lengths = [await asking.context_length(name) for name in ("tiny", "big", "lora", "")]
    assert lengths == [4096, 8192, 4096, 8192]
    assert len(server.probes) == 1


async def test_the_clients_model_is_meant_when_none_is_named():
    models = listing(card("big", 8192), card("tiny", 4096))
    async with (
        raw_server(health=models) as server,
        VLLMHTTPClient(server.url, model="tiny") as asking,
    ):
        assert await asking.context_length() == 4096
        assert await asking.context_length("big") == 8192


async def test_those_who_ask_at_the_same_time_share_a_question():
    asked, everyone = asyncio.Event(), asyncio.Event()

    async def late(exchange: Exchange) -> None:
        asked.set()
        await everyone.wait()
        await listing(card("tiny", 4096))(exchange)

    async with raw_server(health=late) as server, client(server.url) as asking:
        async with asyncio.timeout(PATIENCE_S):
            callers = [asyncio.create_task(asking.context_length("tiny")) for _ in range(20)]
            cancelled = callers.pop(0)
            await asked.wait()
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            everyone.set()
            assert await asyncio.gather(*callers) == [4096] * 19
    assert len(server.probes) == 1


@pytest.mark.parametrize(
    "answer",
    [
        sends(response(b'{"detail": "Not Found"}', 404)),
        sends(response(b'{"error": "Unauthorized"}', 401)),
        sends(response(b"", 307, Location="http://elsewhere")),
        sends(response(b"", 503)),
        sends(response(b"<p>")),
        sends(response(b"[" * 100_000)),
        sends(response(b'{"data": 7}')),
        sends(response(b'{"data": [{"id": "tiny", "max_model_len": "much"}]}')),
        sends(response(b'{"data": [')),
        sends(response(b'{"data": [', Content_Length="999"), then_close=True),
        sends(b"SSH-2.0-OpenSSH_9.2\r\n", then_close=True),
        listing(),
        listing(card("tiny")),
        listing(card("tiny", 0)),
        listing(card("other", 4096)),
        listing(card("tiny", parent="gone")),
    ],
)
async def test_a_server_that_does_not_say_is_not_asked_for_a_while(answer: Answer):
    async with raw_server(health=answer) as server, client(server.url) as asking:
        assert [await asking.context_length("tiny") for _ in range(3)] == [None] * 3
    assert len(server.probes) == 1


@pytest.mark.usefixtures("asked_again_at_once")
async def test_a_server_that_did_not_say_is_asked_again():
    answers = in_turn(sends(response(b"", 503)), listing(card("tiny", 4096)))
    async with raw_server(health=answers) as server, client(server.url) as asking:
        assert await asking.context_length("tiny") is None
        assert await asking.context_length("tiny") == 4096
        assert await asking.context_length("tiny") == 4096
    assert len(server.probes) == 2


async def test_a_server_that_is_away_is_no_error():
    async with client(DEAD_URL) as asking:
        assert await asking.context_length("tiny") is None


async def test_a_server_that_hangs_is_waited_for_no_longer_than_for_a_connection():
    answer, _, hung_up = noticing_hang_up()
    async with (
        raw_server(health=answer) as server,
        client(server.url, connect_timeout_s=0.1) as asking,
        asyncio.timeout(PATIENCE_S),
    ):
        assert await asking.context_length("tiny") is None
        await hung_up.wait()


@pytest.mark.usefixtures("asked_again_at_once")
async def test_of_several_servers_the_least_counts():
    async with (
        raw_server(health=listing(card("tiny", 4096))) as one,
        raw_server(health=listing(card("tiny", 2048))) as other,
        client(one.url, other.url, DEAD_URL) as asking,
    ):

        async def least_is_known() -> bool:
            return await asking.context_length("tiny") == 2048

        # The first answer is enough to go on with; the other comes in the meantime.
        assert await asking.context_length("tiny") in {2048, 4096}
        await until(least_is_known)
    assert (len(one.probes), len(other.probes)) == (1, 1)


async def test_one_server_that_answers_is_enough():
    hanging, begun, _ = noticing_hang_up()
    async with (
        raw_server(health=hanging) as silent,
        raw_server(health=listing(card("tiny", 4096))) as sound,
        client(silent.url, sound.url) as asking,
        asyncio.timeout(PATIENCE_S),
    ):
        assert await asking.context_length("tiny") == 4096
        await begun.wait()


@pytest.mark.parametrize("start", [b"", response(b"{", Content_Length="9")])
async def test_closing_ends_the_question(start: bytes):
    answer, begun, hung_up = noticing_hang_up(start)
    async with raw_server(health=answer) as server:
        asking = client(server.url, connect_timeout_s=1_000.0)
        waiting = asyncio.create_task(asking.context_length("tiny"))
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
            await read_what_was_sent()
            await asking.close()
            assert await waiting is None
            await hung_up.wait()
        assert asyncio.all_tasks() <= {asyncio.current_task(), *server.tasks}


def test_it_can_be_asked_in_one_loop_after_the_other():
    async def ask(model: str) -> int | None:
        async with raw_server(health=listing(card("tiny", 4096)), port=port), asking:
            return await asking.context_length(model)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asking = client(f"http://127.0.0.1:{port}")
    lengths = [asyncio.run(ask(model)) for model in ("nope", "tiny", "tiny")]
    assert lengths == [None, 4096, 4096]


async def test_it_can_be_sent_to_another_process_before_it_is_used():
    async with (
        raw_server(health=listing(card("tiny", 4096))) as server,
        pickle.loads(pickle.dumps(client(server.url))) as asking,
    ):
        assert await asking.context_length("tiny") == 4096


async def test_the_simulated_server_says_it():
    settings = ModelServerSettings(
        aliases=("tiny",), max_model_len=2048, api_key=Secret("open-sesame")
    )
    async with (
        running_model_server(settings) as server,
        client(server.url, api_key="open-sesame") as asking,
    ):
        assert [await asking.context_length(name) for name in ("", "tiny", "nope")] == [
            2048,
            2048,
            None,
        ]
