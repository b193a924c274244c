"""An answer that is streamed, piece by piece, as a server sends it."""

import msgspec
from support.raw_http import response

HEAD = response(
    Content_Length=None,
    Content_Type="text/event-stream; charset=utf-8",
    Transfer_Encoding="chunked",
)
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: object) -> bytes:
    return chunk(b"data: " + msgspec.json.encode(value) + b"\n\n")


def says(text: str | None, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return event({"model": "tiny", "choices": [choice]})


OVERLOADED = event({"error": {"message": "busy", "type": "E", "param": None, "code": 503}})
