"""JSON Schema as tasks use it: checked before use, kept compiled, and never fetching anything."""

from functools import lru_cache
from typing import Any, cast

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import (
    SchemaError,
    ValidationError,
    best_match,  # pyright: ignore[reportUnknownVariableType] - its stub returns Incomplete
)
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_CACHED_SCHEMAS = 64
MAX_DETAIL_CHARS = 500
REFERENCES = ("$ref", "$dynamicRef")

# Without `retrieve`, so that a $ref to another document fails; the default one downloads it.
_registry: Registry[Any] = Registry()


class BrokenSchema(Exception):
    """The schema itself is wrong; the message is the path within it, a colon, and why."""


@lru_cache(maxsize=MAX_CACHED_SCHEMAS)
def compiled(schema_json: bytes) -> Validator:
    """Return the validator for a JSON object that is meant as a schema. Raises BrokenSchema."""
    schema = msgspec.json.decode(schema_json)
    if not isinstance(schema.get("$schema", ""), str):
        raise BrokenSchema(".$schema: must be the URL of a JSON Schema draft")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
        root: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
        _check_references(root, _registry.resolver_with_root(root))
    except SchemaError as error:
        raise BrokenSchema(f"{error.json_path.removeprefix('$')}: {_cut(error.message)}") from error
    except Unresolvable as error:
        raise _unresolvable(error) from error
    return kind(schema, registry=_registry)


def mismatch(validator: Validator, value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return where and why the value does not fit; empty when it does. Raises BrokenSchema."""
    try:
        worst = cast("ValidationError | None", best_match(validator.iter_errors(value)))
    except Unresolvable as error:
        raise _unresolvable(error) from error
    except RecursionError:
        raise BrokenSchema(": refers to itself without end") from None
    return f"at {worst.json_path}: {_cut(worst.message)}" if worst else ""


def _check_references(resource: Resource[Any], resolver: Any) -> None:  # noqa: ANN401 - its class is private
    """Raise Unresolvable at the first reference that leads nowhere."""
    schema = cast("dict[str, Any] | bool", resource.contents)
    if isinstance(schema, dict):
        for keyword in REFERENCES:
            if keyword in schema:
                resolver.lookup(schema[keyword])
    for part in resource.subresources():
        _check_references(part, resolver.in_subresource(part))


def _unresolvable(error: Unresolvable) -> BrokenSchema:
    return BrokenSchema(
        f": the reference {error.ref!r} leads nowhere within the schema; others are never fetched"
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]}…"
