"""Ourselves under one strain at a time: a slow model, more actors, a long queue."""

import statistics
from collections.abc import Sequence

from bench.contestants import SUPERVISOR
from bench.lineup import OURS, Entry
from bench.measure import Plan, take_turn
from bench.sample import Sample
from bench.saying import say
from bench.site import Site
from bench.verdict import Target, Verdict, judge
from msgspec import Struct
from msgspec.structs import replace

# 512 slots on a model that takes a second.
SATURATION = Plan(slots=512, queued=4_000, warm_s=5.0, window_s=15.0, single_tasks=0)
SATURATION_DELAY_S = 1.0
SATURATION_ACTORS = (1, 2)

# 16 slots an actor on a model that takes 200 ms: 80 tasks a second and actor.
SCALING = Plan(slots=16, queued=2_000, warm_s=3.0, window_s=10.0, single_tasks=0)
SCALING_DELAY_S = 0.2
SCALING_ACTORS = (1, 2, 4, 8)

BACKLOG = Plan(warm_s=2.0, window_s=5.0, single_tasks=0)
BACKLOGS = (1_000, 10_000, 100_000, 1_000_000)

GOODPUT = Target(name="goodput", must=0.97, aim=0.99, at_most=False, unit="")
LINEAR = Target(name="1 to 8 actors, of linear", must=0.93, aim=0.98, at_most=False, unit="")
GROWTH = Target(
    name="supervisor's memory, 1,000 to 1,000,000 queued", must=20, aim=5, at_most=True, unit=" MB"
)
DEARER = Target(name="CPU a task, 1,000 to 1,000,000 queued", must=1.1, aim=1.05, at_most=True)


class Line(Struct, frozen=True, kw_only=True):
    """A setting and what came of it."""

    setting: str
    samples: list[Sample]
    note: str


class Outcome(Struct, frozen=True, kw_only=True):
    """A mode's lines and verdicts."""

    title: str
    lines: list[Line]
    verdicts: list[Verdict]


async def saturation(site: Site) -> Outcome:
    """Measure how many of 512 slots are with the model at a time, on average.

    Each request is there for a second, so that is the goodput, of 512 a second at the most.
    """
    lines: list[Line] = []
    verdicts: list[Verdict] = []
    async with site.model(SATURATION_DELAY_S) as model:
        for actors in SATURATION_ACTORS:
            sample = await take_turn(site, model, Entry(who=OURS, workers=actors), SATURATION)
            share = sample.in_flight / SATURATION.slots
            who = f"512 slots in {_count(actors)}"
            idle = _idle(share, SATURATION_DELAY_S)
            lines.append(_line(who, [sample], f"{share:.3f} of the ideal, {idle}"))
            target = replace(GOODPUT, name=f"goodput of {who}, of the ideal")
            verdicts.append(judge(target, round(share, 3)))
    return Outcome(title="saturation: a model that takes a second", lines=lines, verdicts=verdicts)


async def scaling(site: Site) -> Outcome:
    """Measure how much of the model's time more actors get, by the same way."""
    found: dict[int, Sample] = {}
    lines: list[Line] = []
    async with site.model(SCALING_DELAY_S) as model:
        for actors in SCALING_ACTORS:
            plan = replace(SCALING, slots=SCALING.slots * actors)
            found[actors] = await take_turn(site, model, Entry(who=OURS, workers=actors), plan)
            share = found[actors].in_flight / (actors * found[1].in_flight)
            idle = _idle(found[actors].in_flight / plan.slots, SCALING_DELAY_S)
            lines.append(_line(_count(actors), [found[actors]], f"{share:.3f} of linear, {idle}"))
    most = SCALING_ACTORS[-1]
    linear = found[most].in_flight / (most * found[1].in_flight)
    return Outcome(
        title="scaling: 16 slots an actor, a model that takes 200 ms",
        lines=lines,
        verdicts=[judge(LINEAR, round(linear, 3))],
    )


async def backlog(site: Site, rounds: int) -> Outcome:
    """Measure what tasks cost while many others wait, few and many in turns."""
    found: dict[int, list[Sample]] = {queued: [] for queued in BACKLOGS}
    async with site.model() as model:
        for _ in range(rounds):
            for queued in BACKLOGS:
                plan = replace(BACKLOG, queued=queued)
                found[queued].append(await take_turn(site, model, Entry(who=OURS), plan))
                say(f"  {queued:,} queued: {found[queued][-1].own_us:,.0f} us a task")
    few, many = found[BACKLOGS[0]], found[BACKLOGS[-1]]
    growth = _supervisor_mb(many) - _supervisor_mb(few)
    dearer = statistics.median(m.own_us / f.own_us for f, m in zip(few, many, strict=True))
    return Outcome(
        title="backlog: tasks that wait in NATS",
        lines=[
            _line(f"{queued:,} queued", samples, f"supervisor {_supervisor_mb(samples):.1f} MB")
            for queued, samples in found.items()
        ],
        verdicts=[judge(GROWTH, round(growth, 1)), judge(DEARER, round(dearer, 3))],
    )


def _count(actors: int) -> str:
    return f"{actors} actor{'s' * (actors > 1)}"


def _idle(share: float, delay_s: float) -> str:
    """Tell how long a slot waits for its next task when so much of its time is the model's."""
    return f"a slot is free for {(1 / share - 1) * delay_s * 1_000:.1f} ms between tasks"


def _supervisor_mb(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.pss_mb[SUPERVISOR] for sample in samples)


def _line(setting: str, samples: list[Sample], note: str) -> Line:
    say(f"  {setting}: {note}")
    return Line(setting=setting, samples=samples, note=note)
