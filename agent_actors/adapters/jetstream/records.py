"""The ledger bucket: one record a task, read from the leader, written by compare-and-set.

It is a key-value bucket like any other (`nats kv get agent_ledger <task key>`); its stream is
spoken to directly, because nats-py's key-value store tells a lost race and a missing key apart
only by guessing.
"""

import base64

import msgspec

from agent_actors.adapters.jetstream.connection import ApiError, Connection
from agent_actors.adapters.jetstream.tasks import NO_MESSAGE
from agent_actors.contract import LEDGER_BUCKET, encode
from agent_actors.errors import AgentActorsError
from agent_actors.ledger import TaskRecord
from agent_actors.ports import Stored

EXPECTED_HEADER = "Nats-Expected-Last-Subject-Sequence"
DELETED_MARK = b"KV-Operation:"

_record = msgspec.json.Decoder(TaskRecord)


class JetStreamLedger:
    """The bucket as a `LedgerStore`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self, key: str) -> Stored:
        """Return the record and its revision; none, also for a key that somebody deleted."""
        request = msgspec.json.encode({"last_by_subj": _subject(key)})
        try:
            answer = await self._connection.api(f"STREAM.MSG.GET.KV_{LEDGER_BUCKET}", request)
        except ApiError as error:
            if error.err_code != NO_MESSAGE:
                raise
            return Stored(record=None, revision=0)
        message = answer["message"]
        if DELETED_MARK in base64.b64decode(message.get("hdrs", "")):
            return Stored(record=None, revision=message["seq"])
        data = base64.b64decode(message.get("data", ""))
        return Stored(record=_decoded(key, data), revision=message["seq"])

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        """Replace the record at `revision`, return the new one. Raises FencedOut, PublishFailed."""
        ack = await self._connection.publish_stored(
            _subject(key), encode(record), {EXPECTED_HEADER: str(revision)}
        )
        return ack.seq


def _subject(key: str) -> str:
    return f"$KV.{LEDGER_BUCKET}.{key}"


def _decoded(key: str, data: bytes) -> TaskRecord:
    try:
        return _record.decode(data)
    except msgspec.MsgspecError as error:
        raise AgentActorsError(
            f"{LEDGER_BUCKET}: the record {key} cannot be read ({error}); "
            f"`nats kv get {LEDGER_BUCKET} {key}` shows it"
        ) from error
