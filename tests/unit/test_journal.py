"""What an attempt keeps of its work: stored under its lease, found by the next attempt."""

import asyncio

import pytest
from support.fakes import MemoryLedger, Queue, Wire, delivery, noon

from agent_actors import patience
from agent_actors.errors import FencedOut, PublishFailed
from agent_actors.journal import MAX_RECENT_BYTES, LeaseJournal
from agent_actors.leases import Lease, Leases
from agent_actors.ledger import Claim, TaskRecord

BIG = b"x" * (MAX_RECENT_BYTES // 2)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.0)


class Bench:
    """A ledger and an object store, and attempts at one task that take over from each other."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.wire = Wire()
        self.leases = Leases(self.ledger, Queue(), noon)
        self.begun = 0

    async def begin(self) -> LeaseJournal:
        self.begun += 1
        claim = Claim(
            task_id="t",
            source=delivery(num_delivered=self.begun).source,
            content="hash",
            agent_id="dev-0",
            lease=f"lease-{self.begun}",
            now=noon(),
        )
        lease = await self.leases.begin(claim)
        assert isinstance(lease, Lease)
        return LeaseJournal(lease, self.leases, self.wire)

    @property
    def record(self) -> TaskRecord:
        record = self.ledger.records["t"].record
        assert record is not None
        return record


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def appended(journal: LeaseJournal, *entries: bytes) -> None:
    for entry in entries:
        await journal.append(entry)


async def test_a_task_that_nobody_worked_on_has_no_entries(bench: Bench):
    journal = await bench.begin()
    assert await journal.entries() == []


async def test_the_next_attempt_finds_what_was_kept_in_its_order(bench: Bench):
    await appended(await bench.begin(), b"one", b"", b"three")
    journal = await bench.begin()
    assert await journal.entries() == [b"one", b"", b"three"]
    await appended(journal, b"four")
    assert await (await bench.begin()).entries() == [b"one", b"", b"three", b"four"]


async def test_small_entries_cost_one_write_each_and_no_object(bench: Bench):
    await appended(await bench.begin(), b"one", b"two")
    assert len(bench.ledger.history) == 3
    assert not bench.wire.objects


async def test_many_bytes_move_to_the_object_store_together_and_the_record_stays_small(
    bench: Bench,
):
    first = await bench.begin()
    entries = [b"%d" % number + BIG for number in range(7)]
    await appended(first, *entries[:4])
    second = await bench.begin()
    await appended(second, *entries[4:])
    assert list(bench.wire.objects) == [
        "t/lease-1/turns/0",
        "t/lease-1/turns/1",
        "t/lease-2/turns/2",
    ]
    assert all(sum(map(len, r.recent_turns)) <= MAX_RECENT_BYTES for r in bench.ledger.history)
    assert await (await bench.begin()).entries() == entries


async def test_an_entry_bigger_than_the_record_may_be_is_kept(bench: Bench):
    await appended(await bench.begin(), b"small", BIG * 20, b"after")
    assert await (await bench.begin()).entries() == [b"small", BIG * 20, b"after"]


async def test_an_attempt_that_lost_its_task_keeps_nothing_more(bench: Bench):
    stale = await bench.begin()
    await appended(stale, b"one")
    await bench.begin()
    for _ in range(2):
        with pytest.raises(FencedOut):
            await stale.append(b"two")
    with pytest.raises(FencedOut):
        await stale.newest()
    assert bench.record.recent_turns == [b"one"]


@pytest.mark.parametrize("fault", ["lost", "dropped"])
async def test_an_entry_without_an_answer_is_stored_once(bench: Bench, fault: str):
    journal = await bench.begin()
    bench.ledger.script.extend([fault, fault])
    await appended(journal, b"one", b"two")
    assert bench.record.recent_turns == [b"one", b"two"]
    assert (await journal.newest()).record == bench.record


async def test_the_newest_lease_ends_the_task_and_nothing_kept_stays_in_the_record(bench: Bench):
    journal = await bench.begin()
    await appended(journal, b"one", BIG * 3, b"two")
    await bench.leases.commit(await journal.newest(), "completed", b"{}", None)
    assert (bench.record.turns, bench.record.recent_turns) == ([], [])


async def test_entries_appended_at_once_are_all_kept(bench: Bench):
    journal = await bench.begin()
    entries = [b"%d" % number for number in range(20)]
    await asyncio.gather(*(journal.append(entry) for entry in entries))
    assert bench.record.recent_turns == entries


async def test_an_entry_on_its_way_is_waited_for_when_the_attempt_is_cancelled(bench: Bench):
    journal = await bench.begin()
    write, asked, answer = bench.ledger.write, asyncio.Event(), asyncio.Event()

    async def slow_write(key: str, record: TaskRecord, revision: int) -> int:
        revision = await write(key, record, revision)
        asked.set()
        await answer.wait()
        return revision

    bench.ledger.write = slow_write
    appending = asyncio.create_task(journal.append(b"one"))
    await asked.wait()
    appending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await appending
    newest = asyncio.create_task(journal.newest())
    await asyncio.sleep(0)
    assert not newest.done()
    answer.set()
    await bench.leases.release(await newest)
    assert await (await bench.begin()).entries() == [b"one"]


async def test_a_new_beginning_takes_the_place_of_all_before_it(bench: Bench):
    await appended(await bench.begin(), b"one", BIG * 3, b"two")
    journal = await bench.begin()
    await journal.begin_anew(b"anew")
    assert not bench.wire.objects
    await appended(journal, b"next")
    assert await (await bench.begin()).entries() == [b"anew", b"next"]


async def test_a_new_beginning_keeps_its_own_objects(bench: Bench):
    journal = await bench.begin()
    await appended(journal, BIG * 3)
    await journal.begin_anew(b"anew" + BIG * 3)
    await appended(journal, b"next" + BIG * 3)
    assert len(bench.wire.objects) == 2
    entries = await (await bench.begin()).entries()
    assert entries == [b"anew" + BIG * 3, b"next" + BIG * 3]


async def test_who_has_lost_the_task_cannot_begin_it_anew(bench: Bench):
    stale = await bench.begin()
    await appended(stale, BIG * 3)
    await bench.begin()
    with pytest.raises(FencedOut):
        await stale.begin_anew(b"anew")
    assert await (await bench.begin()).entries() == [BIG * 3]


@pytest.mark.parametrize("damage", ["gone", "other"])
async def test_entries_that_are_lost_in_part_are_forgotten_as_a_whole(bench: Bench, damage: str):
    await appended(await bench.begin(), b"one", BIG * 3, b"two")
    (name,) = bench.wire.objects
    bench.wire.objects.pop(name) if damage == "gone" else bench.wire.objects.update({name: b"!"})
    journal = await bench.begin()
    assert await journal.entries() == []
    await appended(journal, b"anew")
    assert await (await bench.begin()).entries() == [b"anew"]


async def test_an_object_store_that_is_away_is_waited_for(bench: Bench):
    await appended(await bench.begin(), BIG * 3)
    get, tries = bench.wire.get, 0

    async def away_twice(ref):
        nonlocal tries
        tries += 1
        if tries < 3:
            raise PublishFailed("no answer")
        return await get(ref)

    bench.wire.get = away_twice
    assert await (await bench.begin()).entries() == [BIG * 3]
