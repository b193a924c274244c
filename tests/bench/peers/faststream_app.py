"""FastStream with a NATS JetStream pull subscriber; `bench.lineup` says how it is run."""

from bench.peers.work import Settings, Work, open_session
from bench.wire import DURABLE, PEER_STREAM, PEER_SUBJECT
from faststream import FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.js.api import ConsumerConfig

settings = Settings.read()
broker = NatsBroker(settings.nats_urls, logger=None, apply_types=False)
app = FastStream(broker, logger=None)
made: dict[str, Work] = {}


@app.on_startup
async def open_work() -> None:
    client = await broker.connect()
    made["work"] = Work(open_session(), client.jetstream(), settings)


async def body_of(message: NatsMessage) -> bytes:
    return message.body


@broker.subscriber(
    PEER_SUBJECT,
    stream=JStream(name=PEER_STREAM, declare=False),
    durable=DURABLE,
    config=ConsumerConfig(durable_name=DURABLE, max_ack_pending=-1),
    pull_sub=PullSub(batch_size=settings.slots * (1 if settings.waves else 2), timeout=5),
    max_workers=1 if settings.waves else settings.slots,
    decoder=body_of,
)
async def work(body: bytes) -> None:
    await made["work"].on_bytes(body)
