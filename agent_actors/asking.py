"""Which tasks of an actor want something of the model just now, and where each of them asks.

A task counts as asking from when it is taken until it has its answer, and again with each further
request; between two turns, while its tools work, it rests. Strategies know nothing of it: a task
finds its `Asker` in its context, where the actor has put it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, Self, TypeVar

T = TypeVar("T")


def _ignore() -> None:
    pass


class Askers:
    """The tasks of one actor; `on_rest` is called when one of them has an answer."""

    def __init__(self, on_rest: Callable[[], None] = _ignore) -> None:
        self.resting = 0
        self.on_rest = on_rest


class Asker:
    """One task. `endpoint` is where it asked before: its words are in that one's prefix cache."""

    __slots__ = ("_all", "_is_resting", "_requests", "endpoint")

    def __init__(self, everybody: Askers | None = None) -> None:
        self.endpoint: object = None
        self._all = everybody or Askers()
        self._requests = 0
        self._is_resting = False

    def __enter__(self) -> Self:
        """Ask the model; with the end of the block the task has its answer."""
        self._requests += 1
        self._rest(is_resting=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._requests -= 1
        if not self._requests:
            self._rest(is_resting=True)
            self._all.on_rest()

    def leave(self) -> None:
        """Take note that the task has ended."""
        self._rest(is_resting=False)

    def _rest(self, *, is_resting: bool) -> None:
        self._all.resting += is_resting - self._is_resting
        self._is_resting = is_resting


_current: ContextVar[Asker | None] = ContextVar("asker", default=None)


def current_asker() -> Asker:
    """Return the task in whose context this is called, or one that stands for nobody."""
    return _current.get() or Asker()


def start_as(asker: Asker, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work in a context of its own, in which `asker` is the current one."""
    context = copy_context()
    context.run(_current.set, asker)
    return asyncio.create_task(work, context=context)
