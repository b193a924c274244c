"""The ways in which the simulated server can go wrong, and the dice that decide when."""

import random
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct


class Fault(StrEnum):
    """One way to go wrong; the value is its name in `--fault`, in a script and over HTTP.

    The first three are answers, the next three come in place of one, the others spoil one.
    Half way means half of the answer's tokens, or half of its bytes when it is not a stream.
    """

    TOO_MANY_REQUESTS = "429"
    INTERNAL_ERROR = "500"
    UNAVAILABLE = "503"

    # Not a byte comes back; the connection stays open until the client or the server ends it.
    HANG = "hang"
    # The connection is reset.
    RESET = "reset"
    # A 200 with a proxy's HTML page.
    GARBAGE = "garbage"

    # Silence from half way on.
    HANG_BODY = "hang-body"
    # The connection is closed half way.
    TRUNCATED = "truncated"
    # The engine dies half way: an error event in the 200 of a stream, a 500 otherwise.
    STREAM_ERROR = "stream-error"
    # What a vLLM that is told to stop does to its running requests.
    ABORT = "abort"
    # The key is missing from the body; from every event of a stream.
    NO_CHOICES = "no-choices"
    NO_FINISH_REASON = "no-finish-reason"


IN_PLACE_OF_AN_ANSWER = frozenset(
    [
        *(Fault.TOO_MANY_REQUESTS, Fault.INTERNAL_ERROR, Fault.UNAVAILABLE),
        *(Fault.HANG, Fault.RESET, Fault.GARBAGE),
    ]
)
HALF_WAY = frozenset([Fault.HANG_BODY, Fault.TRUNCATED, Fault.STREAM_ERROR])

Rate = Annotated[float, Meta(ge=0, le=1)]


class Faults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a request meets which fault; what is left of 1 is answered well.

    `retry_after_s` goes as `Retry-After` with every 429 and 503 of these; vLLM sends none.
    """

    rates: dict[Fault, Rate] = {}
    retry_after_s: Annotated[int, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        if sum(self.rates.values()) > 1:
            raise ValueError(f"the rates sum up to {sum(self.rates.values()):g}, more than 1")


class FaultDice:
    """Decides by a seeded throw for every request: the same seed, the same sequence of faults."""

    def __init__(self, *, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - dice, no secret

    def throw(self, faults: Faults) -> Fault | None:
        """Return the fault that the next request meets, or None for a good answer."""
        rest = self._random.random()
        for fault, rate in faults.rates.items():
            rest -= rate
            if rest < 0:
                return fault
        return None
