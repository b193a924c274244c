"""The limit of requests in flight: what it does in simulated time with a server of some kind.

The course of each simulation is decided by its seed, so a bound is no matter of luck.
"""

from random import Random

import pytest
from support.model_simulation import Simulation

from agent_actors.adapters.vllm.limit import (
    FIRST,
    PUT_OFF_READINGS,
    InFlightLimit,
    Reading,
)

UNBOUNDED = 1_000_000
PLACES = 64


def varied(luck: Random) -> int:
    """Return the length of an answer, in tokens: the longest are ten times the usual one."""
    return max(1, int(luck.lognormvariate(4.2, 0.8)))


def of(clients: int, slots: int, **server) -> Simulation:
    simulation = Simulation(**server)
    for _ in range(clients):
        simulation.client(slots)
    return simulation


def limits(simulation: Simulation) -> list[int]:
    return [client.limit.limit for client in simulation.clients]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("clients", "slots"), [(1, 512), (2, 256), (8, 64)])
class TestAServerThatTellsOfItsQueue:
    def test_is_kept_full_with_a_short_queue(self, clients: int, slots: int, seed: int):
        overloaded = of(clients, slots, places=PLACES, tokens=varied, seed=seed)
        overloaded.run(60)
        assert overloaded.mean_waiting < 8
        assert overloaded.share_busy > 0.98
        overloaded.forget()
        overloaded.run(60)
        assert overloaded.most_waiting < 16
        assert overloaded.share_busy > 0.99

    def test_that_takes_all_is_given_all_within_half_a_second(
        self, clients: int, slots: int, seed: int
    ):
        healthy = of(clients, slots, places=UNBOUNDED, seed=seed)
        healthy.run(0.5)
        healthy.forget()
        healthy.run(10)
        assert limits(healthy) == [slots] * clients
        assert healthy.share_busy > 0.97  # what is missing are the 20 ms until the next task


@pytest.mark.parametrize("answer_tokens", [10, 1_000], ids=["short answers", "long answers"])
def test_the_queue_stays_short_whatever_the_length_of_answers(answer_tokens: int):
    overloaded = of(2, 256, places=PLACES, tokens=lambda _: answer_tokens)
    overloaded.run(60)
    assert overloaded.mean_waiting < 12
    assert overloaded.share_busy > 0.97


def test_a_small_server_gets_few_requests_of_many_clients():
    overloaded = of(16, 64, places=16, tokens=varied)
    overloaded.run(30)
    overloaded.forget()
    overloaded.run(60)
    assert overloaded.mean_waiting < 8
    assert overloaded.share_busy > 0.97


def test_who_comes_later_gets_an_equal_share_in_the_end():
    overloaded = of(1, 256, places=PLACES, tokens=varied)
    overloaded.run(30)
    overloaded.client(256)
    overloaded.run(120)
    overloaded.forget()
    overloaded.run(240)
    first, second = (client.answers for client in overloaded.clients)
    assert 0.5 < first / second < 2


def test_the_room_of_who_has_nothing_to_do_goes_to_the_others():
    overloaded = of(2, 256, places=PLACES, tokens=varied)
    overloaded.run(60)
    overloaded.clients[0].asks = False
    overloaded.run(20)
    overloaded.forget()
    overloaded.run(20)
    assert overloaded.share_busy > 0.97


def test_a_server_that_gets_more_places_is_filled_and_one_that_loses_some_is_spared():
    changing = of(2, 256, places=PLACES, tokens=varied)
    changing.run(30)
    changing.places *= 2
    changing.run(30)
    changing.forget()
    changing.run(30)
    assert changing.share_busy > 0.97
    changing.places //= 4
    changing.run(30)
    changing.forget()
    changing.run(30)
    assert changing.mean_waiting < 16
    assert changing.share_busy > 0.97


def test_after_an_outage_the_server_is_not_run_over():
    broken = of(4, 128, places=PLACES, tokens=varied, seed=1)
    broken.run(30)
    broken.is_up = False
    broken.run(20)
    broken.is_up = True
    for client in broken.clients:
        client.limit.restart()
    broken.forget()
    broken.run(60)
    assert broken.mean_waiting < 8
    assert broken.share_busy > 0.97


def test_a_server_that_slows_down_while_it_works_on_more_is_kept_full():
    batching = of(2, 128, places=256, slowdown=4.0, tokens=varied)
    batching.run(60)
    assert limits(batching) == [128, 128]
    assert batching.share_busy > 0.98


def test_a_server_that_rejects_what_it_does_not_run_is_seldom_asked_too_much():
    strict = of(2, 256, places=PLACES, bound=PLACES + 2)
    strict.run(20)
    strict.forget()
    strict.run(60)
    assert strict.share_busy > 0.9
    rejected = sum(client.rejections for client in strict.clients)
    answered = sum(client.answers for client in strict.clients)
    assert rejected < 0.01 * answered


