"""Whether a service works, and what is missing, as its status says."""

from typing import Any

import pytest

from agent_actors.contract import PoolStatus, ServiceStatus, utc_now
from agent_actors.readiness import missing, works


def status(*pools: PoolStatus) -> ServiceStatus:
    return ServiceStatus(version="1", supervisor_id="s", started=utc_now(), pools=list(pools))


def pool(**said: Any) -> PoolStatus:
    well = {"state": "running", "wanted": 2, "running": 2, "pending": 0}
    return PoolStatus(**{"name": "dev", "subjects": [], **well, **said})


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"reason": "its subjects are on their way"},
        {"running": 3, "draining": 1},
        {"state": "idle", "wanted": 0, "running": 0},
        {"state": "off", "wanted": 0, "running": 0},
    ],
    ids=str,
)
def test_a_pool_that_pulls_and_whose_actors_answer_misses_nothing(said: dict[str, Any]):
    assert missing(status(pool(**said))) == []
    assert works(status(pool(**said)))


@pytest.mark.parametrize(
    ("said", "reason", "is_at_work"),
    [
        ({"state": "starting", "pending": -1}, "pool dev is starting", False),
        ({"state": "stalled", "reason": "no stream"}, "pool dev is stalled: no stream", False),
        ({"state": "paused", "reason": "model away"}, "pool dev is paused: model away", True),
        ({"state": "draining"}, "pool dev is draining", False),
        ({"state": "new"}, "pool dev is new", False),
        ({"pending": -1, "reason": "slow"}, "pool dev hears nothing from NATS: slow", False),
        ({"running": 1}, "pool dev has 1 of 2 actors at work", True),
        ({"running": 0, "reason": "no room"}, "pool dev has 0 of 2 actors at work: no room", False),
    ],
    ids=str,
)
def test_what_a_pool_misses_is_told(said: dict[str, Any], reason: str, *, is_at_work: bool):
    assert missing(status(pool(), pool(**said))) == [reason]
    assert works(status(pool(), pool(**said))) == is_at_work
