"""What NATS does not do of what it is asked, until it does: for whoever asks how things stand."""

import time
from collections.abc import Callable
from typing import NamedTuple

# In every request of JetStream: `$JS.API.…`, `$JS.<domain>.API.…` or what an account imports.
IN_REQUESTS = ".API."

# Subjects that begin alike share their fate: task keys differ without end.
FAMILY_TOKENS = 2


def family(subject: str) -> str:
    """Return what a subject has in common with all like it; a request of JetStream has nothing.

    In lower case, as nats-py gives the subjects of what was denied.
    """
    is_request = IN_REQUESTS in subject.upper()
    shared = subject if is_request else ".".join(subject.split(".")[:FAMILY_TOKENS])
    return shared.lower()


class Troubles:
    """The reasons that stand, by family of subjects; `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._met: dict[str, _Trouble] = {}

    def note(self, subject: str, reason: str) -> None:
        """Take note of why something was not done."""
        self._met[family(subject)] = _Trouble(self._clock(), reason)

    def clear(self, subject: str) -> None:
        """Take note that the like of it is done."""
        if self._met:
            self._met.pop(family(subject), None)

    def clear_all(self) -> None:
        """Take note that everything may be otherwise now."""
        self._met.clear()

    def reason(self, within_s: float) -> str:
        """Return the oldest reason that was met again within these seconds; empty: none was.

        What fails for good is tried again and again; what nobody tries any more says nothing.
        """
        since = self._clock() - within_s
        self._met = {key: each for key, each in self._met.items() if each.met >= since}
        return next((each.reason for each in self._met.values()), "")


class _Trouble(NamedTuple):
    met: float
    reason: str
