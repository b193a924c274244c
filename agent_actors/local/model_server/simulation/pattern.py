"""Texts that match a regular expression."""

import random
import re
from collections.abc import Iterator

from rstr import Rstr

ATTEMPTS = 40


def matching(pattern: str, *, variant: int = 0) -> Iterator[str]:
    """Yield texts in which the pattern is found, shortest first; raises `re.error`.

    Always the same ones, and other ones for another variant; none for a pattern too special.
    """
    expression = re.compile(pattern)
    dice = Rstr(random.Random(variant))  # noqa: S311 - reproducible texts, no secret
    texts = {text for _ in range(ATTEMPTS) if (text := _sample(dice, pattern)) is not None}
    yield from sorted((text for text in texts if expression.search(text)), key=_simplest_first)


def _sample(dice: Rstr, pattern: str) -> str | None:
    try:
        return dice.xeger(pattern)
    except (KeyError, IndexError, TypeError):  # how rstr meets a construct that it does not know
        return None


def _simplest_first(text: str) -> tuple[bool, int, str]:
    return (not text.isprintable(), len(text), text)
