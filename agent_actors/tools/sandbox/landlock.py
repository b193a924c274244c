"""A sandbox that needs no privilege, so it works in a pod: landlock, and a filter of system calls.

Landlock bounds files, and with newer kernels TCP, signals and abstract sockets; the filter
(`launcher.seccomp`) refuses all sockets, and bounds what an older landlock does not. There is no
/proc and no /dev/shm: what needs them (Python's `multiprocessing` locks, say) wants bubblewrap.

What neither bounds: seeing that a file exists, how large it is and when it changes; and, when the
service is not root, changing the mode, times and attributes of files that belong to its user.
"""

from typing import TYPE_CHECKING

from agent_actors.config_tools import SandboxConfig
from agent_actors.tools.sandbox import places
from agent_actors.tools.sandbox.command import Command, Finished
from agent_actors.tools.sandbox.launcher import landlock
from agent_actors.tools.sandbox.places import PrivateFolder
from agent_actors.tools.sandbox.running import launch, launcher

if TYPE_CHECKING:
    from agent_actors.tools.sandbox.launcher.spec import Spec

NEWEST_ABI = 7

# A file that may not be read is there all the same, and these programs give up at it.
_WITHOUT_SETTINGS_OF_THE_MACHINE = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "NPM_CONFIG_GLOBALCONFIG": "/dev/null",
    "PIP_CONFIG_FILE": "/dev/null",
}


class LandlockSandbox:
    """Confines commands with landlock. `abi` is the newest version of it to make use of."""

    name = "landlock"

    def __init__(self, config: SandboxConfig, *, abi: int = NEWEST_ABI) -> None:
        self._config = config
        self._abi = min(abi, landlock.version())

    async def run(self, command: Command) -> Finished:
        """Run the command to its end; see `Sandbox.run`."""
        uid = places.user_of(command)
        async with places.private_folder(uid) as private:
            return await launch(
                launcher(),
                self._spec(command, uid, private),
                timeout_s=places.timeout_s(self._config, command),
                max_output_bytes=self._config.max_output_bytes,
            )

    def _spec(self, command: Command, uid: int | None, private: PrivateFolder) -> "Spec":
        home, temporary = str(private.home), str(private.temporary)
        written = [str(command.folder), home, temporary, *map(str, command.write)]
        return {
            "argv": command.argv,
            "cwd": str(command.cwd),
            "environment": _WITHOUT_SETTINGS_OF_THE_MACHINE
            | places.environment(self._config, command, home=home, temporary=temporary),
            "uid": uid,
            "limits": places.limits(self._config),
            "own_processes": False,
            "files": {
                "abi": self._abi,
                "read": places.readable(self._config, command),
                "write": written,
                "devices": places.DEVICES,
                "reach": [*places.needed(self._config, command), *written],
            },
            "calls": {
                "families": places.INTERNET if command.network else (),
                "own_processes": False,
                "shares_user": uid is None,
                "abi": self._abi,
            },
        }
