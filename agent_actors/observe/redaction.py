"""Secrets in log events: taken out by the name of their key, and by their looks.

The last processor before an event is rendered, so what it lets through is what gets out. It
rather masks too much than too little; a value that says `***` can be asked for otherwise.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from types import NoneType
from typing import Any, cast
from uuid import UUID

import msgspec
from msgspec import Struct
from structlog.typing import EventDict, WrappedLogger

from agent_actors.config_types import MASK

TOO_DEEP = "..."
MAX_DEPTH = 8

# A task's id is its publisher's and on every subject; `renew-token:7` must stay findable.
TASK_ID = "task_id"
SHORTEST_BARE_SECRET = 40

PLAIN_TYPES = frozenset({int, float, bool, NoneType, datetime, UUID})

SECRET_WORDS = frozenset({
    "apikey", "auth", "authorization", "bearer", "cookie", "cookies", "cred", "credential",
    "credentials", "creds", "jwt", "nkey", "passphrase", "passwd", "password", "passwords", "pwd",
    "secret", "secrets", "seed", "signature", "token",
})  # fmt: skip
SECRET_PAIRS = frozenset({"access_key", "api_key", "api_keys", "private_key", "signing_key"})
HARMLESS_ENDINGS = frozenset({"budget", "count", "file", "limit", "path", "type"})

# What a text must have in it for one of the patterns below to match.
HINTS = (
    "key", "token", "secret", "pass", "pwd", "auth", "cred", "bearer", "seed", "eyj", "jwt",
    "cookie",
)  # fmt: skip

WORD_BREAK = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")

# `scheme://user:password@`; the second branch is for a password with `/`, `?` or `#` in it,
# which is wrong, and just then printed in an error. A scan ends at the next `://`.
URL_CREDENTIALS = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s/?#:@]*:(?!\d+(?:[/?#]|$))(?:(?!://)\S)*)@")
BEARER = re.compile(r"(?i)\bbearer\s+[^\s\"',;]+")
# `name=value`, `name: value`, `"name": "value"`, also inside a quoted text or a repr.
NAMED = re.compile(
    r"""(?ix)
    ( api[_-]?keys? | access[_-]?key | private[_-]?key | signing[_-]?key
    | passw(?:or)?ds? | passphrase | pwd | secrets? | nkey | seed | token | jwt
    | (?:set-)?cookies?
    | authorization | credentials? | creds )
    ( \\*["']? \s* [:=] \s* \\* )
    (?: (?:bearer|basic|digest|negotiate|token) \s+ )?
    (?: "[^"]*"? | '[^']*'? | \[[^\]]*\]? | \{[^}]*\}?
      | (?: [^\s"'&,;)}\]] | ["',;)}\]](?=\w) )+ )
    """
)
NKEY_SEED = re.compile(r"\bS[UAONCX][A-Z2-7]{50,}")
JWT = re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?")


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask what is secret in an event; a structlog processor. Changes `event` in place."""
    for key, value in event.items():
        if value is not None and is_secret_name(key):
            event[key] = MASK
        elif key == TASK_ID:
            continue
        elif type(value) is str:
            event[key] = scrub(value)
        elif type(value) not in PLAIN_TYPES:
            event[key] = _masked(value, MAX_DEPTH)
    return event


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Tell whether a value under this key is a secret, however the key is spelt."""
    words = [word.lower() for word in WORD_BREAK.split(name) if word]
    if not words or words[-1] in HARMLESS_ENDINGS:
        return False
    pairs = map("_".join, pairwise(words))
    return not SECRET_WORDS.isdisjoint(words) or not SECRET_PAIRS.isdisjoint(pairs)


def scrub(text: str) -> str:
    """Mask the credentials in a text: in URLs, after their names, and those known by their form."""
    if " " not in text and ":" not in text and "=" not in text and len(text) < SHORTEST_BARE_SECRET:
        return text
    if "://" in text:
        text = URL_CREDENTIALS.sub(f"{MASK}@", text)
    if len(text) >= SHORTEST_BARE_SECRET:
        text = NKEY_SEED.sub(MASK, text)
    lower = text.lower()
    for hint in HINTS:
        if hint in lower:
            text = JWT.sub(MASK, BEARER.sub(f"Bearer {MASK}", text))
            return NAMED.sub(rf"\1\2{MASK}", text)
    return text


def _masked(value: Any, depth: int) -> Any:  # noqa: ANN401 - any value can be logged
    if type(value) in PLAIN_TYPES:
        return value
    match value:
        case str():
            return scrub(value)
        case _ if depth == 0:
            return TOO_DEEP
        case Struct():
            return _masked(msgspec.structs.asdict(value), depth)
        case Mapping():
            return _masked_mapping(cast("Mapping[Any, Any]", value), depth)
        case list() | tuple() | set() | frozenset():
            return [_masked(item, depth - 1) for item in cast("Iterable[Any]", value)]
        case BaseException():
            return scrub(f"{type(value).__name__}: {value}")
        case _:
            return scrub(repr(value))


def _masked_mapping(mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    masked: dict[str, Any] = {}
    for key, value in mapping.items():
        name = str(key)
        secret = value is not None and is_secret_name(name)
        masked[scrub(name)] = MASK if secret else _masked(value, depth - 1)
    return masked
