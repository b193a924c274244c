"""taskiq with taskiq-nats's pull broker; `bench.lineup` says how it is run."""

from functools import cache
from typing import Any

from bench.peers.work import Settings, Task, Work, open_session
from bench.wire import DURABLE, PEER_STREAM, PEER_SUBJECT
from msgspec import convert
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig
from taskiq_nats import PullBasedJetStreamBroker

settings = Settings.read()
broker = PullBasedJetStreamBroker(
    settings.nats_urls,
    subject=PEER_SUBJECT,
    stream_name=PEER_STREAM,
    durable=DURABLE,
    stream_config=StreamConfig(
        name=PEER_STREAM,
        subjects=[PEER_SUBJECT],
        retention=RetentionPolicy.WORK_QUEUE,
        num_replicas=settings.replicas,
    ),
    consumer_config=ConsumerConfig(durable_name=DURABLE, max_ack_pending=-1),
    pull_consume_batch=settings.slots,
    pull_consume_timeout=5,
)


@broker.task(task_name="work")
async def work(task: dict[str, Any]) -> None:
    await _work().on_task(convert(task, Task))


@cache
def _work() -> Work:
    return Work(open_session(), broker.js, settings)
