"""`serve` of another version of the package takes over a service that works."""

import signal
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from support.load import SteadyLoad, assert_undisturbed
from support.nats import NatsServer
from support.serving import Serving, serving, settings_for, start_serve
from support.versions import as_ray_job, copy_of_package

from agent_actors.contract import AgentResult
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.ray,
    pytest.mark.nats,
    pytest.mark.usefixtures("local_ray"),
]

MODEL = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=400, spread=0.5)))
# Longer than a test may take: what is disturbed comes back too late, or by a nak at once.
POOL = {"actors": 2, "slots": 8, "ack_wait_s": 100, "resources": {"num_cpus": 0.01}}


@pytest.fixture
async def model() -> AsyncIterator[RunningModelServer]:
    async with running_model_server(MODEL) as server:
        yield server


async def test_another_version_takes_over_while_tasks_run_and_the_one_before_takes_back(
    nats_server: NatsServer, model: RunningModelServer, tmp_path: Path
):
    older = as_ray_job(copy_of_package(tmp_path / "older", "7.1.0"))
    newer = as_ray_job(copy_of_package(tmp_path / "newer", "7.2.0", says_more=True))
    settings = settings_for(nats_server, model.url, {"default": POOL})
    async with serving(tmp_path, settings, nats_server.url, older) as service:
        load = SteadyLoad(service)
        began = time.monotonic()
        before, service.process = service.process, await start_serve(service.file, newer)
        start_s = time.monotonic() - began
        _, said = await before.communicate()
        assert "Another service has taken over" in said.decode()
        assert before.returncode == 0
        await assert_all_of_version(service, "7.2.0")

        before = service.process
        before.send_signal(signal.SIGSTOP)  # it shall not hear of what takes over
        service.process = await start_serve(service.file, older)
        await assert_all_of_version(service, "7.1.0")
        before.terminate()
        before.send_signal(signal.SIGCONT)
        _, said = await before.communicate()
        assert before.returncode == 0, said.decode()
        await assert_all_of_version(service, "7.1.0")
        results = await load.finish()
    assert_undisturbed(results)
    assert len(model.requests) == len(results)
    # One that starts only when the one before has ended pauses for as long as its start takes.
    assert longest_pause_s(results) < start_s / 3


async def assert_all_of_version(service: Serving, version: str) -> None:
    pool = await service.until_sized(2)
    assert {actor.version for actor in pool.actors} == {version}
    assert (await service.status()).version == version


def longest_pause_s(results: list[AgentResult]) -> float:
    starts = sorted(each.timestamp.timestamp() - each.duration_ms / 1000 for each in results)
    return max(after - before for before, after in pairwise(starts))
