"""The books of a pool: who has room, who holds what."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import delivery

from agent_actors.contract import EndpointStatus
from agent_actors.dispatch import Dispatcher
from agent_actors.ports import ActorReport, Delivery

ROOMY = 2**30


def report(
    free: int,
    *,
    free_bytes: int = ROOMY,
    used: int | None = None,
    version: int = 0,
    life: str = "one",
    **news: object,
) -> ActorReport:
    return ActorReport(
        incarnation=life,
        pid=1,
        version=version,
        slots=4,
        free=free,
        free_bytes=free_bytes,
        used=4 - free if used is None else used,
        **news,
    )


def pool(**free: int) -> Dispatcher:
    dispatcher = Dispatcher()
    for agent_id, slots in free.items():
        dispatcher.add(agent_id)
        dispatcher.greet(agent_id, report(slots))
    return dispatcher


def messages(count: int) -> list[Delivery]:
    return [delivery(stream_seq=number) for number in range(1, count + 1)]


def sized(*sizes: int) -> list[Delivery]:
    return [delivery(b"x" * size, stream_seq=seq) for seq, size in enumerate(sizes, start=1)]


def test_an_actor_that_has_not_answered_has_no_room():
    dispatcher = Dispatcher()
    dispatcher.add("a")
    assert dispatcher.free == 0
    assert dispatcher.assign(messages(1)) == {}


def test_deliveries_go_to_the_actor_with_the_most_room():
    dispatcher = pool(a=1, b=4)
    batches = dispatcher.assign(messages(3))
    assert {agent: len(batch) for agent, batch in batches.items()} == {"b": 3}


def test_what_finds_no_room_stays_in_the_inbox_in_order():
    dispatcher = pool(a=2)
    inbox = messages(3)
    last = inbox[2]
    dispatcher.assign(inbox)
    assert inbox == [last]


def test_an_actor_gets_no_second_batch_while_one_is_on_its_way():
    dispatcher = pool(a=4)
    first = dispatcher.assign(messages(1))["a"]
    assert dispatcher.assign(messages(1)) == {}
    dispatcher.arrived("a", first, report(3, version=1))
    assert list(dispatcher.assign(messages(1))) == ["a"]


def test_what_an_actor_refuses_comes_back():
    dispatcher = pool(a=2)
    batch = dispatcher.assign(messages(2))["a"]
    back = dispatcher.arrived("a", batch, report(0, version=1, refused=[batch[1].id]))
    assert back == [batch[1]]
    assert list(dispatcher.actors["a"].held) == [batch[0].id]


def test_only_the_newest_word_about_free_slots_counts():
    dispatcher = pool(a=4)
    batch = dispatcher.assign(messages(2))["a"]
    done = [each.id for each in batch]
    dispatcher.finished("a", report(4, version=4, finished=done))
    dispatcher.arrived("a", batch, report(2, version=2))
    assert dispatcher.free == 4
    assert dispatcher.settled == 2


def test_an_actor_that_takes_nothing_more_uses_the_slots_that_it_has_work_in_and_no_others():
    dispatcher = pool(a=3, b=4)
    dispatcher.let_go("a")
    dispatcher.finished("a", report(0, used=1, version=1, stopping=True))
    assert dispatcher.used == 1
    assert dispatcher.free == 4


def test_what_an_actor_had_no_time_to_tell_before_it_ended_counts_as_settled():
    dispatcher = pool(a=4)
    batch = dispatcher.assign(messages(2))["a"]
    dispatcher.arrived("a", batch, report(2, version=1))
    dispatcher.finished("a", report(3, version=2, finished=[batch[0].id]))
    dispatcher.remove("a")
    assert dispatcher.settled == 2


def test_a_lost_actor_gives_up_all_that_it_held_once():
    dispatcher = pool(a=4)
    batch = dispatcher.assign(messages(2))["a"]
    assert dispatcher.lose("a") == batch
    assert dispatcher.lose("a") == []
    assert dispatcher.free == 0


def test_an_actor_that_was_only_out_of_reach_keeps_its_slots_taken_until_they_are_settled():
    dispatcher = pool(a=4)
    batch = dispatcher.assign(messages(2))["a"]
    dispatcher.lose("a")
    dispatcher.greet("a", report(2, version=3, held=batch))
    assert dispatcher.free == 2
    assert dispatcher.finished("a", report(3, version=4, finished=[batch[0].id]))
    assert list(dispatcher.actors["a"].held) == [batch[1].id]


def test_a_restarted_supervisor_learns_what_its_actors_hold():
    dispatcher = Dispatcher()
    dispatcher.add("a")
    held = messages(2)
    dispatcher.greet("a", report(2, held=held))
    assert dispatcher.lose("a") == held


def test_an_answer_of_an_earlier_life_changes_nothing():
    dispatcher = pool(a=4)
    batch = dispatcher.assign(messages(2))["a"]
    dispatcher.greet("a", report(4, life="two"))
    assert dispatcher.arrived("a", batch, report(0, version=9, refused=[batch[0].id])) == []
    assert not dispatcher.finished("a", report(0, version=9, finished=[batch[0].id]))
    assert dispatcher.free == 4
    assert dispatcher.settled == 0


def test_who_cannot_reach_the_model_gets_nothing_while_another_can():
    dispatcher = pool(a=4, b=1)
    dispatcher.finished("a", report(4, version=1, model_away=True))
    assert not dispatcher.model_away
    assert dispatcher.free == 1
    assert list(dispatcher.assign(messages(2))) == ["b"]


def test_the_model_is_away_when_all_who_have_answered_say_so():
    dispatcher = pool(a=4, b=1)
    dispatcher.add("starting")
    for agent_id, free in (("a", 4), ("b", 1)):
        dispatcher.finished(agent_id, report(free, version=1, model_away=True))
    assert dispatcher.model_away
    assert dispatcher.free == 5
    dispatcher.finished("b", report(1, version=2))
    assert not dispatcher.model_away


def test_the_model_is_full_when_it_has_a_queue_and_lets_nobody_use_all_slots():
    dispatcher = pool(a=4, b=4)
    assert not dispatcher.model_full

    def tell(agent_id: str, *servers: tuple[int, int]) -> bool:
        endpoints = [
            EndpointStatus(url=f"m{number}", limit=limit, in_flight=1, waiting=waiting)
            for number, (limit, waiting) in enumerate(servers)
        ]
        dispatcher.finished(agent_id, report(4, version=1, endpoints=endpoints))
        return dispatcher.model_full

    assert not tell("a", (3, 1))  # b may say otherwise
    assert tell("b", (1, 2), (2, 1))
    assert not tell("b", (1, 2), (2, 0))  # one has no queue
    assert not tell("b", (1, 2), (2, -1))  # nor does it tell
    assert not tell("b", (2, 2), (2, 1))  # there is room for all slots


def test_a_pool_of_which_no_actor_has_answered_knows_nothing_of_the_model():
    dispatcher = Dispatcher()
    dispatcher.add("starting")
    assert not dispatcher.model_away


def test_who_is_empty_takes_a_suspect_though_the_model_has_room_for_less_than_its_slots():
    dispatcher = pool(a=3)
    dispatcher.finished("a", report(1, used=0, version=1))
    assert isolated(dispatcher, messages(1)) == "a"


def test_much_less_room_in_the_model_is_reason_to_ask_for_less():
    dispatcher = pool(a=4)
    dispatcher.finished("a", report(3, used=1, version=1))
    assert not dispatcher.has_shrunk()
    dispatcher.finished("a", report(1, used=1, version=2))
    assert dispatcher.has_shrunk()
    assert not dispatcher.has_shrunk()


def test_what_is_known_of_the_model_servers_stays_known_until_it_is_told_anew():
    dispatcher = pool(a=4)
    known = [EndpointStatus(url="http://model", limit=4, in_flight=1)]
    dispatcher.finished("a", report(4, version=1, endpoints=known))
    dispatcher.finished("a", report(4, version=2))
    assert dispatcher.actors["a"].endpoints == known


def isolated(dispatcher: Dispatcher, lane: list[Delivery]) -> str:
    found = dispatcher.isolate(lane)
    return found[0] if found else ""


def test_a_suspect_goes_to_an_empty_actor_which_gets_nothing_beside_it():
    dispatcher = pool(a=3, b=4)
    suspect, *others = messages(4)
    assert isolated(dispatcher, [suspect]) == "b"
    assert dispatcher.free == 3
    assert list(dispatcher.assign(others)) == ["a"]


def test_while_no_actor_is_empty_the_one_with_least_to_do_gets_nothing_more():
    dispatcher = pool(a=1, b=3)
    lane = messages(1)
    assert isolated(dispatcher, lane) == ""
    assert len(lane) == 1
    assert dispatcher.free == 1
    assert list(dispatcher.assign(messages(3))) == ["a"]
    dispatcher.finished("b", report(4, version=1))
    assert isolated(dispatcher, lane) == "b"


def test_suspects_run_one_at_a_time():
    dispatcher = pool(a=4, b=4)
    first, second = lane = messages(2)
    assert isolated(dispatcher, lane) == "a"
    assert isolated(dispatcher, lane) == ""
    assert lane == [second]
    assert dispatcher.free == 4
    dispatcher.arrived("a", [first], report(0, version=1, alone=True))
    dispatcher.finished("a", report(4, version=2, finished=[first.id]))
    assert isolated(dispatcher, lane) == "a"


def test_an_actor_serves_all_again_when_the_lane_is_empty():
    dispatcher = pool(a=4)
    (suspect,) = lane = messages(1)
    isolated(dispatcher, lane)
    dispatcher.arrived("a", [suspect], report(0, version=1, alone=True))
    dispatcher.finished("a", report(4, version=2, finished=[suspect.id]))
    assert isolated(dispatcher, lane) == ""
    assert dispatcher.free == 4


def test_an_actor_serves_all_again_when_nobody_told_of_the_end_of_what_it_had_alone():
    """Another supervisor of the same name has heard of it: one whose node Ray has given up."""
    dispatcher = pool(a=4)
    (suspect,) = lane = messages(1)
    isolated(dispatcher, lane)
    dispatcher.finished("a", report(4, version=0))
    assert dispatcher.free == 0
    dispatcher.arrived("a", [suspect], report(0, version=1, alone=True))
    dispatcher.finished("a", report(4, version=2))
    assert dispatcher.free == 4
    assert isolated(dispatcher, messages(1)) == "a"


def test_a_suspect_that_was_refused_leaves_the_actor_as_it_was():
    dispatcher = pool(a=4)
    (suspect,) = lane = messages(1)
    isolated(dispatcher, lane)
    back = dispatcher.arrived("a", [suspect], report(2, version=1, refused=[suspect.id]))
    assert back == [suspect]
    assert dispatcher.free == 2


def test_a_restarted_supervisor_learns_that_what_an_actor_holds_is_alone():
    dispatcher = pool(b=4)
    dispatcher.add("a")
    dispatcher.greet("a", report(0, held=messages(1), alone=True))
    assert dispatcher.actors["a"].alone
    assert isolated(dispatcher, [delivery(stream_seq=9)]) == ""


def test_an_actor_gets_what_fits_into_its_bytes():
    dispatcher = pool(a=4)
    dispatcher.greet("a", report(3, free_bytes=100))
    inbox = one, two, three = sized(60, 40, 1)
    left = list(inbox)
    assert dispatcher.assign(left) == {"a": [one, two]}
    assert left == [three]
    dispatcher.arrived("a", [one, two], report(1, version=1, free_bytes=0))
    assert dispatcher.assign(left) == {}
    dispatcher.finished("a", report(2, version=2, free_bytes=40, finished=[two.id]))
    assert dispatcher.assign(left) == {"a": [three]}


def test_headers_count_as_bytes_too():
    assert delivery(b"12345", headers={"team": "blue"}).size_bytes == 13


def test_a_big_delivery_goes_where_it_fits_though_another_has_more_slots():
    dispatcher = pool(a=4, b=4)
    dispatcher.greet("a", report(3, free_bytes=10))
    dispatcher.greet("b", report(1, free_bytes=100))
    assert list(dispatcher.assign(sized(50))) == ["b"]


def test_an_empty_actor_gets_what_is_bigger_than_all_its_room_and_nothing_beside_it():
    dispatcher = pool(a=4)
    dispatcher.greet("a", report(4, free_bytes=10))
    huge, small = inbox = sized(50, 1)
    assert dispatcher.assign(inbox) == {"a": [huge]}
    assert inbox == [small]
    dispatcher.arrived("a", [huge], report(3, version=1, free_bytes=-40))
    assert dispatcher.assign(inbox) == {}


def test_what_came_after_a_delivery_that_waits_for_room_does_not_overtake_it():
    dispatcher = pool(a=4)
    dispatcher.greet("a", report(3, free_bytes=10))
    inbox = sized(50, 1)
    assert dispatcher.assign(inbox) == {}
    dispatcher.finished("a", report(4, version=1, free_bytes=60))
    assert [each.size_bytes for each in dispatcher.assign(inbox)["a"]] == [50, 1]


def test_as_much_is_asked_for_as_would_find_room_if_each_were_the_largest():
    dispatcher = pool(a=4, b=4)
    dispatcher.greet("a", report(3, free_bytes=250))
    dispatcher.greet("b", report(1, free_bytes=900))
    assert dispatcher.wanted(0, 100) == 3
    assert dispatcher.wanted(2, 100) == 1
    assert dispatcher.wanted(5, 100) == 0
    assert dispatcher.wanted(0, 1) == 4


def test_something_is_asked_for_as_long_as_there_is_a_slot_and_nothing_waits():
    dispatcher = pool(a=4)
    dispatcher.greet("a", report(3, free_bytes=99))
    assert dispatcher.wanted(0, 100) == 1
    assert dispatcher.wanted(1, 100) == 0
    dispatcher.greet("a", report(0, free_bytes=99))
    assert dispatcher.wanted(0, 100) == 0


@given(st.data())
def test_all_is_handed_out_in_the_end_and_no_actor_has_more_than_fits(data: st.DataObject):
    slots, limit, largest = 4, data.draw(st.integers(1, 60)), 50
    names = data.draw(st.sets(st.sampled_from("abc"), min_size=1))
    dispatcher = pool(**dict.fromkeys(names, slots))
    backlog = sized(*data.draw(st.lists(st.integers(1, largest), max_size=30)))
    total = len(backlog)
    inbox: list[Delivery] = []
    held: dict[str, list[Delivery]] = {name: [] for name in names}
    version = 0

    def room(name: str) -> ActorReport:
        free_bytes = limit - sum(each.size_bytes for each in held[name])
        free = slots - len(held[name])
        return report(free, version=version, free_bytes=free_bytes)

    for name in names:
        dispatcher.greet(name, room(name))
    while backlog or inbox or any(held.values()):
        free_bytes = sum(max(0, room(name).free_bytes) for name in names)
        came = dispatcher.wanted(len(inbox), largest)
        inbox += backlog[:came]
        del backlog[:came]
        assert sum(each.size_bytes for each in inbox) <= max(free_bytes, len(names) * largest)
        for name, batch in dispatcher.assign(inbox).items():
            held[name] += batch
            version += 1
            dispatcher.arrived(name, batch, room(name))
            assert len(held[name]) <= slots
            assert len(held[name]) == 1 or room(name).free_bytes >= 0
        busy = sorted(name for name in names if held[name])
        assert busy or not (backlog or inbox), "nothing runs, and nothing is handed out"
        if busy:
            name = data.draw(st.sampled_from(busy))
            done = held[name].pop(data.draw(st.integers(0, len(held[name]) - 1)))
            version += 1
            dispatcher.finished(name, msgspec.structs.replace(room(name), finished=[done.id]))
    assert dispatcher.settled == total


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9), min_size=1), st.integers(0, 40))
def test_deliveries_are_levelled_over_the_room_there_is_and_none_is_lost(free: dict, count: int):
    dispatcher = pool(**free)
    inbox = messages(count)
    before = list(inbox)
    batches = dispatcher.assign(inbox)
    assert all(len(batch) <= free[agent] for agent, batch in batches.items())
    assert len(inbox) == max(0, count - sum(free.values()))
    handed_out = [each for batch in batches.values() for each in batch]
    assert sorted(each.id for each in [*handed_out, *inbox]) == sorted(each.id for each in before)
    left = {agent: free[agent] - len(batches.get(agent, [])) for agent in free}
    assert all(left[agent] + 1 >= max(left.values()) for agent in batches)
