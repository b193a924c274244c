"""What goes out: results and dead letters to their streams, live progress to whoever listens."""

import structlog

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.config import NatsConfig
from agent_actors.contract import TaskEvent, encode, event_subject
from agent_actors.errors import PublishFailed, PublishRefused
from agent_actors.ports import Message

log = structlog.get_logger()


class NATSResultPublisher:
    """Announces results in JetStream.

    Built with a `nats_url` (or a whole `config`) it connects when it first publishes, and
    `close()` ends that connection; the service builds it on a connection that is there.
    """

    def __init__(
        self,
        nats_url: str = "",
        *,
        config: NatsConfig | None = None,
        connection: Connection | None = None,
    ) -> None:
        self._config = config or NatsConfig(url=nats_url)
        self._connection = connection
        self._owned: Connection | None = None

    async def publish(self, message: Message) -> None:
        """Return once the message is stored, or was before (by its `Nats-Msg-Id`).

        Raises PublishFailed, PublishRefused, ServiceUnreachable, PermissionDenied, StreamMissing.
        """
        connection = self._connection or await self._own()
        await connection.publish_stored(message.subject, message.payload, message.headers)

    async def close(self) -> None:
        """Close the connection, if this object made it."""
        if self._owned:
            await self._owned.close()
            self._owned = None

    async def _own(self) -> Connection:
        if self._owned is None:
            self._owned = await connect(self._config, name="agent-actors-library")
        return self._owned


class NATSEvents:
    """Live progress on core NATS: nobody waits for it, nothing is stored, some may be dropped."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def emit(self, event: TaskEvent) -> None:
        """Send the event without waiting."""
        subject = event_subject(event.task_id, event.kind)
        try:
            await self._connection.tell(subject, encode(event))
        except (PublishFailed, PublishRefused) as error:
            log.debug("event.lost", subject=subject, error=str(error))
