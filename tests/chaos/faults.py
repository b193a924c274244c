"""The faults, each a small context: what it does, and how that is undone. Adding one is easy.

A fault is an async generator that begins, yields a few words of what it has chosen, and heals.
`@fault` puts it into `FAULTS` under its name, with its lane, how often it comes, and how long.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from random import Random

from chaos.killing import build_mortal_actor
from chaos.schedule import FaultKind
from chaos.stage import POOL, Stage
from msgspec import Struct
from msgspec.structs import replace
from support.nats import WheelNats
from support.tcp_proxy import HEALTHY, PARTITIONED, Link, TcpProxy, Way

from agent_actors.adapters import ray_runtime
from agent_actors.adapters.jetstream.streams import provision
from agent_actors.client import AgentClient
from agent_actors.config import RayConfig
from agent_actors.contract import TASK_STREAM
from agent_actors.errors import AgentActorsError, ServiceUnreachable
from agent_actors.local.model_server.faults import Fault, Faults

PROCESSES, NATS, MODEL = "processes", "nats", "model"
AGAIN_S = 0.25
LAUNCH_TRIES = 3
SECOND_READY_S = 10.0

Begin = Callable[[Stage, Random], AsyncIterator[str]]


class KnownFault(Struct, frozen=True):
    """A fault: when it may come, and what it does."""

    kind: FaultKind
    begin: Callable[[Stage, Random], AbstractAsyncContextManager[str]]


FAULTS: dict[str, KnownFault] = {}


def fault(
    name: str,
    lane: str,
    *,
    weight: float = 1.0,
    lasts_s: tuple[float, float] = (0.0, 0.0),
    cluster_only: bool = False,
) -> Callable[[Begin], Begin]:
    """Register a fault; `lasts_s` are the shortest and the longest time between begin and heal."""
    kind = FaultKind(
        name=name,
        lane=lane,
        weight=weight,
        shortest_s=lasts_s[0],
        longest_s=lasts_s[1],
        cluster_only=cluster_only,
    )

    def register(begin: Begin) -> Begin:
        FAULTS[name] = KnownFault(kind, asynccontextmanager(begin))
        return begin

    return register


# Supervisor and actors (point 8).


@fault("actor killed", PROCESSES, weight=3)
async def actor_killed(stage: Stage, dice: Random) -> AsyncIterator[str]:
    yield _kill(_some(stage.actor_pids(), dice))


@fault("all actors killed", PROCESSES, weight=0.5)
async def all_actors_killed(stage: Stage, _: Random) -> AsyncIterator[str]:
    yield _kill(stage.actor_pids())


@fault("actor terminated", PROCESSES)
async def actor_terminated(stage: Stage, dice: Random) -> AsyncIterator[str]:
    """Send SIGTERM, as somebody may who knows the process but not the service."""
    yield _kill(_some(stage.actor_pids(), dice), signal.SIGTERM)


@fault("supervisor killed", PROCESSES, weight=2)
async def supervisor_killed(stage: Stage, dice: Random) -> AsyncIterator[str]:
    yield _kill(_some(stage.supervisor_pids(), dice))


@fault("supervisor terminated", PROCESSES)
async def supervisor_terminated(stage: Stage, dice: Random) -> AsyncIterator[str]:
    yield _kill(_some(stage.supervisor_pids(), dice), signal.SIGTERM)


@fault("actor frozen", PROCESSES, weight=2, lasts_s=(0.5, 14))
async def actor_frozen(stage: Stage, dice: Random) -> AsyncIterator[str]:
    with _stopped(_some(stage.actor_pids(), dice)) as detail:
        yield detail


@fault("supervisor frozen", PROCESSES, lasts_s=(0.5, 8))
async def supervisor_frozen(stage: Stage, dice: Random) -> AsyncIterator[str]:
    with _stopped(_some(stage.supervisor_pids(), dice)) as detail:
        yield detail


@fault("gcs killed", PROCESSES, lasts_s=(0.1, 5))
async def gcs_killed(stage: Stage, _: Random) -> AsyncIterator[str]:
    """Kill Ray's head: who dies meanwhile comes back only when it is back."""
    stage.gcs.kill()
    try:
        yield "with SIGKILL"
    finally:
        stage.gcs.start()


@fault("second service", PROCESSES, weight=0.5, lasts_s=(1, 6))
async def second_service(stage: Stage, dice: Random) -> AsyncIterator[str]:
    """Run another supervisor with actors of its own on the same consumer, as an upgrade may."""
    config = replace(stage.config, ray=RayConfig(namespace="chaos-2"))
    service = await asyncio.to_thread(
        ray_runtime.start_service, config, build_actor=build_mortal_actor
    )
    in_order = dice.random() < 0.5
    try:
        with suppress(AgentActorsError):
            await asyncio.to_thread(service.wait_ready, SECOND_READY_S)
        yield "stopped in good order" if in_order else "killed"
        if in_order:
            with suppress(AgentActorsError):
                await asyncio.to_thread(service.stop, 0.5)
    finally:
        await asyncio.to_thread(service.kill)


