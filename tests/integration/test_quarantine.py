"""A task that kills its actor each time is given up; those beside it are not harmed."""

import pytest
from support.crashing import deadly_actor
from support.nats import NatsServer
from support.processes import kill_one
from support.service import RunningService, running_service
from support.until import until

from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

POISON = "poison"
MAX_ATTEMPTS = 2
SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=300)))


@pytest.mark.parametrize(
    ("actors", "supervisor_dies"),
    [(1, False), (2, False), (2, True)],
    ids=["one actor", "two actors", "the supervisor dies too"],
)
async def test_a_task_that_kills_its_actor_each_time_ends_as_poison_and_no_other_does(
    nats_server: NatsServer, actors: int, *, supervisor_dies: bool
):
    bystanders = [f"bystander-{number}" for number in range(12)]
    async with (
        running_model_server(SLOW) as model,
        running_service(
            nats_server,
            model.url,
            build_actor=deadly_actor(POISON),
            actors=actors,
            slots=4,
            max_attempts=MAX_ATTEMPTS,
            ack_wait_s=5,
        ) as running,
    ):
        for task_id in [*bystanders[:6], POISON, *bystanders[6:]]:
            await running.publish(task_id)
        if supervisor_dies:
            await until_suspected(running)
            kill_one("ray::Supervisor")
        results = {result.task_id: result for result in await running.results(13)}
        assert await running.announced() == dict.fromkeys([POISON, *bystanders], 1)
        poisoned = results.pop(POISON)
        assert (poisoned.status, poisoned.error_type) == ("failed", "PoisonTask")
        assert {result.status for result in results.values()} == {"completed"}
        assert (await running.record(POISON)).deaths == MAX_ATTEMPTS
        for task_id in bystanders:
            assert (await running.record(task_id)).deaths == 0
        (letter,) = await running.dead_letters()
        assert POISON.encode() in (letter.data or b"")


async def until_suspected(running: RunningService) -> None:
    async def suspected() -> bool:
        found = (await JetStreamLedger(running.link).read(POISON)).record
        return found is not None and found.suspect

    await until(suspected)
