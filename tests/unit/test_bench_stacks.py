"""Where `scripts/bench --profile` says that the time goes."""

import pytest
from bench.stacks import IN_C, loop_thread, package_of, profile_of

LOOP = "thread (7): AsyncIO Thread: default"
RUN = "Thread.run (/usr/lib/python3.11/threading.py)"
SETTLE = "SettleDelivery._work (/srv/agent_actors/settlement.py)"
SEND = "Client._send (/venv/lib/python3.11/site-packages/nats/aio/client.py)"
STACKS = [
    f"{LOOP};{RUN} 10",
    f"{LOOP};{RUN};{SETTLE} 30",
    f"{LOOP};{RUN};{SETTLE};{SEND} 60",
    f"thread (8): MainThread;{RUN};wait (/usr/lib/python3.11/threading.py) 1000",
]


def test_only_the_event_loops_thread_counts():
    assert profile_of(STACKS).samples == 100


def test_a_function_has_what_is_its_own_and_what_it_calls():
    found = profile_of(STACKS)
    own = {each.name: each.share for each in found.own}
    inclusive = {each.name: each.share for each in found.inclusive}
    settle = "SettleDelivery._work (agent_actors/settlement.py)"
    assert (own[settle], inclusive[settle]) == (0.3, 0.9)
    assert (own[IN_C], inclusive[IN_C]) == (0.1, 1.0)


def test_the_most_comes_first():
    assert [each.name for each in profile_of(STACKS).packages] == [
        "nats",
        "agent_actors.settlement",
        IN_C,
    ]


@pytest.mark.parametrize(
    ("frame", "package"),
    [
        ("f (agent_actors/adapters/vllm/client.py)", "agent_actors.adapters.vllm.client"),
        ("f (site-packages/aiohttp/client.py)", "aiohttp"),
        ("f (asyncio/tasks.py)", "asyncio"),
        ("f (python3.11/uuid.py)", "uuid"),
    ],
)
def test_a_frame_is_of_a_package(frame: str, package: str):
    assert package_of(frame) == package


def test_recursion_counts_once():
    deep = [f"{LOOP};{SETTLE};{SETTLE};{SETTLE} 5"]
    assert [each.share for each in profile_of(deep).inclusive] == [1.0]


def test_the_loops_thread_is_known_by_its_number():
    assert loop_thread(STACKS) == 7
    assert loop_thread(STACKS[-1:]) == 0
