"""What does not fit into one message: its big parts move to the object store, biggest first.

Of an event the long texts are cut: whoever wants to know all reads the result.
"""

from typing import Any, cast

import msgspec
from msgspec.structs import replace

from agent_actors.contract import (
    DEADLETTER_FOLDER,
    MSG_ID_HEADER,
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

# A reference takes the place of a part, and is shorter than this.
SMALL_PART_BYTES = 1_024
# The artifact that is the whole result.
WHOLE = "result"

MAX_EVENT_BYTES = 16 * 1024
# Lengths to which an event's texts are cut, until it fits.
EVENT_TEXT_CHARS = (2_000, 200)


async def fit_result(
    result: AgentResult, *, max_bytes: int, folder: str, store: ArtifactStore
) -> bytes:
    """Return the result as JSON of at most `max_bytes`, with a reference for each part moved.

    One that is big by many small parts moves as a whole, and keeps only what names it.
    """
    payload = encode(result)
    if len(payload) <= max_bytes:
        return payload
    whole = payload
    for name, data in _big_parts(result):
        ref = await _put(store, f"{folder}/{name}", data)
        result = _without(result, name, ref)
        payload = encode(result)
        if len(payload) <= max_bytes:
            return payload
    return encode(_bare(result, await _put(store, f"{folder}/{WHOLE}", whole)))


async def fit_dead_letter(message: Message, *, max_bytes: int, store: ArtifactStore) -> Message:
    """Return the message, or one that names the object which holds its payload."""
    headers_bytes = sum(
        len(name.encode()) + len(value.encode()) + HEADER_LINE_BYTES
        for name, value in message.headers.items()
    )
    if len(message.payload) + headers_bytes + len("NATS/1.0\r\n\r\n") <= max_bytes:
        return message
    name = DEADLETTER_FOLDER + message.headers[MSG_ID_HEADER]
    ref = await _put(store, name, message.payload)
    moved = {
        OBJECT_HEADER: ref.object,
        OBJECT_SIZE_HEADER: str(ref.size),
        OBJECT_SHA256_HEADER: ref.sha256,
    }
    return replace(message, payload=b"", headers=message.headers | moved)


def fit_event(detail: dict[str, Any]) -> dict[str, Any]:
    """Return what an event tells, with long texts cut when it is too much for live news."""
    for chars in EVENT_TEXT_CHARS:
        if len(encode(detail)) <= MAX_EVENT_BYTES:
            return detail
        detail = _cut(detail, chars)
    if len(encode(detail)) <= MAX_EVENT_BYTES:
        return detail
    small = {name: value for name, value in detail.items() if not isinstance(value, list | dict)}
    return small if len(encode(small)) <= MAX_EVENT_BYTES else {}


async def _put(store: ArtifactStore, name: str, data: bytes) -> ArtifactRef:
    return await until_answered(lambda: store.put(name, data))


def _big_parts(result: AgentResult) -> list[tuple[str, bytes]]:
    """Return the parts worth moving, as they are stored: text as it is, the rest as JSON."""
    text = result.proposal.content if result.proposal else ""
    parts = [
        ("proposal.content", text.encode()),
        ("operations", encode(result.operations)),
        ("audit_trail", encode(result.audit_trail)),
        ("constraints", encode(result.constraints)),
    ]
    for name, value in result.artifacts.items():
        parts.append((name, value.encode() if isinstance(value, str) else encode(value)))
    big = [part for part in parts if len(part[1]) > SMALL_PART_BYTES]
    return sorted(big, key=lambda part: len(part[1]), reverse=True)


def _bare(result: AgentResult, ref: ArtifactRef) -> AgentResult:
    return replace(
        result,
        proposal=None,
        operations=[],
        audit_trail=[],
        constraints={},
        artifacts={WHOLE: ref},
    )


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


def _cut(value: Any, chars: int) -> Any:  # noqa: ANN401 - any JSON value
    match value:
        case str():
            return value if len(value) <= chars else f"{value[:chars]}… ({len(value)} characters)"
        case list():
            return [_cut(each, chars) for each in cast("list[Any]", value)]
        case dict():
            pairs = cast("dict[Any, Any]", value).items()
            return {_cut(key, chars): _cut(each, chars) for key, each in pairs}
        case _:
            return value
