"""Telling all agents that a task is cancelled: core NATS, so it is a hint that may be missed.

What counts is the mark in the ledger, which an agent finds at its next write at the latest.
"""

from collections.abc import Callable

from nats.aio.msg import Msg

from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.adapters.jetstream.feeds import subscribe
from agent_actors.contract import CANCEL_PREFIX, cancel_subject

EVERY_TASK = "*"


async def tell_cancelled(connection: Connection, task_key: str) -> None:
    """Tell all agents that this task is cancelled. Raises PublishFailed."""
    await connection.send(cancel_subject(task_key), b"")


async def hear_cancelled(connection: Connection, on_cancelled: Callable[[str], None]) -> None:
    """Call back with the key of each task that is said to be cancelled, from now on.

    Raises PermissionDenied, PublishFailed.
    """

    async def hear(message: Msg) -> None:
        on_cancelled(message.subject.removeprefix(CANCEL_PREFIX))

    await subscribe(connection, cancel_subject(EVERY_TASK), hear)
