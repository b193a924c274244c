"""How many requests one endpoint may have of us at a time: pure, told of what happens.

Two laws, of which the first holds wherever the server tells of its queue (`/metrics`):

- By the queue. The server says how many requests it runs and how many wait. While more wait than
  it needs to stay full, each client comes down by the same factor, to its share of what the
  server runs and half of the queue that it may have. That is computed from what is under way at the
  reading and not from the limit, so it does not come down again while the queue drains. While none
  waits, the limit doubles as soon as it is used up and the server counts it all, until the first
  queue has been seen; later it grows by what the server is known to have left. In between it goes
  up by one and down by a tenth, and so clients that know nothing of each other come to equal
  shares.
- By the pace, without such a server: `pace`.

Above both stands a ceiling, which comes down with every burst of 429 and 503 and grows back slowly.
"""

from collections import deque
from collections.abc import Callable
from math import inf, sqrt

from msgspec import Struct

from agent_actors.adapters.vllm.pace import Pace

# What a client begins with, for the milliseconds until it is told something.
FIRST = 16

# By how much it grows at each step where a server tells nothing.
UNMEASURED_STEP = 4

# How many may wait in the server, as a share of those that run, so that it is never short of work.
QUEUE_SHARE = 3 / 16
LEAST_QUEUE = 2.0
# Readings over which the most that was seen to run counts as what the server can run.
READINGS_KEPT = 8
# How much more than that is tried when no queue is left though all of it runs.
PROBE = 1.125
# A limit doubles once the server counts so much of what it was given: before, its front end may
# have a queue that nobody sees. After so many readings it doubles all the same: behind a balancer
# one replica never has it all.
TAKEN_IN = 0.8
PUT_OFF_READINGS = 20
# What is left of a limit at each reading while the queue is fuller than by half: who has much gives
# up more than who has little.
YIELD = 0.9
# With so much of its key-value cache taken, a server that still has no queue will have one soon.
CACHE_FULL = 0.9
# The share of the limit that must have been in use for it to be what holds requests back.
USED_UP = 0.9

# What a burst of rejections leaves of the requests under way, and how the ceiling rises again.
AFTER_REJECTION = 0.8
CEILING_GROWTH = 1.02
CEILING_STEP = 0.5


class Reading(Struct, frozen=True, kw_only=True):
    """What a server says of itself: requests that run and wait, the share of its cache in use."""

    running: float
    waiting: float
    cache_usage: float = 0.0


