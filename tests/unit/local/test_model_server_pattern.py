import re

import pytest

from agent_actors.local.model_server.simulation.pattern import matching


@pytest.mark.parametrize(
    "pattern", [r"^\d{4}-\d{2}$", r"^\w+$", r"a*b+", r"^[+*]+$", r"^\+\*$", r"^(ab){2,}$", "^x{3}$"]
)
def test_texts_match_and_are_short(pattern: str):
    texts = list(matching(pattern))
    assert texts
    assert all(re.search(pattern, text) for text in texts)
    assert len(texts[0]) <= 25


def test_another_variant_gives_other_texts():
    assert list(matching("^[a-z]{8}$")) != list(matching("^[a-z]{8}$", variant=1))
    assert list(matching("^[a-z]{8}$")) == list(matching("^[a-z]{8}$"))


def test_a_pattern_too_special_gives_nothing():
    assert list(matching("^a++$")) == []


def test_a_broken_pattern_is_an_error():
    with pytest.raises(re.error):
        list(matching("("))
