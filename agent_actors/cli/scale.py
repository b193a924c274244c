"""`scale`: how many actors a pool has, from now on."""

import click

from agent_actors.adapters.jetstream.connection import Connection
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.printing import print_json
from agent_actors.cli.session import with_connection
from agent_actors.client import AgentClient
from agent_actors.config import Config
from agent_actors.contract import MAX_ACTORS, ScaleReply
from agent_actors.errors import PublishFailed, ServiceUnreachable


@click.command()
@click.argument("pool")
@click.argument("actors", type=click.IntRange(0, MAX_ACTORS), required=False)
@click.option("--reset", is_flag=True, help="Give the pool back to its configuration.")
@click.option("--cluster", metavar="NAME", help="Whose pool; else the ray.namespace configured.")
@json_option
@shared_options
@click.pass_obj
def scale(
    invocation: Invocation,
    *,
    pool: str,
    actors: int | None,
    reset: bool,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Set how many actors a pool has.

    Running tasks go on: new actors start side by side, those that are too many finish what they
    have. It holds, over restarts too, until the pool's `actors` are configured anew, or --reset.
    """
    if reset == (actors is not None):
        raise click.UsageError("give the number of actors, or --reset")

    async def ask(connection: Connection, config: Config) -> ScaleReply:
        asked = cluster or config.ray.namespace
        try:
            return await AgentClient(connection).scale(asked, pool, actors)
        except PublishFailed as error:
            message = f"no service of the cluster {asked!r} answers"
            raise ServiceUnreachable(message) from error

    reply = with_connection(invocation, ask)
    if as_json:
        print_json(reply)
    else:
        said = "" if reply.sized_by == "hand" else f", by {reply.sized_by}"
        click.echo(f"{reply.pool}: {reply.before} -> {reply.wanted} actors{said}")
