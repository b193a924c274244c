"""A supervisor beside another one, of the same actors, as a split brain would have it."""

from msgspec.structs import replace

from agent_actors.adapters.ray_runtime import SupervisorName, build_supervisor
from agent_actors.assembly import build_agent_actor
from agent_actors.config import Config
from agent_actors.pool import SupervisorParts


async def build_rival(config: Config) -> SupervisorParts:
    """Build a supervisor that takes over from nobody."""
    parts = await build_supervisor(build_agent_actor, SupervisorName(0, "rival"), config)
    return replace(parts, take_over=_from_nobody)


async def _from_nobody() -> None:
    """Leave the other one at its work."""