# Changes that are none to whoever waits for a result, whatever else befalls the service meanwhile.


@fault("pool scaled", PROCESSES)
async def pool_scaled(stage: Stage, dice: Random) -> AsyncIterator[str]:
    actors = dice.choice((1, 2, 4, 6))
    with suppress(AgentActorsError):
        await AgentClient(stage.link).scale(stage.config.ray.namespace, POOL, actors)
    yield f"to {actors} actors"


@fault("settings edited", PROCESSES)
async def settings_edited(stage: Stage, dice: Random) -> AsyncIterator[str]:
    """Have another supervisor take over, and every actor replaced, as an upgrade does too."""
    pool = replace(stage.config.pools[POOL], temperature=round(dice.uniform(0, 2), 3))
    stage.config = replace(stage.config, pools={POOL: pool})
    stage.service = await asyncio.to_thread(
        ray_runtime.start_service, stage.config, build_actor=build_mortal_actor
    )
    yield f"temperature {pool.temperature}"


# NATS and the way to it (point 7).


@fault("nats killed", NATS, weight=2, lasts_s=(0.1, 4))
async def nats_killed(stage: Stage, dice: Random) -> AsyncIterator[str]:
    """Kill one server; a cluster that loses all at once may lose what it has confirmed."""
    node = dice.choice(stage.nodes)
    await node.kill()
    try:
        yield "with SIGKILL"
    finally:
        await _launched(node)


@fault("nats restarted", NATS, lasts_s=(0.0, 2))
async def nats_restarted(stage: Stage, dice: Random) -> AsyncIterator[str]:
    node = dice.choice(stage.nodes)
    await node.stop()
    try:
        yield "in good order"
    finally:
        await _launched(node)


@fault("nats frozen", NATS, lasts_s=(0.5, 8))
async def nats_frozen(stage: Stage, dice: Random) -> AsyncIterator[str]:
    node = dice.choice(stage.nodes)
    await node.pause()
    try:
        yield "with SIGSTOP"
    finally:
        await node.resume()


@fault("nats slow", NATS, lasts_s=(1, 6))
async def nats_slow(stage: Stage, dice: Random) -> AsyncIterator[str]:
    latency_s = dice.uniform(0.05, 0.5)
    with _linked(stage.nats_proxies, Link(latency_s=latency_s)):
        yield f"{latency_s:.2f} s each way"


@fault("nats narrow", NATS, lasts_s=(1, 6))
async def nats_narrow(stage: Stage, dice: Random) -> AsyncIterator[str]:
    rate = dice.choice((1, 1_000, 30_000))
    with _linked(stage.nats_proxies, Link(bytes_per_s=rate)):
        yield f"{rate} bytes/s"


@fault("nats partitioned", NATS, lasts_s=(0.5, 10))
async def nats_partitioned(stage: Stage, dice: Random) -> AsyncIterator[str]:
    proxies = [dice.choice(stage.nats_proxies)] if dice.random() < 0.5 else stage.nats_proxies
    with _linked(proxies, PARTITIONED):
        yield f"{len(proxies)} of {len(stage.nats_proxies)} servers"


@fault("nats one-way", NATS, lasts_s=(0.5, 8))
async def nats_one_way(stage: Stage, dice: Random) -> AsyncIterator[str]:
    way: Way = dice.choice(("up", "down"))
    with _linked(stage.nats_proxies, Link(frozen=frozenset({way}))):
        yield f"nothing goes {way}"


@fault("nats reset", NATS, weight=2)
async def nats_reset(stage: Stage, _: Random) -> AsyncIterator[str]:
    for proxy in stage.nats_proxies:
        proxy.reset()
    yield "all connections"


@fault("nats cut in a message", NATS, weight=2, lasts_s=(1, 3))
async def nats_cut(stage: Stage, dice: Random) -> AsyncIterator[str]:
    way: Way = dice.choice(("up", "down"))
    for proxy in stage.nats_proxies:
        proxy.cut(way, at_least_bytes=200)
    try:
        yield f"on its way {way}"
    finally:
        for proxy in stage.nats_proxies:
            proxy.cancel_cut(way)


@fault("consumer deleted", NATS, lasts_s=(0.1, 4))
async def consumer_deleted(stage: Stage, _: Random) -> AsyncIterator[str]:
    await _asked(stage, f"CONSUMER.DELETE.{TASK_STREAM}.{POOL}")
    try:
        yield POOL
    finally:
        await _provisioned(stage)


