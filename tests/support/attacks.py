"""What hostile commands try: each function is one attack, run inside of a sandbox by its name.

`python -c <this text> <name> <prey as JSON>` prints what came of it: `BREACHED` and what was
gained, or `REFUSED` and why. An attack that is to be refused ends in an OSError; any other error
is a mistake of the attack. Some cannot tell by themselves: then the test looks at the prey.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
CLONE_NEWNS = 0x00020000
AT_EMPTY_PATH = 0x1000
AT_FDCWD = -100
PTRACE_ATTACH = 16
PR_GET_NO_NEW_PRIVS = 39


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def system_call(number, *arguments):
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return checked(LIBC.syscall(ctypes.c_long(number), *words))


def say(*words):
    print(*words, flush=True)  # noqa: T201 - it is heard by the test


def expect_canary(prey, found):
    if prey["canary"] not in found:
        raise PermissionError("that is not the secret")
    return found


# Files


def read_the_shadow_file(prey):
    return Path("/etc/shadow").read_text()


def read_a_file_outside(prey):
    return expect_canary(prey, Path(prey["secret"]).read_text())


def read_the_token_of_ray(prey):
    return expect_canary(prey, Path(prey["home"], ".ray/auth_token").read_text())


def read_another_workspace(prey):
    return expect_canary(prey, Path(prey["neighbour"], "notes").read_text())


def list_the_folder_of_all_workspaces(prey):
    names = [path.name for path in Path.cwd().parent.iterdir()]
    if Path(prey["neighbour"]).name not in names:
        raise PermissionError("it shows no neighbour")
    return names


def read_through_a_planted_symlink(prey):
    return expect_canary(prey, Path("planted").read_text())


def read_through_an_own_symlink(prey):
    Path("mine").symlink_to(prey["secret"])
    return expect_canary(prey, Path("mine").read_text())


def write_through_an_own_symlink(prey):
    Path("way-out").symlink_to(prey["outside"])
    Path("way-out/written").write_text("outside")


def climb_out_with_dots(prey):
    steps = "../" * 20
    return expect_canary(prey, Path(steps + prey["secret"]).read_text())


def write_a_file_outside(prey):
    Path(prey["outside"], "written").write_text("outside")


def change_a_file_outside(prey):
    with Path(prey["victim"]).open("a") as file:
        file.write("changed")


def truncate_a_file_outside(prey):
    os.truncate(prey["victim"], 0)


def truncate_a_file_outside_by_opening_it_to_read(prey):
    os.close(os.open(prey["victim"], os.O_RDONLY | os.O_TRUNC))


def delete_a_file_outside(prey):
    Path(prey["victim"]).unlink()


def move_a_file_in_from_outside(prey):
    Path(prey["victim"]).rename("stolen")


def link_a_file_in_from_outside(prey):
    os.link(prey["secret"], "linked")
    return expect_canary(prey, Path("linked").read_text())


def link_an_opened_place_into_the_workspace(prey):
    place = os.open(prey["secret"], os.O_PATH)
    checked(LIBC.linkat(place, b"", AT_FDCWD, b"linked", AT_EMPTY_PATH))
    return expect_canary(prey, Path("linked").read_text())


def reopen_an_opened_place(prey):
    place = os.open(prey["secret"], os.O_PATH)
    return expect_canary(prey, Path(f"/proc/self/fd/{place}").read_text())


def open_by_handle(prey):
    handle = ctypes.create_string_buffer(bytes.fromhex(prey["handle"]))
    mount = os.open(".", os.O_RDONLY)
    opened = system_call(prey["calls"]["open_by_handle_at"], mount, handle, os.O_RDONLY)
    return expect_canary(prey, os.read(opened, 4096).decode())


def write_into_the_system(prey):
    Path("/usr/local/bin/planted").write_text("#!/bin/sh\n")


def write_into_this_python(prey):
    Path(os.__file__).with_name("sitecustomize.py").write_text("")


def write_to_the_memory_of_the_machine(prey):
    """Where it may, it writes to a /dev/shm of its own: the test looks at the machine's."""
    Path("/dev/shm", prey["mark"]).write_text("here")


def write_to_the_temporary_folder_of_the_machine(prey):
    """Likewise with /tmp."""
    Path("/tmp", prey["mark"]).write_text("here")


# Other processes


def read_the_environment_of_another_process(prey):
    return expect_canary(prey, Path(f"/proc/{prey['pid']}/environ").read_text())


