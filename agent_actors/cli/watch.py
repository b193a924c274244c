"""`watch`: results as they come."""

import click

from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.printing import print_json_line
from agent_actors.cli.results import line_of
from agent_actors.cli.session import with_client
from agent_actors.client import AgentClient


@click.command()
@click.option("--task-id", help="Only the results of this task.")
@json_option
@shared_options
@click.pass_obj
def watch(invocation: Invocation, *, task_id: str | None, as_json: bool) -> None:
    """Show results as they come.

    Until Ctrl-C; with --json one on each line.
    """

    async def look_on(client: AgentClient) -> None:
        async with client.watch(task_id) as results:
            click.echo("Watching for results; Ctrl-C ends it.", err=True)
            async for result in results:
                print_json_line(result) if as_json else click.echo(line_of(result))

    try:
        with_client(invocation, look_on)
    except KeyboardInterrupt:
        return
