"""A supervisor killed, or frozen, at each point of a delivery: one result, no attempt too many."""

import os
import signal
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from support.crashing import POINTS, Plan, armed_actor, die_once
from support.crashing_supervisor import (
    SUPERVISOR,
    SUPERVISOR_POINTS,
    armed_supervisor,
    freeze_once,
    kill_supervisor_once,
)
from support.nats import NatsServer
from support.processes import pids_named
from support.service import RunningService, running_service
from support.until import until

from agent_actors.local.model_server.script import Rule, Script, ScriptedReply, When
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

# For what only JetStream knows of when the supervisor has died: it waits for that long.
ACK_WAIT_S = 4.0
# What runs meanwhile takes longer than the next supervisor needs to come.
SLOW = "[slow]"
MODEL = ModelServerSettings(
    script=Script(rules=(Rule(when=When(task=SLOW), reply=ScriptedReply(delay_ms=2_500)),))
)


async def test_a_supervisor_that_dies_whatever_its_actors_do_costs_no_attempt(
    nats_server: NatsServer, tmp_path: Path
):
    victims = {f"victim-{number}": point for number, point in enumerate(POINTS)}
    plans = [
        Plan(point, task_id, partial(kill_supervisor_once, tmp_path / task_id))
        for task_id, point in victims.items()
    ]
    async with (
        running_model_server(MODEL) as model,
        running_service(
            nats_server,
            model.url,
            build_actor=armed_actor(*plans),
            actors=2,
            slots=16,
            ack_wait_s=ACK_WAIT_S,
        ) as running,
    ):
        tasks = await publish_in_turn(running, list(victims), tmp_path)
        assert await running.announced() == dict.fromkeys(tasks, 1)
        assert await attempts(running, tasks) == dict.fromkeys(tasks, 1)


async def test_a_supervisor_that_dies_with_a_delivery_in_its_hands_loses_nothing(
    nats_server: NatsServer, tmp_path: Path
):
    victims = {f"victim-{number}": point for number, point in enumerate(SUPERVISOR_POINTS)}
    plans = [
        Plan(point, task_id, partial(die_once, tmp_path / task_id))
        for task_id, point in victims.items()
    ]
    given_back = [task_id for task_id, point in victims.items() if "back" in point]
    fatal = [
        Plan("mid-strategy", task_id, partial(die_once, tmp_path / f"actor of {task_id}"))
        for task_id in given_back
    ]
    async with (
        running_model_server(MODEL) as model,
        running_service(
            nats_server,
            model.url,
            build=armed_supervisor(*plans),
            build_actor=armed_actor(*fatal),
            actors=2,
            slots=16,
            ack_wait_s=ACK_WAIT_S,
        ) as running,
    ):
        # One that an actor dies of must take no other victim with it.
        tasks = await publish_in_turn(running, list(victims), tmp_path, each_to_its_end=True)
        assert await running.announced() == dict.fromkeys(tasks, 1)
        assert await attempts(running, victims) == {
            task_id: 2 if task_id in given_back else 1 for task_id in victims
        }


async def test_a_supervisor_that_slept_while_others_ended_its_task_changes_nothing(
    nats_server: NatsServer, tmp_path: Path
):
    """It wakes up with a delivery in its hands that is no longer its own."""
    plan = Plan(SUPERVISOR_POINTS[0], "held", partial(freeze_once, tmp_path / "frozen"))
    limits = {"actors": 1, "slots": 1, "ack_wait_s": 1.0, "hang_timeout_s": 1.0}
    async with (
        running_model_server() as model,
        running_service(nats_server, model.url, build=armed_supervisor(plan), **limits) as running,
    ):
        (actor,) = pids_named("ray::AgentActor")
        await running.publish("held")
        await until((tmp_path / "frozen").exists)
        (sleeper,) = pids_named(SUPERVISOR)
        try:
            async with running_service(nats_server, model.url, **limits):
                await running.results(1)
        finally:
            os.kill(sleeper, signal.SIGCONT)
        await running.publish("afterwards")
        await running.results(2)
        assert await running.announced() == {"held": 1, "afterwards": 1}
        assert await attempts(running, ["held", "afterwards"]) == {"held": 1, "afterwards": 1}
        # It has not taken its own sleep for one of its actor's.
        assert pids_named("ray::AgentActor") == [actor]


async def publish_in_turn(
    running: RunningService, victims: list[str], markers: Path, *, each_to_its_end: bool = False
) -> list[str]:
    """Publish each with others beside it; wait until the supervisor has died of it, and is back."""
    published = []
    for turn, victim in enumerate(victims):
        before = pids_named(SUPERVISOR)
        beside = [f"beside-{turn}-{number}" for number in range(2)]
        for task_id in beside:
            await running.publish(task_id, SLOW)
        await running.publish(victim)
        await until((markers / victim).exists)
        await until(lambda: pids_named(SUPERVISOR) not in ([], before))  # noqa: B023 - called here
        published += [victim, *beside]
        if each_to_its_end:
            await running.results(len(published))
    return published


async def attempts(running: RunningService, task_ids: Iterable[str]) -> dict[str, int]:
    return {task_id: (await running.record(task_id)).attempt for task_id in task_ids}
