"""`python -m bench`: what `scripts/bench` runs. Exit code 1 says that a target is missed."""

import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from agent_actors.local.ray_environment import prepare_local_ray
from agent_actors.local.run_folder import run_folder
from agent_actors.observe.logs import configure_logs

FOLDER_VARIABLE = "AGENT_ACTORS_BENCH_DIR"
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of turns.")
@click.option("--quick", is_flag=True, help="A short round of a few: whether it works at all.")
@click.option("--saturation", is_flag=True, help="512 slots on a model that takes a second.")
@click.option("--scaling", is_flag=True, help="1 to 8 actors on a model that takes 200 ms.")
@click.option("--backlog", is_flag=True, help="1,000 to 1,000,000 tasks that wait.")
@click.option("--model", is_flag=True, help="A real vLLM, and a load generator beside us.")
@click.option("--start-up", is_flag=True, help="From the command to the first result.")
@click.option("--profile", type=_FOLDER, help="Where the CPU goes; flame graphs into this folder.")
@click.option("--actors", type=click.IntRange(1), default=1, help="Of --profile.")
@click.option("--native", is_flag=True, help="Of --profile: functions in C, too.")
@click.option(
    "--patience",
    "patience_s",
    type=click.FloatRange(0),
    default=0.0,
    help="Seconds that each turn may wait until nothing else keeps the machine busy.",
)
@click.option("--json", "json_file", type=_FILE, help="Where to write all numbers.")
def main(json_file: Path | None, **wanted: Any) -> None:
    """Measure this project against what one would take in its place, on this machine.

    Everything runs here and is gone afterwards, but for the files named. Exit code 1: something
    that must hold does not.
    """
    prepare_local_ray()
    os.environ["RAY_AUTH_MODE"] = "token"
    configure_logs("bench", level="error")
    # A shell starts background jobs with SIGINT ignored; asyncio makes a cancellation of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with run_folder(FOLDER_VARIABLE, keep_after=Exception) as folder:
            holds = _work(folder, json_file, wanted)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0 if holds else 1)


def _work(folder: Path, json_file: Path | None, wanted: dict[str, Any]) -> bool:
    # Ray reads its environment when it is imported.
    from bench.run import Wanted, machine, run
    from bench.site import standing_site
    from bench.starting import start_up

    if wanted.pop("start_up"):
        told = {"start_up": uvloop.run(start_up(folder, wanted["rounds"])), "machine": machine()}
        holds = True
    else:
        # Ray prints what befalls its processes.
        with (
            (folder / "driver.log").open("w") as log,
            redirect_stdout(log),
            standing_site(folder) as site,
        ):
            told, holds = run(site, Wanted(**wanted))
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    return holds


if __name__ == "__main__":
    main()
