"""Which files a command may read, change and run: landlock, an allow-list that binds for good.

The package `landlock` 1.0.0.dev5 is not used: it knows neither the network nor the scopes of
newer kernels, aborts at a file that no rule of a folder fits, and lies where a Python started
with `-S` does not look. It takes three system calls. See landlock(7).
"""

import ctypes
import os
import stat

from .system import system_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .spec import FileRules

_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_MAKE_CHAR = 1 << 6
_MAKE_SOCK = 1 << 9
_MAKE_BLOCK = 1 << 11
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15

_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE
_NEVER = _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _IOCTL_DEV

_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """Return the version of landlock's interface; 0 when there is none to use.

    The kernel may lack it or have it off, or a container's filter of system calls refuse it.
    """
    try:
        return system_call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


def ruleset(rules: "FileRules", *, network: bool) -> int:
    """Return a descriptor of the rules; paths that do not exist are left out.

    The paths are opened here, which may take more rights than the command is to have.
    """
    abi = min(version(), rules["abi"])
    handled = (1 << _RIGHTS_BY_ABI[min(abi, 5)]) - 1
    attributes = _RulesetAttributes(
        handled,
        _BIND_AND_CONNECT_TCP if abi >= 4 and not network else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0,
    )
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    descriptor = system_call(_CREATE_RULESET, ctypes.byref(attributes), size, 0)
    for path in rules["read"]:
        _allow(descriptor, path, _READ & handled)
    for path in rules["write"]:
        _allow(descriptor, path, handled & ~_NEVER)
    for path in rules["devices"]:
        _allow(descriptor, path, _DEVICE & handled)
    return descriptor


def restrict(descriptor: int) -> None:
    """Bind this process, and all that it starts, to the rules."""
    system_call(_RESTRICT_SELF, descriptor, 0)
    os.close(descriptor)


def _allow(descriptor: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_FILES
        rule = _PathBeneath(rights, place)
        system_call(_ADD_RULE, descriptor, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(place)
