"""The ends of the pipes to a command, which nobody may close twice: other threads open files."""

import asyncio
import os

import pytest
import uvloop

from agent_actors.tools.sandbox.running import pipe_file


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request):
    loop = request.param()
    yield loop
    loop.close()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_the_end_of_a_pipe_is_closed_with_its_transport(loop):
    reading, writing = os.pipe()

    async def connect_and_close() -> None:
        file = pipe_file(reading, "rb", loop)
        transport, _ = await loop.connect_read_pipe(asyncio.Protocol, file)
        transport.close()

    loop.run_until_complete(connect_and_close())
    loop.run_until_complete(asyncio.sleep(0))
    assert not is_open(reading)
    os.close(writing)


def test_what_uvloop_has_closed_is_not_closed_again():
    loop = uvloop.new_event_loop()
    reading, writing = os.pipe()
    file = pipe_file(reading, "rb", loop)
    os.close(reading)  # as uvloop does
    others = os.dup2(writing, reading)  # as another thread may, which opens something
    file.close()  # as uvloop does next
    assert is_open(others)
    for descriptor in (writing, others):
        os.close(descriptor)
    loop.close()