@fault("leader steps down", NATS, weight=3, cluster_only=True)
async def leader_steps_down(stage: Stage, dice: Random) -> AsyncIterator[str]:
    stream = dice.choice((TASK_STREAM, "AGENT_RESPONSES", "KV_agent_ledger"))
    consumer = dice.random() < 0.3
    what = f"CONSUMER.LEADER.STEPDOWN.{TASK_STREAM}.{POOL}" if consumer else ""
    await _asked(stage, what or f"STREAM.LEADER.STEPDOWN.{stream}")
    yield POOL if consumer else stream


# The model server and the way to it (point 9).


@fault("model refuses connections", MODEL, weight=2, lasts_s=(0.5, 6))
async def model_away(stage: Stage, _: Random) -> AsyncIterator[str]:
    await stage.model_proxy.refuse()
    try:
        yield "and resets those that are open"
    finally:
        await stage.model_proxy.accept()


@fault("model connections reset", MODEL)
async def model_reset(stage: Stage, _: Random) -> AsyncIterator[str]:
    stage.model_proxy.reset()
    yield "all"


@fault("model partitioned", MODEL, lasts_s=(0.5, 6))
async def model_partitioned(stage: Stage, dice: Random) -> AsyncIterator[str]:
    frozen: frozenset[Way] = dice.choice((frozenset({"down"}), frozenset({"up", "down"})))
    with _linked([stage.model_proxy], Link(frozen=frozen)):
        yield ", ".join(sorted(frozen))


@fault("model narrow", MODEL, lasts_s=(1, 6))
async def model_narrow(stage: Stage, dice: Random) -> AsyncIterator[str]:
    rate = dice.choice((1, 2_000))
    with _linked([stage.model_proxy], Link(bytes_per_s=rate)):
        yield f"{rate} bytes/s"


@fault("model cut in an answer", MODEL, lasts_s=(1, 3))
async def model_cut(stage: Stage, _: Random) -> AsyncIterator[str]:
    stage.model_proxy.cut("down", at_least_bytes=200)
    try:
        yield "once"
    finally:
        stage.model_proxy.cancel_cut("down")


@fault("model answers wrong", MODEL, weight=6, lasts_s=(1, 6))
async def model_wrong(stage: Stage, dice: Random) -> AsyncIterator[str]:
    """Have some or all requests meet one or two of the ways in which the server can go wrong."""
    kinds = dice.sample(list(Fault), dice.randint(1, 2))
    share = dice.choice((0.3, 0.6, 1.0)) / len(kinds)
    retry_after_s = dice.choice((None, 1))
    faults = Faults(rates=dict.fromkeys(kinds, share), retry_after_s=retry_after_s)
    stage.model.behaviour = replace(stage.healthy_model, faults=faults)
    try:
        yield f"{', '.join(kinds)} in {share:.0%} each"
    finally:
        stage.model.behaviour = stage.healthy_model


def _some(pids: list[int], dice: Random) -> list[int]:
    """Return one of the processes, or none when none is there, as after another fault."""
    return [dice.choice(pids)] if pids else []


def _kill(pids: list[int], number: signal.Signals = signal.SIGKILL) -> str:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return _told(pids)


@contextmanager
def _stopped(pids: list[int]) -> Iterator[str]:
    """Stop processes and let them go on, by descriptors: their ids may be others' by then."""
    descriptors: list[int] = []
    for pid in pids:
        with suppress(ProcessLookupError):
            descriptors.append(os.pidfd_open(pid))
    try:
        for descriptor in descriptors:
            _signal(descriptor, signal.SIGSTOP)
        yield _told(pids)
    finally:
        for descriptor in descriptors:
            _signal(descriptor, signal.SIGCONT)
            os.close(descriptor)


def _signal(descriptor: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)


def _told(pids: list[int]) -> str:
    return f"process {', '.join(map(str, pids))}" if pids else "none was there"


@contextmanager
def _linked(proxies: list[TcpProxy], link: Link) -> Iterator[None]:
    for proxy in proxies:
        proxy.link = link
    try:
        yield
    finally:
        for proxy in proxies:
            proxy.link = HEALTHY


async def _launched(node: WheelNats) -> None:
    """Start a server again, on a machine that may be too busy to let it start at once."""
    for _ in range(LAUNCH_TRIES):
        with suppress(ServiceUnreachable):
            await node.launch()
            return
        await asyncio.sleep(AGAIN_S)
    await node.launch()


async def _asked(stage: Stage, request: str) -> None:
    """Ask JetStream; it does not matter when it has no such thing or no leader just now."""
    with suppress(AgentActorsError):
        await stage.link.api(request, timeout_s=2.0)


async def _provisioned(stage: Stage) -> None:
    """Make what is missing, as soon as NATS lets us."""
    while True:
        try:
            await provision(stage.link, stage.config)
        except AgentActorsError:
            await asyncio.sleep(AGAIN_S)
        else:
            return
