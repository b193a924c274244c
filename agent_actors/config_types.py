"""What a configuration is made of: sections, secrets, and the kinds of values with their rules."""

import re
from typing import Annotated, cast

from msgspec import Meta, Struct

from agent_actors.contract import MAX_SECONDS

DAY_S = 86_400.0
MASK = "***"

_HOST = r"(\[[0-9A-Fa-f:.]+\]|[^\s/@,:?#\[\]]+)"
_PORT = r"(6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[1-5]\d{4}|[1-9]\d{0,3})"
_NATS = rf"(nats|tls)://([^\s/@,]+@)?{_HOST}(:{_PORT})?(/[^\s,@?#]*)?"
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"(?![^/]{254})[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_SUBDOMAINS = r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
AgeSeconds = Annotated[float, Meta(gt=0, le=36_500 * DAY_S)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Amount = Annotated[float, Meta(ge=0, le=1_000_000_000)]
SizeLimit = Annotated[
    int,
    Meta(ge=-1, le=2**63 - 1, extra={"expected": "a number of bytes, or -1 for no limit"}),
]
Name = Annotated[str, Meta(min_length=1)]
FilePath = Annotated[str, Meta(extra={"expected": "the path of a file", "file": True})]
NatsUrls = Annotated[
    str,
    Meta(
        pattern=rf"^({_NATS}(\s*,\s*{_NATS})*)?\Z",
        examples=["nats://127.0.0.1:4222"],
        extra={"expected": "a nats:// or tls:// address, or several with commas between"},
    ),
]
VllmUrl = Annotated[
    str,
    Meta(
        pattern=rf"^https?://([^\s/@]+@)?{_HOST}(:{_PORT})?(/[^\s@?#]*)?\Z",
        examples=["http://127.0.0.1:8000"],
        extra={"expected": "an http:// or https:// address"},
    ),
]
RayAddress = Annotated[
    str,
    Meta(
        pattern=rf"^(auto|(ray://)?{_HOST}:{_PORT})?\Z",
        examples=["127.0.0.1:6379"],
        extra={"expected": "`auto`, a host:port, or a ray://host:port"},
    ),
]
InboxPrefix = Annotated[
    str,
    Meta(
        pattern=r"^[^\s.*>]+(\.[^\s.*>]+)*\Z",
        examples=["_INBOX_agents"],
        extra={"expected": "a subject without wildcards"},
    ),
]
JetStreamPrefix = Annotated[
    str,
    Meta(
        pattern=r"^[^\s.*>]+(\.[^\s.*>]+)*\Z",
        examples=["$JS.hub.API"],
        extra={"expected": "a subject without wildcards"},
    ),
]
TaskSubject = Annotated[
    str,
    Meta(
        pattern=r"^agent\.tasks\.([^\s.*>]+|\*|>)\Z",
        examples=["agent.tasks.dev"],
        extra={"expected": "`agent.tasks.` and a role, `*` or `>`"},
    ),
]
PoolName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]{1,32}\Z",
        extra={"expected": "1 to 32 of the characters A-Z, a-z, 0-9, _ and -"},
    ),
]
RoleName = Annotated[
    str,
    Meta(
        pattern=r"^[^\s.*>]{1,64}\Z",
        extra={
            "expected": "1 to 64 characters, none of them a space, a dot, * or >",
            "upper": True,
        },
    ),
]


# As Kubernetes has them, and Ray from there.
LabelName = Annotated[
    str,
    Meta(
        pattern=rf"^({_DOMAIN}{_SUBDOMAINS}/)?{_LABEL}\Z",
        extra={
            "expected": "a label's name as in Kubernetes: at most 63 letters and digits, with -, _ "
            "and . between them, and before it a domain and a / if need be"
        },
    ),
]
# Ray also takes blanks after the commas, but then compares them with what nodes have.
LabelValue = Annotated[
    str,
    Meta(
        pattern=rf"^(!?({_LABEL}|in\({_LABEL}(,{_LABEL})*\)))?\Z",
        examples=["H100"],
        extra={
            "expected": "a value, `in(A,B)` for any of several, or either with `!` before it for "
            "all others"
        },
    ),
]


class Secret:
    """A text that must not be seen: prints as `***`; `reveal()` gives it away on purpose."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself, for the one call that needs it."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return MASK if self._value else "(not set)"


def mask_secret(value: object) -> str:
    """Encode a Secret as `***`, and one that is not set as nothing: msgspec's `enc_hook`."""
    if isinstance(value, Secret):
        return MASK if value else ""
    raise NotImplementedError(f"{type(value).__name__} is not part of the configuration")


def mask_address(text: str) -> str:
    """Return an address, or several with commas between, without who logs in there."""
    return re.sub(r"(?<=://)[^/@,\s]*@", f"{MASK}@", text)


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the configuration; an unknown key is an error. Prints without secrets."""

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [(name, _masked(getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


def _masked(value: object) -> object:
    """Return what may be printed of a field's value."""
    match value:
        case str():
            return mask_address(value)
        case tuple():
            return tuple(_masked(item) for item in cast("tuple[object, ...]", value))
        case _:
            return value
