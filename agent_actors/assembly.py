"""Puts an agent together from its configuration, in the process where it is to work."""

import os
from contextlib import AsyncExitStack
from functools import partial

import structlog

from agent_actors.actor import ActorParts
from agent_actors.adapters.jetstream.artifacts import JetStreamArtifacts
from agent_actors.adapters.jetstream.cancels import hear_cancelled
from agent_actors.adapters.jetstream.connection import connect
from agent_actors.adapters.jetstream.lanes import open_lane
from agent_actors.adapters.jetstream.publishing import NATSEvents, NATSResultPublisher
from agent_actors.adapters.jetstream.records import JetStreamLedger
from agent_actors.adapters.jetstream.tasks import JetStreamAcks, JetStreamTaskQueue
from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.collector import spare_what_is_there
from agent_actors.contract import utc_now
from agent_actors.execution import PROPOSAL, TOOLS, ExecuteAgentTask
from agent_actors.leases import Leases
from agent_actors.observe.logs import configure_logs
from agent_actors.ports import ActorSettings, Strategy, VLLMClient
from agent_actors.settlement import SettleDelivery
from agent_actors.strategies.proposal import GenerateProposal
from agent_actors.workbench import Workbench

# What could not be settled comes again after `ack_wait_s`, and tells whether that goes on.
TROUBLE_ACK_WAITS = 2

log = structlog.get_logger()


def execute_agent_task(client: VLLMClient, workbench: Workbench | None = None) -> ExecuteAgentTask:
    """Return the use case with every strategy that there is; tools need a workbench."""
    strategies: dict[str, Strategy] = {PROPOSAL: GenerateProposal(client)}
    if workbench:
        strategies[TOOLS] = workbench.strategy(client)
    return ExecuteAgentTask(strategies, utc_now)


async def build_agent_actor(settings: ActorSettings) -> ActorParts:
    """Connect an agent to NATS and its model, and get its tools ready.

    Raises ServiceUnreachable, PermissionDenied, ConfigError.
    """
    configure_logs("agent-actor")
    config = settings.config
    async with AsyncExitStack() as opened:
        connection = await connect(config.nats, name=settings.agent_id, on_closed=end_process)
        opened.push_async_callback(connection.close)
        client = VLLMHTTPClient.from_config(config.vllm)
        opened.push_async_callback(client.close)
        workbench = await Workbench.open(settings.pool_name, settings.pool)
        opened.push_async_callback(workbench.close)
        acks = JetStreamAcks(connection)
        settle = SettleDelivery(
            agent_id=settings.agent_id,
            pool_name=settings.pool_name,
            pool=settings.pool,
            max_payload_bytes=connection.nc.max_payload,
            execute=execute_agent_task(client, workbench),
            leases=Leases(JetStreamLedger(connection), JetStreamTaskQueue(connection), utc_now),
            publisher=NATSResultPublisher(connection=connection),
            acks=acks,
            artifacts=JetStreamArtifacts(connection),
            events=NATSEvents(connection),
            clock=utc_now,
            clear_away=workbench.clear_away,
        )
        await hear_cancelled(connection, settle.cancel)
        close = opened.pop_all().aclose
    spare_what_is_there()
    return ActorParts(
        settle=settle,
        acks=acks,
        close=close,
        watch_model=client.watch_model,
        model=client,
        sandbox=workbench.sandbox,
        trouble=partial(connection.trouble, TROUBLE_ACK_WAITS * settings.pool.ack_wait_s),
        open_lane=partial(open_lane, connection),
    )


def end_process() -> None:
    """Leave at once: what lives by this process is restarted or handed out again."""
    log.warning("process.ended")
    os._exit(1)