class InFlightLimit:
    """One client's, for one endpoint. Times are any clock's that never goes back, in seconds.

    `limit` is how many may be under way, from `least` to `most`, and `in_flight` how many are;
    `waiting` is how many of all clients wait in the server, None where it does not say.
    `is_new` tells that it has not met a queue yet, and so does not know what the server can do;
    `is_idle` that nothing was under way from the last reading but one to the last, or want of
    one. `on_change` is called when the limit is another.
    """

    __slots__ = (
        *("in_flight", "limit", "waiting", "is_idle", "is_new", "on_change"),
        *("_least", "_most", "_measured", "_wanted", "_ceiling", "_peak"),
        *("_runnings", "_shares", "_put_off", "_pace"),
        *("_answered_at", "_rejected_at", "_raised_at", "_held_until"),
    )

    def __init__(self, *, least: int, most: int) -> None:
        self.in_flight = 0
        self.waiting: float | None = None
        self.is_idle = False
        self.on_change: Callable[[], None] = _tell_nobody
        self._least = least
        self._most = most
        self._measured = True
        self._wanted = float(min(max(FIRST, least), most))
        self._ceiling = float(most)
        self.limit = int(self._wanted)
        self._peak = 0
        self._runnings: deque[float] = deque(maxlen=READINGS_KEPT)
        self._shares: deque[float] = deque(maxlen=READINGS_KEPT)
        self._put_off = 0
        self.is_new = True
        self._pace = Pace()
        self._answered_at = -inf
        self._rejected_at = -inf
        self._raised_at = -inf
        self._held_until = -inf

    @property
    def is_probing(self) -> bool:
        """Whether it is on its way up, and wants to be told more often."""
        is_held_up = self._is_used_up or not self._measured
        return self.is_new and is_held_up and self.limit < self._most

    def begin(self) -> None:
        """Take note of a request."""
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)

    def end(self) -> None:
        """Take note that a request is over."""
        self.in_flight -= 1

    def answered(self, began: float, tokens: int, now: float) -> None:
        """Take note of an answer of so many tokens."""
        self._answered_at = now
        if self._ceiling < self._most:
            self._raise_ceiling(now)
        if self._measured:
            return
        if wanted := self._pace.answered(now - began, tokens, self.in_flight, self.limit, now):
            self._want(wanted)

    def rejected(self, began: float, now: float, retry_after_s: float = 0.0) -> bool:
        """Take note of a 429 or 503; tell whether others were answered meanwhile.

        Whatever began before the last one that counted belongs to the same burst.
        """
        self._held_until = max(self._held_until, now + retry_after_s)
        if began > self._rejected_at:
            self._rejected_at = self._raised_at = now
            under_way = min(self._ceiling, self.in_flight)
            self._ceiling = max(float(self._least), AFTER_REJECTION * under_way)
            self._decide()
        return self._answered_at > began

    def read(self, reading: Reading, now: float) -> None:
        """Take note of what the server says."""
        if not self._measured:
            self._measured = True
            self._want(min(self._wanted, max(FIRST, self._peak)))
        self.waiting = reading.waiting
        self._runnings.append(reading.running)
        self._shares.append(self.in_flight / max(1.0, reading.running + reading.waiting))
        self._raise_ceiling(now)
        self._want(self._by_queue(reading))
        self._begin_anew()

    def unread(self) -> None:
        """Take note that the server tells nothing.

        At the start that is a step on the way to the most, all steps within a moment. The first
        answers are to show how fast the server is before anybody's crowd has come.
        """
        self.waiting = None
        if self._measured:
            self._measured = False
            self._pace = Pace()
        self._begin_anew()
        if self.is_new:
            self._want(UNMEASURED_STEP * self._wanted)
            self.is_new = self._wanted < self._most

    def restart(self) -> None:
        """Begin anew with a server that was away: it may have come back as another."""
        self._runnings.clear()
        self._shares.clear()
        self.is_new = True
        self._pace = Pace()
        self._ceiling = float(self._most)
        self._want(FIRST)

    def _begin_anew(self) -> None:
        self.is_idle = self._peak == 0
        self._peak = self.in_flight

    @property
    def _is_used_up(self) -> bool:
        return self._peak >= int(USED_UP * self.limit)

    def _by_queue(self, reading: Reading) -> float:
        """Return what is wanted after this reading."""
        known = max(self._runnings)
        queue = max(LEAST_QUEUE, QUEUE_SHARE * known)
        share = self._share
        if reading.waiting > queue:
            self.is_new = False
            return min(self._wanted, share * (known + queue / 2))
        if reading.waiting > queue / 2:
            return self._wanted * YIELD
        if not self._is_used_up or reading.cache_usage > CACHE_FULL:
            return self._wanted
        if reading.waiting > 0:
            return self._wanted + 1
        if self.is_new:
            return self._wanted * 2 if self._is_taken_in(reading) else self._wanted
        room = known if reading.running < known else PROBE * known
        total = self.in_flight / share if share else 0.0
        return self._wanted + max(1.0, (room + queue / 2 - total) * sqrt(share) / 2)

    @property
    def _share(self) -> float:
        """How much of what the server counts is ours.

        It is more than all of it in two cases. Behind a balancer each reading is one replica's,
        and then it always is. Or some of ours is in the server's front end, on its way in or out,
        where it is not counted: then it soon is again, and more than all is not ours.
        """
        return min(self._shares[-1], max(1.0, min(self._shares)))

    def _is_taken_in(self, reading: Reading) -> bool:
        """Tell whether the server counts what it was given, or it is time to go on without."""
        is_counted = reading.running + reading.waiting >= TAKEN_IN * self.in_flight
        is_time = self._put_off == PUT_OFF_READINGS
        self._put_off = 0 if is_counted or is_time else self._put_off + 1
        return self._put_off == 0

    def _raise_ceiling(self, now: float) -> None:
        """Let the ceiling rise by a step a second, when nothing was rejected and it is in use."""
        if self._ceiling >= self._most or now - self._raised_at < 1.0 or now < self._held_until:
            return
        self._raised_at = now
        if self._peak >= int(USED_UP * self._ceiling):
            self._ceiling = min(self._most, CEILING_GROWTH * self._ceiling + CEILING_STEP)
            self._decide()

    def _want(self, wanted: float) -> None:
        self._wanted = min(float(self._most), max(float(self._least), wanted))
        self._decide()

    def _decide(self) -> None:
        limit = max(self._least, int(min(self._wanted, self._ceiling)))
        if limit != self.limit:
            self.limit = limit
            self.on_change()


def _tell_nobody() -> None:
    pass
