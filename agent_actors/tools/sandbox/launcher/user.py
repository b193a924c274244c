"""Another user, without capabilities: what root must become before it runs a command."""

import errno
import os

from .system import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_SECUREBITS,
    permitted_capabilities,
    prctl,
    set_capabilities,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
SECBIT_NO_SETUID_FIXUP = 1 << 2


def drop_capabilities() -> None:
    """Keep no capability, whatever the container gave to this user."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    set_capabilities(effective=0, permitted=0, inheritable=0)


def become(uid: int, reach: "Sequence[str]") -> None:
    """Become the user, its group of the same number and no other, without capabilities.

    There is one exception: when the user cannot get at one of `reach` (this Python below a folder
    of root's, say), it keeps CAP_DAC_READ_SEARCH. So name paths only where landlock bounds what
    can be read all the same. Raises PermissionError, ValueError.
    """
    permitted = permitted_capabilities()
    reading = permitted & 1 << CAP_DAC_READ_SEARCH if reach else 0
    # Once it is out of the bounding set, a capability can no longer be made inheritable.
    set_capabilities(effective=permitted, permitted=permitted, inheritable=reading)
    if permitted & 1 << CAP_SETPCAP:
        _empty_bounding_set()
    prctl(PR_SET_KEEPCAPS, 1)
    _switch(uid)
    kept = 0 if all(_reachable(path) for path in reach) else reading
    if kept and permitted & 1 << CAP_SETPCAP:
        # Else access(2) answers as if it were not there, and git believes what that says.
        set_capabilities(effective=permitted, permitted=permitted, inheritable=reading)
        prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    set_capabilities(effective=kept, permitted=kept, inheritable=kept)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    if kept:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)
    prctl(PR_SET_KEEPCAPS, 0)


def _empty_bounding_set() -> None:
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return  # that was one more than the kernel has


def _switch(uid: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except PermissionError:
        raise PermissionError(
            "root may not change its user here: give the container the capabilities SETUID and "
            "SETGID, or run the service as an ordinary user"
        ) from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"there is no user {uid} in this container: set sandbox.first_uid to one that "
            "/proc/self/uid_map has"
        ) from None


def _reachable(path: str) -> bool:
    return os.access(path, os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK)  # noqa: PTH112 - pathlib takes long to import
