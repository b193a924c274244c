"""Makes JSON that fits a given schema, with the task's own words where the schema leaves room.

Candidates are tried from the likeliest on and each is checked with jsonschema, so what comes out
fits; a schema for which nothing is found is refused, as vLLM refuses what its grammars cannot say.
"""

import re
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any, cast

from jsonschema.protocols import Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from agent_actors.local.model_server.refusal import Refusal, bad_request
from agent_actors.local.model_server.simulation.json_scalars import (
    integers,
    numbers,
    strings,
)
from agent_actors.local.model_server.simulation.pattern import PatternError, matching
from agent_actors.local.model_server.simulation.schema_check import WrongSchemaError, checked
from agent_actors.local.model_server.simulation.schema_merge import Schema, merge
from agent_actors.local.model_server.wire import encode

# Below this depth only what must be there is there, so that a schema that contains itself ends.
ROOMY_DEPTH = 3
MAX_DEPTH = 10
# Schemas that contradict themselves could be searched for ever.
MAX_STEPS = 4_000
MAX_KEYS = 64
MAX_ITEMS = 1_000

KINDS = ("string", "object", "array", "integer", "number", "boolean", "null")
# What a schema without `type` speaks of.
TELLTALES = {
    "object": {"properties", "required", "additionalProperties", "patternProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}

Object = dict[str, Any]
Hints = Mapping[str, tuple[Any, ...]]


def fit(schema: Object, *, about: str, hints: Hints | None = None, sparse: bool = False) -> object:
    """Return a value that fits the schema; raises `Refusal` when it is wrong or none is found.

    `about` fills free texts. `hints` are values to prefer for the properties of that name,
    where they fit. With `sparse` an optional property is left out unless there is a hint for it.
    """
    try:
        validator = checked(encode(schema))
        return _Fitter(validator, schema, about, hints or {}, sparse=sparse).value(schema)
    except WrongSchemaError as error:
        raise grammar_error(str(error)) from None
    except PatternError as error:
        raise grammar_error(f"Regex parsing error: {error}") from None
    except (_NoFitError, _GaveUpError):
        raise grammar_error("the simulated model knows no JSON that fits this schema") from None


def grammar_error(problem: str) -> Refusal:
    """Return the refusal of a form that an answer cannot have."""
    return bad_request(f"Grammar error: {problem}", late=True)


class _NoFitError(Exception):
    """Nothing was found that fits."""


class _GaveUpError(Exception):
    """It took too many steps."""


class _Fitter:
    """Looks for values that fit one schema or a part of it."""

    def __init__(
        self, validator: Validator, root: Object, about: str, hints: Hints, *, sparse: bool
    ) -> None:
        resource: Resource[Schema] = Resource.from_contents(root, default_specification=DRAFT202012)
        self._resolver = Registry[Schema]().resolver_with_root(resource)
        self._validator = validator
        self._about = about
        self._hints = hints
        self._sparse = sparse
        self._steps = 0

    def value(self, schema: Schema, name: str = "", variant: int = 0, depth: int = 0) -> object:
        """Return the first candidate that fits; another `variant`, another value if there is one.

        `name` is the property's. Raises `_NoFitError`.
        """
        self._count_step()
        for candidate in self._candidates(schema, name, variant, depth):
            self._count_step()
            if self._part(schema).is_valid(candidate):
                return candidate
        raise _NoFitError

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _GaveUpError

    def _part(self, schema: Schema) -> Validator:
        # The stub leaves the arguments of `evolve` untyped.
        return self._validator.evolve(schema=schema)  # pyright: ignore[reportUnknownMemberType]

    def _candidates(self, schema: Schema, name: str, variant: int, depth: int) -> Iterator[Any]:
        if depth > MAX_DEPTH:
            return
        yield from self._hints.get(name, ())
        for plain in self._plain(schema, variant, depth):
            if "const" in plain:
                yield plain["const"]
            elif "enum" in plain:
                yield from _rotated(plain["enum"], variant)
            else:
                yield from _suggested(plain, variant)
                for kind in _kinds(plain):
                    yield from self._of_kind(kind, plain, name, variant, depth)

    def _plain(self, schema: Schema, variant: int, depth: int) -> Iterator[Object]:
        """Yield what the schema can be when references and combinations are resolved."""
        if isinstance(schema, bool):
            yield from [{}] if schema else []
        elif "$ref" in schema or "allOf" in schema:
            rest = _without(schema, "allOf")
            parts = [self._resolved(part) for part in schema.get("allOf", [])]
            yield from self._plain(reduce(merge, parts, self._resolved(rest)), variant, depth)
        elif "if" in schema:
            rest = _without(schema, "if", "then", "else")
            then = merge(schema["if"], schema.get("then", True))
            for branch in (then, schema.get("else", True)):
                yield from self._plain(merge(rest, branch), variant, depth)
        elif (keyword := "anyOf") in schema or (keyword := "oneOf") in schema:
            branches: list[Schema] = _rotated(schema[keyword], variant)
            if depth > ROOMY_DEPTH:
                branches.sort(key=lambda branch: b'"$ref"' in encode(branch))
            for branch in branches:
                yield from self._plain(merge(_without(schema, keyword), branch), variant, depth)
        else:
            yield schema

    def _resolved(self, schema: Schema) -> Schema:
        if isinstance(schema, bool) or "$ref" not in schema:
            return schema
        target = self._resolver.lookup(schema["$ref"]).contents
        return merge(_without(schema, "$ref"), self._resolved(target))

    def _of_kind(
        self, kind: str, schema: Object, name: str, variant: int, depth: int
    ) -> Iterator[object]:
        match kind:
            case "object":
                return self._objects(schema, depth)
            case "array":
                return self._arrays(schema, name, depth)
            case "string":
                words = f"{name}: {self._about}" if name else self._about
                return strings(schema, words=words, variant=variant)
            case "integer":
                return integers(schema, variant=variant)
            case "number":
                return numbers(schema, variant=variant)
            case "boolean":
                return iter((variant % 2 == 0, variant % 2 == 1))
            case _:
                return iter((None,))

    def _objects(self, schema: Object, depth: int) -> Iterator[Object]:
        """Yield an object with all that it may have, then one with only what it must have."""
        declared: Mapping[str, Schema] = schema.get("properties", {})
        needed = _needed(schema)
        roomy = depth <= ROOMY_DEPTH and not self._sparse
        optional = [name for name in declared if roomy or name in self._hints]
        for names in ([*needed, *optional], needed):
            try:
                yield self._object(schema, _in_order(declared, names), needed, depth + 1)
            except _NoFitError:
                continue

    def _object(self, schema: Object, names: list[str], needed: list[str], depth: int) -> Object:
        room = schema.get("maxProperties", len(names)) - len(needed)
        made: Object = {}
        for name in names:
            try:
                if name in needed or room > 0:
                    made[name] = self.value(_member(schema, name), name, depth=depth)
                    room -= name not in needed
            except _NoFitError:
                if name in needed:
                    raise
        for name in _further_names(schema):
            if len(made) >= schema.get("minProperties", 0):
                break
            if name not in made:
                made[name] = self.value(_member(schema, name), name, depth=depth)
        return made

    def _arrays(self, schema: Object, name: str, depth: int) -> Iterator[list[object]]:
        """Yield an array that shows what its items are, then the shortest one."""
        first, items = _item_schemas(schema)
        least = schema.get("minItems", 0)
        if least > MAX_ITEMS:
            return
        shown = max(least, len(first) + (0 if isinstance(items, bool) else 1))
        for count in dict.fromkeys((min(shown, schema.get("maxItems", shown)), least)):
            schemas = [*first, *[items] * int(count)][: int(count)]
            try:
                yield [
                    self.value(item, name, variant, depth + 1)
                    for variant, item in enumerate(schemas)
                ]
            except _NoFitError:
                continue


def _without(schema: Object, *keywords: str) -> Object:
    return {keyword: value for keyword, value in schema.items() if keyword not in keywords}


def _rotated(choices: list[Any], by: int) -> list[Any]:
    start = by % len(choices) if choices else 0
    return [*choices[start:], *choices[:start]]


def _suggested(schema: Object, variant: int) -> list[Any]:
    """Return what the schema's author gives as an example."""
    if variant:
        return []
    return [*schema.get("examples", []), *([schema["default"]] if "default" in schema else [])]


def _kinds(schema: Object) -> list[str]:
    """Return the types that a value may have, the ones that the schema speaks of first."""
    given = schema.get("type", KINDS)
    kinds = [given] if isinstance(given, str) else list(given)
    spoken_of = {kind for kind, keywords in TELLTALES.items() if keywords & {*schema}}
    return sorted(kinds, key=lambda kind: (kind == "null", kind not in spoken_of))


def _needed(schema: Object) -> list[str]:
    """Return the names that must be there, those that follow from others included."""
    needed: dict[str, None] = dict.fromkeys(schema.get("required", []))
    dependent: Mapping[str, list[str]] = schema.get("dependentRequired", {})
    for name in list(dependent):
        if name in needed:
            needed |= dict.fromkeys(dependent[name])
    return list(needed)


def _in_order(declared: Mapping[str, Schema], names: list[str]) -> list[str]:
    return [*(name for name in declared if name in names), *(n for n in names if n not in declared)]


def _member(schema: Object, name: str) -> Schema:
    """Return the schema of one property."""
    patterns: Mapping[str, Schema] = schema.get("patternProperties", {})
    found = [part for pattern, part in patterns.items() if re.search(pattern, name)]
    if name in schema.get("properties", {}):
        found.append(schema["properties"][name])
    return reduce(merge, found) if found else schema.get("additionalProperties", True)


def _further_names(schema: Object) -> Iterator[str]:
    """Yield names of properties that may be there beyond those that must."""
    yield from schema.get("properties", {})
    for pattern in schema.get("patternProperties", {}):
        yield from matching(pattern)
    naming = schema.get("propertyNames", True)
    for variant in range(MAX_KEYS):
        yield from strings({} if isinstance(naming, bool) else naming, words="key", variant=variant)


def _item_schemas(schema: Object) -> tuple[list[Schema], Schema]:
    """Return the schemas of the first items and of the rest, older drafts' words included."""
    items = schema.get("items", True)
    if isinstance(items, list):
        return cast("list[Schema]", items), schema.get("additionalItems", True)
    return schema.get("prefixItems", []), items
