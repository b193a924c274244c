"""The service's configuration as JSON Schema, for the chart's `values.schema.json`.

`scripts/values-schema` writes it there, where Helm judges the value `config` by it. It is read
off the Structs, so a key that the service does not know, Helm does not take either. The keys
that hold a secret themselves are left out: a ConfigMap is no place for them, a mounted file is.
"""

import json
from typing import Any

from msgspec import inspect
from support.chart import CHART

from agent_actors.config import Config
from agent_actors.config_keys import bare_type, facts_of, keys_of, shape_of
from agent_actors.config_types import Secret, Section

VALUES_SCHEMA = CHART / "values.schema.json"

Schema = dict[str, Any]


def config_schema() -> Schema:
    """Return the schema of the value `config`."""
    schema = _section(Config)
    # Nothing below `pools` is the service's default pool.
    del schema["properties"]["pools"]["minProperties"]
    return schema | {"description": "The service's configuration, as `--config` reads it."}


def write() -> None:
    """Put the schema of the configuration into the chart's."""
    schema = json.loads(VALUES_SCHEMA.read_text())
    schema["properties"]["config"] = config_schema()
    VALUES_SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


def _section(section: type[Section]) -> Schema:
    keys = {name: info for name, info in keys_of(section).items() if bare_type(info.type) != Secret}
    required = [name for name, info in keys.items() if info.required]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _described(info.type) for name, info in keys.items()},
    } | ({"required": required} if required else {})


def _described(annotation: object) -> Schema:
    meaning = facts_of(annotation).meaning
    return ({"description": meaning} if meaning else {}) | _value(annotation)


def _value(annotation: object) -> Schema:
    shape, facts = shape_of(annotation), facts_of(annotation)
    if shape.section:
        section = _section(shape.section)
        if not shape.single:
            return section
        single = _single(facts_of(shape.single).type)
        return section | single | {"type": [single["type"], "object"]}
    if shape.values is not None:
        names = _single(facts_of(shape.names).type)
        names.pop("type")
        filled = {"minProperties": 1} if facts.filled else {}
        named = {"propertyNames": names} if names else {}
        return {"type": "object", "additionalProperties": _value(shape.values)} | named | filled
    if shape.items is not None:
        filled = {"minItems": 1} if facts.filled else {}
        return {"type": "array", "items": _value(shape.items)} | filled
    return _single(facts.type)


def _single(kind: inspect.Type) -> Schema:
    match kind:
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType():
            return {"type": "integer"} | _bounds(kind)
        case inspect.FloatType():
            return {"type": "number"} | _bounds(kind)
        case inspect.StrType():
            least = {"minLength": kind.min_length} if kind.min_length else {}
            return {"type": "string"} | least | _pattern(kind.pattern or "")
        case _:
            return {"type": "string"}


def _bounds(number: inspect.IntType | inspect.FloatType) -> Schema:
    named = {
        "minimum": number.ge,
        "exclusiveMinimum": number.gt,
        "maximum": number.le,
        "exclusiveMaximum": number.lt,
    }
    return {name: bound for name, bound in named.items() if bound is not None}


def _pattern(python: str) -> Schema:
    r"""Return the pattern as Go has it: no `\Z`, and nothing that looks ahead."""
    if not python or "(?!" in python or "(?=" in python:
        return {}
    return {"pattern": python.replace(r"\Z", "$")}


if __name__ == "__main__":
    write()
