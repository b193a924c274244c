"""Actors whose lanes lead nowhere; all else about them is real."""

from msgspec.structs import replace

from agent_actors.actor import ActorParts
from agent_actors.assembly import build_agent_actor
from agent_actors.ports import ActorSettings, Answer


async def build_without_a_lane(settings: ActorSettings) -> ActorParts:
    """Build an actor that says it can be asked where nobody listens."""
    return replace(await build_agent_actor(settings), open_lane=_open_nothing)


async def _open_nothing(_: Answer) -> str:
    return "_INBOX.nobody.listens.here"
