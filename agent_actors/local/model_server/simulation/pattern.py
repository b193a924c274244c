"""Texts that match a regular expression."""

import random
import re
from collections.abc import Iterator

import regex
from rstr import Rstr

# The two libraries that read patterns do not agree on all of them.
PatternError = (re.error, regex.error)

ATTEMPTS = 40
# Some patterns search for hours.
TIMEOUT_S = 0.05
# How often something is repeated at most where the pattern sets no end.
REPEATED = 8

# An escaped character or a class, which stay as they are, or a repetition without end.
_ENDLESS = re.compile(
    r"(?P<kept>\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<sign>[*+])|\{(?P<least>\d+),\}"
)


def matching(pattern: str, *, variant: int = 0) -> Iterator[str]:
    """Yield texts in which the pattern is found, shortest first; raises one of `PatternError`.

    Always the same ones, and other ones for another variant; none for a pattern too special.
    """
    re.compile(pattern)
    bounded = _ENDLESS.sub(_with_an_end, pattern)
    dice = Rstr(random.Random(variant))  # noqa: S311 - reproducible texts, no secret
    texts = {text for _ in range(ATTEMPTS) if (text := _sample(dice, bounded)) is not None}
    yield from sorted((text for text in texts if occurs(pattern, text)), key=_simplest_first)


def occurs(pattern: str, text: str) -> bool:
    """Say whether the pattern is found; one that takes too long is not."""
    try:
        return regex.search(pattern, text, timeout=TIMEOUT_S) is not None
    except TimeoutError:
        return False


def _with_an_end(found: re.Match[str]) -> str:
    if found["kept"]:
        return found["kept"]
    least = int(found["least"] or found["sign"] == "+")
    return f"{{{least},{least + REPEATED}}}"


def _sample(dice: Rstr, pattern: str) -> str | None:
    try:
        return dice.xeger(pattern)
    except (KeyError, IndexError, TypeError, re.error):
        # How rstr meets a construct that it does not know, and how Python meets a bounded one.
        return None


def _simplest_first(text: str) -> tuple[bool, int, str]:
    return (not text.isprintable(), len(text), text)
