"""Which model server answers the next request: a healthy one with the least under way.

Pure: `client` tells what happened and asks whom to take next.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from yarl import URL

from agent_actors.errors import ConfigError

CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
HEALTH_PATH = "/health"

# Failures in a row, of requests and of probes, after which a server is not only distrusted but
# away: a single one is nothing to stop for.
AWAY_AFTER = 2


class Endpoint:
    """One model server: where it is, the requests it has, and its failures since it was healthy.

    `name` is its URL without credentials. `secret` must not be seen in anything that is said
    of it: the API key, or else the password of its URL.
    """

    __slots__ = (
        *("chat_url", "models_url", "health_url", "name", "secret"),
        *("failures", "outstanding", "on_change"),
    )

    def __init__(self, base: URL, secret: str = "") -> None:
        path = base.path.rstrip("/")  # of an empty path yarl makes a slash
        self.name = str(base.with_user(None)).rstrip("/")
        self.secret = secret or base.password or ""
        # The API key is the answer to who we are; credentials in the URL would contradict it.
        known = base.with_user(None) if secret else base
        self.chat_url = known.with_path(path + CHAT_PATH)
        self.models_url = known.with_path(path + MODELS_PATH)
        self.health_url = known.with_path(path + HEALTH_PATH)
        self.outstanding = 0
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
        self.failures = 0
        self.on_change()

    def redacted(self, text: str) -> str:
        """Return the text without the secret, should the server have echoed it."""
        return text.replace(self.secret, "***") if self.secret else text

    def __repr__(self) -> str:
        return f"Endpoint({self.name})"


class Endpoints:
    """All model servers of a client, which are equals."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        # Whoever was taken longest ago comes first, so that equals take turns.
        self._by_turn = list(endpoints)
        self._is_away = False
        self._listener: Callable[[bool], None] = _ignore

    @property
    def away(self) -> bool:
        """Whether every one has failed some times in a row: the model cannot be reached."""
        return all(endpoint.failures >= AWAY_AFTER for endpoint in self._by_turn)

    def listen(self, listener: Callable[[bool], None]) -> None:
        """Have the listener told of `away`, now and whenever it changes."""
        self._listener = listener
        self._is_away = self.away
        listener(self._is_away)
        for endpoint in self._by_turn:
            endpoint.on_change = self._changed

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_turn)

    def begin(self, tried: Collection[Endpoint] = ()) -> Endpoint:
        """Take an endpoint for a request, preferring those that this request has not `tried`.

        While none is healthy it is the one with the fewest failures, so that no server is ever
        unreachable by our own doing.
        """
        best = self._by_turn[0]
        if len(self._by_turn) > 1:
            best = min(self._by_turn, key=lambda endpoint: _badness(endpoint, tried))
            self._by_turn.remove(best)
            self._by_turn.append(best)
        best.outstanding += 1
        return best

    def end(self, endpoint: Endpoint) -> None:
        """Give an endpoint back once the request is over, whatever came of it."""
        endpoint.outstanding -= 1

    def spare(self, tried: Collection[Endpoint]) -> bool:
        """Tell whether there is a healthy endpoint that this request has not tried."""
        return any(endpoint.healthy and endpoint not in tried for endpoint in self._by_turn)

    def unhealthy(self) -> list[Endpoint]:
        """Return those to probe."""
        return [endpoint for endpoint in self._by_turn if not endpoint.healthy]

    def _changed(self) -> None:
        if self.away != self._is_away:
            self._is_away = not self._is_away
            self._listener(self._is_away)

    def __repr__(self) -> str:
        return ", ".join(sorted(endpoint.name for endpoint in self._by_turn))


def parse_endpoints(urls: Sequence[str], secret: str = "") -> list[Endpoint]:
    """Return an endpoint for each different URL, which may end in `/` or `/v1` or neither.

    Raises ConfigError, which never quotes a URL, since it may hold a password.
    """
    bases = dict.fromkeys(_parse(url, f"vllm.urls[{index}]") for index, url in enumerate(urls))
    if not bases:
        raise ConfigError("vllm.urls: is empty, must name at least one model server")
    return [Endpoint(base, secret) for base in bases]


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


def _badness(endpoint: Endpoint, tried: Collection[Endpoint]) -> tuple[bool, bool, int, int]:
    return not endpoint.healthy, endpoint in tried, endpoint.failures, endpoint.outstanding


def _tell_nobody() -> None:
    pass


def _ignore(_away: bool) -> None:  # noqa: FBT001 - the one thing that a listener is told
    pass
