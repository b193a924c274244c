"""Who comes and who goes in a pool of actors, so that it has its size and its settings: pure.

Actors that were built from earlier settings are replaced a few at a time, each by one that works
already; so the pool is never smaller than wanted on the way.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import count

from msgspec import Struct

# A replacement that finds no room in the cluster for so long gets that of one to be replaced.
ROOM_PATIENCE_S = 10.0
# The share of a pool that is replaced at the same time.
SURGE = 0.25


class Member(Struct, frozen=True, kw_only=True):
    """An actor that is to stay, as far as is known.

    It is `current` when it was built from the settings that hold now, `ready` when it works. One
    that is not `placed` has waited `waiting_s` seconds for room in the cluster.
    """

    agent_id: str
    current: bool
    ready: bool
    placed: bool = True
    used: int = 0
    waiting_s: float = 0.0


class Moves(Struct, frozen=True, kw_only=True):
    """The ids of actors to start, and of those to let go once they have finished."""

    start: Sequence[str] = ()
    retire: Sequence[str] = ()


def moves(
    pool_name: str, members: Sequence[Member], leaving: Collection[str], wanted: int
) -> Moves:
    """Return the next moves towards `wanted` current actors; none when there is nothing to do.

    `leaving` are the ids of those that have been let go and still have their names.
    """
    current = [member for member in members if member.current]
    outdated = [member for member in members if not member.current]
    serving = [member for member in outdated if member.ready]
    surge = math.ceil(wanted * SURGE) if serving else 0
    missing = min(wanted, wanted + surge - len(serving)) - len(current)
    taken = {member.agent_id for member in members} | set(leaving)
    return Moves(
        start=[
            name for name, _ in zip(_free_names(pool_name, taken), range(missing), strict=False)
        ],
        retire=[
            *(member.agent_id for member in outdated if not member.ready),
            *_replaced(current, serving, wanted, is_making_room=bool(leaving)),
            *_surplus(current, wanted),
        ],
    )


def pool_of(agent_id: str) -> str:
    """Return the name of an actor's pool."""
    return agent_id.rpartition("-")[0]


def _replaced(
    current: Sequence[Member], serving: Sequence[Member], wanted: int, *, is_making_room: bool
) -> Iterator[str]:
    """Yield the outdated ones that are not needed any more, those with the least to do first."""
    ready = sum(member.ready for member in current)
    spare = ready + len(serving) - wanted
    has_no_room = any(
        not member.ready and not member.placed and member.waiting_s > ROOM_PATIENCE_S
        for member in current
    )
    if spare <= 0 and has_no_room and not is_making_room:
        spare = 1
    yield from _idlest(serving, spare)


def _surplus(current: Sequence[Member], wanted: int) -> Iterator[str]:
    """Yield the current ones that are too many, those that do not work yet first."""
    yield from _idlest(current, len(current) - wanted)


def _idlest(members: Sequence[Member], limit: int) -> list[str]:
    ordered = sorted(members, key=lambda each: (each.ready, each.used, -_number(each.agent_id)))
    return [member.agent_id for member in ordered[: max(0, limit)]]


def _free_names(pool_name: str, taken: Collection[str]) -> Iterator[str]:
    names = (f"{pool_name}-{number}" for number in count())
    return (name for name in names if name not in taken)


def _number(agent_id: str) -> int:
    return int(agent_id.rpartition("-")[2])
