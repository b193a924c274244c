"""`pools`: what each pool does, has and waits for."""

import asyncio
import sys
from collections.abc import Iterator

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from agent_actors.cli.invocation import Invocation, json_option, shared_options
from agent_actors.cli.plain import plain
from agent_actors.cli.printing import print_json, print_json_line
from agent_actors.cli.session import with_client
from agent_actors.cli.tables import WIDE_ENOUGH, table_of
from agent_actors.client import AgentClient
from agent_actors.contract import PoolStatus, ServiceStatus
from agent_actors.errors import PublishFailed, ServiceUnreachable

HEADINGS = (
    "Pool",
    "State",
    "Subjects",
    "Actors",
    "Slots used",
    "Waiting",
    "Unacked",
    "Settled",
    "Rate",
)
NO_SANDBOX = "none"
REFRESH_S = 1.0


@click.command()
@click.option("--watch", is_flag=True, help="Refresh every second, until Ctrl-C.")
@json_option
@shared_options
@click.pass_obj
def pools(invocation: Invocation, *, watch: bool, as_json: bool) -> None:
    """Show the pools and what waits for them."""
    if watch:
        with_client(invocation, _watch_json if as_json else _watch)
        return
    service = with_client(invocation, AgentClient.service_status)
    print_json(service.pools) if as_json else show_pools(service)


def show_pools(service: ServiceStatus) -> None:
    """Print a table of the pools, and what else there is to say of them."""
    _console().print(_shown(service))


async def _watch(client: AgentClient) -> None:
    with Live(console=_console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            try:
                live.update(_shown(await client.service_status()), refresh=True)
            except (PublishFailed, ServiceUnreachable) as error:
                live.update(Text(plain(str(error)), style="red"), refresh=True)
            await asyncio.sleep(REFRESH_S)


async def _watch_json(client: AgentClient) -> None:
    while True:
        print_json_line((await client.service_status()).pools)
        await asyncio.sleep(REFRESH_S)


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE_ENOUGH)


def _shown(service: ServiceStatus) -> RenderableType:
    return Group(table_of(HEADINGS, map(_row, service.pools)), *_remarks(service))


def _remarks(service: ServiceStatus) -> Iterator[Text]:
    """Yield what does not fit into a table."""
    for pool in service.pools:
        yield from _troubles(pool)
        yield from _endpoints(pool)
        for sandbox in sorted({actor.sandbox for actor in pool.actors} - {""}):
            yield _sandbox(pool, sandbox)
    for subject, count in service.unserved.items():
        yield Text(plain(f"{subject}: no pool serves it; {count} tasks wait"), style="yellow")
    if service.trouble:
        yield Text(plain(f"configuration: {service.trouble}"), style="red")


def _troubles(pool: PoolStatus) -> Iterator[Text]:
    """Yield what NATS does not do for some actors; what it does for none is in the table."""
    for actor in pool.actors:
        if actor.trouble and actor.trouble not in pool.reason:
            yield Text(plain(f"{pool.name}: {actor.agent_id}: {actor.trouble}"), style="red")


def _endpoints(pool: PoolStatus) -> Iterator[Text]:
    """Yield for each model server what its actors ask of it, all together."""
    urls = dict.fromkeys(each.url for actor in pool.actors for each in actor.endpoints)
    for url in urls:
        known = [each for actor in pool.actors for each in actor.endpoints if each.url == url]
        under_way, limit = sum(each.in_flight for each in known), sum(each.limit for each in known)
        waiting = max(each.waiting for each in known)
        told = f"{under_way} of at most {limit} requests under way"
        told += f", {waiting} waiting there" if waiting >= 0 else ""
        yield Text(plain(f"{pool.name}: {url}: {told}"))


def _sandbox(pool: PoolStatus, sandbox: str) -> Text:
    actors = [actor.agent_id for actor in pool.actors if actor.sandbox == sandbox]
    where = "" if len(actors) == len(pool.actors) else f" on {', '.join(actors)}"
    unconfined = sandbox == NO_SANDBOX
    said = f"{sandbox} (commands are not confined)" if unconfined else sandbox
    return Text(
        plain(f"{pool.name}: sandbox {said}{where}"), style="bold red" if unconfined else ""
    )


def _row(pool: PoolStatus) -> tuple[object, ...]:
    return (
        pool.name,
        plain(f"{pool.state}: {pool.reason}" if pool.reason else pool.state),
        ", ".join(pool.subjects),
        _actors(pool),
        f"{pool.slots_used}/{pool.slots}",
        _count(pool.pending),
        _count(pool.unacked),
        pool.settled,
        f"{pool.rate:g}/s",
    )


def _actors(pool: PoolStatus) -> str:
    """Return how many run of how many wanted, and who is on the way: `2/8, 3 starting, by load`."""
    outdated = sum(actor.outdated for actor in pool.actors)
    numbers = {"starting": pool.starting, "draining": pool.draining, "outdated": outdated}
    told = [f"{pool.running}/{pool.wanted}"]
    told += [f"{count} {what}" for what, count in numbers.items() if count]
    if pool.sized_by in {"hand", "load"}:
        told.append(f"by {pool.sized_by}")
    return ", ".join(told)


def _count(messages: int) -> str:
    return "?" if messages < 0 else str(messages)
