"""Candidates for strings and numbers of a JSON schema."""

import math
from collections.abc import Iterator
from typing import Any

from agent_actors.local.model_server.simulation.pattern import matching

MAX_CHARS = 100_000

# `number` is the variant, counted from 1.
FORMATS = {
    "date": "2026-01-{number:02}",
    "date-time": "2026-01-{number:02}T12:00:00Z",
    "time": "12:00:{number:02}Z",
    "duration": "PT{number}H",
    "email": "agent{number}@example.com",
    "hostname": "host{number}.example.com",
    "ipv4": "192.0.2.{number}",
    "ipv6": "2001:db8::{number}",
    "uri": "https://example.com/{number}",
    "uri-reference": "/{number}",
    "uuid": "00000000-0000-4000-8000-{number:012}",
    "json-pointer": "/{number}",
}


def strings(schema: dict[str, Any], *, words: str, variant: int) -> Iterator[str]:
    """Yield strings of the schema's format or pattern, or `words` in the length that it allows."""
    if (form := FORMATS.get(schema.get("format", ""))) is not None:
        yield form.format(number=variant + 1)
    shortest, longest = math.ceil(schema.get("minLength", 0)), schema.get("maxLength")
    if shortest > MAX_CHARS:
        return
    if "pattern" in schema:
        for text in matching(schema["pattern"], variant=variant):
            yield text if schema["pattern"].endswith("$") else text.ljust(shortest, ".")
    text = f"{variant + 1} {words}" if variant else words
    yield text[: None if longest is None else math.floor(longest)].ljust(shortest, ".")


def integers(schema: dict[str, Any], *, variant: int) -> Iterator[int]:
    """Yield integers: counted from the lower bound, else down from the upper one, else from 1."""
    low, high = _bounds(schema)
    if low is not None:
        lowest = math.floor(low) + 1 if low == schema.get("exclusiveMinimum") else math.ceil(low)
        yield from (lowest + variant, lowest)
    elif high is not None:
        highest = (
            math.ceil(high) - 1 if high == schema.get("exclusiveMaximum") else math.floor(high)
        )
        yield highest - variant
    else:
        yield 1 + variant


def numbers(schema: dict[str, Any], *, variant: int) -> Iterator[float]:
    """Yield numbers: between the bounds, or like integers when one is missing."""
    low, high = _bounds(schema)
    if low is not None and high is not None:
        yield low + (high - low) * (variant + 1) / (variant + 2)
        yield from (low, high)
    else:
        yield from integers(schema, variant=variant)


def _bounds(schema: dict[str, Any]) -> tuple[float | None, float | None]:
    lows = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    highs = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    return max(lows, default=None), min(highs, default=None)
