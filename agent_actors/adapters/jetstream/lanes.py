"""A lane: a supervisor asks an actor over NATS what it could ask through Ray.

A call through Ray passes eight threads of two processes, and takes over a millisecond of CPU time
whatever it carries; a request over the connections that both have anyway takes a tenth of that.
A lane is a short cut and no more: what is not answered on it is asked through Ray.
"""

import asyncio

import msgspec
import structlog
from nats.aio.msg import Msg

from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.contract import PAYLOAD_MARGIN_BYTES
from agent_actors.errors import AgentActorsError
from agent_actors.ports import Answer

log = structlog.get_logger()


async def open_lane(connection: Connection, answer: Answer) -> str:
    """Answer what is asked on a subject that nobody else knows, all side by side; return it."""
    lane = connection.nc.new_inbox()
    answering: set[asyncio.Task[None]] = set()

    async def respond(request: Msg) -> None:
        try:
            await connection.send(request.reply, await answer(request.data))
        except (AgentActorsError, msgspec.MsgspecError) as error:
            log.warning("lane.not_answered", error=str(error))

    def begin(request: Msg) -> None:
        task = asyncio.create_task(respond(request))
        answering.add(task)
        task.add_done_callback(answering.discard)

    await connection.nc.hear(lane, begin)
    return lane


class Lane:
    """The way to one actor, over the connection of whoever asks."""

    def __init__(self, connection: Connection, subject: str) -> None:
        self._connection = connection
        self._subject = subject

    async def ask(self, request: bytes, within_s: float) -> bytes | None:
        """Return the answer; None when there is none in time, or never will be."""
        nc = self._connection.nc
        if not nc.is_connected or len(request) > nc.max_payload - PAYLOAD_MARGIN_BYTES:
            return None
        try:
            answer = await self._connection.request(self._subject, request, timeout_s=within_s)
        except AgentActorsError as error:
            log.info("lane.no_answer", subject=self._subject, error=str(error))
            return None
        return answer.data
