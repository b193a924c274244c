"""How much may wait for its answer at a time."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_actors.adapters.jetstream.window import Window

LONG_S = 60.0


class Crowd:
    """Messages that ask for room in their order, and stay inside until they are answered."""

    def __init__(self, *, messages: int, max_bytes: int) -> None:
        self.window = Window(messages=messages, max_bytes=max_bytes)
        self.inside: list[int] = []
        self.entered: list[int] = []
        self.answers: dict[int, asyncio.Event] = {}

    async def send(self, number: int, size: int, within_s: float = LONG_S) -> None:
        self.answers[number] = asyncio.Event()
        await self.window.enter(size, within_s)
        self.inside.append(number)
        self.entered.append(number)
        try:
            await self.answers[number].wait()
        finally:
            self.inside.remove(number)
            self.window.leave(size)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@given(
    sizes=st.lists(st.integers(0, 30), max_size=20),
    messages=st.integers(1, 5),
    max_bytes=st.integers(1, 40),
    data=st.data(),
)
def test_all_get_in_in_their_order_and_never_more_than_there_is_room_for(
    sizes: list[int], messages: int, max_bytes: int, data: st.DataObject
):
    async def run() -> None:
        crowd = Crowd(messages=messages, max_bytes=max_bytes)
        async with asyncio.TaskGroup() as group:
            for number, size in enumerate(sizes):
                group.create_task(crowd.send(number, size))
            await settle()
            while crowd.inside:
                assert len(crowd.inside) <= messages
                held = sum(sizes[number] for number in crowd.inside)
                assert held <= max_bytes or len(crowd.inside) == 1
                crowd.answers[data.draw(st.sampled_from(crowd.inside))].set()
                await settle()
        assert crowd.entered == list(range(len(sizes)))

    asyncio.run(run())


async def test_a_message_that_finds_no_room_in_time_leaves_the_place_to_the_next():
    crowd = Crowd(messages=1, max_bytes=100)
    first = asyncio.create_task(crowd.send(0, 1))
    await settle()
    with pytest.raises(TimeoutError):
        await crowd.send(1, 1, within_s=0.01)
    third = asyncio.create_task(crowd.send(2, 1))
    await settle()
    for number in (0, 2):
        crowd.answers[number].set()
        await settle()
    await asyncio.gather(first, third)
    assert crowd.entered == [0, 2]


async def test_a_message_whose_sender_is_cancelled_frees_its_room():
    crowd = Crowd(messages=1, max_bytes=100)
    inside, waiting = (asyncio.create_task(crowd.send(number, 1)) for number in (0, 1))
    await settle()
    waiting.cancel()
    await settle()
    inside.cancel()
    await settle()
    last = asyncio.create_task(crowd.send(2, 1))
    await settle()
    assert crowd.entered == [0, 2]
    crowd.answers[2].set()
    await last
