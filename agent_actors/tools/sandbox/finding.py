"""Find a sandbox that works on this machine: each candidate has to prove that it holds."""

import os
import shutil

import structlog

from agent_actors.config_tools import SandboxConfig
from agent_actors.tools.sandbox import probe
from agent_actors.tools.sandbox.bwrap import BwrapSandbox
from agent_actors.tools.sandbox.command import Sandbox
from agent_actors.tools.sandbox.landlock import LandlockSandbox
from agent_actors.tools.sandbox.launcher import landlock
from agent_actors.tools.sandbox.unconfined import NoSandbox

log = structlog.get_logger()

AUTO = "auto"
BWRAP = "bwrap"
LANDLOCK = "landlock"
NONE = "none"

_REMEDY = (
    "install bubblewrap (apt-get install bubblewrap), run on a kernel with landlock (5.13 or "
    "newer, with landlock among its security modules; in a container, with a seccomp profile that "
    "allows it), or, to confine commands to nothing, set sandbox.kind to none"
)


async def find_sandbox(config: SandboxConfig) -> tuple[Sandbox | None, str]:
    """Return the sandbox to use; or None, and in words what was tried, what failed, what helps.

    A kind that the configuration names is never replaced by another.
    """
    failures: list[str] = []
    for kind in (BWRAP, LANDLOCK) if config.kind == AUTO else (config.kind,):
        sandbox, failure = await _tried(kind, config)
        if sandbox:
            log.info("sandbox.found", kind=kind, passed_over=failures)
            return sandbox, ""
        failures.append(f"{kind}: {failure}")
    log.warning("sandbox.missing", tried=failures)
    return None, f"no sandbox works here ({'; '.join(failures)}): {_REMEDY}"


async def _tried(kind: str, config: SandboxConfig) -> tuple[Sandbox | None, str]:
    """Return the sandbox of that kind if it holds; or None, and why."""
    uid = config.first_uid if os.geteuid() == 0 else None
    if kind == NONE:
        sandbox = NoSandbox(config)
        failure = await probe.starts(sandbox, uid)
    else:
        sandbox, failure = _made(kind, config)
        if sandbox:
            failure = await probe.holds(sandbox, uid)
    return (None, failure) if failure else (sandbox, "")


def _made(kind: str, config: SandboxConfig) -> tuple[Sandbox | None, str]:
    if kind == LANDLOCK:
        if landlock.version() == 0:
            return None, "the kernel has none, it is off, or a filter of system calls refuses it"
        return LandlockSandbox(config), ""
    bwrap = shutil.which("bwrap")
    return (BwrapSandbox(config, bwrap), "") if bwrap else (None, "bubblewrap is not installed")
