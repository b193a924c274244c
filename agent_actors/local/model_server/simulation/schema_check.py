"""Which JSON schemas a vLLM would take for its grammars, and which are safe to work with here.

The service has a check of its own for the schemas of tasks; this one refuses what vLLM refuses.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, cast

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import (
    extend,  # pyright: ignore[reportUnknownVariableType] - its stub is partial
    validator_for,
)
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from agent_actors.local.model_server.simulation.json_scalars import FORMATS
from agent_actors.local.model_server.simulation.pattern import occurs
from agent_actors.local.model_server.simulation.schema_merge import Schema

MAX_CACHED_SCHEMAS = 64
MAX_NESTING = 64
# What vLLM refuses with one backend of its grammars or another.
UNIMPLEMENTED = ("multipleOf", "uniqueItems", "contains", "minContains", "maxContains")

Resolve = Callable[[str], Schema]

# Without `retrieve`, so that a $ref to another document fails instead of being downloaded.
_registry: Registry[Any] = Registry()


class WrongSchemaError(Exception):
    """A schema that vLLM refuses; the message says why."""


@lru_cache(maxsize=MAX_CACHED_SCHEMAS)
def checked(schema_json: bytes) -> Validator:
    """Return the validator of a schema that any vLLM takes; raises WrongSchemaError."""
    schema = msgspec.json.decode(schema_json)
    # At Python's limit of recursion jsonschema may panic instead of raising RecursionError.
    if _is_nested_deeper(schema, MAX_NESTING):
        raise WrongSchemaError(f"nested deeper than {MAX_NESTING} levels")
    if not isinstance(schema.get("$schema", ""), str):
        raise WrongSchemaError("$schema: must be the URL of a JSON Schema draft")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
        _check_parts(schema)
    except SchemaError as error:
        raise WrongSchemaError(_worded(error)) from error
    except Unresolvable as error:
        raise WrongSchemaError(f"Pointer '{error.ref}' does not exist") from error
    timed = cast("type[Validator]", extend(kind, {"pattern": _pattern}))
    return timed(schema, registry=_registry)


def _worded(error: SchemaError) -> str:
    """Say as vLLM does that a type is wrong, which is what is wrong with most wrong schemas."""
    if error.path and error.path[-1] == "type" and isinstance(error.instance, str):
        return f"Invalid type: {error.instance}"
    return f"{error.json_path}: {error.message}"


def _pattern(
    _validator: Validator,
    pattern: str,
    instance: object,
    _schema: object,
) -> Iterator[ValidationError]:
    """Check the keyword `pattern` within a time limit."""
    if isinstance(instance, str) and not occurs(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _check_parts(schema: dict[str, Any]) -> None:
    root: Resource[Schema] = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = _registry.resolver_with_root(root)
    ending: set[int] = set()
    for part in _parts(root):
        _check_keywords(part)
        _check_ends(part, lambda ref: resolver.lookup(ref).contents, ending, set())


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
        raise WrongSchemaError(f"Unimplemented keys: {msgspec.json.encode(found).decode()}")
    if schema.get("format", "date") not in FORMATS:
        raise WrongSchemaError(f"Unknown format: {schema['format']}")


def _check_ends(schema: Schema, resolve: Resolve, ending: set[int], above: set[int]) -> None:
    """Raise WrongSchemaError when the schema leads back to itself for one and the same value."""
    if isinstance(schema, bool) or id(schema) in ending:
        return
    if id(schema) in above:
        raise WrongSchemaError("refers to itself without end")
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
