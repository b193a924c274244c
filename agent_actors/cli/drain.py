"""`drain`: the service ends in good order; with `--node` it only leaves one node of Ray's."""

import asyncio
from functools import partial

import click

from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.cli.invocation import Invocation, shared_options
from agent_actors.cli.session import with_connection
from agent_actors.client import AgentClient
from agent_actors.config import Config
from agent_actors.errors import PublishFailed, ServiceUnreachable

ASK_EVERY_S = 0.25


@click.command()
@click.option(
    "--timeout",
    "grace_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long running tasks may take; else each pool's stop_grace_s, and with --node "
    "its task_timeout_s.",
)
@click.option("--cluster", metavar="NAME", help="Whose service; else the ray.namespace configured.")
@click.option(
    "--node", is_flag=True, help="Leave only the Ray node that this runs on, as a preStop hook."
)
@shared_options
@click.pass_obj
def drain(
    invocation: Invocation, *, grace_s: float | None, cluster: str | None, node: bool
) -> None:
    """Stop the service; running tasks may finish.

    It pulls no more tasks, lets those that run finish in time, gives the others back to the
    queue, and ends, with the `up` or `serve` that started it. This command returns when that is
    done; asking again with a shorter --timeout hurries it.

    With --node the service goes on, on other nodes: Ray starts nothing more on the node that this
    runs on, the actors there finish or give back what they have, and the supervisor moves. On
    the head, which has none of them, it waits while other nodes are being drained.
    """
    if node:
        if cluster is not None:
            raise click.UsageError("--cluster: --node concerns the node that this runs on")
        from agent_actors.cli.node import drain_node  # noqa: PLC0415 - Ray takes a second to import

        drain_node(invocation.load(), grace_s)
        return
    with_connection(invocation, partial(_drain, cluster=cluster, grace_s=grace_s))


async def _drain(
    connection: Connection, config: Config, *, cluster: str | None, grace_s: float | None
) -> None:
    client = AgentClient(connection)
    cluster = cluster or config.ray.namespace
    try:
        running = (await client.drain(cluster, grace_s=grace_s)).running
    except PublishFailed as error:
        raise ServiceUnreachable(f"no service of the cluster {cluster!r} answers") from error
    click.echo(f"Draining {cluster}: {running} running.", err=True)
    while await _drains(client, cluster):  # noqa: ASYNC110 - another process does
        await asyncio.sleep(ASK_EVERY_S)
    click.echo("Drained.", err=True)


async def _drains(client: AgentClient, cluster: str) -> bool:
    try:
        return (await client.drain(cluster, only_ask=True)).draining
    except (PublishFailed, ServiceUnreachable):
        return False  # it has ended
