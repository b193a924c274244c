"""`drain --node`: one node of the Ray cluster is left in good order, before it goes away.

Importing this imports Ray.
"""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import click

from agent_actors.adapters.ray_nodes import ThisNode
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
        node = ThisNode()
        if node.is_head:
            _wait_for_others(node, limit_s + MARGIN_S)
        else:
            _leave(node, config.ray.namespace, limit_s)


@contextmanager
def _connected_soon(config: Config) -> Generator[None]:
    """Stay connected to Ray; end this process when Ray does not answer soon."""
    patience = threading.Timer(CONNECT_WITHIN_S, _give_up)
    patience.daemon = True
    patience.start()
    try:
        with connected_ray(config):
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


def _leave(node: ThisNode, namespace: str, grace_s: float) -> None:
    """Close the node, and wait until nobody of ours is left on it."""
    began = heard = time.monotonic()
    node.close(grace_s)
    told: list[str] = []
    while True:
        now = time.monotonic()
        try:
            left = node.left(namespace, max(0.0, began + grace_s - now))
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


def _wait_for_others(node: ThisNode, limit_s: float) -> None:
    """Keep the head while other nodes are being drained: they need it for that."""
    began = time.monotonic()
    waits = False
    while time.monotonic() - began < limit_s:
        others = node.others_closed()
        if others and not waits:
            click.echo(f"The head stays while {len(others)} nodes are being drained.", err=True)
        waits = waits or bool(others)
        if not others and (waits or time.monotonic() - began > OTHERS_BEGIN_WITHIN_S):
            return
        time.sleep(ASK_EVERY_S)
