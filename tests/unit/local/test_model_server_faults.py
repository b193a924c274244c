from collections import Counter

import msgspec
import pytest

from agent_actors.local.model_server.faults import Fault, FaultDice, Faults


def thrown(faults: Faults, *, seed: int, times: int) -> list[Fault | None]:
    dice = FaultDice(seed=seed)
    return [dice.throw(faults) for _ in range(times)]


def test_without_rates_nothing_goes_wrong():
    assert set(thrown(Faults(), seed=1, times=100)) == {None}


def test_a_rate_of_one_always_hits():
    assert set(thrown(Faults(rates={Fault.HANG: 1.0}), seed=1, times=100)) == {Fault.HANG}


def test_rates_are_kept_in_the_long_run():
    faults = Faults(rates={Fault.TOO_MANY_REQUESTS: 0.2, Fault.RESET: 0.1})
    counts = Counter(thrown(faults, seed=1, times=10_000))
    assert counts[Fault.TOO_MANY_REQUESTS] == pytest.approx(2000, rel=0.1)
    assert counts[Fault.RESET] == pytest.approx(1000, rel=0.1)
    assert counts[None] == pytest.approx(7000, rel=0.1)


def test_the_same_seed_gives_the_same_sequence():
    faults = Faults(rates={Fault.GARBAGE: 0.5})
    assert thrown(faults, seed=7, times=50) == thrown(faults, seed=7, times=50)
    assert thrown(faults, seed=7, times=50) != thrown(faults, seed=8, times=50)


def test_rates_beyond_one_are_refused():
    with pytest.raises(ValueError, match="sum up to"):
        Faults(rates={Fault.HANG: 0.6, Fault.RESET: 0.6})


def test_rates_are_read_by_name():
    faults = msgspec.json.decode('{"rates": {"429": 0.5, "no-choices": 0.1}}', type=Faults)
    assert faults.rates == {Fault.TOO_MANY_REQUESTS: 0.5, Fault.NO_CHOICES: 0.1}
