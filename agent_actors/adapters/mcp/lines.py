"""Messages as lines, with a limit: of one that is too long, only whom it answers is found out."""

import asyncio
import re

from msgspec import Struct

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
END_BYTES = 256

# What programs write before a result, or after it; an `id` elsewhere may be the result's own.
ID_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,18})\s*,')
ID_LAST = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*\}\s*$')


class LongLine(Struct, frozen=True, kw_only=True):
    """A line of more than `MAX_MESSAGE_BYTES`, of which the two ends are kept."""

    head: bytes
    tail: bytes

    @property
    def answers(self) -> int | None:
        """The id of the request that it answers, where that can be told."""
        found = ID_FIRST.match(self.head) or ID_LAST.search(self.tail)
        return int(found[1]) if found else None


async def next_line(stream: asyncio.StreamReader) -> bytes | LongLine:
    """Return the next line, empty at the end; the stream was made with our limit."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError:
        head = await stream.read(END_BYTES)
        return LongLine(head=head, tail=(head + await _rest(stream))[-END_BYTES:])


async def _rest(stream: asyncio.StreamReader) -> bytes:
    """Read the rest of the line; return how it ends."""
    tail = b""
    while True:
        try:
            return tail + await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return tail + error.partial
        except asyncio.LimitOverrunError as error:
            tail = (await stream.readexactly(error.consumed))[-END_BYTES:]
