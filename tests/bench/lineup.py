"""Who is measured, how each is run, and which page of its documentation that follows.

All peers: logging off, uvloop, the same number of worker processes as we have actors, the same
number of tasks at a time, a durable pull consumer on a work queue without a limit of unacked
messages. Their handler is `bench.peers.work`.
"""

import sys
from collections.abc import Callable, Mapping

from bench.peers.work import Settings
from msgspec import Struct

OURS = "agent_actors"
BARE = "bare loop"
TASKIQ = "taskiq-nats"
FASTSTREAM = "FastStream"
RAY_CALL = "one Ray call a task"
FRESH_ACTOR = "a fresh Ray actor a task"
RAY_USERS = frozenset({OURS, RAY_CALL, FRESH_ACTOR})


class Peer(Struct, frozen=True, kw_only=True):
    """How a peer is run: its command, and its settings with the pages they come from."""

    command: Callable[[Settings], list[str]]
    settings: Mapping[str, str]
    pages: tuple[str, ...] = ()
    actors: str = ""  # the title of its Ray actors


class Entry(Struct, frozen=True, kw_only=True):
    """Somebody to measure: with so many workers, and with or without the ledger's writes."""

    who: str
    workers: int = 1
    ledger: bool = True
    logs: bool = False
    waves: bool = False

    @property
    def label(self) -> str:
        how = ", same guarantees" if self.ledger else ", as it comes"
        how = "" if self.who == OURS else how
        logs = ", logs at info" if self.logs else ""
        waves = ", in waves" if self.waves else ""
        return f"{self.who}{how}{logs}{waves}"


def _bare(_: Settings) -> list[str]:
    return [sys.executable, "-m", "bench.peers.bare"]


def _taskiq(settings: Settings) -> list[str]:
    return [
        *(sys.executable, "-m", "taskiq", "worker", "bench.peers.taskiq_app:broker"),
        *("--workers", str(settings.workers)),
        *("--max-async-tasks", str(settings.slots)),
        *("--max-prefetch", str(settings.slots)),
        "--no-parse",
        *("--log-level", "ERROR"),
    ]


def _faststream(settings: Settings) -> list[str]:
    return [
        *(sys.executable, "-m", "faststream", "run", "bench.peers.faststream_app:app"),
        *("--workers", str(settings.workers)),
        *("--log-level", "error"),
    ]


def _ray_call(_: Settings) -> list[str]:
    return [sys.executable, "-m", "bench.peers.ray_calls", "standing"]


def _fresh_actor(_: Settings) -> list[str]:
    return [sys.executable, "-m", "bench.peers.ray_calls", "fresh"]


PEERS: Mapping[str, Peer] = {
    BARE: Peer(
        command=_bare,
        settings={
            "fetch": "as many as there are slots, while as many run: one request for many tasks",
            "work": "one coroutine a slot, made once",
        },
    ),
    TASKIQ: Peer(
        command=_taskiq,
        pages=(
            "https://taskiq-python.github.io/guide/cli.html",
            "https://github.com/taskiq-python/taskiq-nats#pullbasedjetstreambroker",
        ),
        settings={
            "uvloop": "taken by itself when installed",
            "--max-async-tasks": "the slots",
            "--max-prefetch": "as many again, so that none waits for a fetch",
            "--no-parse": "no pydantic for arguments",
            "--log-level ERROR": "its two lines a task off",
            "--ack-type": "when_saved, its default: at least once",
            "pull_consume_batch": "the slots; its default, 1, fetches each task by itself",
            "result backend": "none: the handler publishes the result",
        },
    ),
    FASTSTREAM: Peer(
        command=_faststream,
        pages=(
            "https://faststream.ag2.ai/latest/nats/jetstream/pull/",
            "https://faststream.ag2.ai/latest/getting-started/subscription/",
            "https://faststream.ag2.ai/latest/getting-started/serialization/decoder/",
            "https://faststream.ag2.ai/latest/getting-started/logging/",
            "https://faststream.ag2.ai/latest/getting-started/cli/",
        ),
        settings={
            "uvloop": "taken by itself when installed",
            "max_workers": "the slots",
            "PullSub(batch_size)": "twice the slots, so that none waits for a fetch; the slots "
            "alone were some 15% dearer",
            "in waves": "without max_workers, each fetch of as many as there are slots is worked "
            "on at once, and the next begins when the last of it has ended: cheaper here, where "
            "all take the same time, and no way to keep a real model busy; shown, not judged",
            "apply_types=False": "no pydantic, no dependencies",
            "decoder": "none: the handler decodes the bytes, once",
            "logger=None": "no lines a task",
            "ack_policy": "its default: ack when the handler has returned",
        },
    ),
    RAY_CALL: Peer(
        command=_ray_call,
        pages=("https://docs.ray.io/en/latest/ray-core/actors/async_api.html",),
        actors="ray::Worker",
        settings={
            "actors": "async ones, max_concurrency as many as slots",
            "calls": "each awaited by itself, to the actor with the fewest",
        },
    ),
    FRESH_ACTOR: Peer(
        command=_fresh_actor,
        actors="ray::Worker",
        settings={"actors": "one a task, killed when it has answered; four start at a time"},
    ),
}
