"""Listens to what the service and NATS say to each other, on its way through the proxy.

The protocol is text (docs.nats.io, "NATS client protocol"): lines, and after those of messages a
payload whose size is the line's last word. So what was handed out, acked and confirmed is known in
the order in which it passed, whoever crashed before or after.
"""

import time
from collections.abc import Callable, Iterator

import msgspec
from chaos.history import Acked, Confirmed, Delivered, History, LedgerWrite
from msgspec import Struct
from support.tcp_proxy import Way

from agent_actors.contract import (
    COMPLETED_SUBJECT,
    DEADLETTER_PREFIX,
    DEADLETTER_STREAM,
    FAILED_SUBJECT,
    LEDGER_BUCKET,
    MSG_ID_HEADER,
    RESPONSE_STREAM,
    SOURCE_HEADER,
    TASK_ID_HEADER,
)

END = b"\r\n"
ACK_PREFIX = "$JS.ACK."
LEDGER_PREFIX = f"$KV.{LEDGER_BUCKET}."
ANSWERS = frozenset({"+ACK", "-NAK", "+TERM"})
# `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>...`, longer in newer servers (ADR-15).
SHORT_ACK_TOKENS = 9


class Frame(Struct, frozen=True):
    """A line of the protocol, and what came with it if it was a message."""

    words: list[str]
    headers: dict[str, str]
    payload: bytes

    @property
    def reply(self) -> str:
        """The subject to answer to, if there is one."""
        verb, *rest = self.words
        at = 2 if verb in {"MSG", "HMSG"} else 1
        sizes = 2 if verb.startswith("H") else 1
        return rest[at] if len(rest) == at + 1 + sizes else ""


class FrameReader:
    """Puts the bytes of one way of one connection together to frames."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, more: bytes) -> Iterator[Frame]:
        """Yield the frames that are whole by now."""
        self._bytes += more
        while (end := self._bytes.find(END)) >= 0:
            words = self._bytes[:end].decode(errors="replace").split()
            start = end + len(END)
            verb = words[0].upper() if words else ""
            if verb not in {"PUB", "HPUB", "MSG", "HMSG"}:
                line = bytes(self._bytes[:end])
                del self._bytes[:start]
                if verb:
                    yield Frame([verb], {}, line.partition(b" ")[2])
                continue
            size = int(words[-1])
            if len(self._bytes) < start + size + len(END):
                return
            body = bytes(self._bytes[start : start + size])
            del self._bytes[: start + size + len(END)]
            head = int(words[-2]) if verb.startswith("H") else 0
            yield Frame([verb, *words[1:]], _headers(body[:head]), body[head:])


class _Line:
    """One connection through the proxy: who speaks on it, and what it waits to be confirmed."""

    def __init__(self) -> None:
        self.name = "?"
        self.readers: dict[Way, FrameReader] = {"up": FrameReader(), "down": FrameReader()}
        self.unconfirmed: dict[str, Frame] = {}


class Wiretap:
    """Writes down in a history what it hears; give `hear` to the proxy as its `on_bytes`."""

    def __init__(self, history: History, clock: Callable[[], float] = time.monotonic) -> None:
        self._history = history
        self._clock = clock
        self._lines: dict[tuple[str, int], _Line] = {}
        self._order = 0
        self.first_deliveries = 0
        self.on_result: Callable[[str], None] = lambda _msg_id: None

    def next_order(self) -> int:
        """Return the number of the next thing that happens."""
        self._order += 1
        return self._order

    def of(self, proxy: str) -> Callable[[int, Way, bytes], None]:
        """Return the `on_bytes` of one of several proxies."""

        def hear(number: int, way: Way, piece: bytes) -> None:
            line = self._lines.setdefault((proxy, number), _Line())
            for frame in line.readers[way].feed(piece):
                self._note(line, frame)

        return hear

    def _note(self, line: _Line, frame: Frame) -> None:
        match frame.words:
            case ["CONNECT"]:
                line.name = msgspec.json.decode(frame.payload).get("name", "?")
            case ["PUB" | "HPUB", subject, *_]:
                self._note_sent(line, subject, frame)
            case ["MSG" | "HMSG", subject, *_]:
                self._note_received(line, subject, frame)

    def _note_sent(self, line: _Line, subject: str, frame: Frame) -> None:
        if subject.startswith(ACK_PREFIX):
            verb = frame.payload[:5].decode().split(" ")[0].rstrip()
            if verb in ANSWERS:
                _, seq = _delivery_of(subject)
                self._history.acked.append(Acked(seq=seq, verb=verb, by=line.name, **self._now()))
        elif subject.startswith(LEDGER_PREFIX):
            self._note_record(line, frame.payload)
        elif subject in {COMPLETED_SUBJECT, FAILED_SUBJECT} or subject.startswith(
            DEADLETTER_PREFIX
        ):
            line.unconfirmed[frame.reply] = frame

    def _note_received(self, line: _Line, subject: str, frame: Frame) -> None:
        if frame.reply.startswith(ACK_PREFIX):
            delivered, seq = _delivery_of(frame.reply)
            self.first_deliveries += delivered == 1
            self._history.delivered.append(
                Delivered(seq=seq, num_delivered=delivered, to=line.name, **self._now())
            )
        elif sent := line.unconfirmed.pop(subject, None):
            self._note_answer(line, sent, frame.payload)

    def _note_answer(self, line: _Line, sent: Frame, answer: bytes) -> None:
        """Take a PubAck; JetStream's refusals and its silence (503) confirm nothing."""
        if b'"error"' in answer or b'"stream"' not in answer:
            return
        is_result = not sent.words[1].startswith(DEADLETTER_PREFIX)
        msg_id = sent.headers.get(MSG_ID_HEADER, "")
        self._history.confirmed.append(
            Confirmed(
                stream=RESPONSE_STREAM if is_result else DEADLETTER_STREAM,
                msg_id=msg_id,
                task_id=sent.headers.get("ce-subject" if is_result else TASK_ID_HEADER, ""),
                source_seq=int(sent.headers.get(SOURCE_HEADER, ":0").rpartition(":")[2]),
                by=line.name,
                **self._now(),
            )
        )
        if is_result:
            self.on_result(msg_id)

    def _note_record(self, line: _Line, payload: bytes) -> None:
        record = _record.decode(payload)
        self._history.ledger_writes.append(
            LedgerWrite(
                task_id=record.task_id,
                state=record.state,
                attempt=record.attempt,
                agent_id=record.agent_id,
                deaths=record.deaths,
                by=line.name,
                **self._now(),
            )
        )

    def _now(self) -> dict[str, float]:
        return {"at_s": self._clock(), "order": self.next_order()}


class _RecordHead(Struct):
    task_id: str
    state: str
    attempt: int = 0
    agent_id: str = ""
    deaths: int = 0


_record = msgspec.json.Decoder(_RecordHead)


def _delivery_of(reply: str) -> tuple[int, int]:
    """Return how often, and which message, by the subject that acks it."""
    tokens = reply.split(".")
    at = 4 if len(tokens) == SHORT_ACK_TOKENS else 6
    return int(tokens[at]), int(tokens[at + 1])


def _headers(block: bytes) -> dict[str, str]:
    lines = block.decode(errors="replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name: value.strip() for name, _, value in pairs}
