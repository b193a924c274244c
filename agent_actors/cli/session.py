"""How a command talks to NATS: one connection, for as long as its story takes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec.structs import replace

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.cli.invocation import Invocation
from agent_actors.client import DEFAULT_URL, AgentClient
from agent_actors.config import Config
from agent_actors.errors import ServiceUnreachable
from agent_actors.observe.logs import configure_logs

T = TypeVar("T")


def with_client(invocation: Invocation, story: Callable[[AgentClient], Awaitable[T]]) -> T:
    """Return what the story comes to. Raises AgentActorsError."""

    async def told(connection: Connection, _: Config) -> T:
        return await story(AgentClient(connection))

    return with_connection(invocation, told)


def with_connection(
    invocation: Invocation, story: Callable[[Connection, Config], Awaitable[T]]
) -> T:
    """Return what the story comes to. Raises AgentActorsError."""
    config = invocation.load()
    configure_logs("agent-actors", level="debug" if invocation.debug else "error")

    async def told() -> T:
        connection = await _connected(config)
        try:
            return await story(connection, config)
        finally:
            await connection.close()

    return asyncio.run(told())


async def _connected(config: Config) -> Connection:
    if config.nats.url:
        return await connect(config.nats, name="agent-actors-cli")
    try:
        return await connect(replace(config.nats, url=DEFAULT_URL), name="agent-actors-cli")
    except ServiceUnreachable as error:
        raise ServiceUnreachable(
            f"{error}. Start the service with `agent-actors up`, "
            "or name your NATS in nats.url (AGENT_ACTORS_NATS_URL)."
        ) from error
