"""How busy the model servers say they are: `/metrics`, read every second or so while we ask them.

Start at `LoadWatch.look_at`. A server that has no such page, or another one, is asked again only
after a minute; nothing of all this is an error.
"""

import asyncio
import random
from contextlib import suppress
from math import inf

import aiohttp
import structlog
from msgspec import Struct

from agent_actors.adapters.vllm.endpoints import Endpoint
from agent_actors.adapters.vllm.limit import Reading
from agent_actors.adapters.vllm.replies import OK, AttemptFailed
from agent_actors.adapters.vllm.transport import FAILURES, Body
from agent_actors.config import VllmConfig

log = structlog.get_logger()

READ_EVERY_S = 1.0
# While a limit is on its way up.
READ_OFTEN_S = 0.05
ANSWER_WITHIN_S = 2.0
# A server that is too busy to answer once has still said something a moment ago.
MISSES_ALLOWED = 3
ASK_AGAIN_S = 60.0

RUNNING, WAITING = b"vllm:num_requests_running", b"vllm:num_requests_waiting"
CACHE_USAGE = b"vllm:kv_cache_usage_perc"


class _Page(Struct):
    """What is known of one server's page: whether it ever was one, and how often it was missed."""

    misses: int = MISSES_ALLOWED
    ask_at: float = -inf


class LoadWatch:
    """Reads the load of the servers that are asked, and tells it to their limits."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._pages: dict[Endpoint, _Page] = {}
        self._hurry: dict[Endpoint, asyncio.Event] = {}
        self._watches: dict[Endpoint, asyncio.Task[None]] = {}

    def look_at(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        """See to it that a server that just got a request is watched: sooner, if it is full."""
        if endpoint not in self._watches:
            if self._config.metrics == "auto" or endpoint.limit.is_new:
                self._hurry[endpoint] = asyncio.Event()
                self._watches[endpoint] = asyncio.create_task(self._watch(endpoint, session))
        elif not endpoint.has_room and endpoint.limit.is_probing:
            self._hurry[endpoint].set()

    async def close(self) -> None:
        """Look no more; who begins anew knows nothing of the pages."""
        watches = set(self._watches.values())
        self._pages.clear()
        for watch in watches:
            watch.cancel()
        if watches:
            await asyncio.wait(watches)

    async def _watch(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        """Read until there was nothing under way for a while."""
        limit, hurry = endpoint.limit, self._hurry[endpoint]
        loop = asyncio.get_running_loop()
        try:
            while not session.closed:
                reading = await self._read(endpoint, session)
                if reading:
                    limit.read(reading, loop.time())
                elif self._pages[endpoint].misses >= MISSES_ALLOWED:
                    limit.unread()
                if limit.is_idle:
                    break
                await asyncio.sleep(READ_OFTEN_S * _spread())
                if not limit.is_probing:
                    hurry.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(READ_EVERY_S * _spread()):
                            await hurry.wait()
        finally:
            del self._watches[endpoint], self._hurry[endpoint]

    async def _read(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> Reading | None:
        page = self._pages.setdefault(endpoint, _Page())
        now = asyncio.get_running_loop().time()
        if self._config.metrics == "off" or now < page.ask_at:
            return None
        timeout = aiohttp.ClientTimeout(total=min(ANSWER_WITHIN_S, self._config.connect_timeout_s))
        try:
            async with session.get(
                endpoint.metrics_url, timeout=timeout, allow_redirects=False
            ) as response:
                body = await Body(endpoint, response, self._config).whole()
        except (*FAILURES, AttemptFailed) as error:
            log.debug("model.load_unknown", endpoint=endpoint.name, error=str(error))
            page.misses += 1
            if page.misses > MISSES_ALLOWED:
                page.ask_at = now + READ_EVERY_S
            return None
        reading = parse_load(body) if response.status == OK else None
        if reading:
            page.misses = 0
        else:
            log.debug("model.load_not_told", endpoint=endpoint.name, status=response.status)
            page.misses, page.ask_at = MISSES_ALLOWED, now + ASK_AGAIN_S
        return reading


def parse_load(page: bytes) -> Reading | None:
    """Return what a page of metrics says of vLLM's load; None when it says nothing of it.

    Several engines behind one page add up. The page may be long, so only its lines that count
    are looked for.
    """
    page = b"\n" + page
    running, waiting = _values(page, RUNNING), _values(page, WAITING)
    if not running or not waiting:
        return None
    cache_usage = max(_values(page, CACHE_USAGE), default=0.0)
    return Reading(running=sum(running), waiting=sum(waiting), cache_usage=cache_usage)


def _values(page: bytes, name: bytes) -> list[float]:
    values: list[float] = []
    start = b"\n" + name
    at = page.find(start)
    while at >= 0:
        end = page.find(b"\n", at + 1)
        line = page[at + len(start) : end if end >= 0 else None]
        if line[:1] in {b"{", b" "}:  # else it is a longer name
            with suppress(ValueError, IndexError):
                values.append(float(line.rpartition(b"}")[2].split()[0]))
        at = page.find(start, at + 1)
    return values


def _spread() -> float:
    return random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, keeps no secret
