"""`cancel`: a task that is not wanted any more."""

import click

from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.plain import plain
from agent_actors.cli.printing import print_json
from agent_actors.cli.session import with_client
from agent_actors.contract import CancelState

SAID: dict[CancelState, str] = {
    "cancel_requested": "cancel requested; it fails as Cancelled: at once if it runs, "
    "else when it is handed out",
    "cancelled": "was cancelled before",
    "completed": "has completed already",
    "failed": "has failed already",
}


@click.command()
@click.argument("task_id")
@json_option
@shared_options
@click.pass_obj
def cancel(invocation: Invocation, *, task_id: str, as_json: bool) -> None:
    """Stop a task, or keep it from starting.

    Its result is failed, Cancelled. One that has ended stays as it is; one that has not come
    yet fails when it comes.
    """
    reply = with_client(invocation, lambda client: client.cancel(task_id))
    print_json(reply) if as_json else click.echo(plain(f"{reply.task_id}: {SAID[reply.state]}"))