def read_the_memory_of_another_process(prey):
    maps = Path(f"/proc/{prey['pid']}/maps").read_text().splitlines()
    stack = next(line for line in maps if "[stack]" in line).split("-")
    start, end = int(stack[0], 16), int(stack[1].split()[0], 16)
    with Path(f"/proc/{prey['pid']}/mem").open("rb") as memory:
        memory.seek(start)
        return expect_canary(prey, memory.read(end - start).decode(errors="replace"))


def copy_the_memory_of_another_process(prey):
    local = ctypes.create_string_buffer(8)
    here = struct.pack("PN", ctypes.addressof(local), 8)
    there = struct.pack("PN", prey["address"], 8)
    system_call(prey["calls"]["process_vm_readv"], prey["pid"], here, 1, there, 1, 0)


def read_the_environment_of_the_first_process(prey):
    """In a process namespace that is the launcher, whose environment nobody may read either."""
    return Path("/proc/1/environ").read_bytes()


def look_for_the_secret_in_all_processes(prey):
    for folder in Path("/proc").iterdir():
        try:
            found = (folder / "environ").read_text(errors="replace")
        except OSError:
            continue
        if prey["canary"] in found:
            return folder.name
    raise PermissionError("no process shows it")


def look_for_the_secret_in_the_own_environment(prey):
    return expect_canary(prey, json.dumps(dict(os.environ)))


def use_an_inherited_descriptor(prey):
    found = []
    for descriptor in range(3, 1024):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.append(descriptor)
    if not found:
        raise PermissionError("there is none")
    return found


def kill_another_process(prey):
    os.kill(prey["pid"], signal.SIGTERM)


def kill_another_process_by_descriptor(prey):
    descriptor = os.pidfd_open(prey["pid"])
    signal.pidfd_send_signal(descriptor, signal.SIGTERM)


def signal_the_keeper(prey):
    if os.getppid() == 1:
        raise PermissionError("the first of a namespace takes no signals from within")
    os.kill(os.getppid(), signal.SIGCONT)


def trace_another_process(prey):
    system_call(prey["calls"]["ptrace"], PTRACE_ATTACH, prey["pid"], 0, 0)


def limit_another_process(prey):
    resource.prlimit(prey["pid"], resource.RLIMIT_NOFILE, (8, 8))


def slow_another_process_down(prey):
    os.setpriority(os.PRIO_PROCESS, prey["pid"], 19)


def take_a_descriptor_of_another_process(prey):
    system_call(prey["calls"]["pidfd_getfd"], os.pidfd_open(prey["pid"]), 0, 0)


# Network


def connect_by_tcp(prey):
    socket.create_connection(("127.0.0.1", prey["tcp_port"]), timeout=2).close()


