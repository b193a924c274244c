"""`drain --node`: one node of the Ray cluster is left in good order, before it goes away.

Importing this imports Ray.
"""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import click

from agent_actors.adapters.ray_nodes import LEAVING, Nodes
from agent_actors.cli.failure import UNREACHABLE
from agent_actors.cli.running import connected_ray
from agent_actors.config import Config
from agent_actors.errors import ServiceUnreachable

ASK_EVERY_S = 0.5
# Ray itself tries for minutes where there is nobody.
CONNECT_WITHIN_S = 20.0
# A supervisor whose node was lost is back much sooner, if there is room for it.
LOST_AFTER_S = 60.0
# What takes longer than the time of grace: the last tasks are given back, the supervisor moves.
MARGIN_S = 20.0
# When all of a cluster is deleted, others begin to be drained within so long.
OTHERS_BEGIN_WITHIN_S = 5.0


def drain_node(config: Config, grace_s: float | None) -> None:
    """Return once nobody of the service is on this node. Raises ServiceUnreachable."""
    longest_s = max(pool.task_timeout_s for pool in config.pools.values())
    limit_s = longest_s if grace_s is None else grace_s
    with _connected_soon(config):
        nodes = Nodes(config.ray.namespace)
        if nodes.is_head:
            _wait_for_others(nodes, limit_s + MARGIN_S)
        else:
            _leave(nodes, limit_s)


@contextmanager
def _connected_soon(config: Config) -> Generator[None]:
    """Stay connected to Ray; end this process when Ray does not answer soon."""
    patience = threading.Timer(CONNECT_WITHIN_S, _give_up)
    patience.daemon = True
    patience.start()
    try:
        with connected_ray(config, LEAVING):
            patience.cancel()
            yield
    finally:
        patience.cancel()


def _give_up() -> None:
    click.echo(
        f"Error: Ray on this node does not answer within {CONNECT_WITHIN_S:g} s: nothing is "
        "drained; JetStream hands out again what ran here",
        err=True,
    )
    os._exit(UNREACHABLE)


def _leave(nodes: Nodes, grace_s: float) -> None:
    """Close this node, and wait until nobody of ours is left on it."""
    began = heard = time.monotonic()
    nodes.close_this(grace_s)
    told: list[str] = []
    while True:
        now = time.monotonic()
        try:
            left = nodes.left(max(0.0, began + grace_s - now))
        except ServiceUnreachable:
            if now - heard > LOST_AFTER_S:
                raise
        else:
            heard = now
            if not left:
                break
            if left != told:
                click.echo(f"Leaving this node: {', '.join(left)}.", err=True)
            told = left
        if now - began > grace_s + MARGIN_S:
            raise ServiceUnreachable(f"{', '.join(told) or 'the supervisor'}: still on this node")
        time.sleep(ASK_EVERY_S)
    click.echo("Nothing of the service is on this node.", err=True)


def _wait_for_others(nodes: Nodes, limit_s: float) -> None:
    """Keep the head while others leave their nodes: they need it for that."""
    began = time.monotonic()
    waits = False
    while (passed_s := time.monotonic() - began) < limit_s:
        others_leave = nodes.others_leave()
        if others_leave and not waits:
            click.echo("The head stays while other nodes are being drained.", err=True)
            waits = True
        if not others_leave and passed_s > OTHERS_BEGIN_WITHIN_S:
            return
        time.sleep(ASK_EVERY_S)