@pytest.mark.parametrize("seed", range(3))
class TestAServerThatTellsNothing:
    def test_is_given_all_as_long_as_its_pace_stays(self, seed: int):
        healthy = of(2, 256, places=UNBOUNDED, tells=False, tokens=varied, seed=seed)
        healthy.run(0.5)
        assert limits(healthy) == [256, 256]
        healthy.forget()
        healthy.run(60)
        assert limits(healthy) == [256, 256]
        assert healthy.share_busy > 0.97

    def test_gets_less_when_its_pace_shows_a_queue(self, seed: int):
        overloaded = of(2, 256, places=PLACES, tells=False, tokens=varied, seed=seed)
        overloaded.run(120)
        overloaded.forget()
        overloaded.run(120)
        assert overloaded.mean_waiting < 3 * PLACES  # of 448 without a limit
        assert overloaded.share_busy > 0.99

    def test_may_be_slower_with_more_to_do_without_losing_much(self, seed: int):
        batching = of(2, 128, places=256, slowdown=4.0, tells=False, tokens=varied, seed=seed)
        batching.run(120)
        throttled = batching.tokens_per_s
        told = of(2, 128, places=256, slowdown=4.0, tokens=varied, seed=seed)
        told.run(120)
        assert throttled > 0.85 * told.tokens_per_s

    def test_whose_answers_come_slower_for_another_reason_gets_all_again(self, seed: int):
        slower = of(2, 256, places=UNBOUNDED, tells=False, tokens=varied, seed=seed)
        slower.run(30)
        slower.token_s *= 5
        slower.run(90)
        assert limits(slower) == [256, 256]


def limit(least: int = 1, most: int = 100) -> InFlightLimit:
    return InFlightLimit(least=least, most=most)


def used_up(known: InFlightLimit) -> InFlightLimit:
    while known.in_flight < known.limit:
        known.begin()
    return known


def test_the_limit_stays_within_its_bounds():
    known = limit(least=4, most=20)
    for _ in range(10):
        used_up(known).read(Reading(running=known.in_flight, waiting=0), now=1.0)
    assert known.limit == 20
    for now in range(2, 40):
        known.rejected(began=now - 0.5, now=now)
        known.read(Reading(running=1, waiting=500), now=now)
    assert known.limit == 4


def test_a_limit_that_is_not_used_up_stays():
    known = limit()
    known.begin()
    for now in range(10):
        known.read(Reading(running=1, waiting=0), now=now)
    assert known.limit == FIRST


def test_the_limit_does_not_come_down_again_while_the_queue_drains():
    known = limit(most=512)
    while known.limit < 512:
        known.unread()
    used_up(known).read(Reading(running=64, waiting=448), now=1.0)
    came_down_to = known.limit
    assert came_down_to == 70
    for now in range(2, 8):
        for _ in range(64):
            known.end()
        known.read(Reading(running=64, waiting=known.in_flight - 64), now=now)
    assert known.limit == came_down_to


def test_what_is_in_the_servers_front_end_counts_though_nobody_sees_it():
    known = limit(most=512)
    while known.limit < 512:
        known.unread()
    used_up(known).read(Reading(running=64, waiting=448), now=0.0)
    while known.in_flight > known.limit:
        known.end()
    for now in range(1, 4):
        used_up(known).read(Reading(running=64, waiting=known.in_flight - 64), now=now)
        known.read(Reading(running=40, waiting=0), now=now + 0.5)
        assert known.limit <= 72


def test_of_a_balancers_replicas_each_stands_for_all():
    known = limit(most=1_000)
    while known.limit < 1_000:
        known.unread()
    used_up(known)
    for now in range(3):
        known.read(Reading(running=64, waiting=186), now=now)
    assert known.limit == 4 * 70


def test_a_limit_doubles_once_the_server_counts_what_it_was_given():
    known = used_up(limit())
    known.read(Reading(running=2, waiting=0), now=0.0)
    assert known.limit == FIRST
    known.read(Reading(running=FIRST, waiting=0), now=0.05)
    assert known.limit == 2 * FIRST


def test_a_limit_doubles_in_the_end_where_the_server_never_counts_it_all():
    known = limit()
    for now in range(PUT_OFF_READINGS):
        used_up(known).read(Reading(running=4, waiting=0), now=now)
        assert known.limit == FIRST
    used_up(known).read(Reading(running=4, waiting=0), now=60.0)
    assert known.limit == 2 * FIRST


def test_a_cache_that_is_nearly_full_lets_no_limit_grow():
    known = used_up(limit())
    known.read(Reading(running=16, waiting=0, cache_usage=0.95), now=0.0)
    assert known.limit == FIRST


def test_a_burst_of_rejections_counts_once():
    known = used_up(limit())
    for _ in range(8):
        known.end()
        known.rejected(began=0.0, now=1.0)
    assert known.limit == 12


def test_the_limit_does_not_rise_before_the_time_that_the_server_asked_for():
    known = used_up(limit())
    known.end()
    known.rejected(began=0.0, now=1.0, retry_after_s=5.0)
    after = known.limit
    for now in (2.5, 4.0, 5.9):
        used_up(known).read(Reading(running=5, waiting=0), now=now)
    assert known.limit == after
    for now in range(7, 20):
        used_up(known).read(Reading(running=5, waiting=0), now=now)
    assert known.limit > after


def test_every_change_of_the_limit_is_told_and_nothing_else():
    known = used_up(limit())
    told: list[int] = []
    known.on_change = lambda: told.append(known.limit)
    known.read(Reading(running=16, waiting=0), now=0.0)
    used_up(known).read(Reading(running=16, waiting=16), now=1.0)
    known.read(Reading(running=16, waiting=1), now=2.0)
    assert told == [32, 17, 18]


def test_who_begins_with_a_server_that_tells_nothing_has_all_in_a_moment():
    known = limit()
    assert known.is_probing is False
    known.unread()
    assert (known.limit, known.is_probing) == (64, True)
    known.unread()
    assert (known.limit, known.is_probing) == (100, False)
