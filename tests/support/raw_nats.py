"""Publishing by hand, as any client may: bytes that no NATS library would send."""

import asyncio
from urllib.parse import urlsplit

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n'
PATIENCE_S = 10


def pub(subject: bytes, payload: bytes) -> bytes:
    return b"PUB %s %d\r\n%s\r\n" % (subject, len(payload), payload)


def hpub(subject: bytes, payload: bytes, headers: bytes) -> bytes:
    """Return a message with a header block, whatever is in it."""
    sizes = len(headers), len(headers) + len(payload)
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, *sizes, headers, payload)


async def send_raw(url: str, lines: bytes) -> None:
    """Return once the server has read the lines. Raises AssertionError when it took offence."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(CONNECT + lines + b"PING\r\n")
    try:
        async with asyncio.timeout(PATIENCE_S):
            said = await reader.readuntil(b"PONG\r\n")
    finally:
        writer.close()
    assert b"-ERR" not in said, said
