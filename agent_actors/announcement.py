"""What is published when a task has ended: pure, and the same each time it is announced."""

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
MAX_ORIGINAL_HEADERS_BYTES = 16 * 1024


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
    if trace := task_headers.get(TRACE_HEADER):
        headers[TRACE_HEADER] = trace
    return Message(subject=subject, payload=payload, headers=headers)


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
        SUBJECT_HEADER: delivery.subject,
    }
    if trace := delivery.headers.get(TRACE_HEADER):
        headers[TRACE_HEADER] = trace
    return Message(
        subject=DEADLETTER_PREFIX + role_token(delivery.subject),
        payload=delivery.payload,
        headers=headers | _original_headers(delivery.headers),
    )


class _ResultHead(Struct):
    """Of a result, what its headers tell; the rest of it is not decoded."""

    task_id: str
    agent_id: str
    status: ResultStatus
    timestamp: datetime


_head = msgspec.json.Decoder(_ResultHead)


def _original_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return the publisher's own headers under our prefix, as many as there is room for."""
    kept: dict[str, str] = {}
    room = MAX_ORIGINAL_HEADERS_BYTES
    for name, value in headers.items():
        room -= len(name.encode()) + len(value.encode())
        if name.lower().startswith(SERVER_HEADERS) or name == TRACE_HEADER or room < 0:
            continue
        kept[ORIGINAL_HEADER_PREFIX + name] = header_text(value)
    return kept
