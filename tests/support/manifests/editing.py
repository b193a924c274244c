"""Rendered manifests, edited in one place: what a slip of the hand would make of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from support.manifests.reading import Manifest, name_of


class Gone(NamedTuple):
    """In place of a value: it is not there."""


class Edit(NamedTuple):
    """Another value at a path in the manifest `where`, such as `Job/provision`.

    The path is of keys, places in lists, and names of what is in a list, with `/` between, `~` for
    a `/` in a key. `value` may be a function of what is there.
    """

    where: str
    path: str
    value: Any

    def of(self, manifests: list[Manifest]) -> list[Manifest]:
        """Make the edit, in place, and return the manifests."""
        holder: Any
        (holder,) = (each for each in manifests if name_of(each) == self.where)
        *path, last = self.path.split("/")
        for part in path:
            holder = holder[_key(holder, part)]
        _put(holder, _key(holder, last), self.value)
        return manifests


def text(old: str, new: str) -> Callable[[str], str]:
    """Return what puts one text in another's place; it must be there."""

    def replaced(whole: str) -> str:
        assert old in whole
        return whole.replace(old, new)

    return replaced


def added(*items: Any) -> Callable[[list[Any]], list[Any]]:
    """Return what makes a list longer."""
    return lambda there: [*there, *items]


def _put(holder: Any, key: Any, value: Any) -> None:
    if value == Gone():
        del holder[key]
    else:
        holder[key] = value(holder[key]) if callable(value) else value


def _key(holder: Any, part: str) -> Any:
    if not isinstance(holder, list):
        return part.replace("~", "/")
    if part.isdecimal():
        return int(part)
    return next(index for index, each in enumerate(holder) if each.get("name") == part)
