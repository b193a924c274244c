"""What `up` and `serve` have in common: they run until a signal, and say when they are ready."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

import click
from msgspec import Struct

from agent_actors.config import Config
from agent_actors.config_types import mask_address
from agent_actors.contract import ServiceStatus, encode


class Ready(Struct, frozen=True, kw_only=True):
    """What is told when all is ready; `logs` is a folder, empty when the logs are Ray's own."""

    nats_url: str
    vllm_urls: list[str]
    simulated: bool
    pools: dict[str, int]
    logs: str


class StartInterrupted(KeyboardInterrupt):
    """A signal came while Ray was starting; it cannot end in order then, and aborts at exit."""


@contextmanager
def until_signalled() -> Generator[None]:
    """Have SIGTERM and SIGINT raise KeyboardInterrupt in the block, and end it in good order."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    take_stop_signals()
    try:
        yield
    except KeyboardInterrupt as interrupt:
        click.echo("Stopped.", err=True)
        if isinstance(interrupt, StartInterrupted):
            sys.stdout.flush()
            os._exit(0)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def take_stop_signals() -> None:
    """Take the signals (again: Ray takes SIGTERM for itself when it starts).

    SIGTERM becomes SIGINT, which asyncio knows how to turn into a cancellation. A shell starts
    background jobs with SIGINT ignored, so that is set as well.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


def ignore_stop_signals() -> None:
    """Let nothing interrupt what is left to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def say_ready(
    config: Config,
    status: ServiceStatus,
    *,
    out: TextIO,
    as_json: bool,
    simulated: bool = False,
    logs: str = "",
) -> None:
    """Print the one line that tells that tasks may come."""
    ready = Ready(
        nats_url=mask_address(config.nats.url),
        vllm_urls=[mask_address(url) for url in config.vllm.urls],
        simulated=simulated,
        pools={pool.name: len(pool.actors) for pool in status.pools},
        logs=logs,
    )
    if as_json:
        click.echo(encode(ready), file=out)
        return
    pools = ", ".join(f"{name} ({actors} actors)" for name, actors in ready.pools.items())
    parts = [
        f"Ready: NATS {ready.nats_url}",
        f"model {', '.join(ready.vllm_urls)}{' (simulated)' if simulated else ''}",
        f"pools {pools}",
        f"logs {logs}" if logs else "",
    ]
    click.echo(" | ".join(part for part in parts if part), file=out)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)
