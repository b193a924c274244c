"""`up`: everything on this machine, for development: what is not configured is started.

NATS and the model server are processes of their own, so they get ready while Ray starts.
"""

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import click

from agent_actors.cli.foreground import (
    ignore_stop_signals,
    say_ready,
    until_signalled,
)
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.provision import prepare_streams
from agent_actors.config import Config
from agent_actors.errors import ServiceUnreachable
from agent_actors.following import FollowedConfig
from agent_actors.local.ray_environment import prepare_local_ray
from agent_actors.local.run_folder import run_folder
from agent_actors.local.up import LocalParts
from agent_actors.observe.logs import configure_logs

PORT_OF_NATS = 4222
READY_WITHIN_S = 120.0
RAY_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class Options(TypedDict):
    """What the command line gives."""

    port: int
    data_dir: Path | None
    vllm_url: str | None
    verbose: bool
    as_json: bool


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT_OF_NATS,
    show_default=True,
    help="Port of the NATS that is started; 0: the system chooses.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where that NATS keeps its streams.  [default: ~/.local/share/agent-actors]",
)
@click.option("--vllm-url", metavar="URL", help="Use this vLLM, not the simulated model server.")
@click.option("--verbose", is_flag=True, help="Show the logs of all processes.")
@json_option
@shared_options
@click.pass_obj
def up(invocation: Invocation, **options: Unpack[Options]) -> None:
    """Run everything on this machine, for development.

    That is NATS, a simulated model server, Ray, and the service; what the configuration names
    is used and not started. One line on stdout tells when tasks may come; Ctrl-C or SIGTERM
    drains and stops it all.
    """
    url = options["vllm_url"]
    overrides = {"AGENT_ACTORS_VLLM_URLS": url} if url else {}
    followed = FollowedConfig(invocation.config_file, partial(invocation.load, overrides))
    level = "debug" if invocation.debug else "info" if options["verbose"] else "warning"
    configure_logs("up", level=level)
    say = partial(say_ready, out=sys.stdout, as_json=options["as_json"])
    click.echo("Starting; this takes some seconds.", err=True)
    with (
        until_signalled(),
        asyncio.Runner() as runner,
        run_folder("RAY_TMPDIR", keep_after=ServiceUnreachable) as folder,
    ):
        try:
            _run(followed, options, runner, folder, level=level, say=say)
        except ServiceUnreachable as error:
            raise ServiceUnreachable(f"{error}. Logs are kept in {folder}.") from error


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return the folder for our data, where the XDG base directory specification has it."""
    home = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME", "/"), ".local/share")
    return Path(home) / "agent-actors"


def _run(
    followed: FollowedConfig,
    options: Options,
    runner: asyncio.Runner,
    folder: Path,
    *,
    level: str,
    say: Callable[..., None],
) -> None:
    """Run the service with all its parts, until a signal."""
    config = followed.load()
    data_dir = options["data_dir"] or default_data_dir(os.environ)
    parts = LocalParts(config, data_dir=data_dir, run_dir=folder, port=options["port"])
    try:
        runner.run(parts.start())
        with _ray(config, folder, verbose=options["verbose"], level=level) as run_service:
            located = runner.run(parts.ready())
            followed.located = parts.located
            runner.run(prepare_streams(located))
            run_service(
                located,
                runner,
                say_ready=partial(say, located, simulated=not config.vllm.urls, logs=str(folder)),
                watch_also=parts.watch,
                followed=followed,
                ready_within_s=READY_WITHIN_S,
            )
    finally:
        ignore_stop_signals()
        runner.run(parts.stop())


@contextmanager
def _ray(
    config: Config, folder: Path, *, verbose: bool, level: str
) -> Generator[Callable[..., None]]:
    """Start a Ray, or connect to the one configured; give what runs a service on it."""
    if not config.ray.address:
        prepare_local_ray()
        _keep_ray_token_in(folder)
    from agent_actors.cli import running  # noqa: PLC0415 - importing Ray reads the environment

    configure_logs("up", level=level)  # once more, since importing Ray changes logging
    logging.getLogger("ray").setLevel(level.upper())
    if config.ray.address:
        with running.connected_ray(config):
            yield running.run_service
    else:
        with running.local_ray(config, temp_dir=str(folder / "r"), verbose=verbose):
            yield running.run_service


def _keep_ray_token_in(folder: Path) -> None:
    """Have Ray guard itself with a token, kept where we can write: the home may be read-only."""
    if not any(name in os.environ for name in RAY_AUTH):
        token = folder / "ray-token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
