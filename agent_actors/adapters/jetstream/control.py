"""The control service: a NATS micro service, so that `nats micro ls agent-actors` finds it."""

import re
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from nats.micro import add_service  # pyright: ignore[reportUnknownVariableType] - untyped kwargs
from nats.micro.request import Request
from nats.micro.service import Service

from agent_actors import __version__
from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.contract import CONTROL_GROUP, CONTROL_SERVICE
from agent_actors.errors import AgentActorsError, InvalidTask, RequestRefused

BAD_REQUEST, UNAVAILABLE = "400", "503"

# Their requests name whom they mean: every service hears them, and that one answers.
ADDRESSED = frozenset({"drain", "scale"})

Endpoint = Callable[[bytes], Awaitable[bytes | None]]


async def serve_control(connection: Connection, endpoints: Mapping[str, Endpoint]) -> Service:
    """Answer `agent.control.<endpoint>` until the returned service is stopped.

    An endpoint that returns nothing was not meant, and stays silent.
    """
    service = await add_service(
        connection.nc,
        name=CONTROL_SERVICE,
        version=semantic_version(__version__),
        description="AI-agent tasks on Ray: where they stand, and what the pools do",
    )
    group = service.add_group(name=CONTROL_GROUP)
    for name, endpoint in endpoints.items():
        queue_group = f"q.{service.id}" if name in ADDRESSED else None
        await group.add_endpoint(name=name, handler=_handler(endpoint), queue_group=queue_group)
    return service


def semantic_version(version: str) -> str:
    """Return a PEP 440 version as NATS wants it, semantic: `0.2.0.dev1` as `0.2.0-dev1`."""
    numbers = re.match(r"\d+(\.\d+){0,2}", version)
    core = numbers.group() if numbers else "0"
    rest = re.sub(r"[^0-9A-Za-z]+", "-", version[len(core) :]).strip("-")
    core += ".0" * (2 - core.count("."))
    return f"{core}-{rest}" if rest else core


def _handler(endpoint: Endpoint) -> Callable[[Request], Awaitable[None]]:
    async def handle(request: Request) -> None:
        try:
            answer = await endpoint(request.data)
        except (InvalidTask, RequestRefused, msgspec.DecodeError) as error:
            await request.respond_error(BAD_REQUEST, str(error))
        except AgentActorsError as error:
            await request.respond_error(UNAVAILABLE, str(error))
        else:
            if answer is not None:
                await request.respond(answer)

    return handle
