"""What is published when a task has ended: pure, and the same each time it is announced."""

import re
from datetime import datetime

import msgspec
from msgspec import Struct

from agent_actors.contract import (
    ATTEMPTS_HEADER,
    DEADLETTER_PREFIX,
    ERROR_HEADER,
    GENERATION_HEADER,
    MSG_ID_HEADER,
    ORIGINAL_HEADER_PREFIX,
    REASON_HEADER,
    SOURCE_HEADER,
    SUBJECT_HEADER,
    TASK_ID_HEADER,
    TRACE_HEADER,
    ResultStatus,
    header_text,
    message_id,
    response_subject,
    role_token,
)
from agent_actors.ledger import DeadLetterReason, TaskRecord
from agent_actors.ports import Delivery, Message

SERVER_HEADERS = "nats-"

# JetStream refuses a message with more than 64 KiB of headers, for ever. Besides these there are
# the error and the subject, each cut by `header_text`.
MAX_ORIGINAL_HEADERS_BYTES = 16 * 1024
HEADER_LINE_BYTES = len(": \r\n")
HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 9110

MAX_ROLE_CHARS = 128
WILDCARDS = "*>"

TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def announcements(record: TaskRecord, delivery: Delivery) -> list[Message]:
    """Return the messages of a terminal record: its result, and its dead letter if one is due."""
    msg_id = message_id(record.task_id, record.generation)
    messages = [result_message(bytes(record.result), msg_id, delivery.headers)]
    if record.dead_letter:
        messages.append(
            dead_letter(
                delivery,
                record.dead_letter,
                msg_id,
                task_id=record.task_id,
                attempts=record.attempt,
                generation=record.generation,
            )
        )
    return messages


def result_message(payload: bytes, msg_id: str, task_headers: dict[str, str]) -> Message:
    """Return the result as published: JSON, with CloudEvents headers in binary mode."""
    result = _head.decode(payload)
    subject = response_subject(result.status)
    headers = {
        MSG_ID_HEADER: msg_id,
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": msg_id,
        "ce-source": f"/agent-actors/{header_text(result.agent_id)}",
        "ce-type": subject,
        "ce-subject": result.task_id,
        "ce-time": result.timestamp.isoformat(),
    }
    return Message(subject=subject, payload=payload, headers=headers | _trace(task_headers))


def dead_letter(
    delivery: Delivery,
    why: DeadLetterReason,
    msg_id: str,
    *,
    task_id: str = "",
    attempts: int = 0,
    generation: int = 0,
) -> Message:
    """Return the task message as a dead letter: its own bytes, the reason in headers."""
    headers = {
        MSG_ID_HEADER: msg_id,
        REASON_HEADER: why.reason,
        ERROR_HEADER: header_text(why.error),
        TASK_ID_HEADER: task_id,
        ATTEMPTS_HEADER: str(attempts),
        GENERATION_HEADER: str(generation),
        SOURCE_HEADER: f"{delivery.stream}:{delivery.source.stream_seq}",
        SUBJECT_HEADER: header_text(delivery.subject),
    }
    return Message(
        subject=DEADLETTER_PREFIX + _publishable_role(delivery.subject),
        payload=delivery.payload,
        headers=headers | _trace(delivery.headers) | _original_headers(delivery.headers),
    )


class _ResultHead(Struct):
    """Of a result, what its headers tell; the rest of it is not decoded."""

    task_id: str
    agent_id: str
    status: ResultStatus
    timestamp: datetime


_head = msgspec.json.Decoder(_ResultHead)


def _publishable_role(subject: str) -> str:
    """Return the role as a token for any subject on which a task may have come."""
    return "".join(
        char if char.isprintable() and char not in WILDCARDS else "_"
        for char in role_token(subject)[:MAX_ROLE_CHARS]
    )


def _trace(headers: dict[str, str]) -> dict[str, str]:
    """Return the publisher's W3C trace context, if that is what it is."""
    trace = headers.get(TRACE_HEADER, "")
    return {TRACE_HEADER: trace} if TRACEPARENT.fullmatch(trace) else {}


def _original_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return the publisher's own headers under our prefix, as many as there is room for."""
    kept: dict[str, str] = {}
    room = MAX_ORIGINAL_HEADERS_BYTES
    for original, text in headers.items():
        if original.lower().startswith(SERVER_HEADERS) or original == TRACE_HEADER:
            continue
        name, value = ORIGINAL_HEADER_PREFIX + original, header_text(text)
        size = len(name) + len(value.encode()) + HEADER_LINE_BYTES
        if size <= room and HEADER_NAME.fullmatch(original):
            room -= size
            kept[name] = value
    return kept