def send_by_udp(prey):
    """It cannot tell whether it arrived: the test looks."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"stolen", ("127.0.0.1", prey["udp_port"]))


def connect_to_a_unix_socket(prey):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(prey["unix_path"])


def connect_to_an_abstract_socket(prey):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0" + prey["abstract"])


def turn_a_pair_of_sockets_to_a_service(prey):
    one, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.connect(prey["unix_datagrams"])
    one.send(b"stolen")


def list_the_interfaces_of_the_machine(prey):
    names = [name for _, name in socket.if_nameindex()]
    if set(names) <= {"lo"}:
        raise PermissionError("only a loopback of its own")
    return names


def listen_to_the_packets_of_the_machine(prey):
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


def talk_to_the_hypervisor(prey):
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


def reach_into_the_kernel_by_its_ciphers(prey):
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0).close()


# Devices


def make_a_device(prey):
    os.mknod("disk", 0o600 | 0o060000, os.makedev(8, 0))


def read_physical_memory(prey):
    return len(Path("/dev/mem").read_bytes())


def read_the_log_of_the_kernel(prey):
    with Path("/dev/kmsg").open("rb") as log:
        return log.read(64).hex()


def read_a_disk(prey):
    with Path(prey["disk"]).open("rb") as disk:
        return disk.read(16).hex()


def type_into_a_terminal(prey):
    for letter in b"id\n":
        fcntl.ioctl(os.open("/dev/tty", os.O_RDWR), termios.TIOCSTI, bytes([letter]))


def type_into_an_own_terminal(prey):
    """A terminal of its own takes it where none is refused; so the call is what is tested."""
    master, _ = os.pipe()
    try:
        fcntl.ioctl(master, termios.TIOCSTI, b"x")
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return "the kernel was asked"
        raise


# Rights


def become_root(prey):
    os.setuid(0)


def gain_rights_from_a_setuid_program(prey):
    if LIBC.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        return "setuid programs would gain their rights"
    for command in (
        ["su", "-c", "id -u"],
        ["sudo", "-n", "id", "-u"],
        ["mount", "-t", "tmpfs", "x", "."],
    ):
        try:
            done = subprocess.run(command, capture_output=True, timeout=5, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            return command
    raise PermissionError("none gains anything")


def make_a_user_namespace(prey):
    checked(LIBC.unshare(CLONE_NEWUSER))


def make_a_user_namespace_by_cloning(prey):
    pid = system_call(prey["calls"]["clone"], CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def make_a_user_namespace_by_the_newer_clone(prey):
    words = struct.pack("QQQQQQQQ", CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = system_call(prey["calls"]["clone3"], words, len(words))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def mount_something_in_a_namespace(prey):
    checked(LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    checked(LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, None))


def change_the_root_folder(prey):
    os.chroot(".")


def use_a_ring_of_the_kernel(prey):
    os.close(system_call(prey["calls"]["io_uring_setup"], 1, ctypes.create_string_buffer(256)))


def use_the_keyring(prey):
    system_call(prey["calls"]["add_key"], b"user", b"agent", b"secret", 6, -4)


def load_a_program_into_the_kernel(prey):
    words = struct.pack("IIIII", 2, 4, 4, 1, 0).ljust(128, b"\0")  # an array of one
    os.close(system_call(prey["calls"]["bpf"], 0, words, len(words)))


def watch_page_faults(prey):
    user_mode_only = 1
    os.close(system_call(prey["calls"]["userfaultfd"], os.O_CLOEXEC | user_mode_only))


def call_the_kernel_by_another_table(prey):
    x32 = 0x40000000
    os.close(checked(LIBC.syscall(ctypes.c_long(x32 | 41), 2, 1, 0)))  # socket(AF_INET, …)


def leave_shared_memory_behind(prey):
    """In a namespace of its own it ends with it: the test looks for what is left."""
    private, create = 0, 0o1000
    key = prey["shared_memory_key"] or private
    system_call(prey["calls"]["shmget"], key, 4096, create | 0o666)


def leave_a_core_dump_behind(prey):
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
        return "cores are written"
    raise PermissionError("none is written")


# Resources: these go on until they are stopped


def fork_without_end(prey):
    started = 0
    try:
        while started < 2_000:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            started += 1
    except BlockingIOError:
        say(json.dumps({"started": started}))
        raise


def fork_and_fork_again(prey):
    """Children that fork and leave, faster than anybody can count them."""
    say("forking")
    if os.fork():
        time.sleep(60)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if os.fork():
                os._exit(0)
            os.setsid()
        except BlockingIOError:
            continue


def take_all_memory(prey):
    try:
        return len(bytearray(prey["too_much_memory"]))
    except MemoryError:
        raise PermissionError("there is no more") from None


def calculate_without_end(prey):
    while True:
        pass


def write_without_end(prey):
    while True:
        os.write(1, b"x" * 65_536)


def sleep_without_end(prey):
    time.sleep(3600)


def stay_behind_as_a_daemon(prey):
    """Fork twice in sessions of its own, keep the pipe, and go on when the command has ended."""
    ready, told = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.write(told, b"x")
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for _ in range(600):
                Path("heartbeat").write_text(str(time.time()))
                time.sleep(0.02)
        os._exit(0)
    os.read(ready, 1)
    return "left"


def let_a_child_keep_the_output(prey):
    subprocess.Popen(["sleep", "60"])
    return "left"


def write_too_large_a_file(prey):
    Path("large").write_bytes(b"x" * 1024 * 1024 * prey["too_large_mib"])


def write_too_large_a_file_in_memory(prey):
    os.truncate(os.memfd_create("large"), prey["too_large_mib"] * 1024 * 1024)


def open_too_many_files(prey):
    return [os.dup(0) for _ in range(5_000)][-1]


def make_folders_too_deep_to_remove(prey):
    os.chdir(os.environ["TMPDIR"])
    for _ in range(1_500):
        Path("deeper").mkdir()
        os.chdir("deeper")
    Path().chmod(0)
    return "left"


if __name__ == "__main__":
    name, words = sys.argv[1:]
    try:
        gained = globals()[name](json.loads(words))
    except OSError as error:
        say("REFUSED", error)
    else:
        say("BREACHED", gained)
