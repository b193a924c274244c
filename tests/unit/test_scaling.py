"""How many actors a pool should have: single moments, and traces of load."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent_actors.config import AutoscaleConfig
from agent_actors.scaling import MODEL_FULL_S, Load, ScalingState, wanted_size

SLOTS = 10
IDLE = Load(pending=0, unacked=0, used=0, slots=SLOTS)
UNKNOWN = Load(pending=-1, unacked=-1, used=0, slots=SLOTS)


def busy(tasks, *, used=0, slots=SLOTS, **model):
    """A load of so many tasks, some of them in slots, the others never handed out."""
    return Load(pending=tasks - used, unacked=used, used=used, slots=slots, **model)


def policy(minimum=0, maximum=8, *, target=0.5, up_s=0.0, down_s=60.0):
    return AutoscaleConfig(
        min=minimum,
        max=maximum,
        target_utilization=target,
        scale_up_delay_s=up_s,
        scale_down_delay_s=down_s,
    )


class Pool:
    """A pool's size through a trace of loads, a second from one to the next."""

    def __init__(self, policy, wanted=0, now=0.0):
        self.policy = policy
        self.state = ScalingState(wanted=wanted)
        self.now = now

    def at(self, load, *, policy=None, after_s=1.0):
        self.now += after_s
        size, self.state = wanted_size(load, policy or self.policy, self.state, self.now)
        assert size == self.state.wanted
        return size

    def through(self, loads):
        return [self.at(load) for load in loads]


# Single moments.


