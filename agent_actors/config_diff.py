"""What an edited configuration changes, and what a change takes: pure.

Digests tell whether two configurations, or what actors are built from, are the same without
giving anything of them away.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from agent_actors.config import Config, PoolConfig
from agent_actors.config_file import effective
from agent_actors.config_keys import Tree, as_tree
from agent_actors.config_types import Secret

Effect = Literal["live", "rolling", "restart", "provision"]

# The first pattern that fits a path decides.
#   live       the pool goes on as it is, under the new setting
#   rolling    its actors are replaced one after the other, since they are built from it
#   restart    the service keeps the old one until it is stopped and started
#   provision  JetStream has it, and `agent-actors provision` brings it there
EFFECTS: tuple[tuple[str, Effect], ...] = (
    ("nats.*", "restart"),  # what runs is on that NATS, and its tasks are
    ("ray.*", "restart"),  # likewise
    ("streams.*", "provision"),
    ("pools.*.subjects", "live"),  # the consumers are moved while they are pulled from
    ("pools.*.actors*", "live"),
    ("pools.*", "rolling"),
    ("vllm.*", "rolling"),
)
# What an actor is the same without.
OF_NO_ACTOR = PoolConfig()

_canonical = msgspec.json.Encoder(order="sorted").encode


class ConfigChange(Struct, frozen=True, kw_only=True):
    """A key that is not what it was, with its values as they may be shown; empty: not set."""

    path: str
    now: str
    wanted: str
    effect: Effect


def changes(running: Config, wanted: Config) -> list[ConfigChange]:
    """Return what another configuration changes; a pool that comes or goes is one change."""
    found = tree_changes(effective(running), effective(wanted))
    shown = {change.path for change in found}
    secrets = [
        ConfigChange(path=path, now="***", wanted="***", effect=effect_of(path))
        for path in _changed_secrets(running, wanted)
        if path not in shown
    ]
    return sorted([*found, *secrets], key=lambda change: change.path)


def tree_changes(running: Tree, wanted: Tree) -> list[ConfigChange]:
    """Return the same of two configurations as `config_file.effective` gives them.

    One secret in place of another does not show there.
    """
    return [
        ConfigChange(path=path, now=_shown(now), wanted=_shown(then), effect=effect_of(path))
        for path, now, then in _differences("", running, wanted)
    ]


def needs_restart(found: list[ConfigChange]) -> list[str]:
    """Return the keys among the changes that only a restart brings in force."""
    return [change.path for change in found if change.effect == "restart"]


def effect_of(path: str) -> Effect:
    """Return what a change of this key takes, by `EFFECTS`."""
    if path.count(".") == 1 and path.startswith("pools."):
        return "live"  # a whole pool that comes or goes
    return next(effect for pattern, effect in EFFECTS if fnmatchcase(path, pattern))


def config_digest(config: Config, version: str) -> str:
    """Return what tells configurations and versions of the package apart: 16 hex digits."""
    return _digest(config, version)


def actor_settings_digest(config: Config, pool_name: str, version: str) -> str:
    """Return what tells apart whether actors of a pool are built from the same: 16 hex digits.

    The pool's size and subjects do not count, nor do other pools.
    """
    pool = replace(
        config.pools[pool_name], actors=OF_NO_ACTOR.actors, subjects=OF_NO_ACTOR.subjects
    )
    own = replace(config, pools={pool_name: pool}, streams=type(config.streams)())
    return _digest(own, version)


def _differences(path: str, now: object, then: object) -> Iterator[tuple[str, object, object]]:
    before, after = as_tree(now), as_tree(then)
    if before is None or after is None:
        if now != then:
            yield path, now, then
        return
    for name in sorted(before.keys() | after.keys(), key=str):
        below = f"{path}.{name}".lstrip(".")
        if path == "pools" and (name not in before or name not in after):
            yield below, _pool_word(before, name), _pool_word(after, name)
        else:
            yield from _differences(below, before.get(name), after.get(name))


def _pool_word(pools: Tree, name: object) -> str:
    return "a pool" if name in pools else ""


def _changed_secrets(running: Config, wanted: Config) -> Iterator[str]:
    before, after = (_hidden(config) for config in (running, wanted))
    for path, _, _ in _differences("", before, after):
        yield path


def _hidden(config: Config) -> Tree:
    """Return the configuration with a digest in place of each secret."""

    def hide(value: Any) -> str:  # noqa: ANN401 - msgspec's enc_hook
        secret = cast("Secret", value).reveal()
        return blake2b(secret.encode(), digest_size=16).hexdigest() if secret else ""

    return cast("Tree", msgspec.to_builtins(config, enc_hook=hide))


def _digest(config: Config, version: str) -> str:
    told = _canonical([version, _hidden(config)])
    return blake2b(told, digest_size=8).hexdigest()


def _shown(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()
