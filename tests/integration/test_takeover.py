"""One supervisor after the other for the same actors: whoever dies or is stopped meanwhile."""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from msgspec.structs import replace
from support.crashing import die_once
from support.nats import NatsServer
from support.processes import pids_named
from support.service import RunningService, running_service
from support.until import until

from agent_actors.adapters.ray_runtime import Service, build_supervisor, start_service
from agent_actors.client import AgentClient
from agent_actors.config import Config, Resources
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings
from agent_actors.pool import PoolSupervisor, SupervisorParts

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

MODEL = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=1_500, spread=0.5)))
# What a supervisor has in its hands when it is killed comes back after `ack_wait_s`.
POOL = {"actors": 2, "slots": 8, "ack_wait_s": 2.0, "hang_timeout_s": 20.0}
SUPERVISOR, ACTOR = "ray::Supervisor", "ray::AgentActor"
NO_ROOM = Resources(custom={"what no node has": 1})


async def die_before_it_takes_over(marker: Path, *args: Any, **more: Any) -> SupervisorParts:
    parts = await build_supervisor(*args, **more)

    async def take_over() -> None:
        die_once(marker)
        await parts.take_over()

    return replace(parts, take_over=take_over)


async def die_after_it_took_over(marker: Path, *args: Any, **more: Any) -> SupervisorParts:
    parts = await build_supervisor(*args, **more)

    async def take_over() -> None:
        await parts.take_over()
        die_once(marker)

    return replace(parts, take_over=take_over)


async def die_while_it_hands_over(marker: Path, *args: Any, **more: Any) -> SupervisorParts:
    hand_over = PoolSupervisor.hand_over

    async def dying_hand_over(self: PoolSupervisor) -> None:
        die_once(marker)
        await hand_over(self)

    PoolSupervisor.hand_over = dying_hand_over
    return await build_supervisor(*args, **more)


def changed(running: RunningService, grace_s: float) -> Config:
    """Return a configuration that takes another supervisor, and the same actors."""
    pools = {"default": replace(running.config.pools["default"], stop_grace_s=grace_s)}
    return replace(running.config, pools=pools)


def without_room(running: RunningService) -> Config:
    return replace(running.config, ray=replace(running.config.ray, supervisor=NO_ROOM))


async def do(verb: Callable[..., Any], *args: Any) -> Any:
    """Do what blocks."""
    return await asyncio.to_thread(verb, *args)


async def started(config: Config, **build: Any) -> Service:
    service = await do(partial(start_service, config, **build))
    await do(service.wait_ready, 60)
    return service


def names_in(running: RunningService) -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in found if each["namespace"] == running.config.ray.namespace]


async def test_whichever_supervisor_dies_around_a_takeover_nothing_is_lost_or_runs_twice(
    nats_server: NatsServer, tmp_path: Path
):
    deaths = [die_while_it_hands_over, die_before_it_takes_over, die_after_it_took_over]
    builds = {death.__name__: partial(death, tmp_path / death.__name__) for death in deaths}
    first, *following = builds.values()
    async with (
        running_model_server(MODEL) as model,
        running_service(nats_server, model.url, build=first, **POOL) as running,
    ):
        actors = set(pids_named(ACTOR))
        tasks = [f"task-{number}" for number in range(60)]
        publishing = asyncio.create_task(publish_steadily(running, tasks))
        for number, build in enumerate(following):
            latest = await started(changed(running, number), build=build)
        await publishing
        await running.results(len(tasks))
        assert await running.announced() == dict.fromkeys(tasks, 1)
        assert {(await running.record(task_id)).attempt for task_id in tasks} == {1}
        assert set(pids_named(ACTOR)) == actors
        assert [name for name in builds if not is_marked(tmp_path / name)] == []
        await do(latest.kill)
        await until(lambda: names_in(running) == [])  # one that has handed over stays for a moment


def is_marked(marker: Path) -> bool:
    return marker.exists()


async def publish_steadily(running: RunningService, tasks: list[str]) -> None:
    for task_id in tasks:
        await running.publish(task_id)
        await asyncio.sleep(0.1)


async def test_a_service_that_was_taken_over_from_can_be_stopped_and_changes_nothing(
    nats_server: NatsServer,
):
    async with (
        running_model_server() as model,
        running_service(nats_server, model.url, **POOL) as running,
    ):
        actors = set(pids_named(ACTOR))
        latest = await started(changed(running, 1))
        await do(running.service.stop, 0)
        await until(running.service.fate)
        assert await running.service.ended() == "superseded"
        await do(running.service.stop, 0)
        await do(running.service.kill)
        await running.publish("afterwards")
        await running.results(1)
        assert set(pids_named(ACTOR)) == actors
        await do(latest.stop, 0)
        assert names_in(running) == []


async def test_a_supervisor_that_finds_no_room_leaves_the_pools_to_the_one_before(
    nats_server: NatsServer,
):
    async with (
        running_model_server() as model,
        running_service(nats_server, model.url, **POOL) as running,
    ):
        actors = set(pids_named(ACTOR))
        waiting = await do(start_service, without_room(running))
        (supervisor,) = pids_named(SUPERVISOR)
        os.kill(supervisor, signal.SIGKILL)
        await until(lambda: pids_named(SUPERVISOR) not in ([], [supervisor]))
        await do(running.service.wait_ready, 60)
        await running.publish("one")
        await running.results(1)

        await do(waiting.stop)
        assert waiting.fate() == "superseded"
        await running.publish("two")
        await running.results(2)
        assert set(pids_named(ACTOR)) == actors
        await do(running.service.stop, 0)
        assert names_in(running) == []


async def test_a_service_that_is_wanted_again_while_it_drains_goes_on(nats_server: NatsServer):
    async with (
        running_model_server(MODEL) as model,
        running_service(nats_server, model.url, **POOL) as running,
        AgentClient.connect(nats_server.url) as client,
    ):
        await running.publish("one")
        await model.requests.until(lambda requests: len(requests) == 1)
        await client.drain(running.config.ray.namespace)
        again = await started(running.config)
        await running.publish("two")
        await running.results(2)
        assert [(await running.record(each)).attempt for each in ("one", "two")] == [1, 1]
        assert len(model.requests) == 2
        assert await running.service.ended() == "superseded"
        await do(again.stop, 0)
        assert names_in(running) == []


async def test_of_two_services_that_start_at_the_same_moment_one_has_the_pools(
    nats_server: NatsServer,
):
    async with (
        running_model_server() as model,
        running_service(nats_server, model.url, **POOL) as running,
    ):
        await do(running.service.stop, 0)
        configs = [changed(running, 1), changed(running, 2)]
        services = await asyncio.gather(*(do(start_service, config) for config in configs))
        await until(lambda: [service.fate() for service in services].count("superseded") == 1)
        (latest,) = (service for service in services if not service.fate())
        await do(latest.wait_ready, 60)
        await running.publish("one")
        await running.results(1)
        await do(latest.stop, 0)
        assert names_in(running) == []
