import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agent_actors.local.model_server.refusal import Refusal
from agent_actors.local.model_server.simulation.json_fit import fit

ABOUT = "Implement a binary search tree"
NAMES = st.sampled_from(["title", "count", "items", "kind", "a", "b"])
PATTERNS = st.sampled_from(
    [r"^[A-Z]{3}-\d{4}$", r"^\S+@\S+\.\w+$", r"^(foo|bar)+$", r"^v\d+\.\d+\.\d+$", r"[^\s]", "^$"]
)
EXTRA = st.sampled_from([{}, {"additionalProperties": False}])
PLAIN_JSON = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=9)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


def bounded(type_: str, low: str, high: str, edges: st.SearchStrategy[Any]):
    """Schemas of a type with a lower bound, an upper one, both or none."""

    def build(pair: list[Any], which: tuple[bool, bool]) -> dict[str, Any]:
        ends = zip((low, high), sorted(pair), which, strict=True)
        return {"type": type_, **{key: edge for key, edge, there in ends if there}}

    return st.builds(
        build, st.lists(edges, min_size=2, max_size=2), st.tuples(st.booleans(), st.booleans())
    )


LEAVES = st.one_of(
    st.sampled_from([True]),
    st.just({}),
    st.sampled_from(
        [{"type": kind} for kind in ("string", "integer", "number", "boolean", "null")]
    ),
    st.builds(lambda value: {"const": value}, PLAIN_JSON),
    st.builds(lambda values: {"enum": values}, st.lists(PLAIN_JSON, min_size=1, max_size=4)),
    bounded("integer", "minimum", "maximum", st.integers(-1000, 1000)),
    bounded("number", "minimum", "maximum", st.floats(-1e6, 1e6)),
    bounded("string", "minLength", "maxLength", st.integers(0, 60)),
    st.builds(lambda p: {"type": "string", "pattern": p}, PATTERNS),
    st.builds(
        lambda kinds: {"type": list(kinds)},
        st.sets(st.sampled_from(["string", "null"]), min_size=1),
    ),
    st.sampled_from(
        [{"type": "string", "format": f} for f in ("date", "date-time", "uuid", "email", "uri")]
    ),
)


