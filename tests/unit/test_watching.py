"""When an actor is lost: its process has ended, or it says nothing."""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from subprocess import PIPE, Popen

import pytest

from agent_actors.errors import ActorLost
from agent_actors.ports import ActorReport
from agent_actors.watching import WatchedActor

SUBJECT = (
    "import time; from agent_actors.processes import this_process;"
    "print(this_process(), flush=True); time.sleep(60)"
)
REPORT = ActorReport(incarnation="one", pid=1, version=1, slots=1, free=1, free_bytes=1)
SOON_S = 0.05
LONG_S = 60.0


class Handle:
    """Gives its news when there is some."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[ActorReport | ActorLost] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.killed = False

    async def hello(self, supervisor_id: str) -> ActorReport:
        return REPORT

    async def submit(
        self, supervisor_id: str, batch: object, *, alone: bool = False
    ) -> ActorReport:
        return REPORT

    async def completions(self, supervisor_id: str) -> ActorReport:
        self.asked.set()
        news = await self.news.get()
        if isinstance(news, ActorLost):
            raise news
        return news

    async def kill(self) -> None:
        self.killed = True

    async def stop(self, grace_s: float) -> None: ...


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
def process() -> Iterator[tuple[Popen, str]]:
    with Popen([sys.executable, "-c", SUBJECT], stdout=PIPE, text=True) as running:
        assert running.stdout is not None
        yield running, running.stdout.readline().strip()
        running.kill()


async def test_it_passes_on_what_the_actor_says(handle: Handle):
    handle.news.put_nowait(REPORT)
    with WatchedActor(handle, "", LONG_S) as actor:
        assert await actor.completions("s") == REPORT


async def test_an_actor_that_is_said_to_be_lost_is_lost(handle: Handle):
    handle.news.put_nowait(ActorLost("said Ray"))
    with WatchedActor(handle, "", LONG_S) as actor, pytest.raises(ActorLost, match="said Ray"):
        await actor.completions("s")
    assert not handle.killed


async def test_an_actor_whose_process_ends_is_lost_at_once(
    handle: Handle, process: tuple[Popen, str]
):
    running, said = process
    with WatchedActor(handle, said, LONG_S) as actor:
        news = asyncio.create_task(actor.completions("s"))
        await handle.asked.wait()
        running.kill()
        with pytest.raises(ActorLost, match="its process has ended"):
            await asyncio.wait_for(news, 5)


async def test_an_actor_that_is_silent_is_killed_by_its_process_where_that_is_seen(
    handle: Handle, process: tuple[Popen, str]
):
    running, said = process
    running.send_signal(signal.SIGSTOP)
    with WatchedActor(handle, said, SOON_S) as actor, pytest.raises(ActorLost, match="it hung"):
        await actor.completions("s")
    assert running.wait(5) == -signal.SIGKILL
    assert not handle.killed


async def test_an_actor_that_is_silent_elsewhere_is_killed_over_its_handle(handle: Handle):
    with WatchedActor(handle, "", SOON_S) as actor, pytest.raises(ActorLost, match="it hung"):
        await actor.completions("s")
    assert handle.killed


@pytest.mark.parametrize("frozen_s", [0.55, 0.8, 2.0])
async def test_a_supervisor_that_was_frozen_itself_gives_its_actors_time_to_answer(
    handle: Handle, frozen_s: float
):
    with WatchedActor(handle, "", hang_timeout_s=0.5) as actor:
        news = asyncio.create_task(actor.completions("s"))
        await handle.asked.wait()
        frozen = asyncio.Event()
        asyncio.get_running_loop().call_soon(lambda: (time.sleep(frozen_s), frozen.set()))
        await frozen.wait()
        asyncio.get_running_loop().call_later(SOON_S, handle.news.put_nowait, REPORT)
        assert await asyncio.wait_for(news, 5) == REPORT
    assert not handle.killed
