"""A steady load on a running service, and whether something has disturbed it."""

import asyncio
import itertools

from support.serving import Serving

from agent_actors.contract import AgentResult, AgentTask

RATE = 20.0


class SteadyLoad:
    """Tasks at a steady rate; `finish` returns how all of them have ended."""

    def __init__(self, service: Serving, role: str = "dev") -> None:
        self._service = service
        self._role = role
        self._tasks: list[str] = []
        self._numbers = itertools.count()
        self._publishing = asyncio.create_task(self._publish())

    async def burst(self, count: int) -> None:
        """Publish so many at once."""
        await asyncio.gather(*(self._publish_one() for _ in range(count)))

    async def finish(self) -> list[AgentResult]:
        """Publish no more, and return the one result of each task."""
        self._publishing.cancel()
        await asyncio.wait([self._publishing])
        return list((await self._service.results(self._tasks)).values())

    async def _publish(self) -> None:
        while True:
            await self._publish_one()
            await asyncio.sleep(1 / RATE)

    async def _publish_one(self) -> None:
        task_id = f"{self._role}-{next(self._numbers)}"
        task = AgentTask(task_id=task_id, task_description="do it", role=self._role)
        await self._service.client.submit(task)
        self._tasks.append(task_id)


def assert_undisturbed(results: list[AgentResult]) -> None:
    assert results
    assert {(each.status, each.attempt) for each in results} == {("completed", 1)}
