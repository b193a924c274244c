"""`python -m scale_trace`: what `scripts/scale-trace` runs. Exit code 1 says what went wrong."""

import asyncio
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click
import msgspec
from chaos.telling import say
from scale_trace.verdict import problems, summary, telling
from support.ray_environment import prepare_ray_of_tests

from agent_actors.local.run_folder import run_folder
from agent_actors.observe.logs import configure_logs

FOLDER_VARIABLE = "AGENT_ACTORS_SCALE_TRACE_DIR"

_FILE = click.Path(dir_okay=False, path_type=Path)


class TraceFailed(Exception):
    """Something was not as it should be, and has been told."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, default=0, show_default=True, help="Of the model's latencies.")
@click.option(
    "--output", type=_FILE, default="scale-trace.png", show_default=True, help="The picture, a PNG."
)
@click.option("--json", "json_file", type=_FILE, help="Where to write the samples and numbers.")
def main(seed: int, output: Path, json_file: Path | None) -> None:
    """Run one pool through idle, a burst, a steady load and idle, and draw how it followed.

    Everything runs on this machine and is gone afterwards, but for the files named here. Exit
    code 1: a task has not exactly one result, or the pool's size did not follow the load.
    """
    prepare_ray_of_tests()
    configure_logs("scale-trace", level="error")
    # A shell starts background jobs with SIGINT ignored; asyncio makes a cancellation of it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with run_folder(FOLDER_VARIABLE, keep_after=TraceFailed) as folder:
            _work(folder, seed, output, json_file)
    except TraceFailed:
        say(f"The logs stay in {folder}.")
        sys.exit(1)
    except KeyboardInterrupt:
        say("Interrupted.")
        sys.exit(128 + signal.SIGINT)


def _work(folder: Path, seed: int, output: Path, json_file: Path | None) -> None:
    # Ray reads its environment when it is imported.
    from scale_trace.picture import draw
    from scale_trace.run import run

    with (folder / "driver.log").open("w") as log, redirect_stdout(log):
        trace, results = asyncio.run(run(folder, seed))
    numbers = summary(trace, results)
    wrong = list(problems(numbers, results))
    draw(trace, numbers, output)
    if json_file:
        told = {"summary": numbers, "problems": wrong, "trace": trace}
        json_file.write_bytes(msgspec.json.encode(told) + b"\n")
    for line in (*telling(trace, numbers), *wrong):
        say(line)
    if wrong:
        raise TraceFailed


if __name__ == "__main__":
    main()
