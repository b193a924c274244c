"""A sandbox that confines nothing, for tests of what a tool asks of it; and a folder to work in."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agent_actors.config_tools import ToolsConfig
from agent_actors.errors import ToolError
from agent_actors.tools.registry import Surroundings
from agent_actors.tools.sandbox.command import Command, Finished, Sandbox

PATH = os.environ["PATH"]


class BareSandbox:
    """Runs commands as they are, and keeps them in `commands` for a test to look at."""

    name = "none"

    def __init__(
        self,
        *,
        timeout_s: float = 60,
        max_output_bytes: int = 1024 * 1024,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.commands: list[Command] = []
        self._timeout_s = timeout_s
        self._environment = dict(environment or {})
        self._max_output_bytes = max_output_bytes

    async def run(self, command: Command) -> Finished:
        self.commands.append(command)
        started = time.perf_counter()
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                cwd=command.cwd,
                env={
                    "PATH": PATH,
                    "HOME": "/nonexistent",
                    **self._environment,
                    **command.environment,
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ToolError(f"{command.argv[0]} is not installed") from error
        output, stopped = await self._read(process, command.timeout_s or self._timeout_s)
        if stopped:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        exit_code = await process.wait()
        duration_s = time.perf_counter() - started
        return Finished(exit_code=exit_code, output=output, duration_s=duration_s, stopped=stopped)

    async def _read(self, process: asyncio.subprocess.Process, limit_s: float):
        output = b""
        assert process.stdout
        try:
            async with asyncio.timeout(limit_s):
                while chunk := await process.stdout.read(65_536):
                    output += chunk
                    if len(output) > self._max_output_bytes:
                        return output[: self._max_output_bytes], "output"
        except TimeoutError:
            return output, "timeout"
        return output, ""


class BareWorkspace:
    """A folder with one of ours beside it, as `Workspace` has them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "work"
        self.private = folder / "private"
        self.uid = None
        self.path.mkdir(parents=True, exist_ok=True)
        self.private.mkdir(exist_ok=True)


def bare_surroundings(
    folder: Path, settings: ToolsConfig | None = None, sandbox: Sandbox | None = None
) -> Surroundings:
    """Return what a tool works with in a new workspace beneath the folder."""
    settings = settings or ToolsConfig()
    return Surroundings(
        workspace=BareWorkspace(folder),
        settings=settings,
        web=None,
        sandbox=sandbox or BareSandbox(environment=settings.sandbox.environment),
    )
