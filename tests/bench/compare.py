"""Everybody in turns: a round is one turn of each, and rounds follow one another."""

from collections import defaultdict
from collections.abc import Sequence

from bench.lineup import BARE, FASTSTREAM, FRESH_ACTOR, OURS, RAY_CALL, TASKIQ, Entry
from bench.measure import Plan, take_turn
from bench.numbers import Row, row_of
from bench.sample import Sample
from bench.saying import say
from bench.site import Durability, Site

ROUNDS = 3

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
DURABLE = (Entry(who=OURS, workers=1), Entry(who=BARE, ledger=True))

Samples = dict[tuple[Durability, Entry], list[Sample]]


async def compare(
    site: Site,
    plan: Plan,
    rounds: int,
    entries: Sequence[Entry],
    *,
    once: Sequence[Entry] = (),
    durable: Sequence[Entry] = (),
) -> Samples:
    """Return the samples of all turns; of `durable` ones on NATS that keeps more, too."""
    samples: Samples = defaultdict(list)
    async with site.model() as model:

        async def turn(entry: Entry, durability: Durability) -> None:
            sample = await take_turn(site, model, entry, plan, durability)
            samples[durability, entry].append(sample)
            say(_line(entry, durability, sample))

        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for entry in entries:
                await turn(entry, "default")
            if number == 0:
                for entry in once:
                    await turn(entry, "default")
            for durability in ("always", "r3"):
                for entry in durable:
                    await turn(entry, durability)
    return samples


def by_default(samples: Samples) -> dict[Entry, list[Sample]]:
    """Return what was measured on NATS as it is by default."""
    return {entry: found for (kind, entry), found in samples.items() if kind == "default"}


def rows(samples: Samples) -> list[Row]:
    return [row_of(entry, durability, found) for (durability, entry), found in samples.items()]


def _line(entry: Entry, durability: Durability, sample: Sample) -> str:
    who = f"{entry.label} x {entry.workers}, NATS {durability}"
    return f"  {who}: {sample.rate:,.0f} tasks/s, {sample.own_us:,.0f} us a task"
