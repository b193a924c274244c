"""`agent-actors deadletter` as a process of its own, against a real NATS."""

import asyncio
import json
import os
from base64 import b64decode
from collections.abc import AsyncIterator

import pytest
from support import commands
from support.bench import Bench, working_bench
from support.commands import Ended
from support.nats import NatsServer
from support.until import until

from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.config import NatsConfig
from agent_actors.ledger import DeadLetterReason

pytestmark = pytest.mark.nats

CRASHED = DeadLetterReason(reason="StrategyCrashed", error="KeyError: 'x'")


@pytest.fixture
async def bench(nats_server: NatsServer) -> AsyncIterator[Bench]:
    async with working_bench(nats_server, NatsConfig(url=nats_server.url)) as bench:
        yield bench


async def start(url: str, *args: str, **streams) -> asyncio.subprocess.Process:
    return await commands.start(url, "deadletter", *args, terminal="dumb", **streams)


async def run(url: str, *args: str) -> Ended:
    return await commands.ended(await start(url, *args), errors="replace")


async def put(
    bench: Bench,
    task_id: str,
    payload: bytes | None = None,
    *,
    role: str = "dev",
    reason: str = "StrategyCrashed",
    **headers: str,
) -> bytes:
    """Store a dead letter, as the service writes it, with the record of its task."""
    task = {"task_id": task_id, "task_description": "do it"}
    payload = json.dumps(task).encode() if payload is None else payload
    if task_id:
        await bench.record(task_id, "failed", dead_letter=CRASHED)
    await bench.link.publish_stored(
        f"agent.deadletter.{role}",
        payload,
        {
            "Agent-Actors-Reason": reason,
            "Agent-Actors-Error": CRASHED.error,
            "Agent-Actors-Task-Id": task_id,
            "Agent-Actors-Attempts": "3",
            "Agent-Actors-Generation": "0",
            "Agent-Actors-Source": "AGENT_TASKS:1",
            "Agent-Actors-Subject": f"agent.tasks.{role}",
            **headers,
        },
    )
    return payload


async def queued(bench: Bench) -> int:
    return (await bench.js.stream_info("AGENT_TASKS")).state.messages


async def left(bench: Bench) -> int:
    return (await bench.js.stream_info("AGENT_DEADLETTER")).state.messages


# list


async def test_list_shows_a_line_for_each_letter(bench: Bench):
    await put(bench, "t-1")
    await put(bench, "", b"{", role="qa", reason="InvalidTask")
    ended = await run(bench.url, "list")
    head, _, first, second = ended.out.splitlines()
    assert head.split() == ["Number", "Time", "Role", "Task", "Reason", "Attempts", "Error"]
    assert first.split()[0] == "1"
    assert first.split()[3:] == ["DEV", "t-1", "StrategyCrashed", "3", "KeyError:", "'x'"]
    assert "InvalidTask" in second
    assert (ended.code, ended.err) == (0, "")


async def test_list_filters_and_says_when_there_are_more(bench: Bench):
    await put(bench, "t-1")
    await put(bench, "t-2", role="qa", reason="PoisonTask")
    await put(bench, "t-3", role="qa")

    async def tasks(*args: str) -> list[str]:
        ended = await run(bench.url, "list", "--json", *args)
        return [letter["task_id"] for letter in json.loads(ended.out)]

    assert await tasks() == ["t-1", "t-2", "t-3"]
    assert await tasks("--role", "QA") == ["t-2", "t-3"]
    assert await tasks("--role", "QA", "--reason", "PoisonTask") == ["t-2"]
    assert await tasks("--newer-than", "2h") == ["t-1", "t-2", "t-3"]
    assert await tasks("--older-than", "1h30m") == []
    ended = await run(bench.url, "list", "--limit", "2")
    assert "t-2" in ended.out
    assert "t-3" not in ended.out
    assert ended.err == "There are more than these 2; --limit shows more.\n"


async def test_list_has_all_but_the_payload_as_json(bench: Bench):
    payload = await put(bench, "t-1", **{"Agent-Actors-Original-X-Team": "trees"})
    (letter,) = json.loads((await run(bench.url, "list", "--json")).out)
    assert letter.pop("time").endswith("Z")
    assert letter == {
        "stream_seq": 1,
        "role": "DEV",
        "reason": "StrategyCrashed",
        "error": "KeyError: 'x'",
        "attempts": 3,
        "generation": 0,
        "task_id": "t-1",
        "subject": "agent.tasks.dev",
        "source": "AGENT_TASKS:1",
        "headers": {"X-Team": "trees"},
        "size": len(payload),
        "object": None,
    }


async def test_nothing_to_list_is_said(bench: Bench):
    assert await run(bench.url, "list") == Ended(0, "No dead letters.\n", "")
    assert await run(bench.url, "list", "--json") == Ended(0, "[]\n", "")


