"""What a process can do to confine itself on Linux, by system calls alone.

Each function acts on the calling process and cannot be undone by it. The order that `sandbox` uses matters:
namespaces need the capabilities that `drop_capabilities` gives up, and Landlock needs the paths still reachable.
Sources: the Linux manual pages landlock(7), user_namespaces(7), pid_namespaces(7), capset(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1
_WRITE_FILE, _TRUNCATE, _REFER = 1 << 1, 1 << 14, 1 << 13
_CHANGE_TREE = sum(1 << bit for bit in range(4, 13))  # remove and make entries of every type
_NET_TCP = 0b11  # bind and connect
_SCOPE_SOCKETS_AND_SIGNALS = 0b11
_ABI_REFER, _ABI_TRUNCATE, ABI_TCP, ABI_SIGNALS = 2, 3, 4, 6

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
_OWN_PROC = Path("/proc/self")
_GPU_DEVICES = ("nvidia*", "nvidia-caps/*", "kfd", "dri/*", "shm", "infiniband/*")
_START_TIME, _ENV_START, _ENV_END = 22, 50, 51  # fields of /proc/self/stat, counted from 1 (proc(5))


def landlock_abi() -> int:
    """Version of the kernel's Landlock interface; 0 where it has none or it is switched off."""
    try:
        return _syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION)
    except OSError:
        return 0


def restrict_writes(writable: Iterable[Path], *, network: bool) -> None:
    """Denies every change to the file system outside `writable`, for this process and all that it starts.

    Where the kernel can (`ABI_SIGNALS`, `ABI_TCP`), signals and abstract sockets reach only processes that
    are confined alike, and TCP is denied unless `network`. Reading stays free. Changes of mode, owner and times
    are not covered by Landlock.

    Raises:
        OSError: no Landlock, or a path of `writable` does not exist.
    """
    abi = landlock_abi()
    rights = _WRITE_FILE | _CHANGE_TREE
    rights |= _REFER if abi >= _ABI_REFER else 0
    rights |= _TRUNCATE if abi >= _ABI_TRUNCATE else 0
    attributes = struct.pack("=Q", rights)
    attributes += struct.pack("=Q", 0 if network else _NET_TCP) if abi >= ABI_TCP else b""
    attributes += struct.pack("=Q", _SCOPE_SOCKETS_AND_SIGNALS) if abi >= ABI_SIGNALS else b""
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in writable:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                allowed = rights if folder else rights & (_WRITE_FILE | _TRUNCATE)
                _syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", allowed, descriptor), 0)
            finally:
                os.close(descriptor)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def enter_namespaces(*, network: bool) -> None:
    """Gives this process and its children their own users, mounts, message queues and network (unless
    `network`), and its children their own process ids. User and group ids keep their numbers.

    Raises:
        OSError: user namespaces are switched off (sysctl, AppArmor, or a container's seccomp filter).
    """
    user, group = os.getuid(), os.getgid()
    flags = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID | (0 if network else _CLONE_NEWNET)
    _check(_libc().unshare(flags), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _check(_libc().mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")


def mount_own_proc() -> None:
    """Shows in /proc the processes of the own namespace only, where the kernel allows it.

    It refuses inside containers that mask parts of /proc; the old view stays then, in which other processes can
    be seen but, being in another user namespace, neither read nor signalled.
    """
    _libc().mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)


def drop_capabilities() -> None:
    """Gives up every capability: root becomes a user that merely owns root's files."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc().capset(header, bytes(24)), "capset")


def set_parent_death_signal(number: int) -> None:
    """Asks the kernel for signal `number` when the thread that forked this process ends."""
    _prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, so that it can find and end them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reset_signals() -> None:
    """Default actions for whatever the forking process handles in Python, and an empty mask."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and not isinstance(signal.getsignal(number), signal.Handlers):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def limit_resources(*, cpu_s: float, file_bytes: int, address_bytes: int | None) -> None:
    """Processor seconds, bytes of one file, no core file, and bytes of address space beyond the present ones.

    The hard address limit leaves a little room above the soft one, for reporting that the soft one was met
    (`lift_address_limit`).
    """
    _lower(resource.RLIMIT_CPU, int(cpu_s) + 1, int(cpu_s) + 2)
    _lower(resource.RLIMIT_FSIZE, file_bytes, file_bytes)
    _lower(resource.RLIMIT_CORE, 0, 0)
    if address_bytes is not None:
        present = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft = present + address_bytes
        _lower(resource.RLIMIT_AS, soft, soft + (64 << 20))


def lift_address_limit() -> None:
    """Frees the room that `limit_resources` left for a last message."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def replace_environment(variables: Mapping[str, str]) -> None:
    """Leaves exactly `variables` in the environment, and no older values in /proc/self/environ."""
    from_third = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(from_third[field - 3]) for field in (_ENV_START, _ENV_END))
    os.environ.clear()
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
    os.environ.update(variables)


def descendants(process: int) -> list[int]:
    """Ids of all living descendants of a process, nearest first, as far as /proc shows them."""
    found: list[int] = []
    queue = [process]
    while queue:
        children = _children(queue.pop(0))
        found += children
        queue += children
    return found


def anonymous_bytes(process: int) -> int:
    """Private and shared-memory bytes that a process holds in memory; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def start_time(process: int) -> int:
    """Clock ticks from boot to the start of a process, which with its id names it for ever; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[_START_TIME - 3])
    except OSError:
        return 0


def gpu_paths() -> list[Path]:
    """What a process must be able to write to so that it can use GPUs: device files, its own folder in /proc (CUDA
    names its threads there). `hold_own_proc` must follow where these are given to `restrict_writes`."""
    return [path for pattern in _GPU_DEVICES for path in sorted(Path("/dev").glob(pattern))] + [_OWN_PROC]


def hold_own_proc() -> int:
    """A descriptor to keep open: Landlock knows a folder by its inode, which in /proc lasts while somebody holds it."""
    return os.open(_OWN_PROC, os.O_PATH)


def _children(process: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    except OSError:
        pass  # it ended between two reads
    return found


def _lower(kind: int, soft: int, hard: int) -> None:
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(kind, (soft, hard))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(int(_libc().syscall(ctypes.c_long(number), *words)), f"system call {number}")


def _prctl(option: int, value: int) -> None:
    words = [ctypes.c_ulong(word) for word in (value, 0, 0, 0)]
    _check(_libc().prctl(ctypes.c_int(option), *words), f"prctl {option}")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
