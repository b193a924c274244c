"""The way of one chat request: noted, checked, given a reply, and answered well or badly."""

import asyncio

import structlog
from aiohttp import web

from agent_actors.local.model_server.answer import Answerer
from agent_actors.local.model_server.engine import Engine
from agent_actors.local.model_server.faults import IN_PLACE_OF_AN_ANSWER, FaultDice
from agent_actors.local.model_server.generation import Reply
from agent_actors.local.model_server.metrics import Metrics
from agent_actors.local.model_server.misbehaviour import JSON, misbehave
from agent_actors.local.model_server.record import RequestRecord, SeenRequest
from agent_actors.local.model_server.refusal import Refusal, refusal_of
from agent_actors.local.model_server.script import ScriptedReply, ScriptPlayer
from agent_actors.local.model_server.settings import (
    SIMULATED_MODEL,
    Behaviour,
    ModelServerSettings,
)
from agent_actors.local.model_server.simulation.reply import simulate
from agent_actors.local.model_server.turn import Turn
from agent_actors.local.model_server.validation import check_chat_request, read_chat_request
from agent_actors.local.model_server.wire import CalledFunction, encode

log = structlog.get_logger(__name__)


class ChatService:
    """Answers chat requests. `behaviour` may be replaced while it runs."""

    def __init__(self, settings: ModelServerSettings) -> None:
        self.requests = RequestRecord(keep=settings.keep_requests)
        self.engine = Engine(
            limits=settings.limits, latency=settings.behaviour.latency, seed=settings.seed
        )
        self.metrics = Metrics(model=SIMULATED_MODEL, engine=self.engine)
        self._settings = settings
        self._behaviour = settings.behaviour
        self._player = ScriptPlayer(settings.script) if settings.script else None
        self._dice = FaultDice(seed=settings.seed)
        self._answerer = Answerer(engine=self.engine, metrics=self.metrics)

    @property
    def behaviour(self) -> Behaviour:
        """Pace and faults as they are now."""
        return self._behaviour

    @behaviour.setter
    def behaviour(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self.engine.latency = behaviour.latency

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """Answer `POST /v1/chat/completions`."""
        seen = self.requests.arrived(headers=http.headers, body=await http.read())
        try:
            response = await self._respond(http, seen)
            if http.transport is not None and not http.transport.is_closing():
                seen.status = response.status
        except asyncio.CancelledError:
            seen.aborted = True
            raise
        except ConnectionError:
            # The client hung up, and the next event of the stream found out first.
            seen.aborted = True
            return web.Response()
        finally:
            self.requests.changed()
            log.debug(
                "model_server.request",
                request=seen.number,
                status=seen.status,
                fault=seen.fault,
                aborted=seen.aborted,
            )
        return response

    async def _respond(self, http: web.Request, seen: SeenRequest) -> web.StreamResponse:
        chat = None
        try:
            chat = read_chat_request(http.content_type, seen.body)
            prompt_tokens = check_chat_request(chat, self._settings)
            seen.chat = chat
            scripted = self._player.reply_to(chat) if self._player else ScriptedReply()
            await self.engine.pause(scripted.delay_ms)
            if scripted.status is not None:
                return _scripted_error(scripted, scripted.status)
            seen.fault = scripted.fault or self._dice.throw(self._behaviour.faults)
            if seen.fault is not None and seen.fault in IN_PLACE_OF_AN_ANSWER:
                return await misbehave(seen.fault, http, self.engine, self._behaviour.faults)
            turn = Turn(
                chat=chat,
                reply=_scripted_words(scripted) or simulate(chat),
                scripted=scripted,
                fault=seen.fault,
                prompt_tokens=prompt_tokens,
                room_tokens=self._settings.max_model_len - prompt_tokens,
            )
            return await self._answerer.answer(http, turn)
        except Refusal as refusal:
            if chat is not None and chat.stream and refusal.late:
                return await self._answerer.refuse_in_stream(http, refusal)
            return web.Response(status=refusal.status, body=refusal.body(), headers=JSON)


def _scripted_words(scripted: ScriptedReply) -> Reply | None:
    if scripted.content is None and not scripted.tool_calls:
        return None
    calls = tuple(
        CalledFunction(
            name=call.name,
            arguments=call.arguments
            if isinstance(call.arguments, str)
            else encode(call.arguments).decode(),
        )
        for call in scripted.tool_calls
    )
    return Reply(content=scripted.content or "", calls=calls)


def _scripted_error(scripted: ScriptedReply, status: int) -> web.Response:
    worded = refusal_of(status).body()
    body = worded if scripted.error is None else encode({"error": scripted.error})
    return web.Response(status=status, body=body, headers=JSON | scripted.headers)