@pytest.mark.parametrize(
    ("tasks", "size"),
    [(0, 0), (1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (35, 7), (36, 8), (999, 8)],
)
def test_a_pool_has_the_actors_at_which_its_tasks_take_the_share_of_slots_that_is_wanted(
    tasks, size
):
    assert Pool(policy()).at(busy(tasks)) == size


@pytest.mark.parametrize(
    ("tasks", "slots", "target", "size"),
    [(49, 7, 0.7, 10), (3, 3, 0.1, 10), (256, 32, 0.8, 10), (7, 100, 0.07, 1), (21, 1, 0.7, 30)],
)
def test_a_load_that_fits_exactly_gets_no_actor_more(tasks, slots, target, size):
    load = busy(tasks, slots=slots)
    assert Pool(policy(maximum=100, target=target)).at(load) == size
    assert Pool(policy(maximum=100, target=target)).at(busy(tasks + 1, slots=slots)) > size


def test_slots_in_use_count_like_tasks_that_wait():
    assert Pool(policy()).at(busy(30, used=10)) == Pool(policy()).at(busy(30)) == 6


def test_deliveries_that_were_given_back_with_a_delay_ask_for_no_slots():
    delayed = Load(pending=0, unacked=5_000, used=5, slots=SLOTS)
    assert Pool(policy(), wanted=1).at(delayed) == 1


def test_deliveries_that_wait_while_no_slot_is_free_ask_for_an_actor_more():
    pool = Pool(policy(target=1.0), wanted=2)
    assert pool.at(Load(pending=0, unacked=20, used=20, slots=SLOTS)) == 2
    assert pool.at(Load(pending=0, unacked=5_000, used=20, slots=SLOTS)) == 3
    assert pool.at(Load(pending=0, unacked=5_000, used=20, slots=SLOTS)) == 3
    assert pool.at(Load(pending=0, unacked=5_000, used=30, slots=SLOTS)) == 4


def test_a_delivery_that_is_out_keeps_the_last_actor_and_brings_the_first():
    out = Load(pending=0, unacked=1, used=0, slots=SLOTS)
    assert Pool(policy(down_s=0.0), wanted=1).at(out) == 1
    assert Pool(policy()).at(out) == 1


def test_the_size_stays_while_nats_does_not_say_what_waits():
    assert Pool(policy(), wanted=5).through([UNKNOWN] * 100) == [5] * 100


def test_the_time_to_scale_down_begins_anew_when_nats_says_again_what_waits():
    pool = Pool(policy(down_s=3.0), wanted=5)
    assert pool.through([IDLE, IDLE, UNKNOWN, IDLE, IDLE, IDLE, IDLE]) == [5] * 6 + [0]


def test_a_pool_whose_model_is_away_does_not_grow_with_its_backlog_nor_shrink():
    away = Pool(policy(), wanted=3)
    assert away.at(busy(999, used=1, model_away=True)) == 3
    given_back = Load(pending=0, unacked=999, used=0, slots=SLOTS, model_away=True)
    assert away.through([given_back] * 100) == [3] * 100


def test_a_pool_with_nothing_to_do_shrinks_whether_its_model_is_away_or_not():
    pool = Pool(policy(down_s=3.0), wanted=3)
    assert pool.through([busy(0, model_away=True)] * 4) == [3, 3, 3, 0]


def test_while_the_model_is_full_only_what_it_works_on_asks_for_actors():
    pool = Pool(policy(down_s=3.0), wanted=4)
    full = busy(999, used=12, model_full=True)
    assert pool.through([full] * 5) == [4, 4, 4, 3, 3]
    assert Pool(policy()).at(busy(999, model_full=True)) == 1


def test_a_moment_without_a_queue_in_a_full_model_lets_no_pool_grow():
    pool = Pool(policy(), wanted=1)
    pool.at(busy(999, used=5, model_full=True))
    later = pool.through([busy(999, used=5)] * 11)
    assert later == [1] * int(MODEL_FULL_S - 1) + [8, 8]


def test_changed_bounds_hold_at_once():
    pool = Pool(policy(), wanted=5)
    assert pool.at(busy(25), policy=policy(maximum=3)) == 3
    assert pool.at(busy(25), policy=policy(minimum=7)) == 7
    assert pool.at(UNKNOWN, policy=policy(maximum=2)) == 2


# Pace.


def test_growing_waits_until_the_load_has_asked_for_it_all_through_the_delay():
    pool = Pool(policy(minimum=1, up_s=3.0), wanted=1)
    loads = [busy(20), busy(20), busy(1), busy(20), busy(15), busy(40), busy(20), busy(20)]
    assert pool.through(loads) == [1, 1, 1, 1, 1, 1, 3, 3]


def test_the_first_actor_of_none_comes_at_once_whatever_the_delay():
    assert Pool(policy(up_s=3.0)).through([busy(20)] * 4) == [1, 1, 1, 4]


def test_shrinking_waits_and_goes_to_the_most_that_was_asked_for_meanwhile():
    pool = Pool(policy(down_s=3.0), wanted=8)
    loads = [busy(5), busy(15), busy(5), busy(5), busy(5), busy(5)]
    assert pool.through(loads) == [8, 8, 8, 3, 3, 1]


def test_a_new_supervisor_takes_nothing_from_the_actors_that_it_finds_before_the_delay():
    assert Pool(policy(down_s=3.0), wanted=8, now=1e6).through([IDLE] * 4) == [8, 8, 8, 0]


def test_a_load_that_was_last_seen_long_ago_is_not_taken_for_one_that_has_been_low_since():
    pool = Pool(policy(down_s=3.0))
    pool.at(busy(40))
    assert pool.at(IDLE, after_s=1_000.0) == 8
    assert pool.at(IDLE, after_s=2.9) == 8
    assert pool.at(IDLE, after_s=0.1) == 0


def test_a_pool_goes_to_none_and_comes_back():
    pool = Pool(policy(down_s=3.0))
    assert pool.through([busy(20), IDLE, IDLE, IDLE, IDLE, IDLE]) == [4, 4, 4, 4, 0, 0]
    assert pool.at(busy(1)) == 1


# Traces.


@st.composite
def policies(draw):
    maximum = draw(st.integers(1, 20))
    return policy(
        draw(st.integers(0, maximum)),
        maximum,
        target=draw(st.floats(0.01, 1.0)),
        up_s=draw(st.sampled_from([0.0, 1.0, 5.0])),
        down_s=draw(st.sampled_from([0.0, 1.0, 10.0])),
    )


@st.composite
def loads(draw, *, can_be_full=True):
    used = draw(st.integers(0, 200))
    return Load(
        pending=draw(st.integers(-1, 300)),
        unacked=draw(st.just(used) | st.integers(0, 500)),
        used=used,
        slots=draw(st.just(SLOTS) | st.integers(1, 64)),
        model_away=draw(st.booleans()),
        model_full=can_be_full and draw(st.booleans()),
    )


def steps_of(loads):
    return st.tuples(loads, st.floats(0.0, 5.0))


steps = steps_of(loads())
traces = st.lists(steps, max_size=40)
traces_of_work = st.lists(steps_of(loads(can_be_full=False)), max_size=40)


@given(first=st.integers(0, 30), trace=st.lists(st.tuples(steps, policies()), max_size=40))
def test_the_size_is_always_within_the_bounds_of_the_moment(first, trace):
    pool = Pool(policy(), wanted=first)
    for (load, after_s), bounds in trace:
        size = pool.at(load, policy=bounds, after_s=after_s)
        assert bounds.min <= size <= bounds.max
        assert len(pool.state.highs) <= 32
        assert len(pool.state.lows) <= 32


@given(
    bounds=policies(),
    first=st.integers(0, 20),
    past=traces,
    load=loads(),
    more=st.tuples(*[st.integers(0, 100)] * 3),
)
def test_more_load_never_asks_for_fewer_actors(bounds, first, past, load, more):
    pool = Pool(bounds, wanted=first)
    for earlier, after_s in past:
        pool.at(earlier, after_s=after_s)
    assume(load.pending >= 0)
    heavier = Load(
        pending=load.pending + more[0],
        unacked=load.unacked + more[1],
        used=load.used + more[2],
        slots=load.slots,
        model_away=load.model_away,
        model_full=load.model_full,
    )
    now = pool.now + 1.0
    size, _ = wanted_size(load, bounds, pool.state, now)
    heavier_size, _ = wanted_size(heavier, bounds, pool.state, now)
    assert heavier_size >= size


@given(
    bounds=policies(),
    first=st.integers(0, 20),
    past=traces_of_work,
    tasks=st.integers(0, 400),
)
def test_a_steady_load_is_met_by_the_size_that_fits_it_and_that_stays(bounds, first, past, tasks):
    pool = Pool(bounds, wanted=first)
    for load, after_s in past:
        pool.at(load, after_s=after_s)
    fitting = math.ceil(round(tasks / (SLOTS * bounds.target_utilization), 6))
    fitting = max(bounds.min, min(bounds.max, fitting))
    sizes = pool.through([busy(tasks)] * 30)
    delay_s = int(max(bounds.scale_up_delay_s, bounds.scale_down_delay_s))
    assert set(sizes[delay_s + 1 :]) == {fitting}
    ways = {(size > before) - (size < before) for before, size in pairwise(sizes)}
    assert len(ways - {0}) <= 1


@given(
    first=st.integers(0, 20),
    crest=st.integers(1, 200),
    troughs=st.lists(st.lists(st.floats(0.0, 1.0), max_size=9)),
)
def test_a_load_that_swings_faster_than_the_delay_leaves_the_size_that_its_crests_ask_for(
    first, crest, troughs
):
    pool = Pool(policy(maximum=20, down_s=10.0), wanted=first)
    fitting = min(20, math.ceil(crest / 5))
    sizes = [pool.at(busy(crest))]
    assert sizes == [max(first, fitting)]
    for trough in troughs:
        sizes += pool.through([busy(int(crest * share)) for share in trough] + [busy(crest)])
    assert sizes == [*sizes[:11], *[fitting] * len(sizes[11:])]
    assert set(sizes) <= {sizes[0], fitting}
    assert sizes == sorted(sizes, reverse=True)


@given(bounds=policies(), first=st.integers(0, 20), trace=traces_of_work)
def test_the_size_never_shrinks_below_what_the_load_asked_for_within_the_delay(
    bounds, first, trace
):
    pool = Pool(bounds, wanted=first)
    needs = []
    for load, after_s in trace:
        before = pool.state.wanted
        size = pool.at(load, after_s=after_s)
        room = load.slots * bounds.target_utilization
        needed = math.ceil((load.pending + load.used) / room - 1e-6) if load.pending >= 0 else 0
        if size < before:
            since = pool.now - bounds.scale_down_delay_s
            lately = [need for at, need in needs if at > since]
            assert size >= min(max([needed, *lately]), bounds.max)
        needs.append((pool.now, needed))


# The loop that is closed: what a pool has of slots decides what it works off.


def work_off(pool, arriving, *, task_s=4, start_s=2):
    """Return size and backlog by the second; an actor that is wanted works after a while."""
    sizes = [pool.state.wanted] * start_s
    pending, running, history = 0, [], []
    for arrived in arriving:
        running = [left - 1 for left in running if left > 1]
        pending += arrived
        started = min(pending, max(0, min(sizes[-start_s:]) * SLOTS - len(running)))
        pending -= started
        running += [task_s] * started
        load = Load(pending=pending, unacked=len(running), used=len(running), slots=SLOTS)
        sizes.append(pool.at(load))
        history.append((sizes[-1], pending))
    return history


def test_a_burst_is_worked_off_by_all_actors_and_the_pool_goes_back_to_what_is_steady():
    arriving = [0] * 10 + [2_000] + [5] * 300 + [0] * 100
    history = work_off(Pool(policy(target=0.8, down_s=30.0)), arriving)
    sizes = [size for size, _ in history]
    assert (sizes[9], max(sizes), sizes[309], sizes[-1]) == (0, 8, 3, 0)
    assert history[309][1] == 0
    assert sizes[10] == 8
    assert sizes[10:] == sorted(sizes[10:], reverse=True)


@given(
    rate=st.integers(0, 15),
    jitter=st.lists(st.integers(-3, 3), min_size=20, max_size=20),
    target=st.sampled_from([0.5, 0.8, 1.0]),
)
def test_a_load_that_jitters_changes_the_size_no_more_once_its_crest_was_seen(rate, jitter, target):
    arriving = [max(0, rate + change) for change in jitter] * 20
    history = work_off(Pool(policy(target=target, down_s=30.0)), arriving)
    sizes = [size for size, _ in history]
    assert len(set(sizes[120:])) == 1
