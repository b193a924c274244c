"""What has changed from one configuration to another, and what it takes for that to hold."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from agent_actors.config import Config
from agent_actors.config_file import plain
from agent_actors.config_keys import KeyPath, as_tree, default_of, dotted, keys_of, shape_of
from agent_actors.config_types import Secret, Section

Effect = Literal["live", "rolling", "restart", "provision"]

NONE = "(none)"

# What a change of a key takes; the first pattern that fits counts, and `*` is all that is below.
#   live       the supervisor does it at once, and no actor notices
#   rolling    actors are made anew, one after the other
#   restart    the service is started again
#   provision  `agent-actors provision` changes the streams
EFFECTS: tuple[tuple[str, Effect], ...] = (
    # The supervisor itself holds a connection made of this.
    ("nats.*", "restart"),
    # It says where the supervisor is, and under which names it finds its actors.
    ("ray.*", "restart"),
    # What is stored belongs to whoever may change it, and a change can be refused.
    ("streams.*", "provision"),
    # Each actor holds a session with the model.
    ("vllm.*", "rolling"),
    # A pool that comes or goes.
    ("pools", "live"),
    ("pools.<pool>", "live"),
    # A filter of the pool's consumer.
    ("pools.<pool>.subjects", "live"),
    # The others of the pool stay as they are.
    ("pools.<pool>.actors", "live"),
    ("pools.<pool>.actors.*", "live"),
    # Told to the actors when they are to stop.
    ("pools.<pool>.stop_grace_s", "live"),
    # All else is what an actor is made of, or what Ray has placed it by and reserved for it.
    # `ack_wait_s` and `hang_timeout_s` are, too: actors give signs of life as often as these want.
    ("pools.<pool>.*", "rolling"),
)


class ConfigChange(Struct, frozen=True, kw_only=True):
    """A key that differs, with its values as they may be shown; `(none)` for one not there."""

    path: str
    now: str
    wanted: str
    effect: Effect


def changes(running: Config, wanted: Config) -> list[ConfigChange]:
    """Return what differs, in the order of the Structs; a pool that comes or goes is one change."""
    return list(_differences(Config, running, wanted, ()))


def paths_that_need(effect: Effect, found: Iterable[ConfigChange]) -> list[str]:
    """Return the paths of those changes that take this."""
    return [change.path for change in found if change.effect == effect]


def effect_of(path: KeyPath) -> Effect:
    """Return what it takes to change the key at `path`."""
    return next(effect for pattern, effect in EFFECTS if _fits(pattern, path))


def config_digest(config: Config, version: str) -> str:
    """Return a short hash of a whole configuration, secrets among it, and the package's version.

    It is for comparing, and not for everybody's eyes, as that of an actor's settings.
    """
    return _digest({"version": version, "config": config})


def actor_settings_digest(config: Config, pool_name: str, version: str) -> str:
    """Return a short hash of all that an actor of the pool is made of, secrets among it.

    Actors with the same digest are interchangeable. `version` is the package's. The digest is for
    comparing: a weak password could be guessed with its help, so it is not for everybody's eyes.
    """
    pool = config.pools[pool_name]
    made_of = {
        "version": version,
        "nats": config.nats,
        "vllm": config.vllm,
        "pool_name": pool_name,
        "pool": {
            name: getattr(pool, name)
            for name in keys_of(type(pool))
            if effect_of(("pools", pool_name, name)) != "live"
        },
    }
    return _digest(made_of)


def _differences(
    annotation: object, now: object, wanted: object, path: KeyPath
) -> Iterator[ConfigChange]:
    if now == wanted:
        return
    shape, names, wanted_names = shape_of(annotation), as_tree(now), as_tree(wanted)
    if isinstance(now, Section) and isinstance(wanted, Section):
        for name, info in keys_of(type(now)).items():
            before, after = getattr(now, name), getattr(wanted, name)
            yield from _differences(info.type, before, after, (*path, name))
    elif shape.named_sections and names is not None and wanted_names is not None:
        for name in {**names, **wanted_names}:
            before, after = names.get(name), wanted_names.get(name)
            yield from _differences(shape.values, before, after, (*path, name))
    else:
        now_shown, wanted_shown = _shown(now), _shown(wanted)
        effect = effect_of(path)
        yield ConfigChange(path=dotted(path), now=now_shown, wanted=wanted_shown, effect=effect)


def _digest(made_of: object) -> str:
    text = msgspec.json.encode(made_of, enc_hook=_revealed, order="deterministic")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _shown(value: object) -> str:
    """Return a value as JSON without secrets, and of a section what is not by default."""
    if value is None:
        return NONE
    if isinstance(value, Secret):
        return repr(value)
    return msgspec.json.encode(plain(_given(value))).decode()


def _given(value: object) -> object:
    if not isinstance(value, Section):
        return value
    values = {name: getattr(value, name) for name in value.__struct_fields__}
    keys = keys_of(type(value))
    return {
        name: _given(inner) for name, inner in values.items() if inner != default_of(keys[name])
    }


def _fits(pattern: str, path: KeyPath) -> bool:
    parts = pattern.removesuffix(".*").split(".")
    above = path[: len(parts)]
    is_deeper = len(path) > len(parts)
    return (
        is_deeper == pattern.endswith(".*")
        and len(above) == len(parts)
        and all(map(_is_named, parts, above))
    )


def _is_named(part: str, name: str | int) -> bool:
    return part == name or part.startswith("<")


def _revealed(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(f"{type(value).__name__} is not part of the configuration")
