"""A service in the foreground: started or found, told of when ready, watched, drained.

Importing this imports Ray.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

import click
import structlog

from agent_actors import __version__
from agent_actors.adapters.ray_runtime import (
    Service,
    connect_ray,
    disconnect_ray,
    start_local_ray,
    start_service,
)
from agent_actors.cli.foreground import (
    StartInterrupted,
    ignore_stop_signals,
    take_stop_signals,
)
from agent_actors.config import Config
from agent_actors.contract import ServiceStatus
from agent_actors.errors import ServiceUnreachable
from agent_actors.following import FollowedConfig
from agent_actors.kept import KeptService

CONNECT_TIMEOUT_S = 5.0
ASK_EVERY_S = 10.0
LOST_AFTER_S = 60.0

log = structlog.get_logger()


@contextmanager
def connected_ray(config: Config, metadata: Mapping[str, str] | None = None) -> Generator[None]:
    """Stay connected to the Ray cluster that is configured. Raises ServiceUnreachable."""
    _check_reachable(config.ray.address or os.environ.get("RAY_ADDRESS", ""))
    with _stoppable_ray(lambda: connect_ray(config.ray, metadata)):
        yield


@contextmanager
def local_ray(config: Config, *, temp_dir: str, verbose: bool) -> Generator[None]:
    """Run a Ray of our own; `verbose` brings its workers' logs here."""
    with _stoppable_ray(lambda: start_local_ray(config, temp_dir=temp_dir, log_to_driver=verbose)):
        yield


def run_service(
    config: Config,
    runner: asyncio.Runner,
    *,
    say_ready: Callable[[ServiceStatus], None],
    watch_also: Callable[[], Coroutine[Any, Any, object]],
    followed: FollowedConfig | None = None,
    provisions: bool = True,
    ready_within_s: float | None = None,
) -> None:
    """Start the service, or find the one that runs, and stay until it is drained.

    What is `followed` is taken over when it is edited. Returns when somebody else has drained
    the service, or another one has taken over; a signal drains it too, and raises
    KeyboardInterrupt when that is done. Raises ServiceUnreachable when it does not get ready in
    time, or is lost, or when `watch_also` raises it.
    """
    kept = KeptService(partial(start_service, provisions=provisions), config)
    try:
        if _is_ready(kept.service, ready_within_s):
            status = kept.service.status()
            _note_version(status)
            say_ready(status)
            runner.run(_watch(kept, followed, watch_also))
        else:
            _say_superseded()
    except KeyboardInterrupt:
        _drain(kept)
        raise


def _check_reachable(address: str) -> None:
    """Raise ServiceUnreachable when nothing listens there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return  # Ray finds it by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ServiceUnreachable(
            f"cannot connect to Ray at {address}: {error.strerror or error}; see ray.address"
        ) from error


@contextmanager
def _stoppable_ray(start: Callable[[], None]) -> Generator[None]:
    """Stay with a Ray. What it prints, such as complaints of its nodes, goes to stderr."""
    with redirect_stdout(sys.stderr):
        try:
            _start(start)
            take_stop_signals()
            yield
        finally:
            disconnect_ray()


def _start(start: Callable[[], None]) -> None:
    try:
        start()
    except (KeyboardInterrupt, SystemExit) as error:  # Ray makes SystemExit of SIGTERM
        raise StartInterrupted from error


def _is_ready(service: Service, timeout_s: float | None) -> bool:
    """Wait until all actors answer, without a limit for ever, and log what is missing.

    Returns False when another service takes over first.
    """
    began = time.monotonic()
    while True:
        try:
            service.wait_ready(ASK_EVERY_S)
        except ServiceUnreachable as error:
            if (fate := service.fate()) == "superseded":
                return False
            if fate:
                raise
            reason = _what_is_missing(service) or str(error)
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise ServiceUnreachable(f"not ready after {timeout_s:g} s: {reason}") from error
            log.warning("service.not_ready", reason=reason)
        else:
            return True


def _note_version(status: ServiceStatus) -> None:
    """Warn when Ray's workers have another version of the package than this process."""
    if status.version != __version__:
        log.warning(
            "service.other_version",
            here=__version__,
            workers=status.version,
            remedy="have the runtime_env of the Ray job bring this version",
        )


def _say_superseded() -> None:
    click.echo("Another service has taken over: this one ends.", err=True)


def _what_is_missing(service: Service) -> str:
    try:
        pools = service.status(timeout_s=5.0).pools
    except ServiceUnreachable:
        return ""
    reasons = [f"pool {pool.name}: {pool.reason}" for pool in pools if pool.reason]
    silent = [actor.agent_id for pool in pools for actor in pool.actors if actor.state != "running"]
    if silent:
        reasons.append(f"waiting for {', '.join(silent)}, for which Ray may lack the resources")
    return "; ".join(reasons)


async def _watch(
    kept: KeptService,
    followed: FollowedConfig | None,
    watch_also: Callable[[], Coroutine[Any, Any, object]],
) -> None:
    """Return once the service has ended; raise what ends it otherwise."""
    ended = asyncio.ensure_future(kept.ended())
    following = [kept.follow(followed)] if followed else []
    trouble = asyncio.gather(_until_lost(kept), watch_also(), *following)
    try:
        await asyncio.wait([ended, trouble], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await trouble
        elif await ended == "drained":
            kept.service.kill()
        else:
            _say_superseded()
    finally:
        ended.cancel()
        trouble.cancel()
        await asyncio.gather(ended, trouble, return_exceptions=True)  # and hear of their errors


async def _until_lost(kept: KeptService) -> None:
    """Wait for the service to be silent for a minute: a supervisor that died comes back."""
    heard = time.monotonic()
    while True:
        await asyncio.sleep(ASK_EVERY_S)
        try:
            await asyncio.to_thread(kept.service.status)
        except ServiceUnreachable as error:
            log.warning("service.silent", reason=str(error))
            if time.monotonic() - heard > LOST_AFTER_S:
                raise
        else:
            heard = time.monotonic()


def _drain(kept: KeptService) -> None:
    """Stop the service; a second signal has it give its tasks back now, a third kills it."""
    try:  # whoever has read the words may send the next signal before there is more
        click.echo(
            "Stopping: running tasks may finish; another signal gives them back now, to run later.",
            err=True,
        )
        kept.stop()
    except KeyboardInterrupt:
        _hurry(kept)
    ignore_stop_signals()


def _hurry(kept: KeptService) -> None:
    try:
        click.echo("Giving back what runs; another signal ends it all at once.", err=True)
        kept.stop(0.0)
    except KeyboardInterrupt:
        kept.service.kill()
        log.warning("service.killed")
