"""Who comes and who goes in a pool."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_actors.roster import ROOM_PATIENCE_S, Member, moves, pool_of


def member(agent_id: str, **more) -> Member:
    return Member(agent_id=agent_id, **{"current": True, "ready": True, **more})


def old(agent_id: str, **more) -> Member:
    return member(agent_id, current=False, **more)


def test_a_new_pool_gets_all_its_actors_at_once():
    todo = moves("dev", [], [], 3)
    assert (todo.start, todo.retire) == (["dev-0", "dev-1", "dev-2"], [])


def test_a_pool_that_has_its_size_is_left_alone():
    todo = moves("dev", [member("dev-0"), member("dev-1", ready=False)], [], 2)
    assert (todo.start, todo.retire) == ([], [])


def test_a_name_is_free_again_only_when_whoever_had_it_has_left():
    todo = moves("dev", [member("dev-1")], ["dev-0"], 3)
    assert todo.start == ["dev-2", "dev-3"]


def test_the_idlest_go_first_and_of_those_the_last_come():
    crew = [member("dev-0", used=3), member("dev-1", used=0), member("dev-2", used=0)]
    assert moves("dev", crew, [], 2).retire == ["dev-2"]
    assert moves("dev", crew, [], 1).retire == ["dev-2", "dev-1"]


def test_those_that_do_not_work_yet_go_before_any_that_does():
    crew = [member("dev-0"), member("dev-1", ready=False)]
    assert moves("dev", crew, [], 1).retire == ["dev-1"]


def test_an_outdated_actor_stays_until_its_replacement_works():
    crew = [old("dev-0"), old("dev-1")]
    first = moves("dev", crew, [], 2)
    assert (first.start, first.retire) == (["dev-2"], [])
    waiting = moves("dev", [*crew, member("dev-2", ready=False)], [], 2)
    assert (waiting.start, waiting.retire) == ([], [])
    replaced = moves("dev", [*crew, member("dev-2")], [], 2)
    assert (replaced.start, replaced.retire) == ([], ["dev-1"])


def test_an_outdated_actor_that_does_not_work_is_not_waited_for():
    todo = moves("dev", [old("dev-0", ready=False)], [], 1)
    assert (todo.start, todo.retire) == (["dev-1"], ["dev-0"])


def test_a_quarter_of_a_big_pool_is_replaced_at_a_time():
    crew = [old(f"dev-{number}") for number in range(8)]
    assert moves("dev", crew, [], 8).start == ["dev-8", "dev-9"]


def test_a_replacement_without_room_gets_that_of_one_outdated_actor():
    crew = [old("dev-0", used=1), old("dev-1")]
    waiting = member("dev-2", ready=False, placed=False, waiting_s=ROOM_PATIENCE_S - 1)
    assert moves("dev", [*crew, waiting], [], 2).retire == []
    waiting = member("dev-2", ready=False, placed=False, waiting_s=ROOM_PATIENCE_S + 1)
    assert moves("dev", [*crew, waiting], [], 2).retire == ["dev-1"]
    assert moves("dev", [crew[0], waiting], ["dev-1"], 2).retire == []


def test_a_replacement_that_has_a_place_and_does_not_work_costs_no_actor_that_does():
    broken = member("dev-1", ready=False, placed=True, waiting_s=1_000)
    assert moves("dev", [old("dev-0"), broken], [], 1).retire == []


def test_a_pool_may_be_emptied():
    todo = moves("dev", [member("dev-0"), old("dev-1")], [], 0)
    assert (todo.start, sorted(todo.retire)) == ([], ["dev-0", "dev-1"])


@pytest.mark.parametrize(("agent_id", "pool"), [("dev-0", "dev"), ("a-1-0", "a-1")])
def test_an_actor_tells_its_pool_by_its_id(agent_id: str, pool: str):
    assert pool_of(agent_id) == pool


crews = st.lists(
    st.builds(
        Member,
        agent_id=st.integers(0, 15).map(lambda number: f"dev-{number}"),
        current=st.booleans(),
        ready=st.booleans(),
        used=st.integers(0, 5),
    ),
    unique_by=lambda each: each.agent_id,
    max_size=12,
)


@given(crews, st.integers(0, 10))
def test_a_pool_comes_to_its_size_and_settings_and_is_not_smaller_on_the_way(
    crew: list[Member], wanted: int
):
    """All that are started get to work one after the other, whoever is let go leaves."""
    at_least = min(wanted, sum(each.ready for each in crew))
    for _ in range(100):
        todo = moves("dev", crew, [], wanted)
        assert len(set(todo.retire)) == len(todo.retire)
        assert not set(todo.start) & {each.agent_id for each in crew}
        crew = [each for each in crew if each.agent_id not in todo.retire]
        assert sum(each.ready for each in crew) >= at_least
        crew += [member(name, ready=False) for name in todo.start]
        if not todo.start and not todo.retire and all(each.ready for each in crew):
            break
        late = next((each for each in crew if each.current and not each.ready), None)
        if late:
            crew[crew.index(late)] = member(late.agent_id)
    assert len(crew) == wanted
    assert all(each.current and each.ready for each in crew)
