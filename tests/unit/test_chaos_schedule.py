"""What chaos does follows from its seed."""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from chaos.faults import FAULTS
from chaos.load import KINDS, Planned, description, model_script, plan_load, task_id_in
from chaos.schedule import CALM_S, FaultKind, schedule

from agent_actors.contract import decode_task
from agent_actors.errors import InvalidTask

KINDS_OF_FAULTS = [
    FaultKind(name="kill", lane="processes", weight=3),
    FaultKind(name="freeze", lane="processes", shortest_s=1, longest_s=5),
    FaultKind(name="slow", lane="nats", shortest_s=1, longest_s=5),
]
CI = Path(__file__).parents[2] / ".ci" / "run"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MAX_BYTES = 983_040


def test_the_same_seed_gives_the_same_faults_and_another_one_others():
    planned = schedule(7, 180, KINDS_OF_FAULTS)
    assert planned == schedule(7, 180, KINDS_OF_FAULTS)
    assert planned != schedule(8, 180, KINDS_OF_FAULTS)


def test_a_further_lane_leaves_the_others_as_they_were():
    processes = [kind for kind in KINDS_OF_FAULTS if kind.lane == "processes"]
    among_others = schedule(7, 180, KINDS_OF_FAULTS)
    assert [f for f in among_others if f.lane == "processes"] == schedule(7, 180, processes)


@pytest.mark.parametrize("seed", range(5))
def test_faults_of_a_lane_come_one_after_the_other_and_end_in_time(seed: int):
    planned = schedule(seed, 180, KINDS_OF_FAULTS)
    assert planned == sorted(planned, key=lambda fault: fault.at_s)
    assert planned[0].at_s >= CALM_S
    assert all(fault.at_s + fault.lasts_s <= 180 for fault in planned)
    for lane in ("processes", "nats"):
        mine = [fault for fault in planned if fault.lane == lane]
        assert all(a.at_s + a.lasts_s <= b.at_s for a, b in pairwise(mine))


def test_the_seeds_that_every_change_has_to_pass_have_every_kind_of_fault_between_them():
    kinds = [known.kind for known in FAULTS.values() if not known.kind.cluster_only]
    seeds = re.findall(r"scripts/chaos --seed (\d+)$", CI.read_text(), re.MULTILINE)
    planned = [fault for seed in seeds for fault in schedule(int(seed), 60, kinds)]
    assert {fault.kind for fault in planned} == {kind.name for kind in kinds}


def test_a_heavier_fault_comes_more_often():
    counts = Counter(fault.kind for fault in schedule(1, 3_600, KINDS_OF_FAULTS))
    assert counts["kill"] > 2 * counts["freeze"] > 0


def test_the_same_seed_gives_the_same_load_and_another_one_another():
    load = plan_load(7, 20, 30)
    assert load == plan_load(7, 20, 30)
    assert load != plan_load(8, 20, 30)
    assert 450 < len(load) < 900


def test_the_load_has_every_kind_and_each_message_an_id_of_its_own():
    load = plan_load(3, 20, 120)
    assert {message.kind for message in load} == set(KINDS)
    assert len({message.message_id for message in load}) == len(load)
    assert all(0 <= message.at_s <= 120 for message in load)


def valid(message: Planned) -> bool:
    try:
        decode_task(message.payload(NOON), message.subject, max_bytes=MAX_BYTES)
    except InvalidTask:
        return False
    return True


def test_only_those_are_invalid_that_should_be():
    load = plan_load(5, 20, 120)
    assert {m.kind for m in load if not valid(m)} == {"invalid"}
    assert not any(valid(m) for m in load if m.kind == "invalid")


def test_copies_say_the_same_and_conflicts_do_not():
    load = plan_load(5, 20, 120)
    for kind, is_same in (("twice", True), ("conflict", False)):
        by_id: dict[str, set[bytes]] = {}
        for message in (m for m in load if m.kind == kind):
            by_id.setdefault(message.task_id, set()).add(message.payload(NOON))
        assert by_id
        assert all((len(contents) == 1) == is_same for contents in by_id.values())


def test_a_deadline_counts_from_the_publishing():
    message = next(m for m in plan_load(5, 20, 60) if m.kind == "far-deadline")
    deadline = msgspec.json.decode(message.payload(NOON))["constraints"]["deadline"]
    assert datetime.fromisoformat(deadline) == NOON + timedelta(hours=1)


def test_the_id_of_a_task_is_known_again_by_its_text():
    assert task_id_in(description("odd-id", "job/ü:1")) == "job/ü:1"
    assert task_id_in("something else") == ""


def test_the_model_says_something_else_in_each_turn():
    said = [rule.reply for rule in model_script().rules if rule.when.task == "[tools]"]
    assert len(said) == KINDS["tools"].turns
    assert [bool(reply.tool_calls) for reply in said] == [False, True, True, True]
