"""One schema in place of two that must both hold, as far as a maker of values needs it.

Where two keywords cannot be told in one, the first stays: the made value is checked against the
real schema anyway.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

Schema = dict[str, Any] | bool


def merge(first: Schema, second: Schema) -> Schema:
    """Return a schema for what fits both; False when nothing can."""
    if isinstance(first, bool) or isinstance(second, bool):
        if first is False or second is False:
            return False
        return second if first is True else first
    merged = dict(first)
    for keyword, value in second.items():
        if keyword in merged and merged[keyword] != value:
            value = _MERGERS.get(keyword, _keep_first)(merged[keyword], value)  # noqa: PLW2901
            if value is _NOTHING:
                return False
        merged[keyword] = value
    return merged


_NOTHING = object()


def _keep_first(first: object, _second: object) -> object:
    return first


def _differ(_first: object, _second: object) -> object:
    return _NOTHING


def _common(first: list[object], second: list[object]) -> object:
    return [value for value in first if value in second] or _NOTHING


def _union(first: list[object], second: list[object]) -> list[object]:
    return [*first, *(value for value in second if value not in first)]


def _chain(first: list[object], second: list[object]) -> list[object]:
    return [*first, *second]


def _by_key(first: dict[str, Schema], second: dict[str, Schema]) -> dict[str, Schema]:
    return {key: merge(first.get(key, True), second.get(key, True)) for key in {**first, **second}}


def _nested(keyword: str, first: list[Schema], second: list[Schema]) -> list[Schema]:
    return [merge(branch, {keyword: second}) for branch in first]


def _types(first: str | list[str], second: str | list[str]) -> object:
    firsts, seconds = _as_list(first), _as_list(second)
    common = [kind for kind in firsts if kind in seconds]
    for some, others in ((firsts, seconds), (seconds, firsts)):
        if "integer" in some and "number" in others and "integer" not in common:
            common.append("integer")
    return common or _NOTHING


def _as_list(kinds: str | list[str]) -> list[str]:
    return kinds if isinstance(kinds, list) else [kinds]


_MERGERS: dict[str, Callable[[Any, Any], object]] = {
    **dict.fromkeys(
        ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"),
        max,
    ),
    **dict.fromkeys(
        ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"),
        min,
    ),
    **dict.fromkeys(("items", "additionalProperties", "propertyNames"), merge),
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas"), _by_key),
    **{keyword: partial(_nested, keyword) for keyword in ("anyOf", "oneOf")},
    "allOf": _chain,
    "required": _union,
    "enum": _common,
    "type": _types,
    "const": _differ,
}
