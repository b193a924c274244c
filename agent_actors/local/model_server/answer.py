"""Writes an answer to the connection: whole or as a stream, and spoilt where a fault says so."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from agent_actors.local.model_server.engine import Engine
from agent_actors.local.model_server.faults import Fault
from agent_actors.local.model_server.metrics import Metrics
from agent_actors.local.model_server.misbehaviour import JSON, break_off, half_a_body
from agent_actors.local.model_server.refusal import EngineDead, EngineFull, Refusal
from agent_actors.local.model_server.turn import DONE, Turn

EVENTS = {"Content-Type": "text/event-stream; charset=utf-8"}


class Answerer:
    """Answers as fast as the engine lets it, and counts the answers."""

    def __init__(self, *, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def answer(self, http: web.BaseRequest, turn: Turn) -> web.StreamResponse:
        """Answer the request; raises `Refusal` where an error status can still be given."""
        if turn.chat.stream:
            return await self._stream(http, turn)
        return await self._whole(http, turn)

    async def refuse_in_stream(self, http: web.BaseRequest, refusal: Refusal) -> web.StreamResponse:
        """Answer a stream with an error as its only event."""
        stream = web.StreamResponse(headers=EVENTS)
        await stream.prepare(http)
        await stream.write(_error_event(refusal) + DONE)
        return stream

    async def _whole(self, http: web.BaseRequest, turn: Turn) -> web.StreamResponse:
        async with aclosing(self._tokens(turn)) as tokens:
            async for _ in tokens:
                pass
        if turn.half_way_fault is Fault.STREAM_ERROR:
            raise EngineDead
        if turn.half_way_fault:
            return await half_a_body(turn.half_way_fault, http, turn.body(), self._engine)
        return web.Response(body=turn.body(), headers=JSON | turn.headers)

    async def _stream(self, http: web.BaseRequest, turn: Turn) -> web.StreamResponse:
        """Send the headers first, as vLLM does: whatever goes wrong then is an event too."""
        stream = web.StreamResponse(headers=EVENTS | turn.headers)
        await stream.prepare(http)
        try:
            await self._write_tokens(http, stream, turn)
        except Refusal as refusal:
            await stream.write(_error_event(refusal) + DONE)
        return stream

    async def _write_tokens(
        self, http: web.BaseRequest, stream: web.StreamResponse, turn: Turn
    ) -> None:
        planned, told = turn.length, 0
        async with aclosing(self._tokens(turn)) as tokens:
            async for made in tokens:
                if told == 0:
                    await stream.write(turn.opening())
                until = min(made, turn.half) if turn.half_way_fault else made
                await stream.write(turn.events(range(told + 1, until + 1)))
                told = until
                if turn.half_way_fault and told == turn.half:
                    await break_off(turn.half_way_fault, http, self._engine)
                    return
        if told < planned:
            await stream.write(turn.abort_events())
        await stream.write(turn.ending())

    async def _tokens(self, turn: Turn) -> AsyncGenerator[int, None]:
        """Yield how many tokens there are by now; when the engine stops, the rest is cut off."""
        arrived = time.monotonic()
        made = 0
        try:
            async with self._engine.sequence(turn.prompt_tokens) as sequence:
                async for more in sequence.tokens(turn.length):
                    if made == 0:
                        self._metrics.first_token(time.monotonic() - arrived)
                    made = more
                    yield made
        except EngineFull:
            self._metrics.rejected()
            raise
        if made < turn.length:
            turn.abort(made)
        self._metrics.answered(
            prompt_tokens=turn.prompt_tokens,
            generation_tokens=turn.made_tokens,
            finish_reason=turn.finish_reason,
            duration_s=time.monotonic() - arrived,
        )


def _error_event(refusal: Refusal) -> bytes:
    return b"data: " + refusal.body() + b"\n\n"
