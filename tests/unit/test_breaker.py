"""How much a pool pulls while its model is away, and after."""

from hypothesis import given
from hypothesis import strategies as st

from agent_actors.breaker import PROBE_EVERY_S, RAMP_STEP_S, Breaker

MANY = 1_000_000


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    breaker.hear(away=True, now=now)
    return breaker


def test_a_closed_breaker_limits_nothing():
    breaker = Breaker()
    breaker.hear(away=False, now=0.0)
    assert breaker.room(MANY, in_hand=MANY, now=0.0) == MANY
    assert breaker.look_again_in_s() is None


def test_an_open_one_allows_one_probe_after_a_while():
    breaker = opened()
    assert breaker.room(MANY, in_hand=0, now=0.0) == 0
    assert breaker.room(MANY, in_hand=0, now=PROBE_EVERY_S) == 1


def test_no_second_probe_while_one_is_in_hand():
    assert opened().room(MANY, in_hand=1, now=60.0) == 0


def test_a_probe_that_failed_is_not_followed_by_another_at_once():
    breaker = opened()
    breaker.pulled(10.0)
    breaker.hear(away=True, now=10.1)
    assert breaker.room(MANY, in_hand=0, now=10.1) == 0
    assert breaker.room(MANY, in_hand=0, now=10.0 + PROBE_EVERY_S) == 1


def test_the_limit_doubles_from_one_once_the_model_is_back():
    breaker = opened()
    breaker.hear(away=False, now=5.0)
    allowed = [breaker.room(MANY, in_hand=0, now=5.0 + RAMP_STEP_S * step) for step in range(4)]
    assert allowed == [1, 2, 4, 8]
    assert breaker.look_again_in_s() == RAMP_STEP_S


def test_what_is_in_hand_counts_while_the_limit_grows():
    breaker = opened()
    breaker.hear(away=False, now=0.0)
    assert breaker.room(MANY, in_hand=5, now=3 * RAMP_STEP_S) == 3
    assert breaker.room(MANY, in_hand=50, now=3 * RAMP_STEP_S) == 0


def test_five_seconds_after_the_model_is_back_nothing_is_limited():
    breaker = opened()
    breaker.hear(away=False, now=0.0)
    assert breaker.room(MANY, in_hand=MANY, now=5.0) == MANY
    assert breaker.look_again_in_s() is None


def test_a_model_that_goes_away_again_is_probed_again_and_the_limit_starts_from_one():
    breaker = opened()
    breaker.hear(away=False, now=0.0)
    breaker.hear(away=True, now=1.0)
    assert breaker.room(MANY, in_hand=1, now=10.0) == 0
    breaker.hear(away=False, now=20.0)
    assert breaker.room(MANY, in_hand=0, now=20.0) == 1


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 10), st.integers(0, 100)), max_size=30),
    st.integers(-5, 100),
)
def test_it_never_allows_more_than_is_wanted_nor_less_than_nothing(history: list, wanted: int):
    breaker, now = Breaker(), 0.0
    for away, passed, in_hand in history:
        now += passed
        breaker.hear(away=away, now=now)
        assert 0 <= breaker.room(wanted, in_hand, now) <= max(0, wanted)
        if away:
            assert breaker.room(wanted, in_hand, now) <= max(0, 1 - in_hand)
