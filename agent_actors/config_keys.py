"""The keys of the configuration, read off the Structs: a new field is a new key everywhere.

The environment variable of a key is `AGENT_ACTORS_` and the key's path in upper case, with `__`
for every dot. After the section a single `_` will do: `nats.url` is `AGENT_ACTORS_NATS_URL`.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from types import NoneType
from typing import Annotated, Any, cast, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct, inspect

from agent_actors.config import Config
from agent_actors.config_types import Section, mask_secret

PREFIX = "AGENT_ACTORS_"

KeyPath = tuple[str | int, ...]
Tree = dict[str, Any]


class Key(Struct, frozen=True, kw_only=True):
    """One row of the reference; `<pool>` and `<role>` stand for names that the user gives."""

    path: str
    variable: str
    type: str
    default: str
    meaning: str


class Shape(Struct, frozen=True, kw_only=True):
    """What a value is made of; none of these: a single value.

    A section has keys, a map has names and values, a list has items. What stands here is
    the annotation of each, and of the `single` value that may stand in a section's place.
    """

    section: type[Section] | None = None
    names: object = None
    values: object = None
    items: object = None
    single: object = None
    optional: bool = False

    @property
    def named_sections(self) -> bool:
        """Whether it is a map whose values have keys of their own."""
        return self.values is not None and shape_of(self.values).section is not None


def reference() -> list[Key]:
    """Return every key of the configuration, in the order of the Structs."""
    return list(_rows(Config, ()))


def variable_of(path: KeyPath) -> str:
    """Return the environment variable of a key, as the reference spells it."""
    parts = [str(part).upper() for part in path]
    return PREFIX + ("_" if len(parts) == 2 else "__").join(parts)


def as_tree(value: object) -> Tree | None:
    """Return the value if it is a map, as YAML and JSON give them."""
    return cast("Tree", value) if isinstance(value, dict) else None


def spelled(name: str) -> str:
    """Return a name as a variable spells it, in lower case: `GPU-big` is `gpu_big`."""
    return name.lower().replace("-", "_")


def dotted(path: KeyPath) -> str:
    """Return the path as the user writes it: `pools.default.subjects[0]`."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{_plain_or_quoted(part)}" for part in path
    ).removeprefix(".")


def quoted(text: str) -> str:
    """Return the text in quotes and on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _plain_or_quoted(name: str) -> str:
    return name if re.fullmatch(r"[\w<>-]+", name) else quoted(name)


@cache
def keys_of(section: type[Section]) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the section's fields by name."""
    return {info.name: info for info in msgspec.structs.fields(section)}


def default_of(info: msgspec.structs.FieldInfo) -> Any:  # noqa: ANN401 - of the field's type
    """Return the value of a field that is not given; NODEFAULT if it has to be."""
    return info.default if info.default_factory is NODEFAULT else info.default_factory()


@cache
def shape_of(annotation: object) -> Shape:
    """Return what a value of this type is made of."""
    bare = bare_type(annotation)
    arguments = get_args(bare)
    if get_origin(bare) is tuple:
        return Shape(items=arguments[0])
    if get_origin(bare) is dict:
        return Shape(names=arguments[0], values=arguments[1])
    optional = NoneType in arguments
    kinds = [kind for kind in arguments or (bare,) if kind is not NoneType]
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
    singles = [kind for kind in kinds if kind not in sections]
    if sections:
        return Shape(section=sections[0], single=next(iter(singles), None), optional=optional)
    return Shape(optional=optional)


def bare_type(annotation: object) -> Any:  # noqa: ANN401 - a type, or what stands for one
    """Return the annotation without its constraints and its meaning."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def single_type(annotation: object) -> Any:  # noqa: ANN401 - a type, or what stands for one
    """Return the bare type of the single value that may be given, in a section's place or not."""
    return bare_type(shape_of(annotation).single or annotation)


def remedy(annotation: object) -> str:
    """Return what a value of this type must be, with an example where one helps."""
    example, item = facts_of(annotation).example, facts_of(shape_of(annotation).items).example
    example = example or (item and f"[{item}]")
    return expected(annotation) + (example and f", such as {example}")


@cache
def expected(annotation: object) -> str:
    """Return in words what a value of this type must be: `a whole number of at least 1`."""
    facts, shape = facts_of(annotation), shape_of(annotation)
    filled = " that is not empty" if facts.filled else ""
    if facts.expected:
        return facts.expected
    if shape.section:
        return f"a map with keys such as {', '.join([*keys_of(shape.section)][:3])}"
    if shape.items:
        return f"a list{filled}, each {expected(shape.items)}"
    if shape.values:
        to = "maps" if shape.named_sections else f"{expected(shape.values)} each"
        return f"a map{filled}, from names to {to}"
    return _expected_single(facts.type, filled)


class Facts(Struct, frozen=True, kw_only=True):
    """What an annotation says of its values beyond their shape."""

    type: inspect.Type
    meaning: str = ""
    expected: str = ""
    example: str = ""
    file: bool = False
    filled: bool = False
    upper: bool = False


@cache
def facts_of(annotation: object) -> Facts:
    """Return what the annotation's `Meta`s say."""
    info = inspect.type_info(annotation)
    if not isinstance(info, inspect.Metadata):
        return Facts(type=info)
    noted = cast("Any", info)
    schema: dict[str, Any] = noted.extra_json_schema or {}
    extra: dict[str, Any] = noted.extra or {}
    return Facts(
        type=info.type,
        meaning=schema.get("description", ""),
        expected=extra.get("expected", ""),
        example="".join(schema.get("examples", ())[:1]),
        file=extra.get("file", False),
        filled=bool(getattr(info.type, "min_length", 0)),
        upper=extra.get("upper", False),
    )


def _expected_single(kind: inspect.Type, filled: str) -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number{_bounds(kind)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind)}"
        case inspect.CustomType():
            return "a secret text"
        case _:
            return f"a text{filled}"


def _bounds(number: inspect.IntType | inspect.FloatType) -> str:
    if number.ge is not None and number.le is not None:
        return f" from {number.ge:.15g} to {number.le:.15g}"
    low = f" of at least {number.ge:.15g}" if number.ge is not None else ""
    low = f" above {number.gt:.15g}" if number.gt is not None else low
    return low + (f", at most {number.le:.15g}" if number.le is not None else "")


def _rows(section: type[Section], parent: KeyPath) -> Iterator[Key]:
    for name, info in keys_of(section).items():
        path = (*parent, name)
        shape = shape_of(info.type)
        if shape.section is None or shape.optional or shape.single:
            yield _row(path, info)
        if shape.section:
            yield from _rows(shape.section, path)
        elif shape.named_sections:
            values = shape_of(shape.values).section
            placeholder = f"<{name.removesuffix('s')}>"
            yield from _rows(cast("type[Section]", values), (*path, placeholder))


def _row(path: KeyPath, info: msgspec.structs.FieldInfo) -> Key:
    return Key(
        path=dotted(path),
        variable=variable_of(path),
        type=expected(info.type).removeprefix("a ").removeprefix("an ").removeprefix("the "),
        default=_default(info),
        meaning=facts_of(info.type).meaning,
    )


def _default(info: msgspec.structs.FieldInfo) -> str:
    if info.required:
        return "(must be given)"
    value = default_of(info)
    if shape_of(info.type).named_sections:
        return json.dumps({name: {} for name in value})
    return msgspec.json.encode(value, enc_hook=mask_secret).decode()
