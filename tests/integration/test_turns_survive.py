"""An agent with tools killed in its work, or without its model: it goes on from its last turn."""

import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from support.crashing import FATAL, TURN_POINTS, crashing_actor
from support.nats import NatsServer
from support.service import RunningService, running_service
from support.until import until

from agent_actors.adapters.jetstream.artifacts import STREAM
from agent_actors.assembly import build_agent_actor
from agent_actors.config_tools import ToolsConfig, WorkspaceConfig
from agent_actors.contract import AgentResult
from agent_actors.journal import MAX_RECENT_BYTES
from agent_actors.local.model_server.script import Rule, Script, ScriptedCall, ScriptedReply, When
from agent_actors.local.model_server.serving import RunningModelServer, running_model_server
from agent_actors.local.model_server.settings import ModelServerSettings

pytestmark = [pytest.mark.ray, pytest.mark.nats, pytest.mark.usefixtures("local_ray")]

TASK = "writer"
TURNS = 4
# Longer than the test may take: nobody can wait for JetStream to hand the task out again.
ACK_WAIT_S = 100
# More than a record of the ledger may hold: turns lie in the object store, too.
LINES = ["first line", "long " * (MAX_RECENT_BYTES // 5), FATAL]


def said(turn: int) -> str:
    """What the model says in a turn, by which it knows in the next one where it stands."""
    return f"<turn {turn} said>"


def script(*rules: Rule) -> Script:
    """A model that appends a line to a file in each turn, and then has its answer."""
    appends = [
        ScriptedReply(
            content=said(turn),
            tool_calls=(
                ScriptedCall(
                    name="append_file", arguments={"path": "notes.txt", "content": f"{line}\n"}
                ),
            ),
        )
        for turn, line in enumerate(LINES)
    ]
    later = [*appends[1:], ScriptedReply(content="All lines are written.")]
    turns = [Rule(when=When(text=said(turn)), reply=reply) for turn, reply in enumerate(later)]
    return Script(rules=(*rules, *reversed(turns)), default=appends[0])


@asynccontextmanager
async def writing_service(
    server: NatsServer, root: Path, scripted: Script, build=build_agent_actor
) -> AsyncIterator[tuple[RunningService, RunningModelServer]]:
    async with (
        running_model_server(ModelServerSettings(script=scripted)) as model,
        running_service(
            server,
            model.url,
            build_actor=build,
            actors=2,
            slots=4,
            ack_wait_s=ACK_WAIT_S,
            retry_base_s=0.01,
            max_tokens=8_192,
            enable_tools=True,
            tools=ToolsConfig(live_tokens=False, workspace=WorkspaceConfig(root=str(root))),
        ) as running,
    ):
        yield running, model


def turns_asked(model: RunningModelServer) -> Counter[int]:
    """Return how often the model was asked for each turn, and answered."""
    return Counter(
        sum(message["role"] == "assistant" for message in request.json["messages"])
        for request in model.requests
        if request.status == 200
    )


def added_lines(result: AgentResult) -> list[str]:
    """Return what the agent has written into its file."""
    diff = result.artifacts["diff"]
    return [line[1:] for line in diff.splitlines() if line[0] == "+" and line[:3] != "+++"]


@pytest.mark.parametrize("point", TURN_POINTS)
async def test_an_agent_that_is_killed_goes_on_from_its_last_turn(
    point: str, nats_server: NatsServer, tmp_path: Path
):
    marker, root = tmp_path / "died", tmp_path / "workspaces"
    build = crashing_actor(point, TASK, marker)
    async with writing_service(nats_server, root, script(), build) as (running, model):
        await running.publish(TASK)
        (result,) = await running.results(1)
        assert marker.exists()
        assert result.status == "completed", result.error
        assert result.proposal is not None
        assert result.proposal.content == "All lines are written."
        assert result.attempt == 2

        asked = turns_asked(model)
        repeated = {0: 2} if point == "before the first turn is stored" else {}
        assert asked == {**dict.fromkeys(range(TURNS), 1), **repeated}

        told = [m.get("content") or "" for m in model.requests[-1].json["messages"]]
        in_a_call = point in {"before a call that writes", "after a call that wrote"}
        assert any("outcome unknown" in text for text in told) == in_a_call
        lines = added_lines(result)
        not_run = point == "before a call that writes"
        assert lines == (LINES[:2] if not_run else LINES)

        assert len(result.operations) == len(LINES)
        assert [operation.success for operation in result.operations] == [True, True, not in_a_call]
        assert result.usage.total_tokens > 0
        assert await running.announced() == {TASK: 1}
        await assert_nothing_is_left(running, root)


async def test_a_task_whose_model_was_away_goes_on_from_its_last_turn(
    nats_server: NatsServer, tmp_path: Path
):
    away = Rule(when=When(text=said(1)), reply=ScriptedReply(status=503, times=12))
    root = tmp_path / "workspaces"
    async with writing_service(nats_server, root, script(away)) as (running, model):
        await running.publish(TASK)
        (result,) = await running.results(1)
        assert result.status == "completed", result.error
        assert result.attempt > 1
        assert turns_asked(model) == dict.fromkeys(range(TURNS), 1)
        assert added_lines(result) == LINES
        await assert_nothing_is_left(running, root)


async def test_a_task_whose_workspace_is_gone_starts_anew(nats_server: NatsServer, tmp_path: Path):
    marker, root = tmp_path / "died", tmp_path / "workspaces"
    build = crashing_actor("between two turns", TASK, marker, lost=root)
    async with writing_service(nats_server, root, script(), build) as (running, model):
        await running.publish(TASK)
        (result,) = await running.results(1)
        assert result.status == "completed", result.error
        assert result.attempt == 2
        assert turns_asked(model) == {0: 2, 1: 2, 2: 1, 3: 1}
        (restarted,) = [e.detail for e in result.audit_trail if e.event == "task.restarted"]
        assert (restarted["turns"], restarted["operations"]) == (2, 2)
        assert result.usage.total_tokens > restarted["tokens"] > 0
        assert added_lines(result) == LINES
        await assert_nothing_is_left(running, root)


async def assert_nothing_is_left(running: RunningService, root: Path) -> None:
    """Assert that neither turns nor the workspace outlive the task."""
    record = await running.record(TASK)
    assert (record.turns, record.recent_turns) == ([], [])
    committed = msgspec.json.decode(record.result, type=AgentResult)
    assert committed == (await running.results(1))[0]

    async def no_objects() -> bool:
        return (await running.link.api(f"STREAM.INFO.{STREAM}"))["state"]["messages"] == 0

    await until(no_objects)
    await until(lambda: not any("notes.txt" in files for _, _, files in os.walk(root)))
