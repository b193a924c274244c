"""Which repositories elsewhere may be reached: those that `tools.git.remotes` names."""

import re
from collections.abc import Sequence

from msgspec import Struct

from agent_actors.errors import ToolRefused

HTTPS = "https"
FILE = "file"
HTTPS_PORT = "443"
MAX_URL_CHARS = 1000

_URL = re.compile(
    r"(?P<scheme>https|file)://(?P<host>[a-z0-9*](?:[a-z0-9._*-]*[a-z0-9*])?)?(?::(?P<port>\d{1,5}))?"
    r"(?P<path>(?:/[\w.+~*-]+(?: [\w.+~*-]+)*)*)/?",
    re.ASCII,
)


class Remote(Struct, frozen=True, kw_only=True):
    """The address of a repository in its one form; `path` begins with a slash."""

    scheme: str
    host: str
    port: str
    path: str

    @property
    def url(self) -> str:
        """The address as git takes it; it never has a login."""
        port = "" if self.port in {"", HTTPS_PORT} else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.path.replace(' ', '%20')}"


def allowed_remote(url: str, patterns: Sequence[str]) -> Remote:
    """Return the remote of this address. Raises ToolRefused unless a pattern covers it.

    The refusal never repeats the address, which could hold a password.
    """
    if not patterns:
        raise ToolRefused("no remote repository may be reached here: tools.git.remotes is empty")
    remote = _parse(url)
    if remote is None or "*" in url:
        raise ToolRefused(
            "this is not the address of a repository: give https://host/path, without a login, "
            f"`..`, a query or escapes; allowed are {', '.join(patterns)}"
        )
    if not any(_covers(pattern, remote) for pattern in patterns):
        raise ToolRefused(f"{remote.url} may not be reached; allowed are {', '.join(patterns)}")
    return remote


def _parse(url: str) -> Remote | None:
    if len(url) > MAX_URL_CHARS:
        return None
    scheme, _, rest = url.replace("%20", " ").partition("://")
    authority, slash, path = rest.partition("/")
    found = _URL.fullmatch(f"{scheme.lower()}://{authority.lower()}{slash}{path}")
    if found is None:
        return None
    remote = Remote(
        scheme=found["scheme"],
        host=found["host"] or "",
        port=found["port"] or (HTTPS_PORT if found["scheme"] == HTTPS else ""),
        path=found["path"],
    )
    is_local = remote.scheme == FILE
    if bool(remote.host) == is_local or (is_local and (remote.port or not remote.path)):
        return None
    return None if {".", ".."} & set(remote.path.split("/")) else remote


def _covers(pattern: str, remote: Remote) -> bool:
    """Tell whether the pattern means the remote. `*` is any text, but in a host whole labels."""
    wanted = _parse(pattern)
    return (
        wanted is not None
        and wanted.scheme == remote.scheme
        and wanted.port == remote.port
        and _covers_host(wanted.host, remote.host)
        and re.fullmatch(".*".join(map(re.escape, wanted.path.split("*"))), remote.path) is not None
    )


def _covers_host(wanted: str, host: str) -> bool:
    if wanted == "*":
        return True
    if wanted.startswith("*."):
        return host.endswith(wanted[1:]) and host != wanted[1:]
    return wanted == host
