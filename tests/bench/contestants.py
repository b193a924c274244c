"""Contestants as they run: started on a NATS and a model, with their processes by group."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from bench.lineup import FRESH_ACTOR, OURS, PEERS, TASKIQ, Entry
from bench.load import Compose, plain_task, taskiq_task
from bench.peers.work import Settings
from bench.site import Model, Nats, Site
from bench.usage import Groups, Usage, cpu_s, tree, usage
from bench.wire import DURABLE, PEER_STREAM, PEER_SUBJECT
from msgspec import Struct
from support.processes import pids_named
from support.until import until

from agent_actors.actor import ActorParts, ActorSettings
from agent_actors.adapters import ray_runtime
from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.assembly import build_agent_actor
from agent_actors.config import Config, NatsConfig, PoolConfig, RayConfig, StreamsConfig, VllmConfig
from agent_actors.config_types import Secret
from agent_actors.contract import TASK_STREAM
from agent_actors.observe.logs import LEVEL_VARIABLE

READY_TIMEOUT_S = 90.0
END_TIMEOUT_S = 10.0
SUPERVISOR, WORKERS = "supervisor", "workers"
OUR_SUPERVISOR, OUR_ACTORS = "ray::Supervisor", "ray::AgentActor"


class Place(Struct, frozen=True, kw_only=True):
    """Where a contestant runs; `slots` are tasks at a time, of all its workers together."""

    site: Site
    nats: Nats
    model: Model
    link: Connection
    slots: int


class Queue(Struct, frozen=True, kw_only=True):
    """Where a contestant takes its tasks from, and their form."""

    stream: str
    subject: str
    compose: Compose


OUR_QUEUE = Queue(stream=TASK_STREAM, subject="agent.tasks.dev", compose=plain_task)
PEER_QUEUE = Queue(stream=PEER_STREAM, subject=PEER_SUBJECT, compose=plain_task)
TASKIQ_QUEUE = Queue(stream=PEER_STREAM, subject=PEER_SUBJECT, compose=taskiq_task)


class Running:
    """A contestant that runs."""

    def __init__(
        self,
        entry: Entry,
        process: asyncio.subprocess.Process | None = None,
        log_file: Path | None = None,
    ) -> None:
        self._entry = entry
        self._process = process
        self._log_file = log_file
        self._noted_s: dict[int, float] = {}

    def check(self) -> None:
        """Raise RuntimeError, with its last words, when it has ended."""
        if self._process and self._log_file and self._process.returncode is not None:
            said = self._log_file.read_text(errors="replace").splitlines()[-15:]
            raise RuntimeError("\n".join([f"{self._entry.label} has ended:", *said]))

    def usage(self, others: Groups) -> Usage:
        """Return the CPU time of its processes and of others."""
        used = usage(dict(self.processes()) | others)
        if self._entry.who != FRESH_ACTOR:
            return used
        self.note_usage()
        return Usage(cpu_s=used.cpu_s | {WORKERS: sum(self._noted_s.values())})

    def note_usage(self) -> None:
        """Take note of what its workers have used, since they may be gone the next time."""
        for pid in self.processes()[WORKERS]:
            self._noted_s[pid] = max(cpu_s(pid), self._noted_s.get(pid, 0.0))

    def processes(self) -> Groups:
        """Return the processes that are there because of it."""
        if self._entry.who == OURS:
            return {SUPERVISOR: pids_named(OUR_SUPERVISOR), WORKERS: pids_named(OUR_ACTORS)}
        family = tree(self._process.pid) if self._process else []
        if actors := PEERS[self._entry.who].actors:
            return {SUPERVISOR: family, WORKERS: pids_named(actors)}
        parent, *workers = family
        return {SUPERVISOR: [parent], WORKERS: workers} if workers else {WORKERS: [parent]}


def queue_of(entry: Entry) -> Queue:
    if entry.who == OURS:
        return OUR_QUEUE
    return TASKIQ_QUEUE if entry.who == TASKIQ else PEER_QUEUE


async def make_streams(place: Place) -> None:
    """Make our streams, of which peers use those for results and the ledger, and theirs."""
    await provision(place.link, our_config(place, Entry(who=OURS)))
    js, replicas = place.link.js, place.nats.replicas
    await js.add_stream(
        name=PEER_STREAM, subjects=[PEER_SUBJECT], retention="workqueue", num_replicas=replicas
    )
    await js.add_consumer(
        PEER_STREAM, durable_name=DURABLE, ack_policy="explicit", max_ack_pending=-1
    )


@asynccontextmanager
async def running(place: Place, entry: Entry) -> AsyncIterator[Running]:
    """Run a contestant; its tasks are worked on from then on."""
    context = _ours(place, entry) if entry.who == OURS else _peer(place, entry)
    async with context as contestant:
        yield contestant


def our_config(place: Place, entry: Entry, **pool: object) -> Config:
    """Return our configuration: the defaults, but for where things are and how many."""
    sizes = {"actors": entry.workers, "slots": place.slots // entry.workers} | pool
    return Config(
        nats=NatsConfig(url=",".join(place.nats.urls)),
        vllm=VllmConfig(urls=(place.model.url,), api_key=Secret(place.model.api_key)),
        streams=StreamsConfig(replicas=place.nats.replicas),
        ray=RayConfig(namespace=place.site.new_name("bench")),
        pools={"default": PoolConfig(**sizes)},
    )


@asynccontextmanager
async def _ours(place: Place, entry: Entry) -> AsyncIterator[Running]:
    build = build_telling_actor if entry.logs else build_agent_actor
    service = await asyncio.to_thread(
        ray_runtime.start_service, our_config(place, entry), build_actor=build
    )
    try:
        await asyncio.to_thread(service.wait_ready, READY_TIMEOUT_S)
        yield Running(entry)
    finally:
        await asyncio.to_thread(service.kill)
        await _until_ended(OUR_SUPERVISOR, OUR_ACTORS)


async def build_telling_actor(settings: ActorSettings) -> ActorParts:
    """Build an actor that logs as it does by default."""
    os.environ[LEVEL_VARIABLE] = "info"
    return await build_agent_actor(settings)


@asynccontextmanager
async def _peer(place: Place, entry: Entry) -> AsyncIterator[Running]:
    peer = PEERS[entry.who]
    settings = Settings(
        nats_urls=place.nats.urls,
        model_url=place.model.url,
        slots=place.slots // entry.workers,
        workers=entry.workers,
        replicas=place.nats.replicas,
        ledger=entry.ledger,
        waves=entry.waves,
        ray_address=place.site.ray_address,
    )
    log_file = place.site.folder / f"{place.site.new_name('peer')}.log"
    with log_file.open("wb") as log:
        process = await _start(peer.command(settings), settings, log)
        try:
            contestant = Running(entry, process, log_file)
            yield contestant
            contestant.check()
        finally:
            await _end(process)
            if peer.actors:
                await _until_ended(peer.actors)


async def _start(
    command: list[str], settings: Settings, log: IO[bytes]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        env=os.environ | settings.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a peer and its workers: kindly first, since Ray's drivers take their actors along."""
    pids = tree(process.pid)
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _until_ended(*titles: str) -> None:
    await until(lambda: not any(map(pids_named, titles)), timeout_s=END_TIMEOUT_S)
