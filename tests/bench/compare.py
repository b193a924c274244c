"""Everybody in turns: a round is one turn of each, and rounds follow one another."""

import itertools
from collections.abc import Iterable, Iterator

from bench.lineup import BARE, FASTSTREAM, FRESH_ACTOR, OURS, RAY_CALL, TASKIQ, Entry
from bench.measure import Plan, take_turn
from bench.numbers import Row, row_of
from bench.sample import Sample
from bench.saying import say
from bench.site import Durability, Site
from msgspec import Struct

LINEUP = (
    Entry(who=OURS, workers=1),
    Entry(who=BARE, ledger=False),
    Entry(who=BARE, ledger=True),
    *(
        Entry(who=who, workers=1, ledger=ledger)
        for who in (TASKIQ, FASTSTREAM)
        for ledger in (True, False)
    ),
    *(Entry(who=RAY_CALL, workers=1, ledger=ledger) for ledger in (True, False)),
    Entry(who=OURS, workers=2),
    *(
        Entry(who=who, workers=2, ledger=ledger)
        for who in (TASKIQ, FASTSTREAM)
        for ledger in (True, False)
    ),
    *(Entry(who=RAY_CALL, workers=2, ledger=ledger) for ledger in (True, False)),
)
ONCE = (
    Entry(who=FRESH_ACTOR, ledger=False),
    Entry(who=OURS, logs=True),
    Entry(who=FASTSTREAM, waves=True),
)
QUICK = (
    Entry(who=OURS, workers=1),
    Entry(who=BARE, ledger=True),
    Entry(who=TASKIQ),
    Entry(who=FASTSTREAM),
    Entry(who=RAY_CALL, ledger=False),
)
QUICK_PLAN = Plan(queued=2_000, warm_s=0.3, window_s=0.7, single_tasks=20)
KEPT_SAFER: tuple[Durability, ...] = ("always", "r3")
DURABLE = (Entry(who=OURS, workers=1), Entry(who=BARE, ledger=True))

Samples = dict[tuple[Durability, Entry], list[Sample]]


class Turn(Struct, frozen=True, kw_only=True):
    """Who is measured next, and on which NATS."""

    entry: Entry
    durability: Durability = "default"
    round: int = 1


def all_turns(rounds: int) -> Iterator[Turn]:
    """Yield the turns of so many rounds; what takes long or is not judged comes in the first."""
    for number in range(1, rounds + 1):
        for entry in (*LINEUP, *(ONCE if number == 1 else ())):
            yield Turn(entry=entry, round=number)
        for durability, entry in itertools.product(KEPT_SAFER, DURABLE):
            yield Turn(entry=entry, durability=durability, round=number)


def quick_turns() -> Iterator[Turn]:
    return (Turn(entry=entry) for entry in QUICK)


async def compare(site: Site, plan: Plan, turns: Iterable[Turn], samples: Samples) -> None:
    """Take the turns, and add what comes of each to the samples."""
    async with site.model() as model:
        for turn in turns:
            sample = await take_turn(site, model, turn.entry, plan, turn.durability)
            samples.setdefault((turn.durability, turn.entry), []).append(sample)
            say(_line(turn, sample))


def by_default(samples: Samples) -> dict[Entry, list[Sample]]:
    """Return what was measured on NATS as it is by default."""
    return {entry: found for (kind, entry), found in samples.items() if kind == "default"}


def rows(samples: Samples) -> list[Row]:
    return [row_of(entry, durability, found) for (durability, entry), found in samples.items()]


def _line(turn: Turn, sample: Sample) -> str:
    who = f"{turn.round}: {turn.entry.label} x {turn.entry.workers}, NATS {turn.durability}"
    return f"{who}: {sample.rate:,.0f} tasks/s, {sample.own_us:,.0f} us a task"
