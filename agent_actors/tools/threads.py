"""Threads for what blocks: files, searches, and programs that are waited for.

Those of the event loop stay free, since all names of hosts are looked up there. What the model
may make slow has threads of its own, so that it holds up nothing but its like.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """At most `count` threads, made when they are needed; what finds none free waits its turn."""

    def __init__(self, name: str, count: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns; when cancelled, it goes on only if it has begun."""
        return await asyncio.wrap_future(self.start(function, *args, **kwargs))

    async def see_to(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns; when cancelled, it is done all the same."""
        return await asyncio.shield(asyncio.wrap_future(self.start(function, *args, **kwargs)))

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the function run, in the caller's context."""
        call = partial(function, *args, **kwargs)
        return self._executor.submit(copy_context().run, call)


TOOLS = Threads("tool", 16)
SEARCHES = Threads("search", 8)
UPKEEP = Threads("upkeep", 16)  # making and removing workspaces, telling what has changed
