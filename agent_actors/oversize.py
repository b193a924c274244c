"""What does not fit into one message: its big parts move to the object store, biggest first."""

from typing import Any

import msgspec
from msgspec.structs import replace

from agent_actors.contract import (
    OBJECT_HEADER,
    OBJECT_SHA256_HEADER,
    OBJECT_SIZE_HEADER,
    AgentResult,
    ArtifactRef,
    encode,
)
from agent_actors.patience import until_answered
from agent_actors.ports import ArtifactStore, Message

HEADER_LINE_BYTES = 4


async def fit_result(
    result: AgentResult, *, max_bytes: int, folder: str, store: ArtifactStore
) -> bytes:
    """Return the result as JSON of at most `max_bytes`, with a reference for each part moved."""
    payload = encode(result)
    while len(payload) > max_bytes:
        name, part = _biggest_part(result)
        data = part.encode() if isinstance(part, str) else encode(part)
        ref = await _put(store, f"{folder}/{name}", data)
        result = _without(result, name, ref)
        payload = encode(result)
    return payload


async def fit_dead_letter(message: Message, *, max_bytes: int, store: ArtifactStore) -> Message:
    """Return the message, or one that names the object which holds its payload."""
    headers_bytes = sum(
        len(name.encode()) + len(value.encode()) + HEADER_LINE_BYTES
        for name, value in message.headers.items()
    )
    if len(message.payload) + headers_bytes + len("NATS/1.0\r\n\r\n") <= max_bytes:
        return message
    name = f"deadletter/{message.headers['Nats-Msg-Id']}"
    ref = await _put(store, name, message.payload)
    moved = {
        OBJECT_HEADER: ref.object,
        OBJECT_SIZE_HEADER: str(ref.size),
        OBJECT_SHA256_HEADER: ref.sha256,
    }
    return replace(message, payload=b"", headers=message.headers | moved)


async def _put(store: ArtifactStore, name: str, data: bytes) -> ArtifactRef:
    return await until_answered(lambda: store.put(name, data))


def _biggest_part(result: AgentResult) -> tuple[str, Any]:
    parts: dict[str, Any] = {
        "operations": result.operations,
        "audit_trail": result.audit_trail,
        "constraints": result.constraints,
        "proposal.content": result.proposal.content if result.proposal else "",
    }
    parts |= {
        name: value
        for name, value in result.artifacts.items()
        if not isinstance(value, ArtifactRef)
    }
    return max(parts.items(), key=lambda part: len(encode(part[1])))


def _without(result: AgentResult, name: str, ref: ArtifactRef) -> AgentResult:
    """Return the result with one part emptied and its reference among the artifacts."""
    result = replace(result, artifacts=result.artifacts | {name: ref})
    match name:
        case "proposal.content" if result.proposal:
            return replace(result, proposal=replace(result.proposal, content=""))
        case "operations" | "audit_trail":
            return msgspec.structs.replace(result, **{name: []})
        case "constraints":
            return replace(result, constraints={})
        case _:
            return result
