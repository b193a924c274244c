"""`deadletter`: what was given up on, to be looked at, run again, or thrown away."""

import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypedDict, TypeVar, Unpack

import click
import msgspec
from msgspec.structs import replace

from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.letters import HEADINGS, print_payload, row_of, show_letter
from agent_actors.cli.plain import plain
from agent_actors.cli.printing import print_json
from agent_actors.cli.session import with_client
from agent_actors.cli.tables import print_table
from agent_actors.client import AgentClient
from agent_actors.contract import DeadLetter, Replay
from agent_actors.errors import ArtifactLost, DeadLetterMissing, DeadLetterRefused

LISTED = 100

NOT_ALL_DONE = 1

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")

F = TypeVar("F", bound=Callable[..., Any])


class Filters(TypedDict):
    """What the command line says of which letters are meant. Ages are in seconds."""

    role: str
    reason: str
    older_than: float | None
    newer_than: float | None
    limit: int | None


class Chosen(Filters):
    """Which letters to do something with: those named, or all that the filters take."""

    ids: tuple[str, ...]
    everything: bool
    yes: bool
    as_json: bool


class _Age(click.ParamType[float]):
    name = "age"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        parts = list(AGE.finditer(value))
        if not value or "".join(part.group() for part in parts) != value:
            self.fail(f"{value!r} is no age such as 90s, 45m, 2h, 1d12h or 2w", param, ctx)
        return sum(float(part[1]) * SECONDS[part[2]] for part in parts)


def filters(command: F) -> F:
    """Add the options that tell which letters are meant."""
    for option in (
        click.option("--limit", type=click.IntRange(min=1), help="At most so many."),
        click.option("--newer-than", type=_Age(), help="Only those younger than that."),
        click.option("--older-than", type=_Age(), help="Only those older than that, such as 2h."),
        click.option("--reason", default="", help="Only those with this error_type."),
        click.option("--role", default="", help="Only those of this role."),
    ):
        command = option(command)
    return command


def choice(command: F) -> F:
    """Add what names letters: ids, or --all with filters."""
    for option in (
        click.argument("ids", metavar="[ID]...", nargs=-1),
        click.option("--all", "everything", is_flag=True, help="All that the filters take."),
        filters,
        click.option("--yes", is_flag=True, help="Do not ask whether all are meant."),
    ):
        command = option(command)
    return command


@click.group()
def deadletter() -> None:
    """Show, replay or discard dead letters.

    An ID is the number of a letter, as `list` shows it, or a task's id, which means all
    letters of that task.
    """


@deadletter.command("list")
@filters
@json_option
@shared_options
@click.pass_obj
def list_letters(invocation: Invocation, *, as_json: bool, **which: Unpack[Filters]) -> None:
    """List dead letters, the oldest first.

    With --json all but the payloads, which `show` has.
    """
    limit = which["limit"] or LISTED

    async def ask(client: AgentClient) -> list[DeadLetter]:
        return await _find(client, {**which, "limit": limit + 1})

    found = with_client(invocation, ask)
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json([_without_payload(letter) for letter in found])
    elif found:
        print_table(HEADINGS, map(row_of, found))
    else:
        click.echo("No dead letters.")
    if more:
        click.echo(f"There are more than these {limit}; --limit shows more.", err=True)


@deadletter.command()
@click.argument("id_", metavar="ID")
@click.option("--payload", is_flag=True, help="Print the message's bytes, and nothing else.")
@json_option
@shared_options
@click.pass_obj
def show(invocation: Invocation, *, id_: str, payload: bool, as_json: bool) -> None:
    """Show a letter: why it is one, and the message as it came.

    With --json the payload is in Base64.
    """
    if payload and as_json:
        raise click.UsageError("--payload goes without --json")

    async def ask(client: AgentClient) -> list[tuple[DeadLetter, str]]:
        numbers = await _numbers(client, [id_])
        if payload and len(numbers) > 1:
            raise click.UsageError(
                f"{id_} has {len(numbers)} dead letters; name one: {', '.join(map(str, numbers))}"
            )
        return [await _whole(client, await client.dead_letter(number)) for number in numbers]

    for letter, lost in with_client(invocation, ask):
        if as_json:
            print_json(letter)
        elif payload:
            print_payload(letter, lost)
        else:
            show_letter(letter, lost)


