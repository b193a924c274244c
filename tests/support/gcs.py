"""Ray's GCS: killed, and started again as it was. It finds its tables if they lie in a folder."""

import os
import signal
from pathlib import Path
from subprocess import DEVNULL, Popen

from support.processes import pids_running

from agent_actors.local.tied import tied


def kept_in(folder: Path) -> dict[str, str]:
    """Return the environment of a Ray whose GCS keeps its tables in this folder, by RocksDB."""
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder)}


class Gcs:
    """The GCS at this address, started below a process, or below this one."""

    def __init__(self, address: str, *, below: int = 0) -> None:
        (self._pid,) = pids_running("gcs_server", below=below)
        # It has chosen its port itself where it was told 0.
        port = f"--gcs_server_port={address.rpartition(':')[2]}"
        self._command = [*_words(self._pid, "cmdline"), port]
        self._environment = dict(each.split("=", 1) for each in _words(self._pid, "environ"))
        self._ours: Popen[bytes] | None = None

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._ours:
            self._ours.kill()
            self._ours.wait()
        else:
            os.kill(self._pid, signal.SIGKILL)

    def start(self) -> None:
        """Start it again, as a child that does not outlive this process."""
        command = tied(*self._command)
        self._ours = Popen(command, env=self._environment, stdout=DEVNULL, stderr=DEVNULL)

    def stop(self) -> None:
        """End it if it was started here."""
        if self._ours:
            self.kill()


def _words(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().rstrip("\0").split("\0")
