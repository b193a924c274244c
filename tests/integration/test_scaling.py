"""Pools that change while they work: by command, by their configuration's file, by their load."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.load import SteadyLoad, assert_undisturbed
from support.nats import NatsServer, StartNats
from support.processes import kill_one
from support.serving import Serving, serving, settings_for
from support.until import until

from agent_actors.adapters.jetstream.connection import connect
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.config import Config, NatsConfig
from agent_actors.config_check import convert
from agent_actors.config_types import Secret
from agent_actors.contract import AgentTask
from agent_actors.errors import RequestRefused
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import (
    SIMULATED_MODEL,
    Behaviour,
    Latency,
    Limits,
    ModelServerSettings,
)

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

MODEL = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=400, spread=0.5)))
# Longer than a test may take: what is disturbed comes back too late, or by a nak at once.
POOL = {"slots": 4, "ack_wait_s": 100, "resources": {"num_cpus": 0.01}}
BY_LOAD = {"min": 2, "max": 8, "target_utilization": 1.0, "scale_down_delay_s": 2}
SAME = "The service runs this configuration.\n"


@pytest.fixture
async def model() -> AsyncIterator[RunningModelServer]:
    async with running_model_server(MODEL) as server:
        yield server


async def test_a_pool_is_scaled_by_command_while_it_works_and_keeps_its_size(
    nats_server: NatsServer, model: RunningModelServer, tmp_path: Path
):
    settings = settings_for(nats_server, model.url, {"default": {**POOL, "actors": 1}})
    async with serving(tmp_path, settings, nats_server.url) as service:
        load = SteadyLoad(service)
        code, said = await service.command("scale", "default", "4")
        assert (code, said) == (0, "default: 1 -> 4 actors\n")
        await service.until_sized(4)
        code, said = await service.command("scale", "default", "2")
        assert (code, said) == (0, "default: 4 -> 2 actors\n")
        assert (await service.until_sized(2)).sized_by == "hand"
        assert_undisturbed(await load.finish())

        kill_one("ray::Supervisor")
        assert (await service.until_sized(2)).sized_by == "hand"
        reply = await service.client.scale(service.cluster, "default", None)
        assert (reply.wanted, reply.sized_by) == (1, "configuration")
        await service.until_sized(1)
        with pytest.raises(RequestRefused, match="there is no pool 'other'; there is default"):
            await service.client.scale(service.cluster, "other", 3)


async def test_an_edited_file_is_taken_over_while_tasks_run(
    nats_server: NatsServer, model: RunningModelServer, tmp_path: Path
):
    settings = settings_for(nats_server, model.url, {"default": {**POOL, "actors": 1}})
    async with serving(tmp_path, settings, nats_server.url) as service:
        assert await service.command("config", "diff") == (0, SAME)
        load = SteadyLoad(service)
        service.edit(pools={"default": {**POOL, "actors": 3, "temperature": 0.1}})
        pool = await service.until_sized(3)
        assert pool.sized_by == "configuration"
        results = await load.finish()
        assert_undisturbed(results)
        temperatures = [each.proposal.temperature for each in results if each.proposal]
        assert (temperatures[0], temperatures[-1]) == (0.7, 0.1)

        service.write("pools: {default: {actors: -1}}")
        await until(lambda: trouble_is(service, "the edited configuration is wrong"))
        assert (await service.pool()).wanted == 3
        streams = {"replicas": nats_server.replicas, "duplicate_window_s": 60}
        ray = {**service.settings["ray"], "supervisor": {"num_cpus": 0.2}}
        service.edit(streams=streams, ray=ray)
        await until(lambda: trouble_is(service, "ray.supervisor.num_cpus: restart the service"))
        assert "provision" in (await service.status()).trouble
        code, said = await service.command("config", "diff")
        assert code == 0
        (row,) = [line for line in said.splitlines() if "num_cpus" in line]
        assert row.split(maxsplit=3) == [
            "ray.supervisor.num_cpus",
            "0.1",
            "0.2",
            "after a restart of the service",
        ]


async def trouble_is(service: Serving, words: str) -> bool:
    return words in (await service.status()).trouble


@pytest.mark.nightly
async def test_a_pool_goes_from_two_to_eight_actors_and_back_in_all_three_ways(
    nats_server: NatsServer, tmp_path: Path
):
    """By command, by an edit that changes the model too, and by the load; nothing is disturbed."""
    models = replace(MODEL, aliases=("first", "second"))
    async with running_model_server(models) as server:
        pool = {**POOL, "actors": 2, "model": "first"}
        settings = settings_for(nats_server, server.url, {"default": pool})
        async with serving(tmp_path, settings, nats_server.url) as service:
            load = SteadyLoad(service)
            for actors in (8, 2):
                await service.client.scale(service.cluster, "default", actors)
                await service.until_sized(actors)
            for actors, model_name in ((8, "second"), (2, "first")):
                service.edit(pools={"default": {**pool, "actors": actors, "model": model_name}})
                await service.until_sized(actors)
            service.edit(pools={"default": {**pool, "actors": BY_LOAD, "model": SIMULATED_MODEL}})
            await service.until_sized(2)
            await load.burst(250)
            await service.until_sized(8)
            assert (await service.until_sized(2)).sized_by == "load"
            results = await load.finish()
            assert_undisturbed(results)
            assert server.requests.total == len(results)
            asked = [request.json["model"] for request in server.requests]
            assert set(asked) == {"first", "second", SIMULATED_MODEL}


async def test_a_pool_does_not_grow_for_what_waits_for_a_full_model(
    nats_server: NatsServer, tmp_path: Path
):
    small = ModelServerSettings(
        behaviour=Behaviour(latency=Latency(first_token_ms=200)), limits=Limits(max_num_seqs=2)
    )
    by_load = {**BY_LOAD, "min": 1, "scale_up_delay_s": 2}
    async with running_model_server(small) as server:
        pool = {**POOL, "slots": 8, "actors": by_load}
        settings = settings_for(nats_server, server.url, {"default": pool})
        async with serving(tmp_path, settings, nats_server.url) as service:
            load = SteadyLoad(service)
            await load.burst(60)
            wanted: set[int] = set()

            async def work_is_done() -> bool:
                status = await service.pool()
                wanted.add(status.wanted)
                return status.settled >= 60

            await until(work_is_done)
            assert_undisturbed(await load.finish())
            assert wanted == {1}


async def test_pools_come_and_go_and_take_their_subjects_along(
    nats_server: NatsServer, model: RunningModelServer, tmp_path: Path
):
    one = {**POOL, "actors": 1, "subjects": ["agent.tasks.dev", "agent.tasks.qa"]}
    settings = settings_for(nats_server, model.url, {"one": one})
    async with serving(tmp_path, settings, nats_server.url) as service:
        loads = [SteadyLoad(service, role) for role in ("dev", "qa")]
        early = AgentTask(task_id="early", task_description="nobody serves it", role="data")
        waiting = await service.client.submit(early)
        two = {**POOL, "actors": 1, "subjects": ["agent.tasks.qa"]}
        service.edit(pools={"one": {**one, "subjects": ["agent.tasks.dev"]}, "two": two})
        await service.until_sized(1, "two")
        await until(lambda: served_by(service, "two"))
        assert (await service.status()).unserved == {"agent.tasks.data": 1}
        service.edit(pools={"all": {**POOL, "actors": 2}})
        await service.until_sized(2, "all")
        await until(lambda: served_by(service, "all"))
        for load in loads:
            assert_undisturbed(await load.finish())
        assert (await waiting.result(timeout_s=30)).success
        assert [pool.name for pool in (await service.status()).pools] == ["all"]


async def served_by(service: Serving, name: str) -> bool:
    pool = await service.pool(name)
    return pool.state == "running" and not pool.reason and pool.settled > 0


FEW_RIGHTS = """
authorization { users: [
  { user: admin, password: x }
  { user: service, password: x, permissions: { publish: { allow: ">", deny: [
      "$JS.API.CONSUMER.LIST.>", "$JS.API.CONSUMER.CREATE.>",
      "$JS.API.STREAM.CREATE.>", "$JS.API.STREAM.UPDATE.>" ] } } }
] }
"""


async def test_a_pool_whose_consumer_the_service_may_not_make_says_what_to_do(
    start_nats: StartNats, model: RunningModelServer, tmp_path: Path
):
    server = await start_nats(FEW_RIGHTS)
    admin = NatsConfig(url=server.url, user="admin", password=Secret("x"))
    dev = {**POOL, "actors": 1, "subjects": ["agent.tasks.dev"]}
    nats = {"url": server.url, "user": "service", "password": "x"}
    settings = settings_for(server, model.url, {"one": dev}, nats=nats)
    link = await connect(admin, name="admin")
    await provision(link, loaded(settings))
    async with serving(tmp_path, settings, admin) as service:
        service.edit(pools={"one": dev, "two": {**dev, "subjects": ["agent.tasks.qa"]}})
        missing = "consumer missing: run provision"

        async def told() -> bool:
            pools = {pool.name: pool.reason for pool in (await service.status()).pools}
            return missing in pools.get("two", "")

        await until(told)
        await provision(link, loaded(service.settings))
        await service.until_sized(1, "two")
        await until(lambda: is_running(service, "two"))
    await link.close()


async def is_running(service: Serving, name: str) -> bool:
    pool = await service.pool(name)
    return (pool.state, pool.reason) == ("running", "")


def loaded(settings: dict[str, Any]) -> Config:
    return convert(settings, Config)
