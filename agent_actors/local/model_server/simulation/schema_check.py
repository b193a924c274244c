"""Which JSON schemas a vLLM would take for its grammars, and which are safe to work with here."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, cast

import msgspec
from jsonschema.protocols import Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from agent_actors.local.model_server.simulation.json_scalars import FORMATS
from agent_actors.local.model_server.simulation.schema_merge import Schema
from agent_actors.strategies.json_schema import BrokenSchema, compiled

MAX_CACHED_SCHEMAS = 64
MAX_NESTING = 64
# What vLLM refuses with one backend of its grammars or another.
UNIMPLEMENTED = ("multipleOf", "uniqueItems", "contains", "minContains", "maxContains")

Resolve = Callable[[str], Schema]


@lru_cache(maxsize=MAX_CACHED_SCHEMAS)
def checked(schema_json: bytes) -> Validator:
    """Return the validator of a schema that any vLLM takes; raises BrokenSchema."""
    schema = msgspec.json.decode(schema_json)
    # At Python's limit of recursion jsonschema may panic instead of raising RecursionError.
    if _is_nested_deeper(schema, MAX_NESTING):
        raise BrokenSchema(f"nested deeper than {MAX_NESTING} levels")
    validator = compiled(schema_json)
    root: Resource[Schema] = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry[Schema]().resolver_with_root(root)
    ending: set[int] = set()
    for part in _parts(root):
        _check_keywords(part)
        _check_ends(part, lambda ref: resolver.lookup(ref).contents, ending, set())
    return validator


def _is_nested_deeper(value: object, levels: int) -> bool:
    layer: list[object] = [value]
    for _ in range(levels):
        layer = [child for parent in layer for child in _children(parent)]
    return bool(layer)


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []


def _parts(resource: Resource[Schema]) -> Iterator[dict[str, Any]]:
    """Yield the schema and all schemas within."""
    if isinstance(resource.contents, dict):
        yield resource.contents
    for part in resource.subresources():
        yield from _parts(part)


def _check_keywords(schema: dict[str, Any]) -> None:
    found = [key for key in UNIMPLEMENTED if schema.get(key, False) is not False]
    if found:
        raise BrokenSchema(f"Unimplemented keys: {msgspec.json.encode(found).decode()}")
    if schema.get("format", "date") not in FORMATS:
        raise BrokenSchema(f"Unknown format: {schema['format']}")


def _check_ends(schema: Schema, resolve: Resolve, ending: set[int], above: set[int]) -> None:
    """Raise BrokenSchema when the schema leads back to itself for one and the same value."""
    if isinstance(schema, bool) or id(schema) in ending:
        return
    if id(schema) in above:
        raise BrokenSchema("refers to itself without end")
    for part in _same_value(schema, resolve):
        _check_ends(part, resolve, ending, above | {id(schema)})
    ending.add(id(schema))


def _same_value(schema: dict[str, Any], resolve: Resolve) -> Iterator[Schema]:
    """Yield the schemas that are asked about the same value as this one."""
    for keyword in ("$ref", "$dynamicRef"):
        if keyword in schema:
            yield resolve(schema[keyword])
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from schema.get(keyword, [])
    for keyword in ("not", "if", "then", "else"):
        if keyword in schema:
            yield schema[keyword]
    yield from schema.get("dependentSchemas", {}).values()
