"""What the command's process does between fork and exec: give up all that it is not to have."""

import os
import resource
import signal

from . import landlock, seccomp, user
from .system import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from .spec import Spec

STATUS = 3
_SPARE_PROCESSES = 16


def run_command(spec: "Spec") -> "NoReturn":
    """Confine this process and become the command. Raises OSError, ValueError."""
    os.setsid()
    _settle_signals()
    _settle_descriptors()
    os.umask(0o022)
    calls, files = spec["calls"], spec["files"]
    # Prepared as the user that we are, in force for the one that we become.
    code = seccomp.program(calls) if calls else None
    rules = landlock.ruleset(files, network=bool(calls and calls["families"])) if files else None
    uid = spec["uid"]
    if uid is None:
        user.drop_capabilities()
    _limit(spec["limits"], _processes_in_use() if uid is None else 0)
    if uid is not None:
        user.become(uid, files["reach"] if files else ())
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user would have unset it
    os.chdir(spec["cwd"])
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if rules is not None:
        landlock.restrict(rules)
    if code is not None:
        seccomp.install(code)
    _execute(list(spec["argv"]), dict(spec["environment"]))


def _settle_signals() -> None:
    """Undo what Python ignores and what our parent may have blocked: both outlive exec."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _settle_descriptors() -> None:
    """Read from nothing, write both streams to the output; the status channel ends at exec."""
    os.dup2(2, STATUS, inheritable=False)
    os.closerange(STATUS + 1, 1 << 20)
    os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
    os.dup2(1, 2)


def _limit(limits: "Mapping[str, int]", in_use: int) -> None:
    """Set the limits, by name, never above those that we have."""
    for name, wanted in limits.items():
        kind = getattr(resource, name)
        most = wanted + in_use if kind == resource.RLIMIT_NPROC else wanted
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


def _processes_in_use() -> int:
    """Return how many processes and threads our user has, or somewhat more.

    The kernel counts all of a user's against the limit of each, those of the service and of other
    containers too, and does not tell the number. So it is found by trying.
    """
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    guess = _SPARE_PROCESSES
    while (guess < hard or hard == resource.RLIM_INFINITY) and not _can_fork(guess, hard):
        guess *= 2
    return guess


def _can_fork(limit: int, hard: int) -> bool:
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    try:
        pid = os.fork()
    except BlockingIOError:
        return False
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def _execute(argv: "list[str]", environment: "dict[str, str]") -> "NoReturn":
    """Become the program, which is looked for in the command's own PATH."""
    name = argv[0]
    folders = [""] if "/" in name else environment.get("PATH", "").split(":")
    failure: OSError = FileNotFoundError(2, "No such program", name)
    for folder in folders:
        program = f"{folder}/{name}" if folder else name
        try:
            os.execve(program, argv, environment)  # noqa: S606 - becoming the program is the point
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            failure = OSError(error.errno, f"{error.strerror}{_obstacle(program)}", program)
    raise failure


def _obstacle(program: str) -> str:
    """Return which folder above the program keeps our user out, if one does."""
    folder = ""
    for name in os.path.realpath(program).split("/")[1:-1]:
        folder += f"/{name}"
        if not os.access(folder, os.X_OK):
            return f" (user {os.getuid()} may not enter {folder})"
    return ""
