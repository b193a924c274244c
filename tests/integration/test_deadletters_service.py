"""An actor killed between a result and its dead letter: neither is lost, neither comes twice."""

from pathlib import Path

import msgspec
import pytest
from support.crashing import crashing_actor
from support.nats import NatsServer
from support.service import running_service
from support.until import until

from agent_actors.contract import AgentResult
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

VICTIM = "victim"
# Longer than the test may take: nobody can wait for JetStream to hand the task out again.
ACK_WAIT_S = 100


async def test_a_crash_between_result_and_dead_letter_loses_neither(
    nats_server: NatsServer, tmp_path: Path
):
    marker = tmp_path / "died"
    async with (
        running_model_server(ModelServerSettings()) as model,
        running_service(
            nats_server,
            model.url,
            # What is published first of a dead task is its result.
            build_actor=crashing_actor("after publish", VICTIM, marker),
            actors=2,
            ack_wait_s=ACK_WAIT_S,
        ) as running,
    ):
        await running.publish(VICTIM, description="")
        assert await running.announced() == {VICTIM: 1}
        await until(marker.exists)
        (letter,) = await running.dead_letters()
        assert letter.headers is not None
        assert letter.headers["Agent-Actors-Task-Id"] == VICTIM
        assert letter.headers["Agent-Actors-Reason"] == "InvalidTask"
        record = await running.record(VICTIM)
        (result,) = await running.results(1)
        assert msgspec.json.decode(record.result, type=AgentResult) == result
        assert (record.state, record.generation) == ("failed", 0)