def composed(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas that are made of others and that something fits."""
    properties = st.dictionaries(NAMES, parts, max_size=4)

    def an_object(
        members: dict[str, Any], needed: set[str], extra: dict[str, bool]
    ) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": members,
            "required": sorted(needed & members.keys()),
            **extra,
        }

    return st.one_of(
        st.builds(an_object, properties, st.sets(NAMES), EXTRA),
        st.builds(
            lambda items, low, more: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + more,
            },
            parts,
            st.integers(0, 3),
            st.integers(0, 2),
        ),
        st.builds(lambda several: {"anyOf": several}, st.lists(parts, min_size=1, max_size=3)),
        st.builds(
            lambda first, second: {
                "allOf": [
                    {"type": "object", "properties": {"a": first}, "required": ["a"]},
                    {"type": "object", "properties": {"b": second}, "required": ["b"]},
                ]
            },
            parts,
            parts,
        ),
        st.builds(
            lambda part: {
                "oneOf": [
                    {"type": "object", "required": ["a"], "properties": {"a": part}},
                    {"type": "string", "maxLength": 5},
                ]
            },
            parts,
        ),
    )


SCHEMAS = st.recursive(LEAVES, composed, max_leaves=12).map(
    lambda schema: {"allOf": [schema]} if isinstance(schema, bool) else schema
)


@given(SCHEMAS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_made_fits_the_schema(schema: dict[str, Any]):
    made = fit(schema, about=ABOUT)
    Draft202012Validator(schema).validate(json.loads(json.dumps(made)))


@given(SCHEMAS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_the_same_schema_gives_the_same_value(schema: dict[str, Any]):
    assert fit(schema, about=ABOUT) == fit(schema, about=ABOUT)


# Any keywords at all, contradictions included.
WILD = st.recursive(
    LEAVES,
    lambda parts: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "string", "number"]),
            "properties": st.dictionaries(NAMES, parts, max_size=3),
            "required": st.lists(NAMES, unique=True, max_size=3),
            "additionalProperties": parts,
            "minProperties": st.integers(0, 4),
            "maxProperties": st.integers(0, 4),
            "propertyNames": parts,
            "patternProperties": st.dictionaries(PATTERNS, parts, max_size=1),
            "items": parts,
            "prefixItems": st.lists(parts, min_size=1, max_size=2),
            "maxItems": st.integers(0, 3),
            "not": parts,
            "if": parts,
            "then": parts,
            "else": parts,
            "oneOf": st.lists(parts, min_size=1, max_size=2),
            "allOf": st.lists(parts, min_size=1, max_size=2),
            "$ref": st.just("#"),
            "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, unique=True), max_size=2),
        },
    ),
    max_leaves=8,
).filter(lambda schema: isinstance(schema, dict))


@given(WILD)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_wild_schema_is_fitted_or_refused_and_never_worse(schema: dict[str, Any]):
    with suppress(Refusal):
        Draft202012Validator(schema).validate(fit(schema, about=ABOUT))


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"type": "string"}, ABOUT),
        ({"type": "string", "maxLength": 9}, "Implement"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "integer", "exclusiveMinimum": 50}, 51),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "integer", "exclusiveMaximum": -4}, -5),
        ({"type": ["null", "boolean"]}, True),
        ({"type": "string", "examples": ["blue"]}, "blue"),
        (
            {"prefixItems": [{"const": "x"}, {"const": 2}], "items": False, "type": "array"},
            ["x", 2],
        ),
        (
            {
                "$ref": "#/$defs/point",
                "$defs": {"point": {"required": ["x"], "properties": {"x": {"type": "integer"}}}},
            },
            {"x": 1},
        ),
        ({"if": {"type": "string"}, "then": {"const": "yes"}, "else": {"const": 0}}, "yes"),
        (
            {
                "type": "object",
                "patternProperties": {"^x$": {"type": "integer"}},
                "minProperties": 1,
                "additionalProperties": False,
            },
            {"x": 1},
        ),
    ],
)
def test_a_schema_gets_a_sensible_value(schema: dict[str, Any], made: Any):
    assert fit(schema, about=ABOUT) == made


def test_a_schema_that_contains_itself_ends():
    node = {
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["value", "next"],
    }
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    made = fit(schema, about=ABOUT)
    Draft202012Validator(schema).validate(made)


def test_all_declared_properties_are_there():
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
    assert fit(schema, about=ABOUT) == {"a": f"a: {ABOUT}", "b": 1}


def test_a_pattern_that_searches_for_hours_does_not():
    schema = {"type": "string", "pattern": "^(a+)+b$", "minLength": 70}
    with suppress(Refusal):
        assert fit(schema, about=ABOUT).endswith("ab")
    with pytest.raises(Refusal):
        fit({"type": "string", "pattern": "^(a+)+b$", "const": "a" * 70}, about=ABOUT)


def test_sparse_leaves_out_what_is_optional_and_has_no_hint():
    schema = {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "mode": {"type": "string"},
            "n": {"type": "integer"},
        },
        "required": ["n"],
    }
    made = fit(schema, about=ABOUT, hints={"path": (7, "a.py")}, sparse=True)
    assert made == {"path": "a.py", "n": 1}


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "banana"}, "Invalid type: banana"),
        ({"type": "object", "properties": {"a": {"type": "banana"}}}, "Invalid type: banana"),
        ({"properties": []}, "properties"),
        ({"$ref": "#/$defs/gone"}, "/$defs/gone"),
        ({"type": "string", "pattern": "("}, "'('"),
        ({"type": "array", "minItems": 3, "maxItems": 1}, "knows no JSON"),
        ({"type": "integer", "minimum": 5, "maximum": 1}, "knows no JSON"),
        ({"type": "integer", "multipleOf": 7}, 'Unimplemented keys: ["multipleOf"]'),
        ({"items": {"uniqueItems": True}}, 'Unimplemented keys: ["uniqueItems"]'),
        ({"type": "string", "format": "banana"}, "Unknown format: banana"),
        ({"enum": []}, "knows no JSON"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"anyOf": [{"type": "string"}, {"$ref": "#"}]}, "refers to itself without end"),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/b"}},
                "$defs": {"b": {"not": {"$ref": "#/properties/a"}}},
            },
            "refers to itself without end",
        ),
        (
            {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
            "knows no JSON",
        ),
        (nested(65), "nested deeper than 64 levels"),
        ({"type": "array", "minItems": 10**9}, "knows no JSON"),
        ({"type": "string", "minLength": 10**9}, "knows no JSON"),
    ],
)
def test_a_wrong_or_impossible_schema_is_refused(schema: dict[str, Any], problem: str):
    with pytest.raises(Refusal, match="Grammar error: ") as refused:
        fit(schema, about=ABOUT)
    assert problem in str(refused.value)
    assert refused.value.late
