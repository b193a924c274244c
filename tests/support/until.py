"""Waiting for what gives no signal: a file, a process, a count in a server."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

POLL_S = 0.02


async def until(condition: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 30) -> None:
    """Return once the condition holds. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await _holds(condition):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(POLL_S)


async def _holds(condition: Callable[[], bool | Awaitable[bool]]) -> bool:
    answer = condition()
    return await answer if inspect.isawaitable(answer) else answer