@pytest.mark.parametrize("age", ["2", "h", "2 h", "-1h", "2y", ""])
async def test_an_age_that_is_none_is_named(nats_server: NatsServer, age: str):
    ended = await run(nats_server.url, "list", f"--older-than={age}")
    assert ended.code == 2
    assert f"{age!r} is no age such as 90s, 45m, 2h" in ended.err


# show


async def test_show_prints_the_reason_the_headers_and_the_message(bench: Bench):
    await put(bench, "t-1", **{"Agent-Actors-Original-X-Team": "trees"})
    ended = await run(bench.url, "show", "t-1")
    facts, _, message = ended.out.partition("\n\n")
    lines = facts.splitlines()
    assert lines[:2] == ["dead letter 1  (t-1, DEV)", "StrategyCrashed: KeyError: 'x'"]
    assert lines[3:] == [
        "attempts: 3",
        "generation: 0",
        "subject: agent.tasks.dev",
        "source: AGENT_TASKS:1",
        "headers:",
        "  X-Team: trees",
    ]
    title, _, shown = message.partition("\n")
    assert title == "payload, 47 bytes:"
    assert shown == '{\n  "task_id": "t-1",\n  "task_description": "do it"\n}\n'
    assert await run(bench.url, "show", "1") == ended


async def test_show_gives_the_bytes_as_they_came(bench: Bench):
    payload = bytes(range(256)) * 3
    await put(bench, "", payload)
    process = await start(bench.url, "show", "1", "--payload")
    assert (await process.communicate())[0] == payload
    shown = json.loads((await run(bench.url, "show", "1", "--json")).out)
    assert b64decode(shown["payload"]) == payload


async def test_of_a_binary_message_the_head_is_shown_in_hex(bench: Bench):
    await put(bench, "", b"\xff\x1b[31mred" + bytes(300))
    shown = (await run(bench.url, "show", "1")).out
    assert "\n00000000  ff 1b 5b 33 31 6d 72 65 64 00 " in shown
    assert "  ..[31mred.......\n" in shown
    assert shown.endswith("… 53 bytes more; --payload prints them all\n")


async def test_nothing_in_a_letter_steers_the_terminal(bench: Bench):
    steering = "\x1b]0;owned\x07\u202e"
    headers = {"Agent-Actors-Error": steering, "Agent-Actors-Original-X": steering}
    await put(bench, "", f"no json {steering}".encode(), reason=steering, **headers)
    for args in (["list"], ["show", "1"]):
        ended = await run(bench.url, *args)
        assert "owned" in ended.out
        assert not {"\x1b", "\x07", "\u202e"} & set(ended.out)


async def test_a_message_from_the_object_store_is_shown(bench: Bench):
    ref = await JetStreamArtifacts(bench.link).put("deadletter/t-1", b'{"big": 1}')
    headers = {
        "Agent-Actors-Object": ref.object,
        "Agent-Actors-Object-Size": str(ref.size),
        "Agent-Actors-Object-SHA256": ref.sha256,
    }
    await put(bench, "", b"", **headers)
    assert (await run(bench.url, "show", "1")).out.endswith('bytes:\n{\n  "big": 1\n}\n')
    await JetStreamArtifacts(bench.link).delete(ref)
    lost = await run(bench.url, "show", "1")
    assert lost.out.endswith("agent_artifacts/deadletter/t-1 is not there; objects expire\n")
    ended = await run(bench.url, "show", "1", "--payload")
    assert (ended.code, ended.out) == (3, "")
    assert "objects expire" in ended.err


@pytest.mark.parametrize("id_", ["7", "t-7"])
async def test_a_letter_that_is_not_there_is_a_mistake(bench: Bench, id_: str):
    ended = await run(bench.url, "show", id_)
    assert ended.code == 2
    assert "there is no dead letter" in ended.err


# replay


async def test_replay_queues_the_task_again_and_says_so(bench: Bench):
    payload = await put(bench, "t-1", **{"Agent-Actors-Original-X-Team": "trees"})
    ended = await run(bench.url, "replay", "t-1")
    assert ended == Ended(0, "t-1 replayed: generation 1 is waiting\n", "")
    message = await bench.js.get_msg("AGENT_TASKS", 1)
    assert (message.subject, message.data) == ("agent.tasks.dev", payload)
    assert message.headers is not None
    assert message.headers["X-Team"] == "trees"
    assert message.headers["Nats-Msg-Id"] == "t-1#1"
    assert await left(bench) == 0


