"""Containers as confined as a pod that the restricted Pod Security Standard admits.

The engine's own seccomp profile is on, which is what `RuntimeDefault` stands for: that of Podman is
CRI-O's too. Writable are the two folders that a pod of ours gets as emptyDir: /tmp and /dev/shm.
"""

import json
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

TIMEOUT_S = 300
PROCESSES = 8_192
OPEN_FILES = min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def podman(*args: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return what it prints. Raises CalledProcessError, with what it printed as a note."""
    done = subprocess.run(
        ["podman", *args], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(done.stdout + done.stderr)
        raise
    return done.stdout


def run_unconfined(image: str, *command: str) -> str:
    """Run a command as `docker run` would by default: what the image itself forbids."""
    return podman("run", "--rm", "--network=none", image, *command)


class Pod:
    """A running container."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, env: dict[str, str] | None = None) -> str:
        """Run a command to its end, and return what it prints."""
        return podman("exec", *_settings(env), self.name, *command)

    def start(self, shell_line: str, *, env: dict[str, str] | None = None) -> None:
        """Start a command that stays, its output in /tmp."""
        line = f"exec {shell_line} >/tmp/{uuid4().hex}.log 2>&1"
        podman("exec", "--detach", *_settings(env), self.name, "sh", "-c", line)

    def stop(self) -> int:
        """Have it end as Kubernetes does, by SIGTERM and some time; return its exit code."""
        podman("stop", "--time=40", self.name)
        return json.loads(podman("inspect", self.name))[0]["State"]["ExitCode"]


@contextmanager
def running_pod(
    image: str,
    *command: str,
    env: dict[str, str] | None = None,
    files: dict[str, str] | None = None,
) -> Iterator[Pod]:
    """Run a pod; `files` are mounted read-only, by their path inside."""
    name = f"pod-{uuid4().hex[:8]}"
    podman("volume", "create", f"{name}-tmp")
    mounts = [f"--volume={outside}:{inside}:ro" for inside, outside in (files or {}).items()]
    try:
        podman(
            *("run", "--detach", "--init=false", f"--name={name}"),
            *("--read-only", "--read-only-tmpfs=false", f"--volume={name}-tmp:/tmp", *mounts),
            *("--shm-size=1g", "--network=none"),
            *("--cap-drop=all", "--security-opt=no-new-privileges"),
            *(f"--ulimit=nofile={OPEN_FILES}:{OPEN_FILES}", f"--ulimit=nproc={PROCESSES}"),
            *("--pids-limit=-1", *_settings(env), image, *command),
        )
        yield Pod(name)
    finally:
        podman("rm", "--force", "--time=0", "--volumes", name)
        podman("volume", "rm", "--force", f"{name}-tmp")


def _settings(env: dict[str, str] | None) -> list[str]:
    return [f"--env={name}={value}" for name, value in (env or {}).items()]
