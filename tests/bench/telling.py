"""The tables at the end."""

import sys
from collections.abc import Iterator, Sequence

from bench.lineup import OURS, Entry
from bench.modes import Outcome
from bench.numbers import Row, row_of
from bench.profiling import Profiled
from bench.verdict import Verdict
from rich.console import Console
from rich.table import Table

COLUMNS = (
    "who",
    "workers",
    "NATS",
    "tasks/s",
    "CPU µs/task",
    "of it supervisor",
    "Ray's daemons",
    "NATS",
    "added p50 ms",
    "p99 ms",
    "MB",
    "Ray's MB",
    "others",
)
RAY_DAEMONS = "ray daemons"
OURSELVES = Entry(who=OURS)


def show(*tables: Table) -> None:
    """Print tables, as wide as they are."""
    console = Console(file=sys.__stdout__, width=180)
    for table in tables:
        console.print(table)


def table_of(rows: Sequence[Row]) -> Table:
    table = Table(title="Everybody in one run, in turns: medians over the rounds")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*_cells(row))
    table.caption = (
        "CPU and memory (PSS) are those of a contestant's own processes; Ray's daemons, which are "
        "there for Ray's users only, and NATS are shown apart. Added latency: one task at a time, "
        "over a direct request to the model. Others: what had the machine's CPU beside all these; "
        "where that is much, throughput and latency say little."
    )
    return table


def _cells(row: Row) -> Iterator[str]:
    has_ray = row.uses_ray
    yield row.label
    yield str(row.workers)
    yield row.durability
    yield f"{row.rate:,.0f} ({row.lowest_rate:,.0f}-{row.highest_rate:,.0f})"
    yield f"{row.own_us:,.0f}"
    yield f"{row.cpu_us.get('supervisor', 0):,.0f}"
    yield f"{row.cpu_us.get(RAY_DAEMONS, 0):,.0f}" if has_ray else ""
    yield f"{row.cpu_us.get('nats', 0):,.0f}"
    yield _ms(row.added_p50_ms)
    yield _ms(row.added_p99_ms)
    yield f"{row.own_mb:,.0f}"
    yield f"{row.pss_mb.get(RAY_DAEMONS, 0):,.0f}" if has_ray else ""
    yield f"{row.strangers:.0%}"


def mode_table(outcome: Outcome) -> Table:
    table = Table(title=outcome.title)
    columns = "tasks/s", "CPU µs/task", "supervisor MB", "workers MB", "others"
    for column in ("", *columns, "what came of it"):
        table.add_column(column, justify="right" if column in columns else "left")
    for line in outcome.lines:
        row = row_of(OURSELVES, "default", line.samples)
        memory = (f"{row.pss_mb[name]:.1f}" for name in ("supervisor", "workers"))
        rates = f"{row.rate:,.0f}", f"{row.own_us:,.0f}"
        table.add_row(line.setting, *rates, *memory, f"{row.strangers:.0%}", line.note)
    return table


def profile_tables(name: str, found: Profiled) -> Iterator[Table]:
    """Yield where a process's CPU goes: by thread, by package, by function."""
    threads = Table("thread", "CPU µs/task", title=f"{name}: threads")
    for thread, us in found.threads_us.items():
        threads.add_row(thread, f"{us:,.1f}")
    yield threads
    shares = {
        "packages, their own code": found.profile.packages,
        "functions, their own code": found.profile.own,
        "functions, with what they call": found.profile.inclusive,
    }
    for title, parts in shares.items():
        table = Table("share", "", title=f"{name}: {title}")
        for part in parts:
            table.add_row(f"{part.share:.1%}", part.name)
        yield table


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(title="What must hold, and what is aimed at")
    for column in ("", "found", "must", "aim", "verdict"):
        table.add_column(column, justify="left" if column in {"", "verdict"} else "right")
    for each in verdicts:
        verdict = "reaches the aim" if each.reaches_aim else "passes" if each.passes else "FAILS"
        table.add_row(each.name, f"{each.found:g}", each.must, each.aim, verdict)
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
