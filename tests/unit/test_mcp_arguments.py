"""Arguments against a server's schema: checked, in bounded time, whatever both of them are."""

import time

import pytest

from agent_actors.adapters.mcp.arguments import ArgumentsCheck
from agent_actors.json_schema import BrokenSchema

EVIL = "^(a|a)*$"
EVIL_TEXT = "a" * 40 + "!"


def mismatch(schema: dict, arguments: dict) -> str:
    return ArgumentsCheck({"type": "object"} | schema).mismatch(arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"path": "a"}, ""),
        ({"path": "a", "lines": [1, 2]}, ""),
        ({}, "at $: 'path' is a required property"),
        ({"path": 1}, "at $.path: 1 is not of type 'string'"),
        ({"path": "a", "lines": [1, "x"]}, "at $.lines[1]: 'x' is not of type 'integer'"),
        ({"path": "a", "more": 1}, "at $: Additional properties are not allowed"),
    ],
)
def test_a_mismatch_says_where_and_why(arguments: dict, expected: str):
    schema = {
        "properties": {
            "path": {"type": "string"},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        },
        "$defs": {"line": {"type": "integer"}},
        "required": ["path"],
        "additionalProperties": False,
    }
    found = mismatch(schema, arguments)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_the_draft_that_a_schema_names_is_kept():
    draft_7 = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"pair": {"items": [{"type": "string"}, {"type": "integer"}]}},
    }
    assert mismatch(draft_7, {"pair": ["a", 1]}) == ""
    assert mismatch(draft_7, {"pair": ["a", "b"]}).startswith("at $.pair[1]")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {},
        {"type": "object", "properties": {"x": {"type": "colour"}}},
        {"type": "object", "properties": {"x": {"$ref": "https://example.org/schema"}}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}},
        {"type": "object", "$ref": "#"},
        {"type": "object", "description": "x" * 100_000},
        {"type": "object", "$schema": 5},
    ],
)
def test_what_is_no_schema_for_arguments_is_refused(schema: dict):
    with pytest.raises(BrokenSchema):
        ArgumentsCheck(schema)


DOUBLING = {
    f"level{i}": {"allOf": [{"$ref": f"#/$defs/level{i + 1}"}, {"$ref": f"#/$defs/level{i + 1}"}]}
    for i in range(30)
}


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"x": {"pattern": EVIL}}}, {"x": EVIL_TEXT}),
        ({"properties": {"x": {"items": {"pattern": EVIL}}}}, {"x": [EVIL_TEXT] * 50}),
        ({"patternProperties": {EVIL: {}}, "additionalProperties": False}, {EVIL_TEXT: 1}),
        ({"properties": {"x": {"patternProperties": {EVIL: {}}}}}, {"x": {EVIL_TEXT: 1}}),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "properties": {"x": {"pattern": EVIL}, "again": {"$ref": "#"}},
            },
            {"again": {"x": EVIL_TEXT}},
        ),
        (
            {
                "properties": {
                    "x": {
                        "$schema": "http://json-schema.org/draft-07/schema#",
                        "pattern": EVIL,
                    }
                }
            },
            {"x": EVIL_TEXT},
        ),
        (
            {
                "$ref": "#/$defs/level0",
                "$defs": DOUBLING | {"level30": {"type": "object"}},
            },
            {},
        ),
        (
            {
                "allOf": [{"$ref": "#/$defs/level0"}],
                "unevaluatedProperties": False,
                "$defs": DOUBLING | {"level30": {"type": "object"}},
            },
            {"x": 1},
        ),
    ],
    ids=[
        "pattern", "many", "names", "names below", "another class by $ref", "another class below",
        "doubling", "doubling for names",
    ],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_checking_takes_bounded_time(schema: dict, arguments: dict):
    check = ArgumentsCheck({"type": "object"} | schema)
    began_s = time.monotonic()
    check.mismatch(arguments)
    assert time.monotonic() - began_s < 3


def test_a_check_that_was_given_up_can_be_used_again():
    check = ArgumentsCheck({"type": "object", "properties": {"x": {"items": {"pattern": EVIL}}}})
    assert "takes longer" in check.mismatch({"x": [EVIL_TEXT] * 50})
    assert check.mismatch({"x": ["aaa"]}) == ""


def test_deeply_nested_arguments_are_refused():
    nested: dict = {}
    for _ in range(200):
        nested = {"x": nested}
    schema = {"properties": {"x": {"$ref": "#"}}}
    assert mismatch(schema, nested) == "nested more than 32 levels deep"
    assert mismatch(schema, {"x": {"x": {}}}) == ""
