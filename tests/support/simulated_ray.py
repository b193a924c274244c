"""Ray in memory, for the processes of `seeded_loop`: named actors that are restarted for ever.

A call to an actor is a message there and one back; when the actor's process ends, whoever waits
for an answer hears of it a little later, and another process takes its place.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from support.memory_bus import Bus
from support.seeded_loop import Process

from agent_actors.actor import AgentActor
from agent_actors.config import Resources
from agent_actors.errors import ActorLost
from agent_actors.ports import ActorReport, ActorSettings, Delivery

LONGEST_START_S = 1.5
LONGEST_NOTICE_S = 1.5
STOP_MARGIN_S = 30.0
SUBMIT_TIMEOUT_S = 30.0

NewActor = Callable[[Process, ActorSettings], AgentActor]


class Call(NamedTuple):
    """A call under way, and who waits for its answer."""

    verb: str
    args: tuple[Any, ...]
    how: dict[str, Any]
    caller: Process
    answer: asyncio.Future[Any]


class Life:
    """One process of a named actor, from its start to its end.

    Calls to the first one wait until it has started; while another one takes its place they fail.
    They are taken in the order in which they were made, by whomever.
    """

    def __init__(self, process: Process, settings: ActorSettings, *, is_first: bool) -> None:
        self.process = process
        self.settings = settings
        self.actor: AgentActor | None = None
        self.calls: list[Call] = []
        self.under_way: deque[Call] = deque()
        self._is_first = is_first
        self._early: list[Call] = []

    def begin(self, actor: AgentActor) -> None:
        self.actor = actor
        for call in self._early:
            self.answer(call)

    def take_next(self) -> None:
        call = self.under_way.popleft()
        if self.actor:
            self.answer(call)
        elif self._is_first:
            self._early.append(call)
        else:
            call.caller.post(0.0, lose, call.answer, "it is being restarted")

    def answer(self, call: Call) -> None:
        """Run the method in the actor's own process; it goes on if the caller gives up."""
        verb = getattr(self.actor, call.verb)
        answering = self.process.create_task(verb(*call.args, **call.how))
        answering.add_done_callback(lambda answered: self._send_back(call, answered))

    def _send_back(self, call: Call, answered: asyncio.Task[Any]) -> None:
        if answered.cancelled() or answered.exception():
            call.caller.post(0.0, lose, call.answer, "its method failed")
        else:
            call.caller.post(0.0, give, call.answer, answered.result())


class SimulatedRay:
    """The cluster. `lives` has the newest process of each actor; none, once it has been ended."""

    def __init__(self, bus: Bus, new_actor: NewActor) -> None:
        self.bus = bus
        self.lives: dict[str, Life] = {}
        self._new_actor = new_actor
        self._started = 0

    def start(self, settings: ActorSettings) -> None:
        """Start the actor of this name, if there is none."""
        if settings.agent_id not in self.lives:
            self._spawn(settings)

    def kill(self, agent_id: str, *, restart: bool = True) -> None:
        """End the actor's process at once; another one takes its place, or none ever.

        Until that is noticed, calls go to the process that is dead.
        """
        life = self.lives.get(agent_id)
        if life is None:
            return
        self.bus.tell("ray", "kills" if restart else "ends", process=life.process)
        life.process.kill()
        self.bus.forget_process(life.process)
        notice_s = self.bus.weather.up_to(LONGEST_NOTICE_S) if restart else 0.0
        self.bus.server.post(notice_s, self._notice, life, restart)

    def send(self, agent_id: str, call: Call) -> None:
        """Have the call taken there; in bad weather it is lost on one of the two ways."""
        life = self.lives.get(agent_id)
        weather = self.bus.weather
        if weather.happens(weather.lost_calls):
            self.bus.tell("ray", "loses", verb=call.verb, to=agent_id)
            call.caller.post(weather.up_to(LONGEST_NOTICE_S), lose, call.answer, "the call is lost")
            call = call._replace(answer=call.caller.create_future())
            if weather.happens(0.5):
                return
        if life is None:
            call.caller.post(0.0, lose, call.answer, "there is no such actor")
        else:
            life.calls.append(call)
            life.under_way.append(call)
            life.process.post(weather.delay_s(), life.take_next)

    def _notice(self, life: Life, restart: bool) -> None:  # noqa: FBT001 - posted
        agent_id = life.settings.agent_id
        if self.lives.get(agent_id) is life:
            del self.lives[agent_id]
            if restart:
                self._spawn(life.settings, is_first=False)
        for call in life.calls:
            call.caller.post(0.0, lose, call.answer, "its process has ended")

    def _spawn(self, settings: ActorSettings, *, is_first: bool = True) -> None:
        self._started += 1
        process = self.bus.scheduler.process(f"{settings.agent_id}#{self._started}")
        life = self.lives[settings.agent_id] = Life(process, settings, is_first=is_first)
        process.post(
            self.bus.weather.up_to(LONGEST_START_S),
            lambda: life.begin(self._new_actor(process, settings)),
        )


