"""Processes without processes: event loops under one seeded scheduler, in virtual time.

Each `Process` is an event loop of its own, as a process has one. The `Scheduler` runs the next
step of any of them, chosen at random among all that could run now; when none could, time jumps
to the next timer. So one seed is one interleaving of every await, and the same one each time.

A killed process takes no further step, whatever it was about to do; a frozen one takes its
steps when it thaws. What passes between processes is a callback that is posted to the other one.
"""

import asyncio
import contextvars
import heapq
import math
import random
from asyncio.events import _set_running_loop
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

Callback = Callable[..., object]


class Stuck(Exception):
    """Steps are taken for ever, and time does not go on."""


class Step:
    """A callback of one process that is to run, now or at a time; asyncio calls it a handle."""

    __slots__ = ("args", "at", "callback", "context", "is_cancelled", "process")

    def __init__(
        self,
        process: "Process",
        callback: Callback,
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        at: float = 0.0,
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context or contextvars.copy_context()
        self.at = at
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.at


class SeededTask(asyncio.Task[Any]):
    """A task with a hash that does not depend on its address: sets of them keep their order."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class Process(asyncio.AbstractEventLoop):
    """One process: its tasks, and whether it lives."""

    def __init__(self, scheduler: "Scheduler", name: str) -> None:
        self.name = name
        self.is_alive = True
        self._scheduler = scheduler
        self._tasks: list[SeededTask] = []
        self._frozen: list[Step] | None = None

    def kill(self) -> None:
        self.is_alive = False

    def freeze(self) -> None:
        if self._frozen is None:
            self._frozen = []

    def thaw(self) -> None:
        steps, self._frozen = self._frozen, None
        for step in steps or ():
            self._scheduler.ready(step)

    def holds_back(self, step: Step) -> bool:
        """Tell whether the step may not be taken now; a frozen process keeps it for later."""
        if self._frozen is not None:
            self._frozen.append(step)
        return self._frozen is not None or not self.is_alive

    def post(self, delay_s: float, callback: Callback, *args: Any) -> None:
        """Have this process run the callback, called from anywhere."""
        if delay_s > 0:
            self._scheduler.later(
                Step(self, callback, args, self._scheduler.context, self.time() + delay_s)
            )
        else:
            self._scheduler.ready(Step(self, callback, args, self._scheduler.context))

    def close(self) -> None:
        """Let go of all tasks, without a word about those that have not ended or not begun."""
        for task in self._tasks:
            if not task.done():
                with suppress(BaseException):  # it would go on, and cannot
                    task.get_coro().close()

    # What asyncio asks of an event loop.

    def call_soon(
        self, callback: Callback, *args: Any, context: contextvars.Context | None = None
    ) -> Step:
        step = Step(self, callback, args, context)
        self._scheduler.ready(step)
        return step

    def call_later(
        self,
        delay: float,
        callback: Callback,
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Step:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callback,
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Step:
        step = Step(self, callback, args, context, when)
        self._scheduler.later(step)
        return step

    def time(self) -> float:
        return self._scheduler.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **how: Any) -> SeededTask:
        task = SeededTask(coro, loop=self, **how)
        task.number = self._scheduler.next_number()
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Say nothing: what a task raises is told by whoever awaits it."""


class Scheduler:
    """All processes of one history, and its time, in seconds since its beginning."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.context = contextvars.copy_context()
        self.processes: list[Process] = []
        self._ready: list[Step] = []
        self._timers: list[tuple[float, int, Step]] = []
        self._at_steps: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = 0

    def process(self, name: str) -> Process:
        process = Process(self, name)
        self.processes.append(process)
        return process

    def at_step(self, step: int, action: Callable[[], None]) -> None:
        """Have something happen, to any process, once so many steps are taken."""
        heapq.heappush(self._at_steps, (step, self.next_number(), action))

    def forget_actions(self) -> None:
        self._at_steps.clear()

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def ready(self, step: Step) -> None:
        self._ready.append(step)

    def later(self, step: Step) -> None:
        heapq.heappush(self._timers, (step.at, self.next_number(), step))

    def run(
        self,
        until: Callable[[], bool],
        *,
        limit_s: float,
        most_steps: int,
        on_error: Callable[[Process, Exception], None],
    ) -> bool:
        """Take steps until this holds while nothing can run; tell whether it came to that.

        A callback that raises is told to `on_error`. Raises Stuck.
        """
        most_steps += self.steps
        while True:
            if not self._ready:
                if until():
                    return True
                if not self._let_time_pass(limit_s):
                    return False
            step = self._take()
            if step.is_cancelled or step.process.holds_back(step):
                continue
            self.steps += 1
            if self.steps > most_steps:
                raise Stuck
            _set_running_loop(step.process)
            try:
                step.context.run(step.callback, *step.args)
            except Exception as error:  # noqa: BLE001 - the history goes on, and tells of it
                on_error(step.process, error)
            if self._at_steps and self.steps >= self._at_steps[0][0]:
                self._act()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            _set_running_loop(process)
            process.close()
        _set_running_loop(None)

    def _take(self) -> Step:
        ready = self._ready
        index = int(self.random.random() * len(ready)) if len(ready) > 1 else 0
        step = ready[index]
        ready[index] = ready[-1]
        ready.pop()
        return step

    def _let_time_pass(self, limit_s: float) -> bool:
        """Make ready what is due next; tell whether there is something before the limit."""
        while self._timers and self._timers[0][2].is_cancelled:
            heapq.heappop(self._timers)
        due = self._timers[0][0] if self._timers else math.inf
        if due > limit_s:
            return False
        self.now = max(self.now, due)
        while self._timers and self._timers[0][0] <= due:
            self._ready.append(heapq.heappop(self._timers)[2])
        return True

    def _act(self) -> None:
        while self._at_steps and self.steps >= self._at_steps[0][0]:
            _, _, action = heapq.heappop(self._at_steps)
            action()


@contextmanager
def scheduled(seed: int) -> Iterator[Scheduler]:
    """Have a scheduler, whose processes are gone afterwards; other dice are loaded too."""
    scheduler = Scheduler(seed)
    random.seed(seed)
    try:
        yield scheduler
    finally:
        scheduler.close()
