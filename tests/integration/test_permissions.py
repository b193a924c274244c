"""The permissions of deploy/nats/values.yaml on a real server: enough, and no more than that."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
from nats.js.errors import NotFoundError
from nats.micro.service import Service
from support.commands import Ended, ended, start
from support.permissions import (
    ACCOUNTS,
    TEST,
    Accounts,
    GuardedAccounts,
    Refusal,
    allowed_to,
    guarded_nats,
    permissions_of,
    shipped_accounts,
)
from support.service import running_service
from support.until import until

from agent_actors.adapters.jetstream.arranging import ConsumerArrangement
from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.adapters.jetstream.cancels import hear_cancelled, tell_cancelled
from agent_actors.adapters.jetstream.connection import Connection, connect
from agent_actors.adapters.jetstream.control import serve_control
from agent_actors.adapters.jetstream.feeds import LiveFeed
from agent_actors.adapters.jetstream.lanes import Lane, open_lane
from agent_actors.adapters.jetstream.publishing import NATSEvents
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.sizes import JetStreamSizes
from agent_actors.adapters.jetstream.streams import check, provision, tasks_by_subject
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue, PullConsumer
from agent_actors.adapters.jetstream.wanted import wanted_streams
from agent_actors.client import AgentClient
from agent_actors.config import Config
from agent_actors.contract import AgentTask, TaskEvent, utc_now
from agent_actors.errors import (
    AgentActorsError,
    DeadLetterRefused,
    PermissionDenied,
    StreamMissing,
)
from agent_actors.ledger import UNQUEUED, TaskRecord
from agent_actors.local.model_server.serving import running_model_server
from agent_actors.local.model_server.settings import Behaviour, Latency, ModelServerSettings
from agent_actors.ports import Delivery, HandSize

pytestmark = pytest.mark.nats

CONFIG = Config()
STREAMS = tuple(wanted.stream for wanted in wanted_streams(CONFIG))
ENDPOINTS = ("status", "pools", "config", "result", "cancel", "scale", "drain")

# With this, acknowledgements have a domain and the account's hash before the stream.
NEWER_ACKS = {"js_ack_fc_v2": True}

# How long what is allowed may take, and how long what is not allowed is waited for.
ALLOWED_WITHIN_S = 10.0
DENIED_AFTER_S = 0.5

TASK = AgentTask(task_id="t-1", task_description="do it", role="DEV")
EVENT = TaskEvent(task_id="t-1", kind="started", time=utc_now())
RECORD = TaskRecord(task_id="t-1", state="waiting", source=UNQUEUED, content="c", updated=utc_now())


class Stage:
    """The accounts once, with all in place, and a connection for each user who is asked for."""

    def __init__(self, accounts: GuardedAccounts, stack: AsyncExitStack, within_s: float) -> None:
        self.accounts = accounts
        self.within_s = within_s
        self._stack = stack
        self._links: dict[str, Connection] = {}

    async def link(self, user: str = TEST) -> Connection:
        if user not in self._links:
            link = self._links[user] = await connect(self.accounts.reach(user), name=user)
            self._stack.push_async_callback(link.close)
        return self._links[user]

    async def client(self, user: str) -> AgentClient:
        return AgentClient(await self.link(user))

    async def provision(self) -> None:
        await provision(await self.link(), CONFIG)


@asynccontextmanager
async def staged(
    accounts: GuardedAccounts, within_s: float = ALLOWED_WITHIN_S
) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        stage = Stage(accounts, stack, within_s)
        await stage.provision()
        yield stage


# What each permission is for. A probe raises when it does not get through.

Probe = Callable[[Stage], Awaitable[None]]


async def take_a_task(stage: Stage) -> Delivery:
    """Pull a task as a pool does."""
    link = await stage.link("service")
    came: asyncio.Queue[Delivery] = asyncio.Queue()
    consumer = await PullConsumer.open(link, "default", came.put_nowait, lambda: None)
    try:
        await (await stage.link()).publish_stored("agent.tasks.dev", b"{}")
        await consumer.pull(1)
        await link.nc.flush()
        refuse(consumer.trouble)
        return await asyncio.wait_for(came.get(), stage.within_s)
    finally:
        await consumer.close()


async def ack_a_task(stage: Stage) -> None:
    """Keep a task and ack it: more than the one answer that `allow_responses` allows to all."""
    link = await stage.link("service")
    acks, delivery = JetStreamAcks(link), await take_a_task(stage)
    await acks.in_progress([delivery])
    await acks.ack(delivery)
    await link.nc.flush()
    refuse(link.trouble(stage.within_s))

    async def gone() -> bool:
        try:
            await (await stage.link()).js.get_msg("AGENT_TASKS", delivery.source.stream_seq)
        except NotFoundError:
            return True
        return False

    await until(gone, timeout_s=stage.within_s)


async def see_a_copy_in_the_queue(stage: Stage, user: str = "service") -> None:
    await JetStreamTaskQueue(await stage.link(user)).holds(1, "t-1")


async def keep_a_record(stage: Stage) -> None:
    ledger = JetStreamLedger(await stage.link("service"))
    await ledger.write("t-1", RECORD, (await ledger.read("t-1")).revision)


async def keep_a_size(stage: Stage) -> None:
    sizes = JetStreamSizes(await stage.link("service"), "cluster/1")
    await sizes.write("default", HandSize(actors=3, configured="2"))
    assert (await sizes.read("default")) == HandSize(actors=3, configured="2")
    await sizes.write("default", None)


async def keep_an_object(stage: Stage) -> None:
    store = JetStreamArtifacts(await stage.link("service"))
    await store.put("t-1/diff", b"old")
    ref = await store.put("t-1/diff", b"new" * 100_000)
    assert await store.get(ref) == b"new" * 100_000
    await store.delete(ref)


async def read_an_object(stage: Stage, user: str) -> None:
    ref = await JetStreamArtifacts(await stage.link()).put("t-1/diff", b"big")
    assert await (await stage.client(user)).artifact(ref) == b"big"


async def remove_an_object(stage: Stage) -> None:
    ref = await JetStreamArtifacts(await stage.link()).put("deadletters/t-1", b"big")
    await JetStreamArtifacts(await stage.link("operator")).delete(ref)


async def store(stage: Stage, subject: str) -> None:
    await (await stage.link("service")).publish_stored(subject, b"{}")


async def tell_an_event(stage: Stage, to: str) -> None:
    async with (await stage.client(to)).events("t-1") as events:
        link = await stage.link("service")
        await NATSEvents(link).emit(EVENT)
        await link.nc.flush()
        refuse(link.trouble(stage.within_s))
        assert await asyncio.wait_for(anext(events), stage.within_s) == EVENT


async def tell_of_a_cancel(stage: Stage) -> None:
    link = await stage.link("service")
    heard = asyncio.Event()
    await hear_cancelled(link, lambda _: heard.set())
    await tell_cancelled(link, "t-1")
    await link.nc.flush()
    refuse(link.trouble(stage.within_s))
    await asyncio.wait_for(heard.wait(), stage.within_s)


async def ask_by_lane(stage: Stage) -> None:
    link = await stage.link("service")
    lane = await open_lane(link, echo)
    assert await Lane(link, lane).ask(b"news?", stage.within_s) == b"news?", "not to be asked"


async def echo(request: bytes) -> bytes:
    return request


async def count_tasks(stage: Stage) -> None:
    assert await tasks_by_subject(await stage.link("service")) is not None, "not to be asked"


async def miss_a_stream(stage: Stage, stream: str) -> None:
    """See at the start that a stream is not there."""
    await (await stage.link()).js.delete_stream(stream)
    name = next(wanted.name for wanted in wanted_streams(CONFIG) if wanted.stream == stream)
    missed = ""
    try:
        await check(await stage.link("service"), CONFIG)
    except StreamMissing as error:
        missed = str(error)
    await stage.provision()
    assert f" {name} is missing" in missed


async def listen_to_answers(stage: Stage, user: str) -> None:
    await stage.link(user)


@asynccontextmanager
async def answering(stage: Stage) -> AsyncIterator[Service]:
    async def answer(request: bytes) -> bytes:
        return b"answer to " + request

    link = await stage.link("service")
    service = await serve_control(link, dict.fromkeys(ENDPOINTS, answer))
    await link.nc.flush()
    try:
        yield service
    finally:
        await service.stop()


async def ask_the_service(stage: Stage, user: str, endpoint: str = "status") -> None:
    async with answering(stage):
        link = await stage.link(user)
        answer = await link.request(f"agent.control.{endpoint}", b"me", timeout_s=stage.within_s)
        assert answer.data == b"answer to me"


async def find_the_service(stage: Stage, whom: str) -> None:
    async with answering(stage) as service:
        link = await stage.link("operator")
        await link.request(whom.format(id=service.id), timeout_s=stage.within_s)


async def provision_all(stage: Stage) -> None:
    """Make everything, change everything, and remove what is of no pool."""
    js = (await stage.link()).js
    for stream in STREAMS:
        await js.delete_stream(stream)
    link = await stage.link("provisioner")
    made = await provision(link, CONFIG)
    assert {change.action for change in made} == {"created"}
    for stream in STREAMS:
        info = await js.stream_info(stream)
        await js.update_stream(info.config, description="another")
    await js.delete_consumer("AGENT_TASKS", "default")
    await js.add_consumer("AGENT_TASKS", durable_name="former", filter_subject="agent.tasks.qa")
    changed = await provision(link, CONFIG, prune=True)
    actions = [change.action for change in changed]
    assert sorted(actions) == ["created", "deleted", *["updated"] * len(STREAMS)]


async def hand_in(stage: Stage) -> None:
    await (await stage.client("client")).submit(TASK)


async def replay(stage: Stage) -> None:
    headers = {
        "Agent-Actors-Task-Id": TASK.task_id,
        "Agent-Actors-Subject": "agent.tasks.dev",
        "Agent-Actors-Generation": "0",
    }
    payload = msgspec.json.encode(TASK)
    await (await stage.link()).publish_stored("agent.deadletter.dev", payload, headers)
    client = await stage.client("operator")
    letters = [letter async for letter in client.dead_letters()]
    await client.replay(letters[-1])


async def see_results(stage: Stage) -> None:
    await LiveFeed.open(await stage.link("operator"), "agent.response.*")


def refuse(trouble: str) -> None:
    if "Permissions Violation" in trouble:
        raise PermissionDenied(trouble)


NEEDED: dict[str, dict[str, dict[str, Probe]]] = {
    "service": {
        "publish": {
            "$JS.API.CONSUMER.MSG.NEXT.AGENT_TASKS.*": ack_a_task,
            "$JS.API.CONSUMER.INFO.AGENT_TASKS.*": ack_a_task,
            "$JS.ACK.AGENT_TASKS.*.>": ack_a_task,
            "$JS.API.STREAM.MSG.GET.AGENT_TASKS": see_a_copy_in_the_queue,
            "$JS.API.STREAM.MSG.GET.KV_agent_ledger": keep_a_record,
            "$KV.agent_ledger.*": keep_a_record,
            "$JS.API.STREAM.MSG.GET.KV_agent_config": keep_a_size,
            "$KV.agent_config.*.size.*": keep_a_size,
            "$JS.API.STREAM.MSG.GET.OBJ_agent_artifacts": keep_an_object,
            "$O.agent_artifacts.C.*": keep_an_object,
            "$O.agent_artifacts.M.*": keep_an_object,
            "$JS.API.STREAM.PURGE.OBJ_agent_artifacts": keep_an_object,
            "agent.response.completed": partial(store, subject="agent.response.completed"),
            "agent.response.failed": partial(store, subject="agent.response.failed"),
            "agent.deadletter.*": partial(store, subject="agent.deadletter.dev"),
            "agent.events.*.*": partial(tell_an_event, to="client"),
            "agent.cancel.*": tell_of_a_cancel,
            "_INBOX_service.>": ask_by_lane,
            "$JS.API.STREAM.INFO.AGENT_TASKS": count_tasks,
            **{
                f"$JS.API.STREAM.INFO.{stream}": partial(miss_a_stream, stream=stream)
                for stream in STREAMS
                if stream != "AGENT_TASKS"
            },
        },
        "subscribe": {
            "_INBOX_service.>": partial(listen_to_answers, user="service"),
            "agent.cancel.*": tell_of_a_cancel,
            "agent.control.*": partial(ask_the_service, user="operator"),
            "$SRV.*": partial(find_the_service, whom="$SRV.PING"),
            "$SRV.*.agent-actors": partial(find_the_service, whom="$SRV.STATS.agent-actors"),
            "$SRV.*.agent-actors.*": partial(find_the_service, whom="$SRV.INFO.agent-actors.{id}"),
        },
    },
    "provisioner": {
        "publish": {
            f"$JS.API.{request}": provision_all
            for request in (
                *(
                    f"STREAM.{verb}.{name}"
                    for verb in ("INFO", "CREATE", "UPDATE")
                    for name in STREAMS
                ),
                "CONSUMER.LIST.AGENT_TASKS",
                "CONSUMER.CREATE.AGENT_TASKS.*",
                "CONSUMER.DELETE.AGENT_TASKS.*",
            )
        },
        "subscribe": {"_INBOX_provisioner.>": partial(listen_to_answers, user="provisioner")},
    },
    "operator": {
        "publish": {
            "agent.control.*": partial(ask_the_service, user="operator", endpoint="scale"),
            "agent.tasks.*": replay,
            "$JS.API.STREAM.MSG.GET.AGENT_TASKS": partial(see_a_copy_in_the_queue, user="operator"),
            "$JS.API.STREAM.MSG.GET.AGENT_DEADLETTER": replay,
            "$JS.API.STREAM.MSG.DELETE.AGENT_DEADLETTER": replay,
            "$JS.API.STREAM.MSG.GET.KV_agent_ledger": replay,
            "$KV.agent_ledger.*": replay,
            "$JS.API.STREAM.MSG.GET.OBJ_agent_artifacts": partial(read_an_object, user="operator"),
            "$JS.API.STREAM.PURGE.OBJ_agent_artifacts": remove_an_object,
            "$SRV.>": partial(find_the_service, whom="$SRV.PING"),
        },
        "subscribe": {
            "_INBOX_operator.>": partial(listen_to_answers, user="operator"),
            "agent.events.*.*": partial(tell_an_event, to="operator"),
            "agent.response.*": see_results,
        },
    },
    "client": {
        "publish": {
            "agent.tasks.*": hand_in,
            **{
                f"agent.control.{endpoint}": partial(
                    ask_the_service, user="client", endpoint=endpoint
                )
                for endpoint in ("status", "pools", "result", "cancel")
            },
            f"{ACCOUNTS[0]}.API.STREAM.MSG.GET.OBJ_agent_artifacts": partial(
                read_an_object, user="client"
            ),
        },
        "subscribe": {
            "_INBOX_client.>": partial(listen_to_answers, user="client"),
            "agent.events.*.*": partial(tell_an_event, to="client"),
        },
    },
}
# The same, where acknowledgements have the newer form.
NEEDED_BY_NEWER_ACKS = {"$JS.ACK.*.*.AGENT_TASKS.*.>": ack_a_task}


def each_need() -> Iterator[tuple[str, Accounts, Probe]]:
    """Yield what goes wrong without each permission, and the accounts without it."""
    for user, verbs in NEEDED.items():
        for verb, subjects in verbs.items():
            for subject, probe in subjects.items():
                accounts = shipped_accounts()
                withdraw(accounts, user, verb, subject)
                yield f"{user} may not {verb} {subject}", accounts, probe
    accounts = shipped_accounts()
    del permissions_of(accounts, "service")["allow_responses"]
    yield "service may not answer", accounts, partial(ask_the_service, user="operator")
    for number, entry in enumerate(shipped_accounts()[ACCOUNTS[1]]["imports"]):
        accounts = shipped_accounts()
        del accounts[ACCOUNTS[1]]["imports"][number]
        imported = entry.get("service") or entry["stream"]
        subject = entry.get("to", imported["subject"])
        verb = "publish" if "service" in entry else "subscribe"
        yield f"client's account lacks {subject}", accounts, NEEDED["client"][verb][subject]


def withdraw(accounts: Accounts, user: str, verb: str, subject: str) -> None:
    """Take a permission away; with none left, NATS would allow everything."""
    allowed = allowed_to(accounts, user, verb)
    allowed.remove(subject)
    allowed.append("nothing.at.all")


async def fails(probe: Probe, accounts: GuardedAccounts) -> bool:
    try:
        async with staged(accounts, DENIED_AFTER_S) as stage:
            await probe(stage)
    except (AgentActorsError, AssertionError, TimeoutError):
        return True
    return False


def test_the_table_of_needs_has_every_permission():
    accounts = shipped_accounts()
    for user, verbs in NEEDED.items():
        for verb, subjects in verbs.items():
            newer = NEEDED_BY_NEWER_ACKS if (user, verb) == ("service", "publish") else {}
            assert sorted(allowed_to(accounts, user, verb)) == sorted({**subjects, **newer})


async def test_with_all_permissions_everything_goes_through_and_nothing_is_refused(tmp_path: Path):
    probes = {
        probe for verbs in NEEDED.values() for needs in verbs.values() for probe in needs.values()
    }
    async with guarded_nats(tmp_path, shipped_accounts()) as (accounts,):
        async with staged(accounts) as stage:
            for probe in probes:
                await probe(stage)
        assert accounts.refusals() == set()


async def test_without_any_one_permission_something_fails(tmp_path: Path):
    names, variants, probes = zip(*each_need(), strict=True)
    async with guarded_nats(tmp_path, *variants) as all_accounts:
        outcomes = [
            await fails(probe, accounts)
            for probe, accounts in zip(probes, all_accounts, strict=True)
        ]
    assert [name for name, failed in zip(names, outcomes, strict=True) if not failed] == []


async def test_acknowledgements_of_the_newer_form_need_a_permission_of_their_own(tmp_path: Path):
    ((subject, probe),) = NEEDED_BY_NEWER_ACKS.items()
    without = shipped_accounts()
    withdraw(without, "service", "publish", subject)
    newer = {"feature_flags": NEWER_ACKS}
    async with guarded_nats(tmp_path, shipped_accounts(), without, **newer) as (good, bad):
        async with staged(good) as stage:
            await probe(stage)
        assert good.refusals() == set()
        assert await fails(probe, bad)


# What nobody, or not everybody, may do.

EVERYBODY = frozenset({"service", "provisioner", "operator", "client"})
PUBLISHERS: dict[str, frozenset[str]] = {
    subject: frozenset(users.split())
    for subject, users in {
        "agent.tasks.dev": "operator client",
        "agent.tasks.two.tokens": "",
        "agent.response.completed": "service",
        "agent.response.failed": "service",
        "agent.response.other": "",
        "agent.deadletter.dev": "service",
        "agent.events.t-1.finished": "service",
        "agent.cancel.t-1": "service",
        "agent.control.status": "operator client",
        "agent.control.pools": "operator client",
        "agent.control.result": "operator client",
        "agent.control.cancel": "operator client",
        "agent.control.config": "operator",
        "agent.control.scale": "operator",
        "agent.control.drain": "operator",
        "$SRV.PING": "operator",
        "$KV.agent_ledger.t-1": "service operator",
        "$KV.agent_config.cluster.size.default": "service",
        "$KV.agent_config.other": "",
        "$O.agent_artifacts.C.x": "service",
        "$O.agent_artifacts.M.x": "service",
        "$JS.ACK.AGENT_TASKS.default.1.1.1.1.0": "service",
        "$JS.ACK._.hash.AGENT_TASKS.default.1.1.1.1.0": "service",
        "$JS.ACK.AGENT_RESPONSES.results.1.1.1.1.0": "",
        "$JS.ACK._.hash.AGENT_RESPONSES.results.1.1.1.1.0": "",
        "$JS.API.INFO": "",
        "$JS.API.STREAM.NAMES": "",
        "$JS.API.STREAM.LIST": "",
        "$JS.API.CONSUMER.LIST.AGENT_TASKS": "provisioner",
        "$JS.API.CONSUMER.NAMES.AGENT_TASKS": "",
        "$JS.API.CONSUMER.MSG.NEXT.AGENT_TASKS.default": "service",
        "$JS.API.CONSUMER.MSG.NEXT.AGENT_RESPONSES.results": "",
        "$JS.API.CONSUMER.CREATE.AGENT_TASKS": "",
        "$JS.API.CONSUMER.CREATE.AGENT_TASKS.x": "provisioner",
        "$JS.API.CONSUMER.CREATE.AGENT_TASKS.x.agent.tasks.dev": "",
        "$JS.API.CONSUMER.DURABLE.CREATE.AGENT_TASKS.x": "",
        "$JS.API.CONSUMER.DELETE.AGENT_TASKS.x": "provisioner",
        "$JS.API.CONSUMER.PAUSE.AGENT_TASKS.default": "",
        "$JS.API.CONSUMER.RESET.AGENT_TASKS.default": "",
        "$JS.API.CONSUMER.CREATE.AGENT_RESPONSES": "",
        "$JS.API.CONSUMER.CREATE.AGENT_RESPONSES.x": "",
        "$JS.API.CONSUMER.CREATE.KV_agent_ledger.x": "",
        "$JS.API.STREAM.MSG.GET.AGENT_TASKS": "service operator",
        "$JS.API.STREAM.MSG.GET.AGENT_DEADLETTER": "operator",
        "$JS.API.STREAM.MSG.GET.AGENT_RESPONSES": "",
        "$JS.API.STREAM.MSG.GET.KV_agent_ledger": "service operator",
        "$JS.API.STREAM.MSG.DELETE.AGENT_TASKS": "",
        "$JS.API.STREAM.MSG.DELETE.AGENT_DEADLETTER": "operator",
        "$JS.API.DIRECT.GET.AGENT_TASKS": "",
        "$JS.API.DIRECT.GET.KV_agent_ledger": "",
        "$JS.API.DIRECT.GET.OBJ_agent_artifacts": "",
        "$JS.API.STREAM.PURGE.OBJ_agent_artifacts": "service operator",
        "$JS.API.STREAM.RESTORE.AGENT_TASKS": "",
        "$JS.API.STREAM.CREATE.OTHER": "",
        "$JS.API.STREAM.INFO.OTHER": "",
        "_INBOX_nobody.x": "",
        "_INBOX_service.x": "service",
        **{f"_INBOX_{user}.x": "" for user in ("provisioner", "operator", "client")},
        **{f"$JS.API.STREAM.INFO.{stream}": "service provisioner" for stream in STREAMS},
        **{
            f"$JS.API.STREAM.{verb}.{stream}": "provisioner"
            for stream in STREAMS
            for verb in ("CREATE", "UPDATE")
        },
        **{
            f"$JS.API.STREAM.{verb}.{stream}": ""
            for stream in STREAMS
            for verb in ("DELETE", "PURGE", "SNAPSHOT")
            if (verb, stream) != ("PURGE", "OBJ_agent_artifacts")
        },
    }.items()
}
SUBSCRIBERS: dict[str, frozenset[str]] = {
    subject: frozenset(users.split())
    for subject, users in {
        ">": "",
        "*": "",
        "agent.>": "",
        "agent.tasks.*": "",
        "agent.tasks.dev": "",
        "agent.response.completed": "operator",
        "agent.response.>": "operator",  # to NATS a mere `*` allows this too
        "agent.deadletter.*": "",
        "agent.events.>": "",
        "agent.events.*.*": "operator client",
        "agent.events.t-1.*": "operator client",
        "agent.cancel.*": "service",
        "agent.control.*": "service",
        "agent.control.result": "service",
        "$KV.agent_ledger.*": "",
        "$O.agent_artifacts.>": "",
        "$JS.>": "",
        "$JS.API.>": "",
        "$JS.EVENT.ADVISORY.>": "",
        "$SYS.>": "",
        "_INBOX.>": "",
        "_INBOX_nobody.>": "",
        "_R_.>": "",
        **{f"_INBOX_{user}.>": user for user in EVERYBODY},
    }.items()
}


async def test_everybody_is_refused_what_is_not_his(tmp_path: Path):
    refused = {
        Refusal(user=user, verb=verb, subject=subject)
        for verb, table in (("Publish", PUBLISHERS), ("Subscription", SUBSCRIBERS))
        for subject, users in table.items()
        for user in EVERYBODY - users
    }
    async with guarded_nats(tmp_path, shipped_accounts()) as (accounts,):
        async with staged(accounts) as stage:
            for user in EVERYBODY:
                nc = (await stage.link(user)).nc
                for subject in SUBSCRIBERS:
                    await nc.subscribe(subject)
                for subject in PUBLISHERS:
                    await nc.publish(subject, b"{}")
                await nc.flush()
        found = accounts.refusals()
    assert sorted(map(str, found - refused)) == [], "refused though it is needed"
    assert sorted(map(str, refused - found)) == [], "let through"


async def test_what_a_client_asks_for_cannot_be_sent_to_the_streams_of_the_service(tmp_path: Path):
    """JetStream sends its acknowledgement wherever the publisher says, past all permissions.

    So does a service that may publish there. An operator is in the service's account, which shows
    why clients have one of their own.
    """
    async with guarded_nats(tmp_path, shipped_accounts()) as (accounts,), staged(accounts) as stage:
        js = (await stage.link()).js
        async with answering(stage):
            for user in ("client", "operator"):
                nc = (await stage.link(user)).nc
                for subject in ("agent.tasks.dev", "agent.control.status"):
                    await nc.publish(subject, b"{}", f"$KV.agent_config.by-{user}")
                await nc.flush()
                # What is asked later is answered later.
                await (await stage.client(user)).submit(TASK)

            async def written() -> bool:
                info = await js.stream_info("KV_agent_config", subjects_filter=">")
                return info.state.subjects == {"$KV.agent_config.by-operator": 2}

            await until(written, timeout_s=stage.within_s)


# What may be added.


async def test_a_service_that_may_arrange_makes_its_consumers_itself(tmp_path: Path):
    both = shipped_accounts(), shipped_accounts("service-arranges.yaml")
    async with guarded_nats(tmp_path, *both) as (without, with_addition):
        assert not await arranges(without)
        assert await arranges(with_addition)
        assert with_addition.refusals() == set()


async def arranges(accounts: GuardedAccounts) -> bool:
    async with staged(accounts) as stage:
        js = (await stage.link()).js
        await js.delete_consumer("AGENT_TASKS", "default")
        await js.add_consumer("AGENT_TASKS", durable_name="former", filter_subject="agent.tasks.qa")
        arrangement = ConsumerArrangement(await stage.link("service"), CONFIG)
        while await arrangement.step():
            pass
        return [info.name for info in await js.consumers_info("AGENT_TASKS")] == ["default"]


@pytest.mark.parametrize("flags", [{}, NEWER_ACKS], ids=["acks", "newer acks"])
async def test_a_client_takes_results_from_a_durable_made_for_it(tmp_path: Path, flags: dict):
    with_addition = shipped_accounts("client-durable.yaml")
    async with (
        guarded_nats(tmp_path, with_addition, feature_flags=flags) as (accounts,),
        staged(accounts) as stage,
    ):
        await make_a_durable(await stage.link("provisioner"))
        for number in range(3):
            await store(stage, "agent.response.completed")
            client = (await stage.link("client")).js
            results = await client.pull_subscribe_bind("results", "AGENT_RESPONSES")
            (message,) = await results.fetch(1, timeout=stage.within_s)
            assert message.metadata.sequence.stream == number + 1
            await message.ack_sync(timeout=stage.within_s)
        with pytest.raises(PermissionDenied, match=r"AGENT_RESPONSES\.other"):
            await (await stage.link("client")).api("CONSUMER.MSG.NEXT.AGENT_RESPONSES.other")
        assert {refusal.subject for refusal in accounts.refusals()} == {
            "AGENT_ACTORS.API.CONSUMER.MSG.NEXT.AGENT_RESPONSES.other"
        }


async def make_a_durable(link: Connection) -> None:
    config = {"durable_name": "results", "ack_policy": "explicit"}
    request = {"stream_name": "AGENT_RESPONSES", "config": config}
    await link.api("CONSUMER.CREATE.AGENT_RESPONSES.results", msgspec.json.encode(request))


# The whole service.

SLOW = ModelServerSettings(behaviour=Behaviour(latency=Latency(first_token_ms=300)))
LONG_NOTE = {"metadata": {"note": "x" * (1024 * 1024 - 66_000)}}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
async def test_a_service_a_client_and_an_operator_do_their_work_and_the_service_is_never_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with (
        guarded_nats(tmp_path, shipped_accounts()) as (accounts,),
        running_model_server(SLOW) as model,
    ):
        await provision_as_deployed(accounts)
        async with running_service(
            accounts.server,
            model.url,
            nats=accounts.reach("service"),
            provisions=False,
            actors=1,
            slots=8,
        ) as running:
            await work_as_client(accounts)
            await work_by_commands(accounts, monkeypatch)
            await work_as_operator(accounts, running.config.ray.namespace)
            await running.until_queue_is_empty()
        assert accounts.refusals() == {
            # What `watch` would rather have; see `AgentClient.watch`.
            Refusal(
                user="client",
                verb="Publish",
                subject="AGENT_ACTORS.API.CONSUMER.CREATE.AGENT_RESPONSES",
            ),
            Refusal(user="client", verb="Subscription", subject="agent.response.*"),
            Refusal(
                user="operator", verb="Publish", subject="$JS.API.CONSUMER.CREATE.AGENT_RESPONSES"
            ),
            # What is an operator's.
            Refusal(user="client", verb="Publish", subject="agent.control.scale"),
        }


async def provision_as_deployed(accounts: GuardedAccounts) -> None:
    link = await connect(accounts.reach("provisioner"), name="provisioner")
    assert len(await provision(link, CONFIG)) == len(STREAMS) + 1
    await link.close()


async def work_as_client(accounts: GuardedAccounts) -> None:
    """Hand in tasks that are completed, fail, are cancelled, and are too big for one message."""
    async with (
        AgentClient.connect(accounts.reach("client")) as client,
        client.watch() as watched,
        client.events("good") as events,
    ):
        good = await client.submit(AgentTask(task_id="good", task_description="a haiku"))
        assert (await anext(events)).kind == "started"
        late = {"deadline": "2020-01-01T00:00:00Z"}
        await client.submit(AgentTask(task_id="late", task_description="x", constraints=late))
        await client.submit(AgentTask(task_id="big", task_description="x", constraints=LONG_NOTE))
        doomed = await client.submit(AgentTask(task_id="doomed", task_description="x"))
        await doomed.cancel()
        assert (await good.result(timeout_s=20)).success
        assert (await doomed.result(timeout_s=20)).error_type == "Cancelled"
        assert (await client.result("late", timeout_s=20)).error_type == "DeadlineExceeded"
        big = (await client.result("big", timeout_s=20)).artifacts["constraints"]
        assert msgspec.json.decode(await client.artifact(big)) == LONG_NOTE
        assert [pool.name for pool in await client.pools()] == ["default"]
        assert (await client.service_status()).pools[0].state == "running"
        assert {(await anext(watched)).task_id for _ in range(4)} == {
            "good",
            "late",
            "big",
            "doomed",
        }


async def work_by_commands(accounts: GuardedAccounts, monkeypatch: pytest.MonkeyPatch) -> None:
    reach = accounts.reach("client")
    for name in ("nkey_seed_file", "inbox_prefix", "jetstream_prefix"):
        monkeypatch.setenv(f"AGENT_ACTORS_NATS_{name.upper()}", getattr(reach, name))

    async def run(*args: str) -> Ended:
        return await ended(await start(reach.url, *args))

    done = await run("submit", "a haiku", "--task-id", "by-hand", "--wait")
    assert (done.code, "by-hand completed" in done.out) == (0, True), done.err
    others = [("status",), ("status", "by-hand"), ("cancel", "by-hand"), ("pools",)]
    asked = [run(*args) for args in others]
    *looked, denied = await asyncio.gather(*asked, run("scale", "default", "3"))
    assert [each.code for each in looked] == [0] * len(others), looked
    assert (denied.code, "agent.control.scale" in denied.err) == (3, True), denied.err


async def work_as_operator(accounts: GuardedAccounts, cluster: str) -> None:
    """Have dead letters, in and out of the object store, replay and discard; size a pool."""
    async with (
        AgentClient.connect(accounts.reach("operator")) as operator,
        operator.watch() as watched,
    ):
        link = operator._connection
        await link.publish_stored("agent.tasks.dev", b"{oops")
        await link.publish_stored("agent.tasks.dev", b"x" * (1024 * 1024 - 100))
        assert {(await anext(watched)).error_type for _ in range(2)} == {"InvalidTask"}

        async def all_there() -> bool:
            return len([letter async for letter in operator.dead_letters()]) == 2

        await until(all_there)
        async for letter in operator.dead_letters():
            with pytest.raises(DeadLetterRefused):
                await operator.replay(letter)
            await operator.discard(letter)
        assert (await operator.scale(cluster, "default", 2)).wanted == 2
        await operator.scale(cluster, "default", None)
        assert (await operator.running_config()).cluster == cluster
        await link.request("$SRV.INFO.agent-actors")
