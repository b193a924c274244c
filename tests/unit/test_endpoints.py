"""Which endpoint answers the next request, who waits for one, and what a URL may look like."""

import asyncio

import pytest
from yarl import URL

from agent_actors.adapters.vllm.endpoints import (
    FOR_RETURNING,
    Endpoint,
    Endpoints,
    parse_endpoints,
)
from agent_actors.asking import Asker
from agent_actors.errors import ConfigError, ModelUnavailable


def endpoints(*names: str) -> tuple[Endpoints, list[Endpoint]]:
    each = [Endpoint(URL(f"http://{name}:8000")) for name in names]
    return Endpoints(each), each


def occupy(endpoint: Endpoint, requests: int) -> None:
    for _ in range(requests):
        endpoint.limit.begin()


async def test_the_endpoint_with_least_under_way_is_next():
    choice, (a, b) = endpoints("a", "b")
    assert await choice.acquire() is a
    assert await choice.acquire() is b
    choice.release(b)
    assert await choice.acquire() is b
    assert (a.limit.in_flight, b.limit.in_flight) == (1, 1)


async def test_idle_endpoints_take_turns():
    choice, (a, b, c) = endpoints("a", "b", "c")
    taken = []
    for _ in range(6):
        taken.append(await choice.acquire())
        choice.release(taken[-1])
    assert taken == [a, b, c, a, b, c]


async def test_turns_stay_fair_while_one_is_left_out():
    choice, (a, b, c) = endpoints("a", "b", "c")
    b.failed()
    taken = []
    for _ in range(6):
        taken.append(await choice.acquire())
        choice.release(taken[-1])
    assert taken == [a, c, a, c, a, c]


async def test_an_unhealthy_endpoint_is_left_out_however_busy_the_others_are():
    choice, (a, b) = endpoints("a", "b")
    a.failed()
    occupy(b, 15)
    assert await choice.acquire() is b
    assert choice.unhealthy() == [a]


async def test_a_recovered_endpoint_is_chosen_again():
    choice, (a, b) = endpoints("a", "b")
    a.failed()
    occupy(b, 5)
    a.recovered()
    assert await choice.acquire() is a
    assert choice.unhealthy() == []


async def test_while_all_are_unhealthy_the_least_bad_one_is_tried():
    choice, (a, b) = endpoints("a", "b")
    a.failed()
    a.failed()
    b.failed()
    assert await choice.acquire() is b


async def test_the_only_endpoint_is_tried_however_often_it_failed():
    choice, (only,) = endpoints("only")
    only.failed()
    assert await choice.acquire(tried=[only]) is only


def test_an_answer_makes_an_unhealthy_endpoint_the_least_bad_but_not_healthy():
    _, (a,) = endpoints("a")
    a.failed()
    a.failed()
    a.answered()
    assert (a.healthy, a.failures) == (False, 1)


def test_an_answer_leaves_a_healthy_endpoint_healthy():
    _, (a,) = endpoints("a")
    a.answered()
    assert a.healthy


def test_only_the_first_failure_is_news():
    _, (a,) = endpoints("a")
    assert [a.failed(), a.failed()] == [True, False]
    a.recovered()
    assert a.failed()


async def test_a_retry_goes_to_an_endpoint_that_was_not_tried():
    choice, (a, b) = endpoints("a", "b")
    occupy(b, 7)
    assert await choice.acquire(tried=[a]) is b


async def test_a_retry_goes_to_the_healthy_tried_one_rather_than_to_an_unhealthy_one():
    choice, (a, b) = endpoints("a", "b")
    b.failed()
    assert await choice.acquire(tried=[a]) is a


def test_a_spare_is_healthy_and_not_tried():
    choice, (a, b) = endpoints("a", "b")
    assert choice.spare(tried=[a])
    assert not choice.spare(tried=[a, b])
    b.failed()
    assert not choice.spare(tried=[a])


async def full(choice: Endpoints, endpoint: Endpoint) -> None:
    while endpoint.has_room:
        assert await choice.acquire() is endpoint


async def standing(choice: Endpoints, asker: Asker | None = None) -> asyncio.Task[Endpoint]:
    """Return a request that waits for room."""
    waiting = asyncio.create_task(choice.acquire(asker=asker))
    await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


async def test_requests_beyond_the_limit_wait_and_are_served_in_the_order_of_their_coming():
    choice, (a,) = endpoints("a")
    await full(choice, a)
    first, second = await standing(choice), await standing(choice)
    choice.release(a)
    assert await first is a
    assert not second.done()
    choice.release(a)
    assert await second is a
    assert a.limit.in_flight == a.limit.limit


async def test_a_higher_limit_lets_in_who_waits():
    choice, (a,) = endpoints("a")
    await full(choice, a)
    waiting = await standing(choice)
    a.limit.unread()
    assert await waiting is a


async def test_nobody_overtakes_who_waits():
    choice, (a,) = endpoints("a")
    await full(choice, a)
    first = await standing(choice)
    choice.release(a)
    second = await standing(choice)
    assert await first is a
    second.cancel()


async def test_who_is_cancelled_while_it_waits_takes_nothing():
    choice, (a,) = endpoints("a")
    await full(choice, a)
    gone, waiting = await standing(choice), await standing(choice)
    gone.cancel()
    choice.release(a)
    assert await waiting is a
    assert a.limit.in_flight == a.limit.limit


