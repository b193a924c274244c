"""Lanes over a real NATS: what is asked is answered, or it is known that it is not."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from support.lanes import build_without_a_lane
from support.nats import NatsServer
from support.service import running_service

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.lanes import Lane, open_lane
from agent_actors.config import NatsConfig
from agent_actors.errors import PublishFailed
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings
from agent_actors.ports import Answer

pytestmark = pytest.mark.nats

WITHIN_S = 5.0


class Ends(NamedTuple):
    """Who asks, and who answers."""

    supervisor: Connection
    actor: Connection

    async def lane(self, answer: Answer) -> Lane:
        subject = await open_lane(self.actor, answer)
        await self.actor.nc.flush()
        return Lane(self.supervisor, subject)


@pytest.fixture
async def ends(nats_server: NatsServer) -> AsyncIterator[Ends]:
    config = NatsConfig(url=nats_server.url)
    ends = Ends(await connect(config, name="supervisor"), await connect(config, name="actor"))
    yield ends
    for connection in ends:
        await connection.close()


async def echo(request: bytes) -> bytes:
    return request


async def test_a_question_that_takes_its_time_holds_up_no_other(ends: Ends):
    news = asyncio.Event()

    async def answer(request: bytes) -> bytes:
        if request == b"news?":
            await news.wait()
        return request.upper()

    lane = await ends.lane(answer)
    slow = asyncio.create_task(lane.ask(b"news?", WITHIN_S))
    assert await lane.ask(b"take this", WITHIN_S) == b"TAKE THIS"
    assert not slow.done()
    news.set()
    assert await slow == b"NEWS?"


async def test_what_is_not_answered_in_time_is_told_so(ends: Ends):
    async def never(_: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    lane = await ends.lane(never)
    assert await lane.ask(b"news?", within_s=0.05) is None


async def test_what_the_other_end_cannot_answer_harms_nothing_else(ends: Ends):
    async def answer(request: bytes) -> bytes:
        if request == b"wrong":
            raise PublishFailed("no")
        return request

    lane = await ends.lane(answer)
    assert await lane.ask(b"wrong", within_s=0.05) is None
    assert await lane.ask(b"right", WITHIN_S) == b"right"


async def test_an_end_that_is_gone_does_not_answer(ends: Ends):
    lane = await ends.lane(echo)
    await ends.actor.close()
    assert await lane.ask(b"news?", within_s=0.5) is None


async def test_without_a_connection_nothing_is_asked(ends: Ends):
    lane = await ends.lane(echo)
    await ends.supervisor.close()
    assert await lane.ask(b"news?", WITHIN_S) is None


async def test_what_is_too_big_for_a_message_is_not_sent(ends: Ends):
    asked: list[bytes] = []

    async def answer(request: bytes) -> bytes:
        asked.append(request)
        return b"taken"

    lane = await ends.lane(answer)
    assert await lane.ask(bytes(ends.supervisor.nc.max_payload), WITHIN_S) is None
    assert await lane.ask(b"small", WITHIN_S) == b"taken"
    assert asked == [b"small"]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
async def test_where_a_lane_leads_nowhere_tasks_go_through_ray(nats_server: NatsServer):
    async with (
        running_model_server(ModelServerSettings()) as model,
        running_service(nats_server, model.url, build_actor=build_without_a_lane) as running,
    ):
        tasks = [f"task-{number}" for number in range(50)]
        for task_id in tasks:
            await running.publish(task_id)
        assert await running.announced() == dict.fromkeys(tasks, 1)
        assert {(await running.record(task_id)).attempt for task_id in tasks} == {1}
