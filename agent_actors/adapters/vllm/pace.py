"""The limit where a server tells nothing of its queue: by how its pace changes. Pure.

The pace is seconds for each token of the answers, so that long answers are no slow ones. It is
the mean of many requests against the best such mean so far. Netflix's gradient2 does that with
bare latencies and lets the best drift to what is usual, which floods a server that is always
overloaded, a little more each minute; Vegas counts all slowness as a queue, though a model server
slows down by design while it works on more at a time, and so would keep it half empty. Therefore
much is tolerated here, and a cut is a question: when the pace stays as slow with half as much under
way, then it was no queue of ours that made it slow. The cut is taken back, and that pace counts as
good from then on. What the server makes a second would be no answer: of several clients, the one
that asks for less gets less of it, however long the queue is.
"""

from math import sqrt

from msgspec import Struct

# What a request costs beside its tokens, in tokens: the prompt, and the way to and fro.
TOKENS_BESIDE = 16
# How many times slower than the best counts as a queue.
TOLERANCE = 3.0
# The share that a cut leaves. Once cuts have left so little of the limit, the pace must have come
# down to so much of what it was, or else it was not what is under way that made it slow.
CUT = 0.75
ENOUGH = 0.5
IMPROVED = 0.85
# A guess is no reason to go below this.
LEAST = 16
# The first answers are those that have waited least. Later a mean of fewer than so many, or over
# less than so long, says nothing.
FIRST_ANSWERS = 8
LEAST_ANSWERS = 24
LEAST_WINDOW_S = 1.0


class _Window(Struct):
    began: float
    answers: int = 0
    seconds: float = 0.0
    tokens: int = 0
    most_in_flight: int = 0


class _Trial(Struct):
    """The limit before the first of some cuts, which are to prove right, and the worst pace since.

    At first that still gets worse: what has just come is answered last.
    """

    limit: float
    worst: float = 0.0


class Pace:
    """The paces of one endpoint's answers."""

    def __init__(self) -> None:
        self._best: float | None = None
        self._window: _Window | None = None
        self._trial: _Trial | None = None
        self._settles_at = 0.0

    def answered(
        self, duration_s: float, tokens: int, in_flight: int, limit: int, now: float
    ) -> float | None:
        """Take note of an answer; return the limit that is wanted when it is another now."""
        window = self._window
        if window is None:
            window = self._window = _Window(now)
        window.answers += 1
        window.seconds += duration_s
        window.tokens += tokens + TOKENS_BESIDE
        window.most_in_flight = max(window.most_in_flight, in_flight)
        lasted_s = now - window.began
        if self._best is None:
            if window.answers < FIRST_ANSWERS:
                return None
        elif window.answers < LEAST_ANSWERS or lasted_s < LEAST_WINDOW_S:
            return None
        self._window = None
        if now < self._settles_at:
            return None  # what was cut is still being worked off
        return self._judged(window, limit, now)

    def _judged(self, window: _Window, limit: int, now: float) -> float | None:
        pace = window.seconds / window.tokens
        best = self._best = min(pace, self._best or pace)
        if pace > TOLERANCE * best:
            trial = self._trial = self._trial or _Trial(float(limit))
            trial.worst = max(trial.worst, pace)
            if limit <= ENOUGH * trial.limit and pace > IMPROVED * trial.worst:
                self._best, self._trial = pace, None
                return trial.limit
            self._settles_at = now + 2 * window.seconds / window.answers
            return max(limit * CUT, min(limit, LEAST))
        self._trial = None
        if window.most_in_flight + 1 >= limit:
            return limit + 1 + sqrt(limit)  # who has little gains on who has much
        return None
