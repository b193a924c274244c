"""What a server's tools are called to the model: `<server>__<tool>`, each name only once."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable

MAX_NAME_CHARS = 64
HASH_CHARS = 8

ToolId = tuple[str, str]


def tool_names(tools: Iterable[ToolId]) -> dict[ToolId, str]:
    """Return a name for each (server, tool): at most 64 of A-Z, a-z, 0-9, _ and -.

    A name that had to be shortened, or that two tools would share, ends with a hash of what it
    stands for, so that it stays the same whatever else a server offers. Of those that share one,
    the tool that is really called so keeps it.
    """
    claims: defaultdict[str, list[ToolId]] = defaultdict(list)
    for tool in dict.fromkeys(tools):
        claims[_plain(tool)].append(tool)
    names: dict[ToolId, str] = {}
    for plain, claimants in claims.items():
        unchanged = [tool for tool in claimants if "__".join(tool) == plain]
        owner = claimants[0] if len(claimants) == 1 else None
        owner = unchanged[0] if len(unchanged) == 1 else owner
        for tool in claimants:
            fits = tool == owner and len(plain) <= MAX_NAME_CHARS
            names[tool] = plain if fits else _hashed(plain, tool)
    return names


def _plain(tool: ToolId) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", "__".join(tool))


def _hashed(plain: str, tool: ToolId) -> str:
    digest = hashlib.sha256("\0".join(tool).encode(errors="replace")).hexdigest()[:HASH_CHARS]
    return f"{plain[: MAX_NAME_CHARS - HASH_CHARS - 1]}_{digest}"