class Runtime:
    """The cluster as a process has it: an `ActorRuntime`."""

    def __init__(self, ray: SimulatedRay, process: Process) -> None:
        self._ray = ray
        self._process = process

    async def existing(self) -> list[str]:
        await asyncio.sleep(0)
        return list(self._ray.lives)

    async def find(self, agent_id: str) -> "RemoteActor":
        await asyncio.sleep(0)
        if agent_id not in self._ray.lives:
            raise ActorLost("there is no such actor")
        return RemoteActor(self._ray, self._process, agent_id)

    async def start(self, settings: ActorSettings) -> "RemoteActor":
        await asyncio.sleep(0)
        self._ray.start(settings)
        return RemoteActor(self._ray, self._process, settings.agent_id)

    async def lacking(self, resources: Resources) -> str:
        return ""


class RemoteActor:
    """An actor as somebody in another process has it: an `ActorHandle`."""

    def __init__(self, ray: SimulatedRay, caller: Process, agent_id: str) -> None:
        self._ray = ray
        self._caller = caller
        self._agent_id = agent_id

    async def look(self) -> ActorReport:
        return await self._call(None, "look")

    async def hello(self, supervisor_id: str) -> ActorReport:
        return await self._call(None, "hello", supervisor_id)

    async def submit(
        self, supervisor_id: str, batch: Sequence[Delivery], *, alone: bool = False
    ) -> ActorReport:
        held = [each.id for each in batch]
        tell = self._ray.bus.tell
        tell(self._caller.name, "hands over", to=self._agent_id, held=held, alone=alone)
        return await self._call(SUBMIT_TIMEOUT_S, "submit", supervisor_id, list(batch), alone=alone)

    async def completions(self, supervisor_id: str) -> ActorReport:
        return await self._call(None, "completions", supervisor_id)

    async def kill(self) -> None:
        self._ray.kill(self._agent_id)

    async def stop(self, grace_s: float) -> None:
        """Drain and end it; who gives up waiting leaves it draining."""
        try:
            await self._call(grace_s + STOP_MARGIN_S, "stop", grace_s)
        except ActorLost:
            await self.end()
            raise
        await self.end()

    async def end(self) -> None:
        await asyncio.sleep(0)
        self._ray.kill(self._agent_id, restart=False)

    async def _call(self, timeout_s: float | None, verb: str, *args: Any, **how: Any) -> Any:
        call = Call(verb, args, how, self._caller, self._caller.create_future())
        self._ray.send(self._agent_id, call)
        try:
            async with asyncio.timeout(timeout_s):
                return await call.answer
        except TimeoutError as error:
            raise ActorLost(f"no answer within {timeout_s:g} s") from error


def give(answer: asyncio.Future[Any], value: Any) -> None:
    if not answer.done():
        answer.set_result(value)


def lose(answer: asyncio.Future[Any], why: str) -> None:
    if not answer.done():
        answer.set_exception(ActorLost(why))
