"""What a delivery carries: a task, or what is wrong with it; and the id and hash it goes by."""

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from agent_actors.contract import (
    PAYLOAD_MARGIN_BYTES,
    AgentTask,
    Constraints,
    decode_task,
    peek_task_id,
)
from agent_actors.errors import InvalidTask
from agent_actors.ports import Delivery

_canonical = msgspec.json.Encoder(order="sorted").encode
_fields = [(each.name, each) for each in msgspec.structs.fields(AgentTask)]


class ValidTask(Struct, frozen=True, kw_only=True):
    """A task that can be run."""

    task: AgentTask
    constraints: Constraints
    content: str

    @property
    def task_id(self) -> str:
        """The id under which the ledger knows it."""
        return self.task.task_id


class BrokenTask(Struct, frozen=True, kw_only=True):
    """A message that is no task; `task_id` is empty when it has no usable one."""

    task_id: str
    content: str
    problem: InvalidTask


def read(delivery: Delivery, *, max_payload_bytes: int) -> ValidTask | BrokenTask:
    """Read a delivery. The hash is of its meaning: key order, spaces and defaults do not count.

    `max_payload_bytes` is the server's; a task leaves room in it for what is added later.
    """
    max_bytes = max_payload_bytes - PAYLOAD_MARGIN_BYTES
    try:
        task, constraints = decode_task(delivery.payload, delivery.subject, max_bytes=max_bytes)
    except InvalidTask as problem:
        return BrokenTask(
            task_id=peek_task_id(delivery.payload) or "",
            content=_digest(delivery.subject.encode() + b"\0" + delivery.payload),
            problem=problem,
        )
    return ValidTask(task=task, constraints=constraints, content=_digest(_meaning(task)))


def _meaning(task: AgentTask) -> bytes:
    """Return the task without what it leaves open: a field of a later version changes nothing."""
    said: dict[str, Any] = {}
    for name, field in _fields:
        value = getattr(task, name)
        if value is not None and value != field.default and value not in ({}, []):
            said[name] = value
    return _canonical(said)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
