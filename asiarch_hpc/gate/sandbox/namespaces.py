"""Namespaces: users, process ids, network, message queues and mounts of one's own.

Needs no privilege where the kernel lets users make user namespaces. The mounts are a view (`view.View`): an empty
root on which only what the view names is mounted, read-only unless writable. Only calls that Linux 4.18 has are used.
Sources: user_namespaces(7), pid_namespaces(7), mount_namespaces(7), mount(2), pivot_root(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from asiarch_hpc.gate.sandbox.seccomp import number
from asiarch_hpc.gate.sandbox.syscalls import check, libc, syscall
from asiarch_hpc.gate.sandbox.view import DEVICES, SHARED_MEMORY, View

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC = 1, 2, 4, 8, 1 << 5, 1 << 12, 1 << 14
_PRIVATE, _DETACH = 1 << 18, 2
_KEPT_OPTIONS = {  # of a mount that an outer namespace locked: a remount must repeat them
    "nosuid": _NOSUID,
    "nodev": _NODEV,
    "noexec": _NOEXEC,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
}
_BASE = "/dev"  # where the new root is made: a folder that every system has, and that no path of a view contains
COVERED_PROC = ("sys", "sysrq-trigger", "irq", "bus", "fs")  # root's settings of the machine: to be read at most


def enter_namespaces(*, network: bool) -> None:
    """Gives this process and its children their own users, message queues, host name and network (unless `network`),
    and its children their own process ids. User and group ids keep their numbers.

    Raises:
        OSError: user namespaces are switched off (sysctl, AppArmor, or a container's seccomp filter).
    """
    user, group = os.getuid(), os.getgid()
    flags = NEWUSER | NEWIPC | NEWUTS | NEWPID | (0 if network else NEWNET)
    check(libc().unshare(flags), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def join(descriptor: int, kind: int) -> None:
    """Enters an existing namespace of that kind (for process ids: its later children do)."""
    check(libc().setns(descriptor, kind), "setns")


def mount_view(view: View, *, shared_memory: int) -> bool:
    """Gives this process mounts of its own that hold the view alone, and its own processes in /proc.

    Call it in the first or a later process of the new process namespace.

    Args:
        shared_memory: bytes of a private /dev/shm; 0 gives none.

    Returns:
        Whether /proc shows the own processes alone.

    Raises:
        OSError: the kernel refuses, as some containers make it.
    """
    check(libc().unshare(NEWNS), "unshare")
    _mount(None, "/", None, _REC | _PRIVATE)
    shown = sorted({*view.readable, *view.writable}, key=lambda path: len(path.parts))
    devices = [*(Path("/dev") / name for name in DEVICES), *view.devices]
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*shown, *devices)}
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    root = _BASE
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    for link, target in view.links:
        os.makedirs(f"{root}{link.parent}", exist_ok=True)
        if not os.path.lexists(f"{root}{link}"):
            os.symlink(target, f"{root}{link}")
    for path in (*shown, *devices):
        target = f"{root}{path}"
        _make_place(target, folder=stat.S_ISDIR(os.fstat(sources[path]).st_mode))
        _mount(f"/proc/self/fd/{sources[path]}", target, None, _BIND | _REC)
        if path not in view.writable and path != SHARED_MEMORY:
            _make_readonly(target)
        os.close(sources[path])
    own_proc = _mount_extras(root, view, proc, shared_memory)
    _mount(None, root, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    _change_root(root)
    os.chdir(view.start)
    return own_proc


def _mount_extras(root: str, view: View, old_proc: int, shared_memory: int) -> bool:
    own_proc = True
    os.makedirs(f"{root}/proc", exist_ok=True)
    os.makedirs(f"{root}{view.start}", exist_ok=True)
    os.makedirs(f"{root}/dev/shm", exist_ok=True)
    if shared_memory:
        _mount("tmpfs", f"{root}/dev/shm", "tmpfs", _NOSUID | _NODEV, f"mode=1777,size={shared_memory}")
    try:
        _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    except PermissionError:
        own_proc = False
        # Containers that mask parts of /proc refuse a new one. In the old one other processes are seen, but not
        # read: they belong to another user namespace.
        _mount(f"/proc/self/fd/{old_proc}", f"{root}/proc", None, _BIND | _REC)
    os.close(old_proc)
    for name in COVERED_PROC:
        path = f"{root}/proc/{name}"
        if os.path.exists(path):
            _mount(path, path, None, _BIND | _REC)
            _make_readonly(path)
    return own_proc


def _make_place(target: str, *, folder: bool) -> None:
    if os.path.lexists(target):
        return  # beneath something that is mounted already
    os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
    if not folder:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _make_readonly(target: str) -> None:
    """Remounts everything mounted at and beneath `target` read-only; what cannot be is refused, not passed over."""
    for place, options in _mounts_beneath(target):
        kept = sum(flag for name, flag in _KEPT_OPTIONS.items() if name in options)
        _mount(None, place, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | kept)


def _mounts_beneath(target: str) -> Iterator[tuple[str, list[str]]]:
    """(mount point, options) of each mount at or beneath a path, as /proc/self/mountinfo has them (proc(5))."""
    for line in Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape").splitlines():
        words = line.split(" ")
        place = words[4]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            place = place.replace(code, character)
        if place == target or place.startswith(f"{target}/"):
            yield place, words[5].split(",")


def _change_root(root: str) -> None:
    os.chdir(root)
    syscall(number("pivot_root"), b".\0", b".\0")  # the old root now lies upon the new one
    check(libc().umount2(b".", _DETACH), "umount2")
    os.chdir("/")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, options)]
    result = libc().mount(words[0], words[1], words[2], flags, words[3])
    check(result, f"mount {source or ''} on {target}")
