"""No sandbox, for who asks for it by name: limits and another user, and nothing else.

A command can do all that its user can. Run as an ordinary user, that is the service's own: it
reads the service's files, and the secrets in them.
"""

from agent_actors.config_tools import SandboxConfig
from agent_actors.tools.sandbox import places
from agent_actors.tools.sandbox.command import Command, Finished
from agent_actors.tools.sandbox.running import launch, launcher


class NoSandbox:
    """Runs commands within their limits, and confines them to nothing."""

    name = "none"

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config

    async def run(self, command: Command) -> Finished:
        """Run the command to its end; see `Sandbox.run`."""
        uid = places.user_of(command)
        async with places.private_folder(uid) as private:
            environment = places.environment(
                self._config, command, home=str(private.home), temporary=str(private.temporary)
            )
            return await launch(
                launcher(),
                {
                    "argv": command.argv,
                    "cwd": str(command.cwd),
                    "environment": environment,
                    "uid": uid,
                    "limits": places.limits(self._config),
                    "own_processes": False,
                    "files": None,
                    "calls": None,
                },
                timeout_s=places.timeout_s(self._config, command),
                max_output_bytes=self._config.max_output_bytes,
            )
