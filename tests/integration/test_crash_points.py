"""An actor killed at each point of a delivery: one record, one result, nothing lost."""

from pathlib import Path

import msgspec
import pytest
from support.crashing import POINTS, crashing_actor
from support.nats import NatsServer
from support.service import RunningService, running_service
from support.until import until

from agent_actors.contract import AgentResult
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

VICTIM = "victim"
# Longer than the test may take: nobody can wait for JetStream to hand the task out again.
ACK_WAIT_S = 100


@pytest.mark.parametrize("point", POINTS)
async def test_a_task_whose_actor_dies_ends_once(
    point: str, nats_server: NatsServer, tmp_path: Path
):
    marker = tmp_path / "died"
    async with (
        running_model_server(ModelServerSettings()) as model,
        running_service(
            nats_server,
            model.url,
            build_actor=crashing_actor(point, VICTIM, marker),
            actors=2,
            slots=4,
            ack_wait_s=ACK_WAIT_S,
        ) as running,
    ):
        bystanders = [f"bystander-{number}" for number in range(6)]
        for task_id in [*bystanders[:3], VICTIM, *bystanders[3:]]:
            await running.publish(task_id)
        await running.results(7)
        await until(marker.exists)
        # The same task published again finds the record of the first, whatever befell that.
        await running.publish(VICTIM)
        assert await running.announced() == dict.fromkeys([VICTIM, *bystanders], 1)
        await assert_the_announced_result_is_the_committed_one(running, [VICTIM, *bystanders])


async def assert_the_announced_result_is_the_committed_one(
    running: RunningService, task_ids: list[str]
) -> None:
    announced = {result.task_id: result for result in await running.results(len(task_ids))}
    for task_id in task_ids:
        record = await running.record(task_id)
        assert record.state == "completed"
        committed = msgspec.json.decode(record.result, type=AgentResult)
        assert committed == announced[task_id]
