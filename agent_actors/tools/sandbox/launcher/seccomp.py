"""Which system calls a command may not make: a filter in the kernel, for what files rules miss.

It takes from a command what no build or test needs, and what landlock does not know: sockets other
than TCP, other processes of the same user, memory that outlives its maker. The filter is
assembled here, since libseccomp is not on every machine. See seccomp(2) and bpf(4).
"""

import ctypes
import errno
import os
import struct
import termios

from .system import PR_SET_SECCOMP, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .spec import CallRules

_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_FAIL = 0x00050000

# Instructions of classic BPF, and where in `struct seccomp_data` things are.
_LOAD = 0x20
_AND = 0x54
_RETURN = 0x06
_IF_EQUAL = 0x15
_IF_AT_LEAST = 0x35
_IF_ANY_BIT = 0x45
_NUMBER = 0
_ARCHITECTURE = 4
_X32_BIT = 0x40000000

# By machine: the value of `arch`, and the column of the table below.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64; -1: not there.
_CALLS = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "lookup_dcookie": (212, 18),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "open": (2, -1),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "openat": (257, 56),
    "openat2": (437, 437),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "semget": (64, 190),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

_NEEDED_BY_NO_COMMAND = (
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS … CLONE_NEWNET
_TIOCLINUX = 0x541C

# Of <sys/socket.h>; the module `socket` takes long to import.
_AF_UNIX = 1
_SOCK_STREAM = 1
_SOCK_SEQPACKET = 5
_SOCKET_TYPE = 0xF

# Memory and messages of System V and POSIX outlive their maker.
_OUTLIVES_ITS_MAKER = ("shmget", "semget", "msgget", "mq_open")

# They take the id of a process, and the kernel asks only for the same user. By place of the id.
_OF_ANOTHER_PROCESS = {
    "prlimit64": 0,
    "sched_setaffinity": 0,
    "sched_setattr": 0,
    "sched_setparam": 0,
    "sched_setscheduler": 0,
    "setpriority": 1,
    "ioprio_set": 1,
}
_OF_ANY_OTHER_PROCESS = ("migrate_pages", "move_pages", "process_madvise", "process_mrelease")
_SIGNALS = ("tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")


class UnknownMachineError(Exception):
    """There is no table of system calls for this kind of processor."""


def program(rules: "CallRules", machine: str = "") -> bytes:
    """Return the filter for the rules, as the kernel takes it. Raises UnknownMachineError."""
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise UnknownMachineError(
            f"the filter of system calls knows {' and '.join(_MACHINES)}, not {machine}"
        )
    architecture, column = _MACHINES[machine]
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_IF_EQUAL, architecture, then=1),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [_instruction(_IF_AT_LEAST, _X32_BIT, otherwise=1), _fail(errno.EPERM)]
    for name, block in _blocks(rules):
        if (number := _CALLS[name][column]) >= 0:
            code += [_instruction(_IF_EQUAL, number, otherwise=len(block)), *block]
    return b"".join([*code, _instruction(_RETURN, _ALLOW)])


def install(code: bytes) -> None:
    """Bind this process, and all that it starts, to the filter."""
    instructions = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions))
    )
    prctl(PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(header))


def _blocks(rules: "CallRules") -> "Iterable[tuple[str, Sequence[bytes]]]":
    """Yield what to do at each call: instructions that end, as all calls not named, in going on."""
    refuse = [_fail(errno.EPERM)]
    for name in _NEEDED_BY_NO_COMMAND:
        yield name, refuse
    yield "clone", _if_any_bit(0, _NEW_NAMESPACES)
    yield "clone3", [_fail(errno.ENOSYS)]  # its flags are out of reach; libraries then use clone
    yield "ioctl", _unless(1, (), one_of=(termios.TIOCSTI, _TIOCLINUX))
    yield "socket", _unless(0, rules["families"])
    if _AF_UNIX not in rules["families"]:
        # A pair of datagram sockets can still be connected to a third one, by its path.
        yield "socketpair", _unless(1, (_SOCK_STREAM, _SOCK_SEQPACKET), _SOCKET_TYPE)
    if not rules["own_processes"]:
        for name in (*_OUTLIVES_ITS_MAKER, *_OF_ANY_OTHER_PROCESS):
            yield name, refuse
        for name, place in _OF_ANOTHER_PROCESS.items():
            yield name, _unless(place, (0,))
        if rules["shares_user"]:
            yield from _blocks_for_older_landlock(rules["abi"])


def _blocks_for_older_landlock(abi: int) -> "Iterable[tuple[str, Sequence[bytes]]]":
    refuse = [_fail(errno.EPERM)]
    if abi < 6:  # landlock does not bound signals yet: they reach the own process group only
        yield "kill", _unless(0, (0,))
        for name in _SIGNALS:
            yield name, refuse
    if abi < 3:  # nor truncation, also by opening for reading
        yield "truncate", refuse
        yield "openat2", [_fail(errno.ENOSYS)]
        yield "open", _if_truncated_for_reading(1)
        yield "openat", _if_truncated_for_reading(2)


def _unless(
    place: int, allowed: "Sequence[int]", mask: int = 0, *, one_of: "Sequence[int]" = ()
) -> list[bytes]:
    """Refuse unless an argument is among the allowed; with `one_of`, only if it is one of those."""
    listed = one_of or allowed
    masked = [_instruction(_AND, mask)] if mask else []
    tests = [
        _instruction(_IF_EQUAL, value, then=len(listed) - index)
        for index, value in enumerate(listed)
    ]
    ends = [_fail(errno.EPERM), _instruction(_RETURN, _ALLOW)]
    return [_argument(place), *masked, *tests, *(reversed(ends) if one_of else ends)]


def _if_any_bit(place: int, bits: int) -> list[bytes]:
    return [
        _argument(place),
        _instruction(_IF_ANY_BIT, bits, otherwise=1),
        _fail(errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    ]


def _if_truncated_for_reading(place: int) -> list[bytes]:
    return [
        _argument(place),
        _instruction(_AND, os.O_TRUNC | os.O_ACCMODE),
        _instruction(_IF_EQUAL, os.O_TRUNC | os.O_RDONLY, otherwise=1),
        _fail(errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    ]


def _argument(place: int) -> bytes:
    """Load the low word of an argument; those that are asked for have no more."""
    return _instruction(_LOAD, 16 + 8 * place)


def _fail(number: int) -> bytes:
    return _instruction(_RETURN, _FAIL | number)


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, otherwise, value)