async def test_what_cannot_be_replayed_is_said_and_the_others_are(bench: Bench):
    await put(bench, "", b"{", reason="InvalidTask")
    await put(bench, "t-2")
    ended = await run(bench.url, "replay", "1", "2", "9")
    assert ended.code == 1
    assert ended.out == "t-2 replayed: generation 1 is waiting\n"
    assert "Error: dead letter 1: it has no usable task id" in ended.err
    assert "Error: there is no dead letter 9" in ended.err
    ended = await run(bench.url, "replay", "1", "--json")
    assert ended.code == 1
    (report,) = json.loads(ended.out)
    assert report["stream_seq"] == 1
    assert "no usable task id" in report["error"]


async def test_a_task_that_was_replayed_already_is_not_queued_twice(bench: Bench):
    await put(bench, "t-1")
    await run(bench.url, "replay", "t-1")
    record = (await bench.ledger.read("t-1")).record
    await put(bench, "t-1")
    stored = await bench.ledger.read("t-1")
    assert record is not None
    await bench.ledger.write("t-1", record, stored.revision)
    ended = await run(bench.url, "replay", "t-1")
    assert ended == Ended(0, "t-1 was replayed before: generation 1 is waiting\n", "")
    assert (await queued(bench), await left(bench)) == (1, 0)


async def test_all_that_the_filters_take_are_replayed(bench: Bench):
    for number, role in enumerate(["dev", "qa", "qa"]):
        await put(bench, f"t-{number}", role=role)
    ended = await run(bench.url, "replay", "--all", "--role", "qa", "--newer-than", "1h", "--json")
    assert [each["task_id"] for each in json.loads(ended.out)] == ["t-1", "t-2"]
    assert (await queued(bench), await left(bench)) == (2, 1)
    ended = await run(bench.url, "replay", "--all", "--role", "qa")
    assert ended == Ended(0, "No dead letters.\n", "")


@pytest.mark.parametrize(
    "args", [[], ["1", "--all"], ["--role", "qa"], ["1", "--role", "qa"]], ids=" ".join
)
@pytest.mark.parametrize("command", ["replay", "discard"])
async def test_what_is_meant_must_be_said_clearly(bench: Bench, command: str, args: list[str]):
    await put(bench, "t-1")
    ended = await run(bench.url, command, *args)
    assert ended.code == 2
    assert "Usage: agent-actors deadletter" in ended.err
    assert (await queued(bench), await left(bench)) == (0, 1)


@pytest.mark.parametrize(
    ("answer", "queued_then"), [(b"y\n", 2), (b"n\n", 0), (b"\n", 0)], ids=["yes", "no", "enter"]
)
async def test_on_a_terminal_all_is_asked_for(bench: Bench, answer: bytes, queued_then: int):
    await put(bench, "t-1")
    await put(bench, "t-2")
    ours, theirs = os.openpty()
    process = await start(bench.url, "replay", "--all", stdin=theirs)
    os.close(theirs)
    os.write(ours, answer)
    _, err = await process.communicate()
    os.close(ours)
    assert b"Replay 2 dead letters? [y/N]" in err
    assert process.returncode == (0 if queued_then else 1)
    assert await queued(bench) == queued_then


async def test_yes_asks_nothing(bench: Bench):
    await put(bench, "t-1")
    ours, theirs = os.openpty()
    process = await start(bench.url, "discard", "--all", "--yes", stdin=theirs)
    os.close(theirs)
    assert await process.communicate() == (b"dead letter 1 discarded\n", b"")
    os.close(ours)
    assert await left(bench) == 0


async def test_a_replay_that_lost_its_nats_is_repeated_and_goes_on(
    bench: Bench, nats_server: NatsServer
):
    for number in range(20):
        await put(bench, f"t-{number}")
    process = await start(bench.url, "replay", "--all")
    await until(lambda: has_begun(bench))
    await nats_server.restart()
    await process.communicate()
    await until(lambda: answers(bench))
    await run(bench.url, "replay", "--all")
    assert (await queued(bench), await left(bench)) == (20, 0)


async def has_begun(bench: Bench) -> bool:
    return await left(bench) < 20


async def answers(bench: Bench) -> bool:
    try:
        await left(bench)
    except Exception:  # noqa: BLE001 - whatever a connection that comes back says
        return False
    return True


# discard


async def test_discard_deletes_what_is_named(bench: Bench):
    for number in range(3):
        await put(bench, f"t-{number}")
    ended = await run(bench.url, "discard", "1", "t-2")
    assert ended == Ended(0, "dead letter 1 discarded\ndead letter 3 discarded\n", "")
    assert [
        letter["task_id"] for letter in json.loads((await run(bench.url, "list", "--json")).out)
    ] == ["t-1"]
    assert await queued(bench) == 0


async def test_discard_of_what_is_gone_says_so(bench: Bench):
    ended = await run(bench.url, "discard", "1", "--json")
    assert ended.code == 1
    assert json.loads(ended.out) == [
        {"stream_seq": 1, "error": "there is no dead letter 1, or not any more"}
    ]
