"""The sizes of pools that were set by hand, in the bucket `agent_config`."""

import msgspec
import structlog

from agent_actors.adapters.jetstream.buckets import DELETE, last_entry, subject_of
from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.contract import CONFIG_BUCKET, encode, task_key
from agent_actors.ports import HandSize

log = structlog.get_logger()


class JetStreamSizes:
    """The sizes of one cluster's pools, under `<cluster>.size.<pool>`, as a `SizeStore`."""

    def __init__(self, connection: Connection, cluster: str) -> None:
        self._connection = connection
        self._prefix = f"{task_key(cluster)}.size."

    async def read(self, pool_name: str) -> HandSize | None:
        """Return the pool's, or none. Raises PublishFailed without an answer, StreamMissing."""
        key = self._prefix + pool_name
        data, _ = await last_entry(self._connection, CONFIG_BUCKET, key)
        try:
            return msgspec.json.decode(data, type=HandSize) if data else None
        except msgspec.MsgspecError as error:
            log.warning("pool.size_unreadable", bucket=CONFIG_BUCKET, key=key, error=str(error))
            return None

    async def write(self, pool_name: str, size: HandSize | None) -> None:
        """Keep the pool's, or none. Raises PublishFailed without an answer, StreamMissing."""
        subject = subject_of(CONFIG_BUCKET, self._prefix + pool_name)
        if size is None:
            await self._connection.publish_stored(subject, b"", DELETE)
        else:
            await self._connection.publish_stored(subject, encode(size))
