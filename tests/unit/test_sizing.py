"""Who says how many actors a pool has, and how fast it works."""

import pytest

from agent_actors.config import AutoscaleConfig, PoolConfig
from agent_actors.ports import HandSize
from agent_actors.scaling import Load
from agent_actors.sizing import Pace, PoolSize

AUTO = AutoscaleConfig(min=1, max=4, target_utilization=1.0, scale_down_delay_s=5)


def tasks(count: int) -> Load:
    return Load(pending=count, unacked=0, used=0, slots=10)


def test_a_pool_has_the_size_that_is_configured():
    size = PoolSize(PoolConfig(actors=3))
    size.remember(None, existing=7)
    size.follow(tasks(1_000), 1.0)
    assert (size.wanted, size.sized_by) == (3, "configuration")


def test_an_order_given_by_hand_counts_until_it_is_taken_back():
    size = PoolSize(PoolConfig(actors=3))
    size.order(5)
    assert (size.wanted, size.sized_by) == (5, "hand")
    size.order(None)
    assert (size.wanted, size.sized_by) == (3, "configuration")


def test_an_order_given_by_hand_is_kept_for_the_next_supervisor():
    kept = PoolSize(PoolConfig(actors=3)).to_keep(5)
    successor = PoolSize(PoolConfig(actors=3, slots=7))
    successor.remember(kept, existing=3)
    assert (successor.wanted, successor.sized_by) == (5, "hand")


def test_a_size_that_was_configured_anew_counts_more_than_an_older_order():
    kept = PoolSize(PoolConfig(actors=3)).to_keep(5)
    successor = PoolSize(PoolConfig(actors=4))
    successor.remember(kept, existing=5)
    assert (successor.wanted, successor.sized_by) == (4, "configuration")


def test_the_load_decides_where_the_configuration_says_so():
    size = PoolSize(PoolConfig(actors=AUTO))
    size.remember(None, existing=0)
    size.follow(tasks(25), 1.0)
    assert (size.wanted, size.sized_by) == (3, "load")


def test_a_new_supervisor_begins_with_the_actors_that_it_finds():
    size = PoolSize(PoolConfig(actors=AUTO))
    size.remember(None, existing=3)
    size.follow(tasks(1), 1.0)
    assert size.wanted == 3
    size.follow(tasks(1), 7.0)
    assert size.wanted == 1


def test_an_order_given_by_hand_counts_more_than_the_load_and_its_bounds():
    size = PoolSize(PoolConfig(actors=AUTO))
    size.remember(HandSize(actors=9, configured="other"), existing=0)
    size.order(6)
    size.follow(tasks(1), 1.0)
    assert (size.wanted, size.sized_by) == (6, "hand")
    size.order(None)
    assert size.wanted == 4
    size.follow(tasks(1), 2.0)
    assert size.sized_by == "load"


def test_the_rate_is_that_of_the_last_seconds():
    pace = Pace()
    for second, settled in enumerate([0, 0, 0, *range(10, 210, 10)]):
        pace.mark(settled, float(second))
    assert pace.rate == pytest.approx(10.0)


def test_a_pool_that_has_just_begun_has_no_rate():
    pace = Pace()
    assert pace.rate == 0.0
    pace.mark(5, 1.0)
    assert pace.rate == 0.0
