"""The HTTP client of a model server: one session for its whole life, several endpoints.

Start at `VLLMHTTPClient.chat`: choose an endpoint, ask, and ask again while that may help.
"""

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import aiohttp
import msgspec
import structlog

from agent_actors import __version__
from agent_actors.adapters.vllm.context import ContextLengths
from agent_actors.adapters.vllm.endpoints import Endpoint, Endpoints, parse_endpoints
from agent_actors.adapters.vllm.load import LoadWatch
from agent_actors.adapters.vllm.replies import (
    OK,
    AttemptFailed,
    read_failure,
    read_reply,
    too_long,
)
from agent_actors.adapters.vllm.requests import encode_request
from agent_actors.adapters.vllm.streams import StreamedAnswer
from agent_actors.adapters.vllm.teller import Teller
from agent_actors.adapters.vllm.transport import FAILURES, Body, connection_failure
from agent_actors.asking import Asker, current_asker
from agent_actors.config import VllmConfig
from agent_actors.config_types import Secret
from agent_actors.contract import EndpointStatus
from agent_actors.errors import ConfigError, ModelUnavailable
from agent_actors.ports import ChatReply, ChatRequest, Listener

log = structlog.get_logger()

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULTS = VllmConfig()

# vLLM closes an idle connection after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE). Let go of it before,
# else a request meets the closing and fails.
KEEP_ALIVE_S = 4.0

EVENTS = "text/event-stream"
# Whoever does not stream may answer as a whole.
STREAMED = {"Accept": f"{EVENTS}, application/json"}


