"""Waiting for what is away: the same call again, until there is an answer."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from agent_actors.errors import AgentActorsError, PublishFailed

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SILENT_PAUSE_S = 1.0
BUILD_PAUSE_S = 1.0

T = TypeVar("T")

log = structlog.get_logger()


async def until_answered(ask: Callable[[], Awaitable[T]]) -> T:
    """Repeat what may be repeated while NATS gives no answer."""
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await ask()
        except PublishFailed as error:
            if pause_s > SILENT_PAUSE_S:
                log.warning("nats.no_answer", error=str(error))
            pause_s = await pause(pause_s)


async def until_built(
    build: Callable[[], Awaitable[T]],
    what: str,
    on_trouble: Callable[[AgentActorsError], None] = lambda _: None,
) -> T:
    """Repeat until it stands: what is missing at the start may come."""
    while True:
        try:
            return await build()
        except AgentActorsError as error:
            log.warning("service.not_ready", part=what, error=str(error))
            on_trouble(error)
            await pause(BUILD_PAUSE_S)


async def pause(longest_s: float) -> float:
    """Sleep for `longest_s` seconds or a little less; return how long to sleep next time."""
    await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
    return min(longest_s * 2, LONGEST_PAUSE_S)
