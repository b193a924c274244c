"""System calls that Python has no function for."""

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

_CAPABILITY_VERSION_3 = 0x20080522
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_CapabilityData = ctypes.c_uint32 * 6  # effective, permitted, inheritable: low words, then high


def prctl(option: int, *arguments: int) -> None:
    """Change a property of this process. Raises OSError."""
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    if _LIBC.prctl(option, *words) < 0:
        raise _error(f"prctl {option}")


def system_call(number: int, *arguments: object) -> int:
    """Make a system call; integers become C longs. Raises OSError."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise _error(f"system call {number}")
    return result


def permitted_capabilities() -> int:
    """Return the capabilities that this process may take up, one bit each."""
    data = _CapabilityData()
    if _LIBC.capget(ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION_3, 0)), data) < 0:
        raise _error("capget")
    return data[1] | data[4] << 32


def set_capabilities(*, effective: int, permitted: int, inheritable: int) -> None:
    """Give up all capabilities but these. Raises OSError."""
    sets = effective, permitted, inheritable
    data = _CapabilityData(*(word & 0xFFFFFFFF for word in sets), *(word >> 32 for word in sets))
    if _LIBC.capset(ctypes.byref(_CapabilityHeader(_CAPABILITY_VERSION_3, 0)), data) < 0:
        raise _error("capset")


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
