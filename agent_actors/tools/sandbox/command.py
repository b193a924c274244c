"""What a sandbox is asked to run, and what it came to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct


class Command(Struct, frozen=True, kw_only=True):
    """A program with its arguments, never a shell line.

    `folder` is the one place that it may write to, and `cwd` is where it starts, beneath it.
    `read` are further places that it may read, `write` further ones that it may change;
    `network` opens the network to it. `uid` is the user it runs as when we are root. Output and
    time are bounded by the sandbox's configuration, the time also by `timeout_s`.
    """

    argv: Sequence[str]
    folder: Path
    cwd: Path
    uid: int | None = None
    read: Sequence[Path] = ()
    write: Sequence[Path] = ()
    network: bool = False
    environment: Mapping[str, str] = {}
    timeout_s: float | None = None


class Finished(Struct, frozen=True, kw_only=True):
    """How a command ended: `exit_code` is negative for a signal, as in `subprocess`.

    `output` is what it wrote on both its streams, `stopped` why we killed it, if we did:
    `timeout` or `output`.
    """

    exit_code: int
    output: bytes
    duration_s: float
    stopped: str = ""


class Sandbox(Protocol):
    """A way to confine commands."""

    @property
    def name(self) -> str:
        """`bwrap`, `landlock` or `none`."""
        ...

    async def run(self, command: Command) -> Finished:
        """Run the command to its end; cancelled, kill it and all its children.

        Raises ToolError when the program cannot be started.
        """
        ...
