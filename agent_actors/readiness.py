"""Whether the service does its work just now, read from what its supervisor says: pure."""

from collections.abc import Iterator

from agent_actors.contract import PoolStatus, ServiceStatus

# In these a pool takes what comes: `idle` and `off` want no actor.
PULLING = frozenset({"running", "idle", "off"})
PAUSED = "paused"


def missing(status: ServiceStatus) -> list[str]:
    """Return what keeps tasks from being worked on; empty when every pool and actor works."""
    return [reason for pool in status.pools for reason in _missing_in(pool)]


def works(status: ServiceStatus) -> bool:
    """Tell whether each pool gets its tasks, by at least one actor if it is to have any.

    A model that is away is no fault of the service: its tasks wait where they are safe.
    """
    return all(
        pool.state in {*PULLING, PAUSED} and pool.pending >= 0 and (pool.running or not pool.wanted)
        for pool in status.pools
    )


def _missing_in(pool: PoolStatus) -> Iterator[str]:
    because = f": {pool.reason}" if pool.reason else ""
    if pool.state not in PULLING:
        yield f"pool {pool.name} is {pool.state}{because}"
    elif pool.pending < 0:
        yield f"pool {pool.name} hears nothing from NATS{because}"
    if pool.running < pool.wanted:
        yield f"pool {pool.name} has {pool.running} of {pool.wanted} actors at work{because}"
