"""The whole service under every schedule: seeded histories of its own classes, in memory.

A history has some tasks, and what befalls them: processes that end or freeze, a NATS that loses
and delays, a model that is away, cancels, drains, new sizes and settings. Its seed decides all of
it, the interleaving of every await too. At its end the promise is judged (`support.promise`).

    AGENT_ACTORS_TEST_HISTORIES=100000 scripts/test tests/unit/test_model_of_the_whole.py
    AGENT_ACTORS_TEST_HISTORY_SEED=4711 scripts/test tests/unit/test_model_of_the_whole.py
"""

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import pytest
from msgspec.structs import replace
from support.histories import draw
from support.memory_bus import Event, MemoryConnection, as_lines
from support.promise import check
from support.seeded_loop import scheduled
from support.whole_service import Connect, WholeService, current, silence

from agent_actors.contract import MSG_ID_HEADER
from agent_actors.errors import FencedOut, PublishFailed
from agent_actors.ledger import TaskRecord
from agent_actors.ports import Delivery, Message

HISTORIES = int(os.environ.get("AGENT_ACTORS_TEST_HISTORIES", "2000"))
ONE_SEED = os.environ.get("AGENT_ACTORS_TEST_HISTORY_SEED", "")
CHUNK = 1_000
REPEAT = "AGENT_ACTORS_TEST_HISTORY_SEED={} scripts/test tests/unit/test_model_of_the_whole.py"


class Broken(NamedTuple):
    """A history that breaks the promise."""

    seed: int
    faults: Sequence[str]
    story: Sequence[Event]

    def __str__(self) -> str:
        return "\n".join(
            chain(
                (f"history {self.seed} breaks the promise:",),
                self.faults,
                ("", "what happened:"),
                as_lines(self.story),
                ("", f"again: {REPEAT.format(self.seed)}"),
            )
        )


@pytest.fixture(autouse=True)
def nobody_logs() -> Iterator[None]:
    with silence():
        yield


def chunks() -> list[range]:
    if ONE_SEED:
        return [range(int(ONE_SEED), int(ONE_SEED) + 1)]
    return [range(first, min(first + CHUNK, HISTORIES)) for first in range(0, HISTORIES, CHUNK)]


@pytest.mark.parametrize("seeds", chunks(), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_the_promise_holds_in_every_history(seeds):
    broken = search(seeds)
    assert broken is None, str(broken)


def test_a_seed_tells_the_same_story_each_time():
    for seed in range(10):
        first, second = (list(as_lines(run(seed).bus.story)) for _ in range(2))
        assert first == second


class ForgetsRevisions(MemoryConnection):
    """Writes to the ledger whoever has written there meanwhile."""

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        return await super().write(key, record, self.bus.stored(key).revision)


class TakesSilenceForFailure(MemoryConnection):
    """Believes that a write without an answer has not happened."""

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        try:
            return await super().write(key, record, revision)
        except PublishFailed as error:
            raise FencedOut from error


class TakesSilenceForSuccess(MemoryConnection):
    """Believes that a result without an answer is stored."""

    async def publish(self, message: Message) -> None:
        try:
            await super().publish(message)
        except PublishFailed:
            return


class LeavesTheDead(MemoryConnection):
    """Gives nothing back that an actor took down with it."""

    async def nak(self, delivery: Delivery, delay_s: float = 0.0) -> None:
        if not self.process.name.startswith("supervisor"):
            await super().nak(delivery, delay_s)


class HasNoPulse(MemoryConnection):
    """Gives no sign of life for what is being worked on."""

    async def in_progress(self, deliveries: Sequence[Delivery]) -> None: ...


class NamesNoMessage(MemoryConnection):
    """Publishes without the header by which JetStream drops copies."""

    async def publish(self, message: Message) -> None:
        headers = {name: text for name, text in message.headers.items() if name != MSG_ID_HEADER}
        await super().publish(replace(message, headers=headers))


class AcksFirst(MemoryConnection):
    """Takes the task off the queue before its result is stored."""

    async def publish(self, message: Message) -> None:
        await self.ack(current.get())
        await super().publish(message)


class NaksFirst(MemoryConnection):
    """Has a task handed out again before it is released."""

    async def write(self, key: str, record: TaskRecord, revision: int) -> int:
        if record.state == "waiting" and (delivery := current.get(None)):
            await self.nak(delivery)
        return await super().write(key, record, revision)


@pytest.mark.parametrize(
    ("connect", "fault"),
    [
        (ForgetsRevisions, "is announced in several versions"),
        (TakesSilenceForFailure, "who has its task"),
        (TakesSilenceForSuccess, "before its result is stored"),
        (LeavesTheDead, "comes back only after ack_wait"),
        (HasNoPulse, "comes back only after ack_wait"),
        (NamesNoMessage, "is stored"),
        (AcksFirst, "before its result is stored"),
        (NaksFirst, "is handed out again while it runs"),
    ],
)
def test_what_breaks_the_promise_is_found_soon(connect, fault):
    for seed in range(CHUNK):
        broken = search(range(seed, seed + 1), connect)
        if broken and any(fault in each for each in broken.faults):
            return
    pytest.fail(f"no history of {CHUNK} tells that it {connect.__doc__}")


def search(seeds: range, connect: Connect = MemoryConnection) -> Broken | None:
    """Return the first history that breaks the promise."""
    for seed in seeds:
        service = run(seed, connect)
        if faults := check(service):
            return Broken(seed, faults, service.bus.story)
    return None


def run(seed: int, connect: Connect = MemoryConnection) -> WholeService:
    with scheduled(seed) as scheduler:
        service = WholeService(draw(seed), scheduler, connect)
        service.run()
    return service
