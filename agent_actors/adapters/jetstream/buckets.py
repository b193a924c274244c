"""Key-value buckets, spoken to directly, as `nats kv` reads and writes them (NATS ADR-8).

nats-py's own key-value store tells a lost race and a missing key apart only by guessing.
"""

import base64
from typing import NamedTuple

import msgspec

from agent_actors.adapters.jetstream.connection import ApiError, Connection
from agent_actors.adapters.jetstream.tasks import NO_MESSAGE

DELETED_MARK = b"KV-Operation:"
DELETE = {"KV-Operation": "DEL"}


class Entry(NamedTuple):
    """What lies under a key, None when nothing does, and its revision, 0 for one never used."""

    data: bytes | None
    revision: int


async def last_entry(connection: Connection, bucket: str, key: str) -> Entry:
    """Return what the leader has. Raises StreamMissing, PublishFailed without an answer."""
    request = msgspec.json.encode({"last_by_subj": subject_of(bucket, key)})
    try:
        answer = await connection.api(f"STREAM.MSG.GET.KV_{bucket}", request)
    except ApiError as error:
        if error.err_code != NO_MESSAGE:
            raise
        return Entry(None, 0)
    message = answer["message"]
    if DELETED_MARK in base64.b64decode(message.get("hdrs", "")):
        return Entry(None, message["seq"])
    return Entry(base64.b64decode(message.get("data", "")), message["seq"])


def subject_of(bucket: str, key: str) -> str:
    """Return the subject on which a key's values are stored."""
    return f"$KV.{bucket}.{key}"
