"""What a handler of a peer does for a task: the same model, the same result, the same ledger.

`Work(..., ledger=False)` is the task as it comes: ask the model, publish the result. With a ledger
it makes the same writes as this project around it: a compare-and-set that begins the task, one
that commits its result, and a publish with the result's `Nats-Msg-Id`.
"""

import os
import uuid
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct
from nats.js import JetStreamContext
from nats.js.errors import BadRequestError

LEDGER_PREFIX = "$KV.agent_ledger."
RESPONSES = "agent.response.completed"
SYSTEM = (
    "You are a senior software engineer. Propose an implementation that is correct, readable and "
    "no larger than the task needs. Show the complete code that matters, name the files it belongs "
    "to, handle errors and edge cases, and say how to test it. State each assumption that you had "
    "to make."
)


class Settings(Struct, frozen=True, kw_only=True):
    """What the benchmark tells a peer's process, in its environment."""

    nats_urls: list[str]
    model_url: str
    slots: int
    workers: int
    replicas: int
    ledger: bool
    waves: bool = False
    ray_address: str = ""

    @classmethod
    def read(cls) -> "Settings":
        return msgspec.json.decode(os.environ[SETTINGS_VARIABLE], type=cls)

    def environment(self) -> dict[str, str]:
        return {SETTINGS_VARIABLE: msgspec.json.encode(self).decode()}


SETTINGS_VARIABLE = "AGENT_ACTORS_BENCH_PEER"


class Task(Struct):
    task_id: str
    task_description: str
    role: str = "DEV"
    constraints: dict[str, Any] = {}


class Message(Struct):
    content: str


class Choice(Struct):
    message: Message
    finish_reason: str


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Struct):
    choices: list[Choice]
    model: str
    usage: Usage


read_task = msgspec.json.Decoder(Task).decode
read_completion = msgspec.json.Decoder(Completion).decode
encode = msgspec.json.Encoder().encode


class AlreadyBegun(Exception):
    """Another delivery has the task."""


class Work:
    """Works on tasks, any number at a time, on one HTTP session and one NATS connection."""

    def __init__(
        self, session: aiohttp.ClientSession, js: JetStreamContext, settings: Settings
    ) -> None:
        self._session = session
        self._js = js
        self._url = f"{settings.model_url}/v1/chat/completions"
        self._ledger = settings.ledger

    async def on_bytes(self, data: bytes) -> None:
        """Work on a task in JSON; on return its result is stored and the message may be acked."""
        await self.on_task(read_task(data))

    async def on_task(self, task: Task) -> None:
        if self._ledger:
            await self._with_ledger(task)
        else:
            await self._js.publish(RESPONSES, result_of(task, await self._ask(task)))

    async def _with_ledger(self, task: Task) -> None:
        subject = LEDGER_PREFIX + task.task_id
        record = {
            "task_id": task.task_id,
            "state": "running",
            "source": {"stream_seq": 1, "consumer": "c", "num_delivered": 1},
            "content": uuid.uuid4().hex,
            "updated": datetime.now(UTC),
            "attempt": 1,
            "agent_id": "worker-0",
            "lease": uuid.uuid4().hex,
        }
        revision = await self._swap(subject, encode(record), 0)
        result = result_of(task, await self._ask(task))
        terminal = record | {"state": "completed", "result": msgspec.Raw(result)}
        await self._swap(subject, encode(terminal), revision)
        await self._js.publish(RESPONSES, result, headers={"Nats-Msg-Id": task.task_id})

    async def _swap(self, subject: str, record: bytes, revision: int) -> int:
        expected = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            return (await self._js.publish(subject, record, headers=expected)).seq
        except BadRequestError as error:
            raise AlreadyBegun(subject) from error

    async def _ask(self, task: Task) -> Completion:
        async with self._session.post(self._url, data=request_of(task)) as response:
            response.raise_for_status()
            return read_completion(await response.read())


def request_of(task: Task) -> bytes:
    """Return the body of the request to the model."""
    return encode(
        {
            "model": "stub",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": prompt_of(task)},
            ],
            "temperature": 0.7,
            "max_tokens": 2048,
            "stream": False,
        }
    )


def prompt_of(task: Task) -> str:
    told = [f"{name}: {value}" for name, value in task.constraints.items()]
    return "\n".join([f"Task {task.task_id}", task.task_description, *told])


def result_of(task: Task, completion: Completion) -> bytes:
    """Return a result in the form that this project publishes."""
    proposal = {
        "content": completion.choices[0].message.content,
        "author_id": "worker-0",
        "author_role": task.role,
        "model": completion.model,
        "temperature": 0.7,
        "tokens": completion.usage.completion_tokens,
    }
    return encode(
        {
            "task_id": task.task_id,
            "agent_id": "worker-0",
            "role": task.role,
            "status": "completed",
            "success": True,
            "duration_ms": 1.0,
            "timestamp": datetime.now(UTC),
            "proposal": proposal,
            "operations": [],
            "artifacts": {},
            "audit_trail": [],
            "error": None,
            "model": completion.model,
            "constraints": task.constraints,
            "attempt": 1,
            "usage": completion.usage,
        }
    )


def open_session() -> aiohttp.ClientSession:
    """Return a session as this project opens it: no limit but the slots, no cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Content-Type": "application/json"},
    )