class VLLMHTTPClient:
    """Asks a model server, or several equal ones, for chat completions.

    `vllm_url` is one URL or more; the answers come from the healthy endpoint with the least
    under way. `model` is for requests that name none. `agent_id` and `role` only tell the
    server who asks (User-Agent). `settings` has the timeouts, retries and limits; its urls, key
    and model are those of `from_config`. Make it anywhere; its session opens with the first
    request, in that request's event loop, and again with the first one after `close`.
    """

    def __init__(
        self,
        vllm_url: str | Sequence[str] = DEFAULT_URL,
        *,
        model: str = "",
        agent_id: str = "",
        role: str = "",
        api_key: Secret | str = "",
        settings: VllmConfig = DEFAULTS,
    ) -> None:
        key = _checked_key(api_key.reveal() if isinstance(api_key, Secret) else api_key)
        urls = (vllm_url,) if isinstance(vllm_url, str) else vllm_url
        least, most = settings.min_in_flight, settings.max_in_flight
        self._endpoints = Endpoints(parse_endpoints(urls, key, least=least, most=most))
        self._model = model
        self._settings = settings
        self._load = LoadWatch(settings)
        self._lengths = ContextLengths(self._endpoints, settings)
        self._headers = _headers(key, agent_id, role)
        self._session: aiohttp.ClientSession | None = None
        self._arriving: set[aiohttp.ClientResponse] = set()
        self._prober: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: VllmConfig, *, agent_id: str = "", role: str = "") -> Self:
        """Return a client of the configured endpoints. Raises ConfigError."""
        return cls(
            config.urls,
            model=config.model,
            agent_id=agent_id,
            role=role,
            api_key=config.api_key or _key_from_file(config.api_key_file),
            settings=config,
        )

    async def chat(self, request: ChatRequest, listener: Listener | None = None) -> ChatReply:
        """Return the model's answer; cancelled, it hangs up, so that the server stops too.

        A listener hears the answer as it comes, and again from the start when it broke off and
        another is asked for. What it raises comes through, and hangs up as well.

        Raises ModelRefused when asking again would not help (ContextExceeded when less of a
        prompt would), ModelUnavailable when it did not.
        """
        body = self._encoded(request, stream=listener is not None)
        teller = Teller(listener) if listener is not None else None
        with current_asker() as asker:
            return await self._ask(body, teller, asker)

    async def context_length(self, model: str = "") -> int | None:
        """Return how many tokens the model takes, of prompt and answer together.

        Without a model it is the client's own, or else the server's first. Of several servers
        the least counts. None when none says so, such as a gateway without `/v1/models`.
        """
        return await self._lengths.of(model or self._model, self._opened())

    def watch_model(self, listener: Callable[[bool], None]) -> None:
        """Have the listener told whether the model is away, now and whenever that changes.

        It is away once every endpoint has failed some times in a row; it is probed from then on.
        """
        self._endpoints.listen(listener)

    @property
    def room(self) -> int:
        """How many requests the model takes at a time: what is beyond that waits in here."""
        return self._endpoints.room

    def watch_room(self, listener: Callable[[], None]) -> None:
        """Have the listener called whenever there is more or less room."""
        self._endpoints.listen_to_room(listener)

    def endpoints(self) -> list[EndpointStatus]:
        """Return what can be told of each model server."""
        return sorted((each.status for each in self._endpoints), key=lambda each: each.url)

    async def close(self) -> None:
        """Close the session; requests under way are aborted."""
        session, self._session = self._session, None
        prober, self._prober = self._prober, None
        await self._lengths.close()
        await self._load.close()
        if prober is not None:
            prober.cancel()
            await asyncio.wait({prober})
        for endpoint in self._endpoints.unhealthy():
            endpoint.recovered()  # nobody probes it any more: a new session begins anew
        # Closing aiohttp's session does not wake up who is reading a body.
        for response in self._arriving:
            response.close()
        if session is not None:
            await session.close()
        self._endpoints.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"VLLMHTTPClient({self._endpoints})"

    def _encoded(self, request: ChatRequest, *, stream: bool) -> bytes:
        if self._model and not request.model:
            request = msgspec.structs.replace(request, model=self._model)
        log.debug("model.request", model=request.model, messages=request.messages)
        return encode_request(request, stream=stream)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = self._settings
            self._session = aiohttp.ClientSession(
                # No limit of its own: each endpoint has one.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=limits.total_timeout_s,
                    connect=limits.connect_timeout_s,
                    sock_read=limits.first_byte_timeout_s,
                ),
            )
        return self._session

    async def _ask(self, body: bytes, teller: Teller | None, asker: Asker) -> ChatReply:
        """Ask, and ask again while that may help. Raises ModelRefused, ModelUnavailable."""
        session, clock = self._opened(), asyncio.get_running_loop().time
        tried: list[Endpoint] = []
        while not session.closed:
            endpoint = await self._endpoints.acquire(tried, asker)
            self._load.look_at(endpoint, session)
            began = clock()
            try:
                reply = await self._attempt(session, endpoint, body, teller)
            except AttemptFailed as failed:
                failure = failed
            else:
                endpoint.limit.answered(began, reply.usage.completion_tokens, clock())
                return reply
            finally:
                self._endpoints.release(endpoint)
            if session.closed:
                break
            is_away = failure.unhealthy
            if failure.rejected:
                wait_s = failure.error.retry_after_s or 0.0
                # Who answers others meanwhile is not away: it has too much to do.
                is_away &= not endpoint.limit.rejected(began, clock(), wait_s)
            self._note_failure(session, endpoint, failure, is_away=is_away)
            tried.append(endpoint)
            await asyncio.sleep(self._pause_s(failure, tried))
        raise ModelUnavailable("the client was closed before the model server had answered")

    async def _attempt(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        body: bytes,
        teller: Teller | None,
    ) -> ChatReply:
        """Ask one endpoint once. Raises AttemptFailed, ModelRefused."""
        if teller is not None:
            await teller.begin()
        headers = None if teller is None else STREAMED
        try:
            response = await session.post(
                endpoint.chat_url, data=body, headers=headers, allow_redirects=False
            )
        except FAILURES as error:
            raise connection_failure(endpoint, error, self._settings) from None
        self._arriving.add(response)
        try:
            async with response:  # leaving early hangs up
                reply = await self._reply(endpoint, response, teller)
        finally:
            self._arriving.discard(response)
        endpoint.answered()
        log.debug(
            "model.reply",
            endpoint=endpoint.name,
            model=reply.model,
            finish_reason=reply.finish_reason,
            completion_tokens=reply.usage.completion_tokens,
            content=reply.content,
            tool_calls=reply.tool_calls,
        )
        return reply

    async def _reply(
        self, endpoint: Endpoint, response: aiohttp.ClientResponse, teller: Teller | None
    ) -> ChatReply:
        body = Body(endpoint, response, self._settings)
        if teller is not None and response.status == OK and response.content_type == EVENTS:
            return await self._listen(endpoint, body, teller)
        answer = await body.whole()
        if response.status != OK:
            raise read_failure(endpoint, response.status, response.headers, answer)
        if len(answer) > self._settings.max_response_bytes:
            raise too_long(endpoint, self._settings.max_response_bytes)
        reply = read_reply(endpoint, response.headers, answer)
        if teller is not None:
            teller.hear(reply.content)
            await teller.tell()
        return reply

    async def _listen(self, endpoint: Endpoint, body: Body, teller: Teller) -> ChatReply:
        answer = StreamedAnswer(endpoint)
        while not answer.ended:
            chunk = await body.more(until=teller.due_at)
            if chunk is not None:
                teller.hear(answer.add(chunk))
            await teller.tell_due()
        reply = answer.reply()
        await body.end()
        await teller.tell()
        return reply

    def _note_failure(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        failure: AttemptFailed,
        *,
        is_away: bool,
    ) -> None:
        log.debug("model.request_failed", endpoint=endpoint.name, error=str(failure))
        if not is_away:
            return
        if endpoint.failed():
            log.warning("model.endpoint_unhealthy", endpoint=endpoint.name, error=str(failure))
        if self._prober is None or self._prober.done():
            self._prober = asyncio.create_task(self._probe_unhealthy(session))

    def _pause_s(self, failure: AttemptFailed, tried: Sequence[Endpoint]) -> float:
        """Return the seconds to wait before asking again. Raises the failure's error instead.

        Full jitter; on top of it what the server asked for, unless another one is there.
        """
        limits = self._settings
        retries = len(tried) - 1
        asked_s = failure.error.retry_after_s or 0.0
        if self._endpoints.spare(tried):
            asked_s = 0.0
        if not failure.retry or retries >= limits.max_retries or asked_s > limits.retry_cap_s:
            raise failure.error
        longest_s = min(limits.retry_cap_s, limits.retry_base_s * 2**retries)
        return asked_s + random.uniform(0, longest_s)  # noqa: S311 - spreads load, keeps no secret

    async def _probe_unhealthy(self, session: aiohttp.ClientSession) -> None:
        while unhealthy := self._endpoints.unhealthy():
            spread = random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, keeps no secret
            await asyncio.sleep(spread * self._settings.probe_interval_s)
            await asyncio.gather(*(self._probe(session, endpoint) for endpoint in unhealthy))

    async def _probe(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        """Trust the endpoint again if it answers; a gateway may well have no /health."""
        timeout = aiohttp.ClientTimeout(total=self._settings.connect_timeout_s)
        try:
            async with session.get(
                endpoint.health_url, timeout=timeout, allow_redirects=False
            ) as response:
                alive = response.status < 500
        except (aiohttp.ClientError, TimeoutError):
            alive = False
        if alive:
            endpoint.recovered()
            log.info("model.endpoint_healthy", endpoint=endpoint.name)
        else:
            endpoint.failed()


def _checked_key(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError("vllm.api_key: must be printable ASCII, as an HTTP header carries it")
    return key


def _key_from_file(path: str) -> str:
    if not path:
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"vllm.api_key_file: cannot read {path}: {error}") from error


def _headers(key: str, agent_id: str, role: str) -> dict[str, str]:
    who = "; ".join(_header_token(part) for part in (agent_id, role) if part)
    headers = {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": f"agent-actors/{__version__}" + (f" ({who})" if who else ""),
    }
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _header_token(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", text)
