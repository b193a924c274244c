"""What a delivery carries: a task, or what is wrong with it; and the id and hash it goes by."""

from hashlib import blake2b

import msgspec
from msgspec import Struct

from agent_actors.contract import AgentTask, Constraints, decode_task, peek_task_id
from agent_actors.errors import InvalidTask
from agent_actors.ports import Delivery

_canonical = msgspec.json.Encoder(order="sorted").encode


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


def read(delivery: Delivery, *, max_bytes: int) -> ValidTask | BrokenTask:
    """Read a delivery. The hash is of its meaning: key order, spaces and defaults do not count."""
    try:
        task, constraints = decode_task(delivery.payload, delivery.subject, max_bytes=max_bytes)
    except InvalidTask as problem:
        return BrokenTask(
            task_id=peek_task_id(delivery.payload) or "",
            content=_digest(delivery.subject.encode() + b"\0" + delivery.payload),
            problem=problem,
        )
    return ValidTask(task=task, constraints=constraints, content=_digest(_canonical(task)))


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
