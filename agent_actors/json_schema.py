"""JSON Schema from others: checked before use, kept compiled, bounded in time, fetching nothing."""

import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, cast

import msgspec
import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import (
    SchemaError,
    ValidationError,
    best_match,  # pyright: ignore[reportUnknownVariableType] - its stub returns Incomplete
)
from jsonschema.protocols import Validator
from jsonschema.validators import (
    extend,  # pyright: ignore[reportUnknownVariableType] - its stub is partial
    validator_for,
)
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_CACHED_SCHEMAS = 64
MAX_DETAIL_CHARS = 500
REFERENCES = ("$ref", "$dynamicRef")

# Python's `re` may search for hours, and nothing can stop it. jsonschema uses it for property
# names too, in three keywords, so schemas with patterns for names are refused; and so are those
# that ask what other parts have left over, which it finds out by searching all of them.
PATTERN_TIMEOUT_S = 0.1
REFUSED = ("patternProperties", "unevaluatedItems", "unevaluatedProperties")

# A schema of a few lines can double the work with each of them.
CHECK_TIMEOUT_S = 0.25
_deadline = ContextVar("_deadline", default=0.0)

_sorted_json = msgspec.json.Encoder(order="sorted").encode

Keyword = Callable[[Validator, Any, Any, Any], Iterator[ValidationError] | None]

# Without `retrieve`, so that a $ref to another document fails; the default one downloads it.
_registry: Registry[Any] = Registry()


class _TookTooLong(Exception):
    """A value cannot be checked against its schema in the time that there is."""


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
        for part in root.subresources():
            _check_draft(part)
        _check_parts(root, _registry.resolver_with_root(root), set())
    except SchemaError as error:
        raise BrokenSchema(f"{error.json_path.removeprefix('$')}: {_cut(error.message)}") from error
    except Unresolvable as error:
        raise _unresolvable(error) from error
    except RecursionError:
        raise BrokenSchema(": is nested too deeply") from None
    own = {"pattern": _pattern, "uniqueItems": _unique_items}
    keywords = cast("dict[str, Keyword]", {**kind.VALIDATORS, **own})
    bounded = {name: _bounded(keyword) for name, keyword in keywords.items()}
    # Without `$schema`: where jsonschema finds one, it goes on with a class of its own.
    schema.pop("$schema", None)
    return cast("type[Validator]", extend(kind, bounded))(schema, registry=_registry)


def mismatch(validator: Validator, value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return where and why the value does not fit; empty when it does. Raises BrokenSchema."""
    _deadline.set(time.monotonic() + CHECK_TIMEOUT_S)
    try:
        worst = cast("ValidationError | None", best_match(validator.iter_errors(value)))
    except Unresolvable as error:
        raise _unresolvable(error) from error
    except _TookTooLong:
        return f"checking it takes longer than {CHECK_TIMEOUT_S:g} s"
    return f"at {worst.json_path}: {_cut(worst.message)}" if worst else ""


def _check_draft(resource: Resource[Any]) -> None:
    """Raise BrokenSchema for a part that is of a draft of its own."""
    schema = cast("dict[str, Any] | bool", resource.contents)
    if isinstance(schema, dict) and "$schema" in schema:
        raise BrokenSchema(": has a $schema below its top, which is not supported")
    for part in resource.subresources():
        _check_draft(part)


def _check_parts(resource: Resource[Any], resolver: Any, finite: set[int]) -> None:  # noqa: ANN401 - its class is private
    """Raise Unresolvable at the first reference that leads nowhere, BrokenSchema at a refusal."""
    schema = cast("dict[str, Any] | bool", resource.contents)
    if isinstance(schema, dict):
        if refused := next((name for name in REFUSED if name in schema), ""):
            raise BrokenSchema(f": has {refused}, which is not supported")
        for keyword in REFERENCES:
            if keyword in schema:
                resolver.lookup(schema[keyword])
        _check_ends(schema, resolver, (), finite)
    for part in resource.subresources():
        _check_parts(part, resolver.in_subresource(part), finite)


def _check_ends(schema: Any, resolver: Any, above: tuple[int, ...], finite: set[int]) -> None:  # noqa: ANN401 - any JSON value
    """Raise BrokenSchema where a schema leads back to itself for one and the same value.

    Validating with it would not end; and the recursion limit, met inside of a Rust extension,
    is no RecursionError but a panic.
    """
    this = id(cast("object", schema))
    if not isinstance(schema, dict) or this in finite:
        return
    if this in above:
        raise BrokenSchema(": refers to itself without end")
    for part, scope in _same_value(cast("dict[str, Any]", schema), resolver):
        _check_ends(part, scope, (*above, this), finite)
    finite.add(this)


def _same_value(schema: dict[str, Any], resolver: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - its class is private
    """Yield the schemas that are applied to the very value that this one is applied to."""
    for keyword in REFERENCES:
        if keyword in schema:
            found = resolver.lookup(schema[keyword])
            yield found.contents, found.resolver
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from ((part, resolver) for part in schema.get(keyword, ()))
    for keyword in ("not", "if", "then", "else"):
        yield schema.get(keyword), resolver
    yield from ((part, resolver) for part in schema.get("dependentSchemas", {}).values())


def _bounded(keyword: Keyword) -> Keyword:
    """Return the keyword with a look at the time before it."""

    def check(
        validator: Validator,
        value: Any,  # noqa: ANN401 - any JSON value
        instance: Any,  # noqa: ANN401 - any JSON value
        schema: Any,  # noqa: ANN401 - any JSON value
    ) -> Iterator[ValidationError]:
        if time.monotonic() > _deadline.get():
            raise _TookTooLong
        yield from keyword(validator, value, instance, schema) or ()

    return check


def _pattern(
    validator: Validator,
    pattern: str,
    instance: Any,  # noqa: ANN401 - any JSON value
    schema: object,  # noqa: ARG001 - jsonschema's signature of a keyword
) -> Iterator[ValidationError]:
    """Check the keyword `pattern` within a time limit."""
    if not validator.is_type(instance, "string"):
        return
    try:
        found = regex.search(pattern, str(instance), timeout=PATTERN_TIMEOUT_S)
    except TimeoutError:
        yield ValidationError(f"the pattern {pattern!r} takes too long on the answer")
        return
    if not found:
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _unique_items(
    validator: Validator,
    wanted: bool,  # noqa: FBT001 - jsonschema's signature of a keyword
    instance: Any,  # noqa: ANN401 - any JSON value
    schema: object,  # noqa: ARG001 - jsonschema's signature of a keyword
) -> Iterator[ValidationError]:
    """Check the keyword `uniqueItems` in one pass; jsonschema compares each item with each."""
    if not wanted or not validator.is_type(instance, "array"):
        return
    items = cast("list[Any]", instance)
    if len({_sorted_json(_comparable(item)) for item in items}) < len(items):
        yield ValidationError("has an item twice")


def _comparable(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value with 1.0 as 1, since to JSON Schema they are the same."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_comparable(item) for item in cast("list[Any]", value)]
        case dict():
            return {key: _comparable(item) for key, item in cast("dict[str, Any]", value).items()}
        case _:
            return value


def _unresolvable(error: Unresolvable) -> BrokenSchema:
    return BrokenSchema(
        f": the reference {error.ref!r} leads nowhere within the schema; others are never fetched"
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[:MAX_DETAIL_CHARS]}…"
