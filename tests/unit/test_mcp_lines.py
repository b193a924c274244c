"""Messages as lines, some of them too long."""

import asyncio

import pytest

from agent_actors.adapters.mcp.lines import LongLine, next_line

LIMIT = 1_000
LONG = b"x" * 5_000


async def lines_of(data: bytes, *, at_once: int = 300) -> list[bytes | LongLine]:
    stream = asyncio.StreamReader(limit=LIMIT)

    async def feed() -> None:
        for start in range(0, len(data), at_once):
            stream.feed_data(data[start : start + at_once])
            await asyncio.sleep(0)
        stream.feed_eof()

    feeding = asyncio.create_task(feed())
    found = []
    while line := await next_line(stream):
        found.append(line)
    await feeding
    return found


@pytest.mark.parametrize("at_once", [1, 300, 10_000])
async def test_a_long_line_is_cut_and_the_others_stay(at_once: int):
    first, long, last = await lines_of(b"one\n" + LONG + b"end\nthree", at_once=at_once)
    assert (first, last) == (b"one\n", b"three")
    assert isinstance(long, LongLine)
    assert long.head.startswith(b"xxx")
    assert long.tail.endswith(b"xend\n")
    assert len(long.head + long.tail) <= LIMIT


async def test_a_long_line_may_be_the_last_and_have_no_end():
    (long,) = await lines_of(LONG)
    assert isinstance(long, LongLine)


@pytest.mark.parametrize(
    ("head", "tail", "answers"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":{"x":"', b'"}}\n', 7),
        (b'{"id": 7, "jsonrpc": "2.0", "result": {"x":"', b'"}}\n', 7),
        (b'{"result":{"x":"', b'"},"jsonrpc":"2.0","id":7}\n', 7),
        (b'{"jsonrpc":"2.0","result":{"id":5,"x":"', b'"}}\n', None),
        (b'{"jsonrpc":"2.0","result":{"x":"', b'","id":5}}\n', None),
        (b'{"jsonrpc":"2.0","method":"notifications/x","params":{"x":"', b'"}}\n', None),
    ],
)
def test_whom_it_answers_is_told_only_when_it_is_certain(
    head: bytes, tail: bytes, answers: int | None
):
    assert LongLine(head=head, tail=tail).answers == answers
