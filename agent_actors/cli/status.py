"""`status`: where a task stands, what the service does."""

import sys
from datetime import datetime

import click

from agent_actors.cli.failure import TASK_FAILED
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.plain import plain
from agent_actors.cli.pools import show_pools
from agent_actors.cli.printing import print_json
from agent_actors.cli.results import DIFF, reference, show_result
from agent_actors.cli.session import with_client
from agent_actors.client import AgentClient
from agent_actors.contract import ServiceStatus, TaskStatus, utc_now


@click.command()
@click.argument("task_id", required=False)
@click.option("--diff", is_flag=True, help="Print what the task changed, as a patch.")
@json_option
@shared_options
@click.pass_obj
def status(invocation: Invocation, *, task_id: str | None, diff: bool, as_json: bool) -> None:
    """Show where a task stands, or what the service does.

    The exit code is 1 for a task that has failed.
    """
    if diff and (task_id is None or as_json):
        raise click.UsageError("--diff goes with a task's id, and without --json")
    if task_id is None:
        service = with_client(invocation, AgentClient.service_status)
        print_json(service) if as_json else _show_service(service)
        return

    async def ask(client: AgentClient) -> tuple[TaskStatus, bytes]:
        task = await client.status(task_id)
        return task, await _patch(client, task) if diff else b""

    task, patch = with_client(invocation, ask)
    if diff:
        _show_patch(task, patch)
    else:
        print_json(task) if as_json else _show_task(task)
    if task.state == "failed":
        raise click.exceptions.Exit(TASK_FAILED)


def _show_task(task: TaskStatus) -> None:
    if task.result:
        show_result(task.result)
        return
    next_one = f"after attempt {task.attempt}, for the next" if task.attempt else "for an agent"
    meaning = {
        "running": f"attempt {task.attempt}, on {task.agent_id}",
        "waiting": next_one,
        "unknown": "no agent has begun it, or there is no such task",
    }
    said = ", cancel requested" if task.cancel_requested else ""
    click.echo(f"{task.task_id} {task.state}  ({meaning[task.state]}{said})")


async def _patch(client: AgentClient, task: TaskStatus) -> bytes:
    """Return the diff of the task's result, wherever it lies; nothing without one."""
    found = task.result.artifacts.get(DIFF) if task.result else None
    moved = reference(found)
    return await client.artifact(moved) if moved else str(found or "").encode()


def _show_patch(task: TaskStatus, patch: bytes) -> None:
    """Print the patch byte for byte, but on a terminal only what can be seen of it."""
    if not patch:
        click.echo(f"{task.task_id} is {task.state} and has no diff", err=True)
    elif sys.stdout.isatty():
        click.echo(plain(patch.decode(errors="replace")))
    else:
        click.echo(patch, nl=False)


def _show_service(service: ServiceStatus) -> None:
    since = service.started.astimezone()
    click.echo(
        f"agent-actors {service.version}, supervisor {service.supervisor_id}, "
        f"running since {since:%Y-%m-%d %H:%M:%S} ({_age(service.started)})\n"
    )
    show_pools(service)


def _age(started: datetime) -> str:
    minutes = int((utc_now() - started).total_seconds() // 60)
    days, minutes = divmod(minutes, 24 * 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{days} d ' if days else ''}{f'{hours} h ' if hours else ''}{minutes} min"
