"""The ledger bucket: one record a task, read from the leader, written by compare-and-set."""

import msgspec

from agent_actors.adapters.jetstream.buckets import last_entry, subject_of
from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.contract import LEDGER_BUCKET, encode
from agent_actors.errors import AgentActorsError
from agent_actors.ledger import TaskRecord
from agent_actors.ports import Stored

EXPECTED_HEADER = "Nats-Expected-Last-Subject-Sequence"

_record = msgspec.json.Decoder(TaskRecord)


class JetStreamLedger:
    """The bucket as a `LedgerStore`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self, key: str) -> Stored:
        """Return the record and its revision; none, also for a key that somebody deleted."""
        data, revision = await last_entry(self._connection, LEDGER_BUCKET, key)
        record = None if data is None else _decoded(key, data)
        return Stored(record=record, revision=revision)

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        """Replace the record at `revision`, return the new one. Raises FencedOut, PublishFailed."""
        ack = await self._connection.publish_stored(
            subject_of(LEDGER_BUCKET, key), encode(record), {EXPECTED_HEADER: str(revision)}
        )
        return ack.seq


def _decoded(key: str, data: bytes) -> TaskRecord:
    try:
        return _record.decode(data)
    except msgspec.MsgspecError as error:
        raise AgentActorsError(
            f"{LEDGER_BUCKET}: the record {key} cannot be read ({error}); "
            f"`nats kv get {LEDGER_BUCKET} {key}` shows it"
        ) from error
