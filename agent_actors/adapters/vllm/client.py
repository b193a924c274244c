"""The HTTP client of a model server: one session for its whole life, several endpoints.

Start at `VLLMHTTPClient.chat`: choose an endpoint, ask, and ask again while that may help.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import aiohttp
import msgspec
import structlog

from agent_actors import __version__
from agent_actors.adapters.vllm.endpoints import Endpoint, Endpoints, parse_endpoints
from agent_actors.adapters.vllm.replies import (
    OK,
    AttemptFailed,
    read_failure,
    read_reply,
    too_long,
)
from agent_actors.config import VllmConfig
from agent_actors.config_types import Secret
from agent_actors.errors import ConfigError, ModelReplyInvalid, ModelUnavailable
from agent_actors.ports import ChatReply, ChatRequest

log = structlog.get_logger()

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULTS = VllmConfig()

# vLLM closes an idle connection after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE). Let go of it before,
# else a request meets the closing and fails.
KEEP_ALIVE_S = 4.0

encode = msgspec.json.Encoder().encode


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
        self._endpoints = Endpoints(parse_endpoints(urls, key))
        self._model = model
        self._settings = settings
        self._headers = _headers(key, agent_id, role)
        self._session: aiohttp.ClientSession | None = None
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

    async def chat(self, request: ChatRequest) -> ChatReply:
        """Return the model's answer; cancelled, it hangs up, so that the server stops too.

        Raises ModelRefused when asking again would not help, ModelUnavailable when it did not.
        """
        body = self._encoded(request)
        session = self._opened()
        tried: list[Endpoint] = []
        while not session.closed:
            endpoint = self._endpoints.begin(tried)
            try:
                return await self._attempt(session, endpoint, body)
            except AttemptFailed as failed:
                failure = failed
            finally:
                self._endpoints.end(endpoint)
            if session.closed:
                break
            self._note_failure(session, endpoint, failure)
            tried.append(endpoint)
            await asyncio.sleep(self._pause_s(failure, tried))
        raise ModelUnavailable("the client was closed before the model server had answered")

    async def close(self) -> None:
        """Close the session; requests under way are aborted."""
        session, self._session = self._session, None
        prober, self._prober = self._prober, None
        if prober is not None:
            prober.cancel()
            await asyncio.wait({prober})
        for endpoint in self._endpoints.unhealthy():
            endpoint.recovered()  # nobody probes it any more: a new session begins anew
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"VLLMHTTPClient({self._endpoints})"

    def _encoded(self, request: ChatRequest) -> bytes:
        if self._model and not request.model:
            request = msgspec.structs.replace(request, model=self._model)
        log.debug("model.request", model=request.model, messages=request.messages)
        return encode(request)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = self._settings
            self._session = aiohttp.ClientSession(
                # No limit of its own: the slots of the actor are the limit.
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

    async def _attempt(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, body: bytes
    ) -> ChatReply:
        """Ask one endpoint once. Raises AttemptFailed, ModelRefused."""
        try:
            async with session.post(
                endpoint.chat_url, data=body, allow_redirects=False
            ) as response:
                answer = await self._read(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            # Not chained: aiohttp's errors hold the request's headers, the key among them.
            raise self._connection_failure(endpoint, error) from None
        if response.status != OK:
            raise read_failure(endpoint, response.status, response.headers, answer)
        if len(answer) > self._settings.max_response_bytes:
            raise too_long(endpoint, self._settings.max_response_bytes)
        reply = read_reply(endpoint, response.headers, answer)
        endpoint.answered()
        log.debug(
            "model.reply",
            endpoint=endpoint.name,
            model=reply.model,
            finish_reason=reply.finish_reason,
            completion_tokens=reply.usage.completion_tokens,
            content=reply.content,
        )
        return reply

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body, or the first `max_response_bytes` of it and a little more."""
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > self._settings.max_response_bytes:
                break
        return b"".join(chunks)

    def _connection_failure(self, endpoint: Endpoint, error: Exception) -> AttemptFailed:
        """Return what a failure below HTTP, or of HTTP itself, means."""
        name, limits = endpoint.name, self._settings
        match error:
            case aiohttp.ConnectionTimeoutError():
                return _away(
                    f"{name}: no connection within {limits.connect_timeout_s:g} s "
                    "(vllm.connect_timeout_s)"
                )
            # The two long ones are not retried here: the task's time is better spent waiting
            # in the queue than on a server that hangs.
            case aiohttp.SocketTimeoutError():
                return _away(
                    f"{name}: sent no byte for {limits.first_byte_timeout_s:g} s "
                    "(vllm.first_byte_timeout_s)",
                    retry=False,
                )
            case TimeoutError():
                return _away(
                    f"{name}: no whole answer within {limits.total_timeout_s:g} s "
                    "(vllm.total_timeout_s)",
                    retry=False,
                )
            case aiohttp.ClientConnectorError():
                return _away(f"{name}: no connection: {error}")
            case aiohttp.ClientPayloadError():
                return _away(f"{name}: the answer was cut off: {error}")
            case aiohttp.ClientResponseError():
                said = endpoint.redacted(" ".join(error.message.split()))
                return AttemptFailed(ModelReplyInvalid(f"{name}: answered no HTTP: {said}"))
            case _:
                return _away(f"{name}: the connection was lost before the answer: {error}")

    def _note_failure(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, failure: AttemptFailed
    ) -> None:
        log.debug("model.request_failed", endpoint=endpoint.name, error=str(failure))
        if not failure.unhealthy:
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


def _away(text: str, *, retry: bool = True) -> AttemptFailed:
    return AttemptFailed(ModelUnavailable(text), retry=retry, unhealthy=True)