@deadletter.command()
@choice
@json_option
@shared_options
@click.pass_obj
def replay(invocation: Invocation, **chosen: Unpack[Chosen]) -> None:
    """Run the tasks of dead letters again.

    A task keeps its id, has its attempts anew, and gets one result more; its letter goes. The
    exit code is 1 when one could not be replayed. Whatever stops the command, repeat it.
    """

    async def run_again(client: AgentClient, number: int) -> tuple[Replay, str]:
        done = await client.replay(number)
        how = "was replayed before" if done.already else "replayed"
        return done, f"{done.task_id} {how}: generation {done.generation} is {done.state}"

    _do(invocation, "Replay", run_again, chosen)


@deadletter.command()
@choice
@json_option
@shared_options
@click.pass_obj
def discard(invocation: Invocation, **chosen: Unpack[Chosen]) -> None:
    """Delete dead letters.

    The exit code is 1 when one could not be deleted.
    """

    async def throw_away(client: AgentClient, number: int) -> tuple[dict[str, int], str]:
        await client.discard(number)
        return {"stream_seq": number}, f"dead letter {number} discarded"

    _do(invocation, "Discard", throw_away, chosen)


def _do(
    invocation: Invocation,
    verb: str,
    act: Callable[[AgentClient, int], Awaitable[tuple[object, str]]],
    chosen: Chosen,
) -> None:
    """Do it to each letter chosen, and tell of each; go on past those that refuse."""
    numbers = _choose(invocation, verb, chosen)
    done: list[object] = []
    refused = 0

    async def each(client: AgentClient) -> None:
        nonlocal refused
        for number in numbers:
            try:
                report, line = await act(client, number)
            except (ArtifactLost, DeadLetterMissing, DeadLetterRefused) as error:
                refused += 1
                report, line = {"stream_seq": number, "error": str(error)}, f"Error: {error}"
            done.append(report)
            if not chosen["as_json"]:
                click.echo(plain(line), err=isinstance(report, dict) and "error" in report)

    try:
        if numbers:
            with_client(invocation, each)
    finally:
        if chosen["as_json"]:
            print_json(done)
    if not numbers and not chosen["as_json"]:
        click.echo("No dead letters.")
    if refused:
        raise click.exceptions.Exit(NOT_ALL_DONE)


def _choose(invocation: Invocation, verb: str, chosen: Chosen) -> list[int]:
    """Return the letters' numbers; ask on a terminal whether all are meant."""
    ids, everything = chosen["ids"], chosen["everything"]
    if bool(ids) == everything:
        raise click.UsageError("name letters by ID, or say --all, with filters or without")
    narrowed = (chosen[name] for name in ("role", "reason", "older_than", "newer_than", "limit"))
    if ids and any(each is not None and each != "" for each in narrowed):
        raise click.UsageError("filters go with --all, not with IDs")

    async def ask(client: AgentClient) -> list[int]:
        if ids:
            return await _numbers(client, ids)
        return [letter.stream_seq for letter in await _find(client, chosen)]

    numbers = with_client(invocation, ask)
    if everything and numbers and not chosen["yes"] and sys.stdin.isatty():
        s = "" if len(numbers) == 1 else "s"
        click.confirm(f"{verb} {len(numbers)} dead letter{s}?", abort=True, err=True)
    return numbers


async def _find(client: AgentClient, which: Filters) -> list[DeadLetter]:
    """Return the letters that the filters take, without their payloads."""
    letters = client.dead_letters(
        role=which["role"],
        reason=which["reason"],
        older_than_s=which["older_than"],
        newer_than_s=which["newer_than"],
    )
    found: list[DeadLetter] = []
    async with aclosing(letters):
        async for letter in letters:
            found.append(replace(letter, payload=b""))
            if len(found) == which["limit"]:
                break
    return found


def _without_payload(letter: DeadLetter) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(letter)
    del fields["payload"]
    return fields


async def _numbers(client: AgentClient, ids: Sequence[str]) -> list[int]:
    """Return the numbers of the letters named. Raises DeadLetterMissing."""
    numbers = {int(each): None for each in ids if _is_number(each)}
    task_ids = {each for each in ids if not _is_number(each)}
    missing = set(task_ids)
    if task_ids:
        async for letter in client.dead_letters():
            if letter.task_id in task_ids:
                numbers[letter.stream_seq] = None
                missing.discard(letter.task_id)
    if missing:
        raise DeadLetterMissing(f"there is no dead letter of {', '.join(sorted(missing))}")
    return list(numbers)


def _is_number(id_: str) -> bool:
    return id_.isascii() and id_.isdecimal()


async def _whole(client: AgentClient, letter: DeadLetter) -> tuple[DeadLetter, str]:
    """Return the letter with its payload, and why it has none, if its object is gone."""
    if letter.object is None:
        return letter, ""
    try:
        return replace(letter, payload=await client.artifact(letter.object)), ""
    except ArtifactLost as error:
        return letter, str(error)
