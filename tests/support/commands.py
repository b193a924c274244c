"""`agent-actors` as a process, that knows its NATS by the environment."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from typing import NamedTuple


class Ended(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    err: str


async def start(
    url: str, *args: str, terminal: str = "xterm", **streams
) -> asyncio.subprocess.Process:
    """Start a command; `terminal` is what it takes its terminal for."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agent_actors", *args),
        env={**os.environ, "AGENT_ACTORS_NATS_URL": url, "TERM": terminal},
        **{"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, **streams},
    )


async def ended(process: asyncio.subprocess.Process, *, errors: str = "strict") -> Ended:
    """Return what became of a command; `errors` is for output that is no UTF-8."""
    out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(errors=errors), err.decode())
