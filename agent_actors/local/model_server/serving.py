"""Starts the server on a port and stops it, in a test's process or in one of its own."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from agent_actors.errors import ConfigError
from agent_actors.local.model_server.app import build_app
from agent_actors.local.model_server.chat import ChatService
from agent_actors.local.model_server.engine import Engine
from agent_actors.local.model_server.record import RequestRecord
from agent_actors.local.model_server.settings import (
    SIMULATED_MODEL,
    Behaviour,
    ModelServerSettings,
)

LOOPBACK = "127.0.0.1"
# Running requests end at once when the engine stops; this is for clients that do not read.
SHUTDOWN_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class RunningModelServer:
    """A server that listens at `url`; `stop` ends its running requests with `abort`."""

    def __init__(self, *, url: str, service: ChatService) -> None:
        self.url = url
        self._service = service

    @property
    def requests(self) -> RequestRecord:
        """The chat requests that came."""
        return self._service.requests

    @property
    def engine(self) -> Engine:
        """What runs and waits."""
        return self._service.engine

    @property
    def behaviour(self) -> Behaviour:
        """Pace and faults; set it to change them from the next request on."""
        return self._service.behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        self._service.behaviour = behaviour

    def stop(self) -> None:
        """End all running requests as SIGTERM does."""
        self._service.engine.stop()


@asynccontextmanager
async def running_model_server(
    settings: ModelServerSettings | None = None, *, host: str = LOOPBACK, port: int = 0
) -> AsyncGenerator[RunningModelServer]:
    """Run a server as long as the block lasts; port 0 lets the system choose one.

    Raises ConfigError when it cannot listen there.
    """
    settings = settings or ModelServerSettings()
    service = ChatService(settings)
    async with _listening(service, settings, host, port) as url:
        yield RunningModelServer(url=url, service=service)


async def serve_until_signalled(
    settings: ModelServerSettings, *, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Run a server until SIGTERM or SIGINT, which end running requests with `abort`.

    `ready` is told the URL once it listens. Raises ConfigError when it cannot listen there.
    """
    service = ChatService(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.engine.stop)
    log.info("model_server.starting", model=SIMULATED_MODEL, simulated=True)
    async with _listening(service, settings, host, port) as url:
        if not service.engine.stopping:
            log.info("model_server.ready", url=url, model=SIMULATED_MODEL, simulated=True)
            ready(url)
        await service.engine.stopped()
        log.info("model_server.stopping", running=service.engine.running)
    log.info("model_server.stopped", requests=service.requests.total)


@asynccontextmanager
async def _listening(
    service: ChatService, settings: ModelServerSettings, host: str, port: int
) -> AsyncGenerator[str]:
    runner = web.AppRunner(
        build_app(service, settings),
        handler_cancellation=True,  # a client that hangs up aborts its request
        access_log=None,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    try:
        await service.engine.pause(settings.start_up_ms)
        await _listen(runner, host, port)
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        service.engine.stop()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another, or port 0"
        ) from error
