"""nats-py's client, with some decisions of it turned round: on TLS, reading, sending and buffers.

Whoever may publish a task may put into subject and headers what bytes he likes; the server hands
them on. nats-py 2.16 stops reading at what it did not expect, and the connection stays open, deaf.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import BadHeaderError, Error, SecureConnWantedError
from nats.protocol import parser
from nats.protocol.parser import PING

CLOSE_WAIT_S = 0.2

# What may wait to be sent before others have to wait, and how much of it may be news.
FULL_BYTES = 4 * 1024 * 1024
NEWS_BYTES = 1024 * 1024

NOT_IN_SUBJECTS = re.compile(r"[ \t\r\n]")
HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
ONE_LINE = str.maketrans("\r\n", "  ")

OnMessage = Callable[[Msg], None]

# nats-server parts the words of a line at blanks and tabs, so a subject may hold a form feed or
# a vertical tab; nats-py parts them at those too, finds no message and reconnects, for ever. Its
# parser takes these patterns from its module, for all clients of the process, and any of them
# reads the better for it. A test fails when another nats-py brings other patterns.
_WORD, _GAP = rb"([^ \t\r\n]+)", rb"[ \t]+"
_TO_WHOM = _GAP + _WORD + _GAP + rb"(\d+)" + _GAP + rb"(" + _WORD + _GAP + rb")?"
parser.MSG_RE = re.compile(rb"\AMSG" + _TO_WHOM + rb"(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG" + _TO_WHOM + rb"(\d+)" + _GAP + rb"(\d+)\r\n")


class ReadingStopped(Error):
    """What the server sends is read no more; nats-py has logged the error that ended it."""


class NatsClient(Client):
    """nats-py's client that encrypts when told to, keeps its buffer small, and never goes deaf.

    nats-py upgrades to TLS only when the server's greeting says that it must, so whoever sits in
    between could have the password by leaving that word out: one that was told to use TLS
    speaks nothing else. And it closes for good when its credentials expire, though the file
    they came from has been renewed by then: it reconnects.

    To its buffer nats-py adds without end while a server that does not read keeps its connection
    open: at `pending_size` it only makes each publisher wait for a while. So whoever sends what
    may be big waits for `room` while it `is_full`.

    `offer` and `hear` are the short ways for what is sent and heard thousands of times a second.
    """

    _pongs: list[asyncio.Future[bool]]
    _reading_task: asyncio.Task[None] | None
    _flusher_task: asyncio.Task[None] | None

    def __init__(self, *, secure: bool) -> None:
        super().__init__()
        self._secure = secure
        self._turn = asyncio.Lock()
        self._drained = asyncio.Event()
        self._news_bytes = 0
        self._hearers: dict[int, OnMessage] = {}

    @property
    def is_full(self) -> bool:
        """Whether to ask for `room` before anything big is sent; others may wait for it already."""
        return self._pending_data_size >= FULL_BYTES or self._turn.locked()

    async def room(self, within_s: float) -> None:
        """Return once the buffer is not full, in the order of asking. Raises TimeoutError."""
        async with asyncio.timeout(within_s), self._turn:
            while self._pending_data_size >= FULL_BYTES:
                self._drained.clear()
                await self._drained.wait()

    def offer(self, subject: str, payload: bytes, reply: str, headers: bytes) -> bool:
        """Put a message into the buffer, and tell whether that could be done at once.

        `headers` are as `header_block` gives them, or empty. nats-py's `publish` does the same by
        way of five coroutines. Whatever is not usual is left to it: no connection, a buffer that
        is half full, a subject that cannot be sent.
        """
        flushes, flusher = self._flush_queue, self._flusher_task
        size = len(headers) + len(payload)
        if (
            self._status != Client.CONNECTED
            or flushes is None
            or flusher is None
            or flusher.done()
            or self._pending_data_size + size > self._max_pending_size // 2
            or not subject
            or NOT_IN_SUBJECTS.search(subject)
            or NOT_IN_SUBJECTS.search(reply)
        ):
            return False
        line = (
            f"HPUB {subject} {reply} {len(headers)} {size}\r\n"
            if headers
            else f"PUB {subject} {reply} {size}\r\n"
        )
        command = b"".join((line.encode(), headers, payload, b"\r\n"))
        self._pending.append(command)
        self._pending_data_size += len(command)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        if flushes.empty():
            flushes.put_nowait(asyncio.get_running_loop().create_future())
        return True

    async def hear(self, subject: str, on_message: OnMessage) -> Subscription:
        """Have each message on the subject told as it is read, by a call that does not wait.

        nats-py's own way to a callback is a queue and a task.
        """
        subscription = await self.subscribe(subject)  # pyright: ignore[reportUnknownMemberType] - its signature is untyped
        self._hearers[subscription._id] = on_message  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no other way
        # While the buffer is full subscribing waits, and some may have come before it is done.
        early = subscription._pending_queue  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no other way
        while not early.empty():
            on_message(early.get_nowait())
            early.task_done()
        return subscription

    def has_room_for_news(self, size_bytes: int) -> bool:
        """Take note of some news, and tell whether to send it: much of it must not pile up."""
        if self._pending_data_size >= FULL_BYTES or self._news_bytes + size_bytes > NEWS_BYTES:
            return False
        self._news_bytes += size_bytes
        return True

    async def end(self, subscription: Subscription, within_s: float) -> None:
        """End a subscription once all that is on its way has come, or the time is over."""
        try:
            async with asyncio.timeout(within_s):
                await subscription.drain()
        except (Error, OSError, TimeoutError):
            # nats-py keeps one whose drain has failed, and would take it up when it reconnects.
            self._remove_sub(subscription._id)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no other way
            subscription._stop_processing()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - no other way

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport is None:
            self._transport = _Transport(self._on_drained)
        await super()._connect_to_server(s)

    def _on_drained(self) -> None:
        self._news_bytes = 0
        self._drained.set()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 - nats-py's signature
        if initial_connection and self._secure and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise SecureConnWantedError
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        if "authentication expired" in err_msg:
            await self._process_op_err(Error(f"nats: {err_msg}"))
        else:
            await super()._process_err(err_msg)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Send a ping after all that is to be sent already; nats-py lets it overtake.

        Then its answer would say nothing of a subscription, or of the end of one, before it.
        """
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        """Take an answer to a ping, also one that nobody awaits any more."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        """Return the headers; none when the block is not what NATS writes."""
        try:
            return await super()._process_headers(headers)  # pyright: ignore[reportUnknownMemberType] - untyped
        except (IndexError, UnicodeDecodeError):
            return None

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        on_message = self._hearers.get(sid)
        if on_message is None:
            await super()._process_msg(sid, subject, reply, data, headers)  # pyright: ignore[reportArgumentType] - may be None
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        fields = await self._process_headers(headers) if headers else None
        try:
            on_message(self._build_message(sid, subject, reply, data, fields))
        except Exception as error:  # noqa: BLE001 - or reading would end; nats-py reports it likewise
            await self._error_cb(error)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._hearers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        """Return the message, with U+FFFD in its subjects where they are not UTF-8."""
        try:
            return super()._build_message(sid, subject, reply, data, headers)
        except UnicodeDecodeError:
            subject, reply = (name.decode(errors="replace").encode() for name in (subject, reply))
            return super()._build_message(sid, subject, reply, data, headers)

    async def _read_loop(self) -> None:
        """Read until the connection ends; end it when reading has stopped for no such reason."""
        await super()._read_loop()
        me = asyncio.current_task()
        if me is not self._reading_task or self.is_closed or self.is_reconnecting:
            return
        if me is not None and not me.cancelling():
            self._err = ReadingStopped("reading has stopped at what nats-py did not expect")
            await self.close()


class _Transport(TcpTransport):
    """nats-py's transport, that gives a connection up for good, and says when all is written.

    The end of a connection that nats-py waits for may never come: a server that does not read
    keeps it open, with all that it was sent; and after a failed TLS handshake asyncio tells the
    end to another object.
    """

    def __init__(self, on_drained: Callable[[], None]) -> None:
        super().__init__()
        self._on_drained = on_drained

    async def drain(self) -> None:
        await super().drain()
        self._on_drained()

    def __bool__(self) -> bool:
        return True

    async def wait_closed(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_WAIT_S):
                await super().wait_closed()
        except TimeoutError:
            for writer in (self._io_writer, self._bare_io_writer):
                if writer is not None:
                    writer.transport.abort()


def header_block(headers: Mapping[str, str]) -> bytes:
    """Return headers as they are sent: on one line each, without blanks around them.

    Raises BadHeaderError for a name that is none, as nats-py does.
    """
    lines = "".join(_header_line(name, value) for name, value in headers.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


def _header_line(name: str, value: str) -> str:
    key = _header_name(name)
    if not key:
        return ""
    if "\n" in value or "\r" in value:
        value = value.strip().translate(ONE_LINE)
    return f"{key}: {value.strip()}\r\n"


@lru_cache(maxsize=64)
def _header_name(name: str) -> str:
    key = name.strip()
    if key and not HEADER_NAME.fullmatch(key):
        raise BadHeaderError(key)
    return key
