"""Whether a call's arguments fit the schema that a server gives for them.

Both come from others: the schema from a server, the arguments from a model. Checking takes
bounded time, and nothing is fetched.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec

from agent_actors.json_schema import REFUSED, BrokenSchema, compiled, mismatch

MAX_SCHEMA_BYTES = 64 * 1024
# Deeper arguments could exhaust the stack, at some eight frames a level.
MAX_DEPTH = 32

UNBOUNDED = {"$schema", *REFUSED}
BY_NAME = {"$defs", "definitions", "dependentSchemas", "properties"}
PLAIN_DATA = {"const", "default", "enum", "examples"}


class ArgumentsCheck:
    """Checks arguments against one schema. Raises BrokenSchema when it is none that will do."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        if schema.get("type") != "object":
            raise BrokenSchema('.type: must be "object"')
        encoded = msgspec.json.encode(_loosened(schema, {"$schema": schema.get("$schema")}))
        if len(encoded) > MAX_SCHEMA_BYTES:
            raise BrokenSchema(f": has {len(encoded)} bytes, of at most {MAX_SCHEMA_BYTES}")
        self._validator = compiled(encoded)

    def mismatch(self, arguments: dict[str, Any]) -> str:
        """Return where and why the arguments do not fit; empty when they do."""
        if _depth(arguments) > MAX_DEPTH:
            return f"nested more than {MAX_DEPTH} levels deep"
        try:
            return mismatch(self._validator, arguments)
        except (BrokenSchema, RecursionError) as error:
            return f"cannot be checked against the tool's schema: {error}"


def _loosened(schema: Any, root: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Return the schema without what cannot be checked in bounded time; the server checks it.

    Those are patterns for names, for which jsonschema uses `re`, and what depends on them.
    """
    if isinstance(schema, list):
        return [_loosened(part, {}) for part in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    keywords = cast("dict[str, Any]", schema)
    by_pattern = {"additionalProperties"} if "patternProperties" in keywords else set[str]()
    dropped = UNBOUNDED | by_pattern
    loose = {key: _part(key, value) for key, value in keywords.items() if key not in dropped}
    return loose | {key: value for key, value in root.items() if value is not None}


def _part(keyword: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if keyword in PLAIN_DATA:
        return value
    if keyword in BY_NAME and isinstance(value, dict):
        return {name: _loosened(part, {}) for name, part in cast("dict[str, Any]", value).items()}
    return _loosened(value, {})


def _depth(value: Any) -> int:  # noqa: ANN401 - any JSON value
    """Return how deep the value is nested, or one more than what is allowed."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [item for part in level for item in _items(part)]
        depth += 1
    return depth


def _items(part: Any) -> Iterable[Any]:  # noqa: ANN401 - any JSON value
    match part:
        case dict():
            return cast("dict[str, Any]", part).values()
        case list():
            return cast("list[Any]", part)
        case _:
            return ()
