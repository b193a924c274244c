"""The model of `scripts/bench`, which is to cost next to nothing and still count right."""

import msgspec
import pytest
from bench.stub import COMPLETION, MODEL_LIST, Counts, Model

BODY = b'{"messages": []}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
REQUEST = HEAD + BODY


class Wire:
    """What the model writes to."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def model(wire: Wire) -> Model:
    model = Model(0.0, Counts())
    model.connection_made(wire)
    return model


@pytest.mark.parametrize("cut", [1, len(HEAD) - 2, len(HEAD), len(REQUEST) - 1])
async def test_a_request_may_come_in_pieces(model: Model, wire: Wire, cut: int):
    model.data_received(REQUEST[:cut])
    assert wire.written == b""
    model.data_received(REQUEST[cut:])
    assert wire.written == COMPLETION


async def test_requests_may_come_together(model: Model, wire: Wire):
    model.data_received(REQUEST * 3 + REQUEST[:10])
    assert wire.written == COMPLETION * 3


async def test_it_has_a_model_and_tells_what_it_was_asked(model: Model, wire: Wire):
    model.data_received(b"GET /v1/models HTTP/1.1\r\n\r\n")
    assert wire.written == MODEL_LIST
    model.data_received(REQUEST * 2 + b"GET /asked HTTP/1.1\r\n\r\n")
    told = wire.written.rpartition(b"\r\n\r\n")[2]
    assert msgspec.json.decode(told) == {"asked": 2, "busy_s": 0.0}


def test_each_request_counts_for_as_long_as_it_is_there():
    counts = Counts()
    counts.arrived(10.0)
    counts.arrived(11.0)
    counts.answered(13.0)
    assert msgspec.json.decode(counts.told(14.0)) == {"asked": 2, "busy_s": 6.0}
