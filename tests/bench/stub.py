"""A model server that costs next to nothing: `python -m bench.stub PORT_FILE [DELAY_S]`.

It speaks as much HTTP/1.1 as the clients measured here do, on a raw asyncio protocol, and gives
everybody the same answer. With a delay it answers each request so many seconds after it came.
Whatever else is got than the list of models, the answer tells what was asked of it so far.
"""

import asyncio
import sys
from pathlib import Path
from typing import cast

import msgspec
import uvloop

ANSWER = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "stub",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Keep the tree balanced by rotating after each insert. " * 6,
                "tool_calls": [],
            },
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 180, "completion_tokens": 60, "total_tokens": 240},
}
MODELS = {"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 32_768}]}
END_OF_HEAD = b"\r\n\r\n"


class Counts:
    """What was asked of the model so far; `busy_s` adds up how long each request has been here."""

    def __init__(self) -> None:
        self.asked = 0
        self._here = 0
        self._busy_s = 0.0
        self._since = 0.0

    def arrived(self, now: float) -> None:
        self._advance(now)
        self.asked += 1
        self._here += 1

    def answered(self, now: float) -> None:
        self._advance(now)
        self._here -= 1

    def told(self, now: float) -> bytes:
        self._advance(now)
        return msgspec.json.encode({"asked": self.asked, "busy_s": self._busy_s})

    def _advance(self, now: float) -> None:
        self._busy_s += self._here * (now - self._since)
        self._since = now


class Model(asyncio.Protocol):
    """One connection; requests on it may be pipelined."""

    def __init__(self, delay_s: float, counts: Counts) -> None:
        self._delay_s = delay_s
        self._counts = counts
        self._now = asyncio.get_running_loop().time
        self._unread = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._unread = self._unread + data if self._unread else data
        while (at := self._unread.find(END_OF_HEAD)) >= 0:
            head = self._unread[:at]
            end = at + len(END_OF_HEAD) + _content_length(head)
            if len(self._unread) < end:
                return
            self._unread = self._unread[end:]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        if head.startswith(b"POST "):
            self._complete()
        elif b"/v1/models" in head[:40]:
            self._write(MODEL_LIST)
        else:
            self._write(_response(self._counts.told(self._now())))

    def _complete(self) -> None:
        if not self._delay_s:
            self._counts.asked += 1
            self._write(COMPLETION)
            return
        self._counts.arrived(self._now())
        asyncio.get_running_loop().call_later(self._delay_s, self._complete_late)

    def _complete_late(self) -> None:
        self._counts.answered(self._now())
        self._write(COMPLETION)

    def _write(self, response: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(response)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


def _response(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


COMPLETION = _response(msgspec.json.encode(ANSWER))
MODEL_LIST = _response(msgspec.json.encode(MODELS))


async def serve(port_file: Path, delay_s: float) -> None:
    """Listen until killed; the port stands in the file once connections are taken."""
    loop = asyncio.get_running_loop()
    counts = Counts()
    server = await loop.create_server(lambda: Model(delay_s, counts), "127.0.0.1", 0, backlog=4096)
    fresh = port_file.with_suffix(".new")
    fresh.write_text(str(server.sockets[0].getsockname()[1]))
    fresh.rename(port_file)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