async def test_who_is_cancelled_the_moment_it_is_let_in_gives_its_place_back():
    choice, (a,) = endpoints("a")
    await full(choice, a)
    gone = await standing(choice)
    choice.release(a)
    gone.cancel()
    await asyncio.wait([gone])
    assert gone.cancelled()
    assert a.limit.in_flight == a.limit.limit - 1
    assert await choice.acquire() is a


async def test_closing_sends_away_who_waits():
    choice, (a,) = endpoints("a")
    await full(choice, a)
    waiting = await standing(choice)
    choice.close()
    with pytest.raises(ModelUnavailable):
        await waiting


async def test_the_room_is_that_of_the_healthy_ones_and_every_change_is_told():
    choice, (a, b) = endpoints("a", "b")
    rooms: list[int] = []
    choice.listen_to_room(lambda: rooms.append(choice.room))
    one = a.limit.limit
    a.failed()
    b.failed()
    a.recovered()
    a.limit.unread()
    assert rooms == [one, 2 * one, one, a.limit.limit]


async def test_a_task_asks_where_it_has_asked_before_however_idle_the_others_are():
    choice, (a, b) = endpoints("a", "b")
    asker = Asker()
    assert await choice.acquire(asker=asker) is a
    for _ in range(3):
        assert await choice.acquire(asker=asker) is a
    assert b.limit.in_flight == 0


async def test_a_task_comes_back_to_a_full_endpoint_before_others_but_not_beyond_reason():
    choice, (a,) = endpoints("a")
    asker = Asker()
    assert await choice.acquire(asker=asker) is a
    await full(choice, a)
    limit, waiting = a.limit.limit, await standing(choice)
    while a.limit.in_flight < FOR_RETURNING * limit:
        assert await choice.acquire(asker=asker) is a
    returning = await standing(choice, asker)
    waiting.cancel()
    returning.cancel()


async def test_a_task_leaves_an_endpoint_that_fails_and_stays_where_it_went():
    choice, (a, b) = endpoints("a", "b")
    asker = Asker()
    await choice.acquire(asker=asker)
    a.failed()
    assert await choice.acquire(asker=asker) is b
    a.recovered()
    assert await choice.acquire(asker=asker) is b


@pytest.mark.parametrize(
    "url",
    ["http://host:8000", "http://host:8000/", "http://host:8000/v1", " http://host:8000/v1/ "],
)
def test_a_url_may_end_in_a_slash_or_in_v1(url: str):
    (endpoint,) = parse_endpoints([url])
    assert str(endpoint.chat_url) == "http://host:8000/v1/chat/completions"
    assert str(endpoint.health_url) == "http://host:8000/health"
    assert endpoint.name == "http://host:8000"


def test_a_path_before_v1_is_kept():
    (endpoint,) = parse_endpoints(["https://gateway/team%20a/llama/v1"])
    assert str(endpoint.chat_url) == "https://gateway/team%20a/llama/v1/chat/completions"
    assert str(endpoint.health_url) == "https://gateway/team%20a/llama/health"


def test_two_spellings_of_one_server_are_one_endpoint():
    assert len(parse_endpoints(["http://host:8000", "http://host:8000/v1/"])) == 1


def test_credentials_of_a_url_are_used_but_not_shown():
    (endpoint,) = parse_endpoints(["http://me:hunter2@host"])
    assert endpoint.chat_url.password == "hunter2"
    assert endpoint.name == "http://host"
    assert "hunter2" not in repr(endpoint)
    assert endpoint.redacted("no entry for me:hunter2") == "no entry for me:***"


def test_an_api_key_replaces_the_credentials_of_a_url():
    (endpoint,) = parse_endpoints(["http://me:hunter2@host"], secret="sk-1")
    assert endpoint.chat_url.user is None
    assert endpoint.health_url.user is None
    assert endpoint.redacted("bad key sk-1") == "bad key ***"


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "vllm.urls: is empty, must name at least one model server"),
        (["http://ok", "host:8000"], "vllm.urls[1]: must begin with http:// or https://"),
        (["ftp://me:hunter2@host"], "vllm.urls[0]: must begin with http:// or https://"),
        (["http://"], "vllm.urls[0]: "),
        (["http://me:hunter2@host:port"], "vllm.urls[0]: is no URL, must be like http://host:8000"),
        (["http://host?key=hunter2"], "vllm.urls[0]: must end before the `?` or `#`"),
    ],
)
def test_a_wrong_url_is_an_error_that_names_its_place_and_not_its_password(
    urls: list[str], message: str
):
    with pytest.raises(ConfigError) as raised:
        parse_endpoints(urls)
    assert str(raised.value).startswith(message)
    assert "hunter2" not in str(raised.value)


def test_the_model_is_away_once_every_endpoint_has_failed_twice_in_a_row():
    choice, (a, b) = endpoints("a", "b")
    told: list[bool] = []
    choice.listen(told.append)
    for endpoint in (a, a, b):
        endpoint.failed()
    assert told == [False]
    b.failed()
    b.failed()
    assert told == [False, True]
    a.answered()
    assert told == [False, True, False]


def test_who_listens_while_the_model_is_away_already_is_told_so():
    choice, (a,) = endpoints("a")
    a.failed()
    a.failed()
    told: list[bool] = []
    choice.listen(told.append)
    a.recovered()
    assert told == [True, False]
