"""Which model server answers the next request: a healthy one that has room, the least busy.

A task that has asked before goes where it was, for that one has its words in the prefix cache.
While none has room requests wait here, first come, first served. `client` tells what happened
and asks whom to take next; what room there is, `limit` decides.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

from msgspec import Struct
from yarl import URL

from agent_actors.adapters.vllm.limit import InFlightLimit
from agent_actors.asking import Asker
from agent_actors.contract import EndpointStatus
from agent_actors.errors import ConfigError, ModelUnavailable

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"

LEAST_IN_FLIGHT, MOST_IN_FLIGHT = 1, 1_024
# How far beyond its limit an endpoint takes requests of tasks that have asked it before: their
# prompts are in its cache, and elsewhere they would have to be read anew.
FOR_RETURNING = 1.25

# Failures in a row, of requests and of probes, after which a server is not only distrusted but
# away: a single one is nothing to stop for.
AWAY_AFTER = 2


class Endpoint:
    """One model server: where it is, its failures since it was healthy, and the limit of requests.

    `name` is its URL without credentials. `secret` must not be seen in anything that is said
    of it: the API key, or else the password of its URL.
    """

    __slots__ = (
        *("chat_url", "models_url", "health_url", "metrics_url", "name", "secret"),
        *("failures", "limit", "on_change"),
    )

    def __init__(self, base: URL, secret: str = "", limit: InFlightLimit | None = None) -> None:
        path = base.path.rstrip("/")  # of an empty path yarl makes a slash
        self.name = str(base.with_user(None)).rstrip("/")
        self.secret = secret or base.password or ""
        # The API key is the answer to who we are; credentials in the URL would contradict it.
        known = base.with_user(None) if secret else base
        self.chat_url = known.with_path(path + CHAT_PATH)
        self.models_url = known.with_path(path + MODELS_PATH)
        self.health_url = known.with_path(path + HEALTH_PATH)
        self.metrics_url = known.with_path(path + METRICS_PATH)
        self.limit = limit or InFlightLimit(least=LEAST_IN_FLIGHT, most=MOST_IN_FLIGHT)
        self.failures = 0
        self.on_change: Callable[[], None] = _tell_nobody

    @property
    def healthy(self) -> bool:
        """Whether it is trusted; it is until it fails, and again once a probe succeeds."""
        return self.failures == 0

    def failed(self) -> bool:
        """Take note of a failure; tell whether it was trusted until now."""
        self.failures += 1
        self.on_change()
        return self.failures == 1

    def answered(self) -> None:
        """Make it the least bad one, if it is unhealthy.

        Not healthy: an overloaded server answers and fails by turns, thousands of times a
        second. Only a probe, every few seconds, restores trust.
        """
        self.failures = min(self.failures, 1)
        self.on_change()

    def recovered(self) -> None:
        """Trust it again."""
        if self.failures >= AWAY_AFTER:
            self.limit.restart()
        self.failures = 0
        self.on_change()

    @property
    def has_room(self) -> bool:
        """Whether it may get another request."""
        return self.limit.in_flight < self.limit.limit

    @property
    def status(self) -> EndpointStatus:
        """What can be told of it."""
        limit = self.limit
        return EndpointStatus(
            url=self.name,
            limit=limit.limit,
            in_flight=limit.in_flight,
            waiting=-1 if limit.waiting is None else round(limit.waiting),
        )

    def redacted(self, text: str) -> str:
        """Return the text without the secret, should the server have echoed it."""
        return text.replace(self.secret, "***") if self.secret else text

    def __repr__(self) -> str:
        return f"Endpoint({self.name})"


class _Waiter(Struct, frozen=True):
    place: asyncio.Future[Endpoint]
    tried: Collection[Endpoint]
    asker: Asker


class Endpoints:
    """All model servers of a client, which are equals."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        # Whoever was taken longest ago comes first, so that equals take turns.
        self._by_turn = list(endpoints)
        self._queue: deque[_Waiter] = deque()
        self._is_away = False
        self._on_away: Callable[[bool], None] = _ignore
        self._on_room: Callable[[], None] = _tell_nobody
        for endpoint in endpoints:
            endpoint.on_change = self._changed
            endpoint.limit.on_change = self._room_changed

    @property
    def away(self) -> bool:
        """Whether every one has failed some times in a row: the model cannot be reached."""
        return all(endpoint.failures >= AWAY_AFTER for endpoint in self._by_turn)

    @property
    def room(self) -> int:
        """Requests that the healthy ones may have at a time; all of them, when none is healthy."""
        healthy = [endpoint for endpoint in self._by_turn if endpoint.healthy]
        return sum(endpoint.limit.limit for endpoint in healthy or self._by_turn)

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Have the listener told of `away`, now and whenever it changes."""
        self._on_away = listener
        self._is_away = self.away
        listener(self._is_away)

    def listen_to_room(self, listener: Callable[[], None]) -> None:
        """Have the listener called whenever `room` may have changed."""
        self._on_room = listener

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_turn)

    async def acquire(
        self, tried: Collection[Endpoint] = (), asker: Asker | None = None
    ) -> Endpoint:
        """Take an endpoint for a request, as soon as one has room.

        Those that this request has not `tried` are preferred. While none is healthy it is the one
        with the fewest failures, so that no server is ever unreachable by our own doing. Raises
        ModelUnavailable when the client is closed meanwhile.
        """
        asker = asker or Asker()
        if endpoint := self._where_it_was(tried, asker):
            return self._taken(endpoint, asker)
        if not self._queue and (endpoint := self._best(tried)):
            return self._taken(endpoint, asker)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tried, asker)
        self._queue.append(waiter)
        try:
            return await waiter.place
        except asyncio.CancelledError:
            if waiter.place.cancelled():
                self._admit()  # takes it off the queue
            elif waiter.place.exception() is None:
                self.release(waiter.place.result())
            raise

    def release(self, endpoint: Endpoint) -> None:
        """Give an endpoint back once the request is over, whatever came of it."""
        endpoint.limit.end()
        if self._queue:
            self._admit()

    def spare(self, tried: Collection[Endpoint]) -> bool:
        """Tell whether there is a healthy endpoint that this request has not tried."""
        return any(endpoint.healthy and endpoint not in tried for endpoint in self._by_turn)

    def unhealthy(self) -> list[Endpoint]:
        """Return those to probe."""
        return [endpoint for endpoint in self._by_turn if not endpoint.healthy]

    def close(self) -> None:
        """Send away who waits for room."""
        while self._queue:
            place = self._queue.popleft().place
            if not place.done():
                place.set_exception(ModelUnavailable("the client was closed before there was room"))

    def _where_it_was(self, tried: Collection[Endpoint], asker: Asker) -> Endpoint | None:
        """Return where the task has asked before, unless that is away or full beyond reason."""
        usual = asker.endpoint
        if not isinstance(usual, Endpoint) or not usual.healthy or usual in tried:
            return None
        limit = usual.limit
        return usual if limit.in_flight < FOR_RETURNING * limit.limit else None

    def _best(self, tried: Collection[Endpoint]) -> Endpoint | None:
        """Return the best one that has room; an unhealthy one only when no other is healthy."""
        if len(self._by_turn) == 1:
            (only,) = self._by_turn
            return only if only.has_room else None
        some_healthy = any(endpoint.healthy for endpoint in self._by_turn)
        fitting = (
            endpoint
            for endpoint in self._by_turn
            if endpoint.has_room and endpoint.healthy >= some_healthy
        )
        return min(fitting, key=lambda endpoint: _badness(endpoint, tried), default=None)

    def _taken(self, endpoint: Endpoint, asker: Asker) -> Endpoint:
        if len(self._by_turn) > 1:
            self._by_turn.remove(endpoint)
            self._by_turn.append(endpoint)
        asker.endpoint = endpoint
        endpoint.limit.begin()
        return endpoint

    def _admit(self) -> None:
        """Give those who wait the room that there is."""
        while self._queue:
            waiter = self._queue[0]
            if not waiter.place.done():
                endpoint = self._best(waiter.tried)
                if endpoint is None:
                    return
                waiter.place.set_result(self._taken(endpoint, waiter.asker))
            self._queue.popleft()

    def _changed(self) -> None:
        if self.away != self._is_away:
            self._is_away = not self._is_away
            self._on_away(self._is_away)
        self._room_changed()

    def _room_changed(self) -> None:
        self._admit()
        self._on_room()

    def __repr__(self) -> str:
        return ", ".join(sorted(endpoint.name for endpoint in self._by_turn))


def parse_endpoints(
    urls: Sequence[str],
    secret: str = "",
    *,
    least: int = LEAST_IN_FLIGHT,
    most: int = MOST_IN_FLIGHT,
) -> list[Endpoint]:
    """Return an endpoint for each different URL, which may end in `/` or `/v1` or neither.

    From `least` to `most` requests may be under way at each.

    Raises ConfigError, which never quotes a URL, since it may hold a password.
    """
    bases = dict.fromkeys(_parse(url, f"vllm.urls[{index}]") for index, url in enumerate(urls))
    if not bases:
        raise ConfigError("vllm.urls: is empty, must name at least one model server")
    return [Endpoint(base, secret, InFlightLimit(least=least, most=most)) for base in bases]


def _parse(url: str, where: str) -> URL:
    try:
        parsed = URL(url.strip())
    except ValueError:
        raise ConfigError(f"{where}: is no URL, must be like http://host:8000") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(f"{where}: must begin with http:// or https:// and a host")
    if parsed.query_string or parsed.fragment:
        raise ConfigError(f"{where}: must end before the `?` or `#`")
    return parsed.with_path(parsed.path.rstrip("/").removesuffix("/v1").rstrip("/"))


def _badness(endpoint: Endpoint, tried: Collection[Endpoint]) -> tuple[bool, int, float]:
    busy = endpoint.limit.in_flight / endpoint.limit.limit
    return endpoint in tried, endpoint.failures, busy


def _tell_nobody() -> None:
    pass


def _ignore(_away: bool) -> None:  # noqa: FBT001 - the one thing that a listener is told
    pass
