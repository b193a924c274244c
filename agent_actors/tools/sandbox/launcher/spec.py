"""What the launcher is told: one line of JSON on its standard input, which then stays open.

Only checkers see these types: importing `typing` would double the time to start.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypedDict

    class FileRules(TypedDict):
        """What landlock lets the command read, change, and use as a device.

        `abi` is the newest version of landlock to use, `reach` what the command cannot do
        without: when its user cannot get there, it may read what the rules name regardless.
        """

        abi: int
        read: Sequence[str]
        write: Sequence[str]
        devices: Sequence[str]
        reach: Sequence[str]

    class CallRules(TypedDict):
        """Which system calls are refused, beside those that no command needs.

        `families` are the address families that sockets may have. Without processes of its own
        (a process namespace), a command may not touch others by their ids. `shares_user` tells
        that its user is the service's: then what landlock's `abi` does not bound yet, signals and
        truncation, is bounded here.
        """

        families: Sequence[int]
        own_processes: bool
        shares_user: bool
        abi: int

    class Spec(TypedDict):
        """A command, and its bounds.

        `uid` is the user to become. With `own_processes` the launcher is the first process of a
        process namespace, so all others end with it. `limits` are by the names of `resource`.
        """

        argv: Sequence[str]
        cwd: str
        environment: Mapping[str, str]
        uid: int | None
        limits: Mapping[str, int]
        own_processes: bool
        files: FileRules | None
        calls: CallRules | None
