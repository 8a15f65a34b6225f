"""A filter of system calls for untrusted code: what it needs none of is refused before the kernel does any of it.

The filter is a list of what is refused, not of what is allowed: torch, compilers and GPU drivers use most of the
kernel's interface, and change what they use. It closes what file rules and namespaces leave open (sockets, tracing,
new namespaces, modes of files, signals to others) and the parts of the kernel in which most holes were found.
Refused calls fail with EPERM, as they do for want of a right; nothing is killed by the filter.
Sources: seccomp(2), the kernel's Documentation/userspace-api/seccomp_filter.rst, syscall(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass

from asiarch_hpc.gate.sandbox.syscalls import check, libc, prctl

_PR_SET_SECCOMP, _MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH of linux/audit.h, column below
_X32 = 0x40000000  # bit in the numbers of x86-64's second interface
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; an argument's low half comes first

AF_UNIX = 1
NETWORK_FAMILIES = (1, 2, 10, 16, 27)  # unix, inet, inet6, netlink (interfaces, RDMA), ib

# Numbers on x86-64 and aarch64; None where an interface lacks the call.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "pidfd_send_signal": (424, 424),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    # keys, and interfaces whose faults were used most
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "modify_ldt": (154, None), "personality": (135, 92), "memfd_secret": (447, 447),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "syslog": (103, 116), "quotactl": (179, 60), "quotactl_fd": (443, 443), "iopl": (172, None),
    "ioperm": (173, None), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58),
    "nfsservctl": (180, 42), "uselib": (134, None), "lookup_dcookie": (212, 18), "_sysctl": (156, None),
    "sysfs": (139, None), "ustat": (136, None), "mknod": (133, None), "mknodat": (259, 33),
    # refused by argument, or in another way
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "connect": (42, 203),
    "ioctl": (16, 29), "fcntl": (72, 25),
    "memfd_create": (319, 279), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # what reaches processes that share the process ids
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    # message queues and memory known by a key, which outlive a process
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "semtimedop": (220, 192), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # mode, owner, times and attributes of files, which Landlock does not cover
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
    # opening, which Landlock before version 3 lets truncate
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None), "truncate": (76, 45),
}  # fmt: skip

_ALWAYS = tuple(NUMBERS)[: tuple(NUMBERS).index("clone")]
_QUEUES = tuple(name for name in NUMBERS if name[:3] in ("shm", "msg", "sem", "mq_"))
_MODES = tuple(NUMBERS)[tuple(NUMBERS).index("chmod") : tuple(NUMBERS).index("open")]
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone takes
_BAD_IOCTLS = (0x5412, 0x541C, 0x8901, 0x8902)  # type into a terminal, its selection, owner of a descriptor's signal
_BAD_FCNTLS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: let the kernel signal any process of the user
_O_TRUNC, _O_ACCMODE = 0o1000, 0o3
_OWN_SIGNALS = ("tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_OWN_SETTINGS = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant
# socket: one that sends datagrams needs no connection to reach others; a type's low four bits are its kind
_NO_DATAGRAMS: list[Instruction] = [
    (_LOAD, 0, 0, _ARGUMENTS + 8),
    (_AND, 0, 0, 0xF),
    (_JUMP_EQUAL, 0, 1, 2),
    (_RETURN, 0, 0, _ERRNO | errno.EPERM),
]


def available() -> bool:
    """Whether the kernel filters system calls on this architecture."""
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        return False
    # Without a filter to install, a kernel that knows filters answers EFAULT.
    failed = libc().prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), None, None, None)
    return bool(failed) and ctypes.get_errno() == errno.EFAULT


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """What is allowed beyond what always is.

    `families` are address families of sockets that may be made; a pair of connected ones always may. `connect` lets
    sockets reach others; else they are good for being made, which CUDA asks for. `alone` says that the process has
    process ids, message queues and mounts of its own; else it may signal and set only itself (a child of it neither),
    and change no mode, owner, time or attribute of any file. `memory_files` are files without a name, in memory,
    where nothing counts them.
    """

    families: tuple[int, ...]
    connect: bool
    alone: bool
    memory_files: bool


def restrict_calls(allowed: Filter) -> None:
    """Refuses the calls that untrusted code needs none of, to this process and all that it starts, for ever.

    Raises:
        OSError: the kernel has no filters, or not for this architecture.
    """
    code = assemble(allowed, process=os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    arguments = (ctypes.c_ulong(_MODE_FILTER), header, ctypes.c_ulong(0), ctypes.c_ulong(0))
    check(libc().prctl(ctypes.c_int(_PR_SET_SECCOMP), *arguments), "prctl PR_SET_SECCOMP")


def assemble(allowed: Filter, *, process: int, machine: str | None = None) -> bytes:
    """The filter's program, as struct sock_filter[], for the process of that id; for this machine by default.

    Raises:
        OSError: the machine's system calls are not known here.
    """
    machine = machine or _machine()
    arch, column = _MACHINES[machine]
    rules: list[tuple[str, list[Instruction]]] = [(name, [_refuse()]) for name in _ALWAYS]
    rules += [
        ("clone", [_load(0), (_JUMP_BITS, 0, 1, _NEW_NAMESPACES), _refuse()]),
        ("clone3", [_refuse(errno.ENOSYS)]),  # its flags lie in memory; the C library falls back to clone
        ("socket", [*([] if allowed.connect else _NO_DATAGRAMS), *_only(0, allowed.families)]),
        ("ioctl", _never(1, _BAD_IOCTLS)),
        ("fcntl", _never(1, _BAD_FCNTLS)),
        *((name, _only(0, (process, 0))) for name in ("migrate_pages", "move_pages")),
    ]
    rules += [] if allowed.connect else [("connect", [_refuse()])]
    rules += [] if allowed.memory_files else [("memfd_create", [_refuse()])]
    rules += [] if allowed.alone else _shared(process)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, arch),
        _refuse(errno.ENOSYS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_JUMP_AT_LEAST, 0, 1, _X32), _refuse(errno.ENOSYS)]
    for name, block in rules:
        number = NUMBERS[name][column]
        if number is not None:
            # A call whose arguments pass needs no further rule.
            body = block if len(block) == 1 else [*block, (_RETURN, 0, 0, _ALLOW)]
            program += [(_JUMP_EQUAL, 0, len(body), number), *body]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def number(name: str) -> int:
    """A system call's number on this machine.

    Raises:
        OSError: it has none here.
    """
    found = NUMBERS[name][_MACHINES[_machine()][1]]
    if found is None:
        raise OSError(errno.ENOSYS, f"no system call {name} on {platform.machine()}")
    return found


def _machine() -> str:
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"system calls of {machine} are not known here, only of {list(_MACHINES)}")
    return machine


def _shared(process: int) -> list[tuple[str, list[Instruction]]]:
    """What must be refused where the process ids, queues and mounts are those of everybody."""
    own = (process,)
    rules = [(name, [_refuse()]) for name in (*_QUEUES, *_MODES, "tkill", "ioprio_set", "setpriority", "truncate")]
    rules += [("kill", _only(0, (process, 0))), *((name, _only(0, own)) for name in _OWN_SIGNALS)]
    rules += [(name, _only(0, (process, 0))) for name in _OWN_SETTINGS]
    rules += [("open", _truncating(1)), ("openat", _truncating(2)), ("openat2", [_refuse(errno.ENOSYS)])]
    return rules


def _load(argument: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)


def _refuse(number: int = errno.EPERM) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _only(argument: int, allowed: tuple[int, ...]) -> list[Instruction]:
    jumps = [(_JUMP_EQUAL, len(allowed) - place, 0, value) for place, value in enumerate(allowed)]
    return [_load(argument), *jumps, _refuse()]


def _never(argument: int, refused: tuple[int, ...]) -> list[Instruction]:
    last = len(refused) - 1
    jumps = [(_JUMP_EQUAL, last - place, int(place == last), value) for place, value in enumerate(refused)]
    return [_load(argument), *jumps, _refuse()]


def _truncating(argument: int) -> list[Instruction]:
    """Refuses to empty a file that is opened for reading, for which Landlock asks no right to write."""
    both = _O_TRUNC | _O_ACCMODE
    return [_load(argument), (_AND, 0, 0, both), (_JUMP_EQUAL, 0, 1, _O_TRUNC), _refuse()]
