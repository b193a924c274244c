"""`python -m chaos`: what `scripts/chaos` runs. Exit code 1 says that something did not hold."""

import asyncio
import secrets
import signal
import sys
from collections.abc import Coroutine
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypedDict, Unpack

import click
from msgspec.structs import replace
from support.ray_environment import prepare_ray_of_tests

from agent_actors.local.run_folder import run_folder
from agent_actors.observe.logs import configure_logs

FOLDER_VARIABLE = "AGENT_ACTORS_CHAOS_DIR"
USUAL_RATE, SOAK_RATE = 15.0, 200.0
USUAL_MINUTES, SOAK_MINUTES = 1.0, 30.0

RPC_FAILURES = 1

_POSITIVE = click.FloatRange(min=0, min_open=True)


class Options(TypedDict):
    """What the command line gives."""

    seed: int | None
    minutes: float | None
    rate: float | None
    cluster: bool
    rpc_failures: int | None
    report: bool
    soak: bool
    json_file: Path | None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, help="Seed of load and faults; by default a fresh one.")
@click.option("--minutes", type=_POSITIVE, help="How long: 1, with --soak 30.")
@click.option("--rate", type=_POSITIVE, help="Tasks a second: 15, with --soak 200.")
@click.option("--cluster", is_flag=True, help="Three nats-servers, streams with three replicas.")
@click.option(
    "--rpc-failures",
    type=click.IntRange(0, 50),
    help="Percent of Ray's calls between actors that are lost, and of the answers; by default "
    f"{RPC_FAILURES} for every third seed.",
)
@click.option("--report", is_flag=True, help="Measure how fast the service recovers, instead.")
@click.option("--soak", is_flag=True, help="Load without faults, watching memory, instead.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where --report and --soak write their numbers, beside the table.",
)
def main(**options: Unpack[Options]) -> None:
    """Run the whole service under faults, and judge what came of it.

    Everything runs on this machine and is gone afterwards. Exit code 1: an invariant was broken,
    or a target missed; the seed and the command that repeats the run are told.
    """
    prepare_ray_of_tests()
    configure_logs("chaos", level="error")
    # A shell starts background jobs with SIGINT ignored; asyncio makes a cancellation of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Ray reads its environment when it is imported.
    from chaos.stage import ChaosFailed
    from chaos.telling import say

    seed = secrets.randbelow(1_000_000) if options["seed"] is None else options["seed"]
    minutes = options["minutes"] or (SOAK_MINUTES if options["soak"] else USUAL_MINUTES)
    rate = options["rate"] or (SOAK_RATE if options["soak"] else USUAL_RATE)
    rpc_failures = _rpc_failures(seed, options)
    lost = f", {rpc_failures}% of Ray's calls lost" * bool(rpc_failures)
    say(f"seed {seed}, {minutes:g} minutes, {rate:g} tasks/s{lost}")
    try:
        with run_folder(FOLDER_VARIABLE, keep_after=ChaosFailed) as folder:
            # Ray prints a paragraph for each process that we kill.
            with (folder / "driver.log").open("w") as log, redirect_stdout(log):
                asyncio.run(_work(folder, seed, minutes, rate, options))
            if options["soak"] or options["report"]:
                return
    except ChaosFailed:
        flags = "".join(f" --{name}" for name in ("cluster", "report", "soak") if options[name])
        flags += f" --rpc-failures {rpc_failures}" * (options["rpc_failures"] is not None)
        again = f"scripts/chaos --seed {seed} --minutes {minutes:g} --rate {rate:g}{flags}"
        say(f"\nFAILED. To repeat it:  {again}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("Interrupted.")
        sys.exit(128 + signal.SIGINT)
    say(f"\nAll invariants hold (seed {seed}).")


def _work(
    folder: Path, seed: int, minutes: float, rate: float, options: Options
) -> Coroutine[Any, Any, None]:
    """Return what the command line asks for."""
    from chaos.report import report
    from chaos.run import run
    from chaos.soak import soak
    from chaos.stage import HASTY

    cluster, json_file = options["cluster"], options["json_file"]
    if options["soak"]:
        return soak(folder, minutes=minutes, rate=rate, json_file=json_file)
    if options["report"]:
        return report(folder, cluster=cluster, json_file=json_file)
    lost = _rpc_failures(seed, options)
    setting = replace(HASTY, seed=seed, cluster=cluster, rpc_failures=lost)
    return run(folder, setting, minutes=minutes, rate=rate)


def _rpc_failures(seed: int, options: Options) -> int:
    """Return how many percent of Ray's calls are to be lost."""
    if options["rpc_failures"] is not None:
        return options["rpc_failures"]
    is_plain = options["soak"] or options["report"] or seed % 3
    return 0 if is_plain else RPC_FAILURES


if __name__ == "__main__":
    main()
