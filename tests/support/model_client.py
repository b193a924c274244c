"""A model client that retries at once, what it asks, and what it is answered."""

import asyncio
from typing import Any

import msgspec
from support.raw_http import Answer, Exchange, response, sends

from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.config import VllmConfig
from agent_actors.ports import ChatMessage, ChatRequest

PATIENCE_S = 10.0
COMPLETION = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Use a deque."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    }
)
ANSWER = response(COMPLETION)
QUESTION = ChatRequest(messages=(ChatMessage(role="user", content="Implement a queue"),))
DEAD_URL = "http://127.0.0.1:1"


def client(*urls: str, api_key: str = "", **limits: Any) -> VLLMHTTPClient:
    """A client that retries at once and never probes, nor asks for metrics, unless a test does."""
    settings = {"retry_base_s": 0.001, "probe_interval_s": 1_000.0, "metrics": "off", **limits}
    return VLLMHTTPClient(urls, api_key=api_key, settings=VllmConfig(**settings))


def failing(status: int, **headers: str) -> Answer:
    body = msgspec.json.encode(
        {"error": {"message": "oh", "type": "E", "param": None, "code": status}}
    )
    return sends(response(body, status, **headers))


def noticing_hang_up(start: bytes = b"") -> tuple[Answer, asyncio.Event, asyncio.Event]:
    """An answer that never ends, and two events: it began, and the client hung up."""
    begun, hung_up = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(start)
        begun.set()
        await exchange.hung_up()
        hung_up.set()

    return answer, begun, hung_up


async def read_what_was_sent() -> None:
    """Let a client in this loop read what a server in this loop has sent it."""
    for _ in range(10):
        await asyncio.sleep(0)
