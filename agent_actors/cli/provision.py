"""`provision`: what must lie in JetStream, made or checked."""

from functools import partial

import click
import structlog

from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.nack import nack_resources
from agent_actors.adapters.jetstream.streams import Change, check
from agent_actors.adapters.jetstream.streams import provision as make
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.printing import print_json
from agent_actors.cli.session import with_connection
from agent_actors.cli.tables import print_table
from agent_actors.config import Config
from agent_actors.errors import PermissionDenied

log = structlog.get_logger()

NACK_HEADING = """\
# What `agent-actors provision` makes, for NACK to make it in Kubernetes. Printed by
# `agent-actors provision --print-nack` from the service's configuration: print it again rather
# than edit it.
#
# NACK runs with `--control-loop`, without which it leaves an ObjectStore alone. The buckets are
# Streams, since a KeyValue cannot say `allowDirect: false`: the ledger is read from its leader.
# All other settings can be said; a consumer's name is its durableName. With `preventDelete`,
# whoever deletes a resource deletes no messages. Only `agent-actors provision` refuses a change
# that would lose messages, or hand some out twice.
"""


@click.command()
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--prune", is_flag=True, help="Delete the consumers of pools that are gone.")
@click.option("--print-nack", is_flag=True, help="Print resources for NACK, and ask no server.")
@json_option
@shared_options
@click.pass_obj
def provision(
    invocation: Invocation, *, dry_run: bool, prune: bool, print_nack: bool, as_json: bool
) -> None:
    """Make streams, buckets and consumers in JetStream.

    What is there already is brought up to date. A change that would lose messages is refused,
    and then nothing is changed.
    """
    if print_nack:
        if dry_run or prune or as_json:
            raise click.UsageError("--print-nack goes alone: it does nothing but print YAML")
        _print_nack(invocation.load(without=("nats", "vllm")))
        return
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


def _print_nack(config: Config) -> None:
    from agent_actors import config_yaml  # noqa: PLC0415 - PyYAML takes 15 ms to import

    resources = [config_yaml.dump(each) for each in nack_resources(config)]
    click.echo("---\n".join([NACK_HEADING, *resources]), nl=False)


def _row(change: Change) -> tuple[str, ...]:
    return change.kind, change.name, change.action, "; ".join(change.details)
