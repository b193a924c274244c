"""The configuration's files, followed while the service runs."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent_actors.config import Config

READ_EVERY_S = 1.0


class FollowedConfig:
    """A configuration whose file may be edited, or swapped for another.

    A mounted ConfigMap is a symlink that is swapped: what counts is what the path leads to. The
    same holds for a file that the configuration names for a secret. `located` adds to what is
    loaded where the parts are that are not configured.
    """

    def __init__(self, path: str, load: Callable[[], Config]) -> None:
        self._path = path
        self._load = load
        self._seen: dict[str, bytes] = {}
        self.located: Callable[[Config], Config] = lambda config: config

    def load(self) -> Config:
        """Return the configuration as it is now. Raises ConfigError."""
        # Read before it is loaded: an edit in between is seen the next time.
        self._seen = {name: _contents(name) for name in (self._path, *self._seen) if name}
        config = self._load()
        if secret := config.vllm.api_key_file:
            self._seen.setdefault(secret, _contents(secret))
        return self.located(config)

    async def edited(self) -> Config:
        """Return the configuration once a file has other contents. Raises ConfigError, once."""
        while not self._is_edited():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(READ_EVERY_S)
        return self.load()

    def _is_edited(self) -> bool:
        # One that is gone may be about to be replaced: what was read from it holds.
        now = {name: _contents(name) for name in self._seen}
        return any(now[name] not in (b"", before) for name, before in self._seen.items())


def _contents(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError:
        return b""
