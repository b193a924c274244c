"""`submit`: hand in a task, and wait for its result if asked to."""

import uuid
from pathlib import Path
from typing import Any, TypedDict, Unpack

import click
import msgspec

from agent_actors.cli.failure import TASK_FAILED
from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.live import news_of, shown
from agent_actors.cli.printing import print_json
from agent_actors.cli.results import show_result
from agent_actors.cli.session import with_client
from agent_actors.client import DEFAULT_WAIT_S, AgentClient, SubmittedTask
from agent_actors.contract import (
    AgentResult,
    AgentRole,
    AgentTask,
    decode_task,
    encode,
    task_subject,
)


class Options(TypedDict):
    """What the command line gives."""

    text: str | None
    role: str | None
    task_id: str | None
    tools: bool | None
    constraints: dict[str, Any] | None
    file: str | None
    wait: bool
    timeout: float
    as_json: bool


class _JsonObject(click.ParamType[dict[str, Any]]):
    name = "json"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        try:
            return msgspec.json.decode(value, type=dict[str, Any])
        except msgspec.DecodeError as error:
            self.fail(
                f"{value!r} is no JSON object such as '{{\"timeout\": 60}}': {error}", param, ctx
            )


@click.command()
@click.argument("text", required=False)
@click.option("--role", help=f"Who is to do it: {', '.join(AgentRole)} or another.  [default: DEV]")
@click.option("--task-id", help="The task's id; made up when there is none.")
@click.option("--tools/--no-tools", default=None, help="Work with tools, or only with words.")
@click.option(
    "--constraints",
    type=_JsonObject(),
    help='JSON, such as \'{"timeout": 60, "requirements": ["…"]}\'.',
)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Read the description, or what TEXT speaks of, from a file, or a whole task in JSON; "
    "- is stdin.",
)
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_WAIT_S,
    show_default=True,
    help="How many seconds to wait.",
)
@json_option
@shared_options
@click.pass_obj
def submit(invocation: Invocation, **options: Unpack[Options]) -> None:
    """Hand in a task.

    TEXT says what is to be done. With --wait the exit code is 1 when the task has failed.
    """
    task = task_from(options)

    async def hand_in(client: AgentClient) -> AgentResult | None:
        as_json, wait = options["as_json"], options["wait"]
        # Looking on begins before the task is there, so that nothing of it is missed.
        news = await news_of(client, task.task_id) if wait and not as_json else None
        submitted = await client.submit(task)
        _say_submitted(submitted, task, as_json=as_json, wait=wait)
        if not wait:
            return None
        async with shown(news):
            return await submitted.result(timeout_s=options["timeout"])

    result = with_client(invocation, hand_in)
    if result is None:
        return
    print_json(result) if options["as_json"] else show_result(result)
    if not result.success:
        raise click.exceptions.Exit(TASK_FAILED)


def task_from(options: Options) -> AgentTask:
    """Return the task that the command line describes. Raises InvalidTask, UsageError."""
    fields = _described(options)
    given = {
        "role": options["role"],
        "task_id": options["task_id"],
        "enable_tools": options["tools"],
    }
    fields |= {name: value for name, value in given.items() if value is not None}
    if options["constraints"]:
        fields["constraints"] = {**(fields.get("constraints") or {}), **options["constraints"]}
    fields["role"] = fields.get("role") or AgentRole.DEV
    fields.setdefault("task_id", f"task-{uuid.uuid4().hex[:12]}")
    payload = encode(fields)
    task, _ = decode_task(payload, task_subject(str(fields["role"])), max_bytes=len(payload))
    return task


def _described(options: Options) -> dict[str, Any]:
    """Return the task's fields as TEXT and the file have them."""
    text, file = options["text"], options["file"]
    if file is None:
        if text is None:
            raise click.UsageError("say what is to be done: as TEXT, with --file, or with both")
        return {"task_description": text}
    try:
        content = _read(file)
        whole = _whole_task(content)
    except UnicodeDecodeError as error:
        raise click.BadParameter("is not text in UTF-8", param_hint="--file") from error
    if whole is None and Path(file).suffix == ".json":
        raise click.BadParameter("is no JSON object with a task_description", param_hint="--file")
    if whole and text:
        raise click.UsageError("the file holds a whole task, so there is no room for TEXT")
    return whole or {"task_description": f"{text}\n\n{content}" if text else content}


def _read(file: str) -> str:
    with click.open_file(file, "rb") as opened:
        return opened.read().decode()


def _whole_task(content: str) -> dict[str, Any] | None:
    try:
        fields = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
    return fields if "task_description" in fields else None


def _say_submitted(submitted: SubmittedTask, task: AgentTask, *, as_json: bool, wait: bool) -> None:
    """Say on stdout that the task is on its way, or on stderr when a result is to follow there."""
    subject = task_subject(task.role)
    if as_json and not wait:
        print_json(
            {
                "task_id": submitted.task_id,
                "subject": subject,
                "stream_seq": submitted.stream_seq,
                "duplicate": submitted.duplicate,
            }
        )
    elif not as_json:
        click.echo(f"{submitted.task_id} submitted to {subject}", err=wait)
    if submitted.duplicate:
        click.echo(
            f"Note: {submitted.task_id} was submitted before, so this one was dropped; "
            "the first one's result counts.",
            err=True,
        )
