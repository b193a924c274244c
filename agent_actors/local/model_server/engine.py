"""Stands for vLLM's scheduler: so many sequences run at once, the others wait, each in its time."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent_actors.local.model_server.refusal import EngineFull
from agent_actors.local.model_server.settings import Latency, Limits


class Engine:
    """Gives requests a place and their tokens a time.

    `latency` may be replaced at any time. `stop()` ends every running request early, as vLLM
    does on SIGTERM.
    """

    def __init__(self, *, limits: Limits, latency: Latency, seed: int) -> None:
        self.latency = latency
        self.running = 0
        self.waiting = 0
        self.tokens_held = 0
        self._limits = limits
        self._places = asyncio.Semaphore(limits.max_num_seqs)
        self._stopping = asyncio.Event()
        self._random = random.Random(seed)  # noqa: S311 - spread of latencies, no secret

    @property
    def cache_usage(self) -> float:
        """The share of the key-value cache that running requests hold."""
        return min(1.0, self.tokens_held / self._limits.kv_cache_tokens)

    @asynccontextmanager
    async def sequence(self, prompt_tokens: int) -> AsyncGenerator["Sequence"]:
        """Hold a place from when one is free; raises `EngineFull` when too many have come."""
        bound = self._limits.max_num_queued_reqs
        if bound is not None and self.running + self.waiting >= bound:
            raise EngineFull
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        sequence = Sequence(self, prompt_tokens)
        self.running += 1
        try:
            yield sequence
        finally:
            self.running -= 1
            self.tokens_held -= sequence.tokens_held
            self._places.release()

    def stop(self) -> None:
        """End all requests, those that wait included, with what they have."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    async def stopped(self) -> None:
        """Wait for `stop`."""
        await self._stopping.wait()

    async def compute(self, duration_ms: float) -> None:
        """Let the time of some computation pass, as spread and load have it."""
        await self.pause(self.stretched(duration_ms))

    def stretched(self, duration_ms: float) -> float:
        """Return how long a computation takes this time, with so many requests running."""
        spread = self._random.uniform(1 - self.latency.spread, 1 + self.latency.spread)
        others = max(0, self.running - 1) / max(1, self._limits.max_num_seqs - 1)
        return duration_ms * spread * (1 + (self.latency.slowdown - 1) * others)

    async def pause(self, duration_ms: float) -> None:
        """Let that time pass, or what is left of it until `stop`."""
        if duration_ms <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(duration_ms / 1000):
                await self._stopping.wait()


class Sequence:
    """One request in its place."""

    def __init__(self, engine: Engine, prompt_tokens: int) -> None:
        self._engine = engine
        self._prompt_tokens = prompt_tokens
        self.tokens_held = 0

    async def tokens(self, count: int) -> AsyncIterator[int]:
        """Yield how many of `count` tokens there are by now, whenever there are more.

        Ends early, with fewer, when the engine stops.
        """
        engine = self._engine
        self._hold(self._prompt_tokens)
        prefill_ms = engine.latency.prefill_ms_per_token * self._prompt_tokens
        await engine.compute(engine.latency.first_token_ms + prefill_ms)
        made = 0
        while made < count and not engine.stopping:
            # Without a time between them all tokens come at once.
            added = 1 if engine.latency.between_tokens_ms else count - made
            self._hold(added)
            made += added
            yield made
            if made < count:
                await engine.compute(engine.latency.between_tokens_ms)

    def _hold(self, tokens: int) -> None:
        self.tokens_held += tokens
        self._engine.tokens_held += tokens
