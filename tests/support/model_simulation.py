"""A model server and its clients in simulated time: the same seed, the same course.

The server runs so many requests at once and lets the others wait, first come first served; its
pace may fall the more it runs. Each client has a limit of its own and a backlog without end, and
knows nothing of the others.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from itertools import count

from agent_actors.adapters.vllm.limit import InFlightLimit, Reading

REFILL_S = 0.02
PROBING_S = 0.05
READ_EVERY_S = 1.0


class Request:
    def __init__(self, client: "Client", tokens: int, began: float) -> None:
        self.client = client
        self.tokens = tokens
        self.began = began


class Client:
    def __init__(self, limit: InFlightLimit, slots: int) -> None:
        self.limit = limit
        self.slots = slots
        self.asks = True
        self.answers = 0
        self.rejections = 0


class Simulation:
    """`slowdown` is how many times slower a token is with all places taken than with one."""

    def __init__(
        self,
        *,
        places: int,
        token_s: float = 0.01,
        tokens: Callable[[random.Random], int] = lambda _: 100,
        slowdown: float = 1.0,
        bound: int | None = None,
        retry_after_s: float = 0.0,
        tells: bool = True,
        seed: int = 0,
    ) -> None:
        self.now = 0.0
        self.places = places
        self.token_s = token_s
        self.clients: list[Client] = []
        self.running = 0
        self.queue: deque[Request] = deque()
        self.is_up = True
        self.tells = tells
        self._bound = bound
        self._retry_after_s = retry_after_s
        self._tokens = tokens
        self._slowdown = slowdown
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.forget()

    def forget(self) -> None:
        """Count anew from here."""
        self._since = self.now
        self._waited = self._busy = 0.0
        self._made = 0
        self._most_waiting = 0
        for client in self.clients:
            client.answers = client.rejections = 0

    @property
    def mean_waiting(self) -> float:
        return self._waited / (self.now - self._since)

    @property
    def most_waiting(self) -> int:
        return self._most_waiting

    @property
    def share_busy(self) -> float:
        """Of the places that the server has, or the slots of all clients, when those are fewer."""
        most = min(self.places, sum(client.slots for client in self.clients if client.asks))
        return self._busy / most / (self.now - self._since)

    @property
    def tokens_per_s(self) -> float:
        return self._made / (self.now - self._since)

    def client(self, slots: int, *, least: int = 1) -> Client:
        client = Client(InFlightLimit(least=least, most=slots), slots)
        self.clients.append(client)
        self._at(0.001 * len(self.clients), lambda: self._ask(client))
        self._at(0.005, lambda: self._read(client))
        return client

    def run(self, duration_s: float) -> None:
        until = self.now + duration_s
        while self._events and self._events[0][0] <= until:
            at, _, happen = heapq.heappop(self._events)
            self._pass(at)
            happen()
        self._pass(until)

    def _pass(self, at: float) -> None:
        elapsed, self.now = at - self.now, at
        self._waited += elapsed * len(self.queue)
        self._busy += elapsed * self.running
        self._most_waiting = max(self._most_waiting, len(self.queue))

    def _at(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), happen))

    def _ask(self, client: Client) -> None:
        while client.asks and client.limit.in_flight < client.limit.limit:
            client.limit.begin()
            request = Request(client, self._tokens(self._random), self.now)
            if not self.is_up or self._is_full():
                client.rejections += 1
                self._at(0.005, lambda request=request: self._reject(request))
                continue
            self.queue.append(request)
            self._start()

    def _is_full(self) -> bool:
        return self._bound is not None and self.running + len(self.queue) >= self._bound

    def _start(self) -> None:
        while self.queue and self.running < self.places:
            request = self.queue.popleft()
            self.running += 1
            others = (self.running - 1) / max(1, self.places - 1)
            pace = self.token_s * (1 + (self._slowdown - 1) * others)
            self._at(request.tokens * pace, lambda request=request: self._finish(request))

    def _finish(self, request: Request) -> None:
        self.running -= 1
        self._made += request.tokens
        self._start()
        client = request.client
        client.answers += 1
        client.limit.end()
        client.limit.answered(request.began, request.tokens, self.now)
        self._at(REFILL_S * self._random.uniform(0.5, 1.5), lambda: self._ask(client))

    def _reject(self, request: Request) -> None:
        client = request.client
        client.limit.end()
        client.limit.rejected(request.began, self.now, self._retry_after_s)
        self._at(0.2 * self._random.random(), lambda: self._ask(client))

    def _read(self, client: Client) -> None:
        limit = client.limit
        if self.tells and self.is_up:
            limit.read(Reading(running=self.running, waiting=len(self.queue)), self.now)
        else:
            limit.unread()
        self._ask(client)
        every_s = PROBING_S if limit.is_probing else READ_EVERY_S
        self._at(every_s * self._random.uniform(0.8, 1.2), lambda: self._read(client))
