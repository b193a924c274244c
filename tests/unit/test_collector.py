"""The collector of cyclic garbage passes by what was there."""

import gc
from collections.abc import Iterator

import pytest

from agent_actors.collector import YOUNG_OBJECTS, spare_what_is_there


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_is_there_is_not_looked_at_again_and_what_comes_is():
    there = {"a": []}
    assert any(each is there for each in gc.get_objects())
    spare_what_is_there()
    came = {"b": []}
    looked_at = gc.get_objects()
    assert not any(each is there for each in looked_at)
    assert any(each is came for each in looked_at)
    assert gc.get_threshold()[0] == YOUNG_OBJECTS
