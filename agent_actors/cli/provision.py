"""`provision`: what must lie in JetStream, made or checked."""

from functools import partial

import click
import structlog

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.streams import Change, check
from agent_actors.adapters.jetstream.streams import provision as make
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.printing import print_json
from agent_actors.cli.session import with_connection
from agent_actors.cli.tables import print_table
from agent_actors.config import Config
from agent_actors.errors import PermissionDenied

log = structlog.get_logger()


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--prune", is_flag=True, help="Delete the consumers of pools that are gone.")
@json_option
@shared_options
@click.pass_obj
def provision(invocation: Invocation, *, dry_run: bool, prune: bool, as_json: bool) -> None:
    """Make streams, buckets and consumers in JetStream.

    What is there already is brought up to date. A change that would lose messages is refused,
    and then nothing is changed.
    """
    changes = with_connection(invocation, partial(make, dry_run=dry_run, prune=prune))
    if as_json:
        print_json(changes)
        return
    print_table(("Kind", "Name", "Action", "Details"), (_row(change) for change in changes))
    if dry_run:
        click.echo("\nThis was a dry run: nothing was changed.")


async def prepare_streams(config: Config, *, only_check: bool = False) -> None:
    """Make what is missing, or see that it is there when making it is not ours to do.

    The pools' consumers are made by the service itself, which moves subjects between them.
    Raises StreamMissing, ProvisionRefused, ServiceUnreachable, PermissionDenied.
    """
    connection = await connect(config.nats, name="agent-actors-provision")
    try:
        await _prepare(connection, config, only_check=only_check)
    finally:
        await connection.close()


async def _prepare(connection: Connection, config: Config, *, only_check: bool) -> None:
    if not only_check:
        try:
            changes = await make(connection, config, consumers=False)
        except PermissionDenied as error:
            log.info("streams.not_ours_to_make", reason=str(error))
        else:
            made = [change.name for change in changes if change.action != "unchanged"]
            log.info("streams.ready", changed=made)
            return
    await check(connection, config)


def _row(change: Change) -> tuple[str, ...]:
    return change.kind, change.name, change.action, "; ".join(change.details)
