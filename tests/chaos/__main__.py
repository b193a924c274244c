"""`python -m chaos`: what `scripts/chaos` runs. Exit code 1 says that an invariant was broken."""

import asyncio
import os
import secrets
import signal
import sys
from pathlib import Path

import click

from agent_actors.local.ray_environment import prepare_local_ray
from agent_actors.local.run_folder import run_folder
from agent_actors.observe.logs import configure_logs

FOLDER_VARIABLE = "AGENT_ACTORS_CHAOS_DIR"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, help="Seed of load and faults; by default a fresh one.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="How long.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Tasks a second.")
@click.option("--cluster", is_flag=True, help="Three nats-servers, streams with three replicas.")
def main(seed: int | None, minutes: float | None, rate: float | None, cluster: bool) -> None:  # noqa: FBT001 - a flag of the command line
    """Run the whole service under faults, and judge what came of it."""
    prepare_local_ray()
    os.environ["RAY_AUTH_MODE"] = "token"
    configure_logs("chaos", level="error")
    # A shell starts background jobs with SIGINT ignored; asyncio makes a cancellation of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Ray reads its environment when it is imported.
    from chaos.run import ChaosFailed, run

    seed = secrets.randbelow(1_000_000) if seed is None else seed
    minutes, rate = minutes or 1.0, rate or 15.0
    click.echo(f"seed {seed}, {minutes:g} minutes, {rate:g} tasks/s")
    again = f"scripts/chaos --seed {seed} --minutes {minutes:g} --rate {rate:g}"
    try:
        with run_folder(FOLDER_VARIABLE, keep_after=ChaosFailed) as folder:
            asyncio.run(run(Path(folder), seed=seed, minutes=minutes, rate=rate, cluster=cluster))
    except ChaosFailed:
        click.echo(f"\nFAILED. To repeat it:  {again}{' --cluster' * cluster}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    click.echo(f"\nAll invariants hold (seed {seed}).")


if __name__ == "__main__":
    main()
