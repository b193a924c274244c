"""How many tokens a model takes, as its servers say in `/v1/models`."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import aiohttp
import msgspec
import structlog
from msgspec import Struct

from agent_actors.adapters.vllm.endpoints import Endpoint, Endpoints
from agent_actors.adapters.vllm.replies import OK, AttemptFailed, decode
from agent_actors.adapters.vllm.transport import FAILURES, Body, connection_failure
from agent_actors.config import VllmConfig

log = structlog.get_logger()

ASK_AGAIN_S = 30.0


class ContextLengths:
    """Remembers what the servers said; those that did not say are asked again after a while.

    All callers of a time share the same questions.
    """

    def __init__(self, endpoints: Endpoints, limits: VllmConfig) -> None:
        self._endpoints = endpoints
        self._limits = limits
        self._known: dict[Endpoint, Mapping[str, int]] = {}
        self._asked_at: dict[Endpoint, float] = {}
        self._questions: dict[Endpoint, asyncio.Task[None]] = {}

    async def of(self, model: str, session: aiohttp.ClientSession) -> int | None:
        """Return the least that is known of the model; None when nobody says anything in time.

        Without a model it is the first one of a server's list. Waits for one answer, not for all.
        """
        for endpoint in self._endpoints:
            if self._length(endpoint, model) is None:
                self._ask_if_due(endpoint, session)
        pending = set(self._questions.values())
        while pending and self._least(model) is None:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        return self._least(model)

    async def close(self) -> None:
        """Ask nothing more; who asks later begins anew."""
        questions = set(self._questions.values())
        self._questions.clear()
        self._asked_at.clear()
        for question in questions:
            question.cancel()
        if questions:
            await asyncio.wait(questions)

    def _least(self, model: str) -> int | None:
        lengths = (self._length(endpoint, model) for endpoint in self._endpoints)
        return min((length for length in lengths if length is not None), default=None)

    def _length(self, endpoint: Endpoint, model: str) -> int | None:
        lengths = self._known.get(endpoint, {})
        return lengths.get(model) if model else next(iter(lengths.values()), None)

    def _ask_if_due(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        now = time.monotonic()
        if now - self._asked_at.get(endpoint, -ASK_AGAIN_S) < ASK_AGAIN_S:
            return  # it was asked just now, or is being asked
        self._asked_at[endpoint] = now
        self._questions[endpoint] = asyncio.create_task(self._ask(endpoint, session))

    async def _ask(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        try:
            self._known[endpoint] = await self._answer(endpoint, session)
        except AttemptFailed as failure:
            log.debug("model.context_length_unknown", endpoint=endpoint.name, error=str(failure))
        finally:
            self._questions.pop(endpoint, None)

    async def _answer(
        self, endpoint: Endpoint, session: aiohttp.ClientSession
    ) -> Mapping[str, int]:
        """Return each model's length. Raises AttemptFailed."""
        timeout = aiohttp.ClientTimeout(total=self._limits.connect_timeout_s)
        try:
            response = await session.get(
                endpoint.models_url, timeout=timeout, allow_redirects=False
            )
        except FAILURES as error:
            raise connection_failure(endpoint, error, self._limits) from None
        async with response:
            body = await Body(endpoint, response, self._limits).whole()
        return _lengths(decode(endpoint, _lists, body).data) if response.status == OK else {}


class _ModelCard(Struct):
    id: str
    max_model_len: int | None = None
    parent: str | None = None


class _ModelList(Struct):
    data: list[_ModelCard]


_lists = msgspec.json.Decoder(_ModelList)


def _lengths(cards: Sequence[_ModelCard]) -> Mapping[str, int]:
    """Return what the cards say; a LoRA adapter is as long as the model that it adapts."""
    said = {card.id: card.max_model_len for card in cards if card.max_model_len}
    inherited = {
        card.id: said[card.parent] for card in cards if card.id not in said and card.parent in said
    }
    return said | inherited
