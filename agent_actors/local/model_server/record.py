"""The requests that came, for tests and demos to look at."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec

from agent_actors.local.model_server.faults import Fault
from agent_actors.local.model_server.prompt import fingerprint, task_in
from agent_actors.local.model_server.wire import ChatRequest


class SeenRequest:
    """One chat request: what came, and what became of it.

    `status` is None until it was answered, and stays so when the connection broke before that.
    `aborted` says that the client hung up. `chat` is None when the body was refused.
    """

    def __init__(self, *, number: int, headers: Mapping[str, str], body: bytes) -> None:
        self.number = number
        self.headers = headers
        self.body = body
        self.chat: ChatRequest | None = None
        self.status: int | None = None
        self.fault: Fault | None = None
        self.aborted = False

    @cached_property
    def json(self) -> Any:  # noqa: ANN401 - it is whatever the client sent
        """The decoded body; raises `msgspec.DecodeError` when it is no JSON."""
        return msgspec.json.decode(self.body)

    @property
    def task(self) -> str:
        """The task that the prompt sets; empty when the body was refused."""
        return task_in(self.chat) if self.chat else ""

    @property
    def conversation(self) -> str:
        """A short name for the messages; empty when the body was refused."""
        return fingerprint(self.chat) if self.chat else ""


class RequestRecord:
    """The last chat requests, oldest first, and how many came in all."""

    def __init__(self, *, keep: int) -> None:
        self.total = 0
        self._kept: deque[SeenRequest] = deque(maxlen=keep)
        self._waiters: list[asyncio.Future[None]] = []

    def __iter__(self) -> Iterator[SeenRequest]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> SeenRequest:
        return self._kept[index]

    async def until(self, condition: Callable[["RequestRecord"], bool]) -> None:
        """Wait until the condition holds; it is asked again whenever something changed."""
        while not condition(self):
            changed = asyncio.get_running_loop().create_future()
            self._waiters.append(changed)
            await changed

    def arrived(self, *, headers: Mapping[str, str], body: bytes) -> SeenRequest:
        """Note a request."""
        self.total += 1
        seen = SeenRequest(number=self.total, headers=headers, body=body)
        self._kept.append(seen)
        self.changed()
        return seen

    def changed(self) -> None:
        """Let those who wait look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def summary(self, last: int) -> dict[str, Any]:
        """Return what `GET /simulated/requests` tells, counts being those of the kept ones."""
        kept = list(self._kept)
        return {
            "total": self.total,
            "kept": len(kept),
            "aborted": sum(seen.aborted for seen in kept),
            "by_task": Counter(seen.task for seen in kept if seen.chat),
            "by_conversation": Counter(seen.conversation for seen in kept if seen.chat),
            "last": [_told(seen) for seen in kept[max(0, len(kept) - last) :]],
        }


def _told(seen: SeenRequest) -> dict[str, Any]:
    return {
        "number": seen.number,
        "task": seen.task,
        "conversation": seen.conversation,
        "status": seen.status,
        "fault": seen.fault,
        "aborted": seen.aborted,
        "body": seen.body.decode(errors="replace"),
    }
