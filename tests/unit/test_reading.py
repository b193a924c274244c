"""What a delivery carries, and the hash that tells one task from another."""

import msgspec
import pytest
from support.fakes import delivery

from agent_actors import reading
from agent_actors.contract import AgentTask
from agent_actors.reading import BrokenTask, ValidTask, read

LIMIT = 1024 * 1024


def content(payload: bytes, subject: str = "agent.tasks.dev") -> str:
    return read(delivery(payload, subject=subject), max_payload_bytes=LIMIT).content


PLAIN = b'{"task_id": "t", "task_description": "x", "constraints": {"a": 1, "b": [2]}}'


@pytest.mark.parametrize(
    "same",
    [
        b'{"task_description":"x","constraints":{"b":[2],"a":1},"task_id":"t"}',
        (
            b'{"task_id": "t", "task_description": "x", "role": "dev", "diversity": false,'
            b' "model": null, "constraints": {"a": 1, "b": [2]}, "unknown": 5}'
        ),
    ],
)
def test_writing_the_same_task_differently_changes_nothing(same: bytes):
    assert content(same) == content(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace(b"x", b"y"),
        PLAIN.replace(b'"a": 1', b'"a": 2'),
        PLAIN.replace(b'"a": 1', b'"a": null'),
        PLAIN.replace(b'{"task_id"', b'{"enable_tools": false, "task_id"'),
    ],
)
def test_asking_for_something_else_is_another_task(other: bytes):
    assert content(other) != content(PLAIN)


def test_the_role_is_part_of_what_is_asked():
    assert content(PLAIN, "agent.tasks.qa") != content(PLAIN)


def test_a_field_of_a_later_version_does_not_change_the_hash_of_earlier_tasks(
    monkeypatch: pytest.MonkeyPatch,
):
    before = content(PLAIN)

    class LaterTask(AgentTask, frozen=True, kw_only=True):
        priority: int = 0

    fields = [(each.name, each) for each in msgspec.structs.fields(LaterTask)]
    monkeypatch.setattr(reading, "_fields", fields)
    monkeypatch.setattr("agent_actors.contract._task_decoder", msgspec.json.Decoder(LaterTask))
    assert content(PLAIN) == before
    assert content(PLAIN.replace(b'{"task_id"', b'{"priority": 3, "task_id"')) != before


def test_a_message_over_the_limit_is_broken_and_keeps_its_id():
    payload = b'{"task_id": "big", "task_description": "' + b"x" * LIMIT + b'"}'
    found = read(delivery(payload), max_payload_bytes=LIMIT)
    assert isinstance(found, BrokenTask)
    assert found.task_id == "big"
    assert "may be at most" in str(found.problem)


def test_a_valid_task_carries_its_role_and_typed_constraints():
    payload = b'{"task_id": "t", "task_description": "x", "constraints": {"timeout": 5}}'
    found = read(delivery(payload), max_payload_bytes=LIMIT)
    assert isinstance(found, ValidTask)
    assert (found.task.role, found.constraints.timeout) == ("DEV", 5)
