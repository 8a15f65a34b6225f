"""Landlock: what a process may open, by the process's own wish and without any privilege.

A ruleset names what is handled (denied everywhere) and where it is allowed after all. It covers opening, listing,
making and removing files, not their modes, owners and times (`seccomp` does), nor that a path exists.
Source: the Linux manual page landlock(7) and the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from asiarch_hpc.gate.sandbox.syscalls import prctl, syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_CHANGE_TREE = sum(1 << bit for bit in range(4, 13))  # remove and make entries of every type
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_CHANGE = _WRITE_FILE | _TRUNCATE | _CHANGE_TREE
_FOR_FILES = _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE
_NET_TCP = 0b11  # bind and connect
_SCOPE_SOCKETS, _SCOPE_SIGNALS = 0b01, 0b10
_ABI_REFER, ABI_TRUNCATE, ABI_TCP, _ABI_IOCTL, _ABI_SIGNALS = 2, 3, 4, 5, 6
_PR_SET_NO_NEW_PRIVS = 38


def landlock_abi() -> int:
    """Version of the kernel's Landlock interface; 0 where it has none or it is switched off."""
    try:
        return syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION)
    except OSError:
        return 0


def restrict_files(
    *,
    readable: Iterable[Path],
    writable: Iterable[Path],
    devices: Iterable[Path],
    listable: Iterable[Path],
    network: bool,
    abstract_sockets: bool = False,
) -> None:
    """Allows to read and execute what lies beneath `readable`, to change as well what lies beneath `writable`, to use
    `devices`, to list folders beneath `listable`, and nothing else of the file system, for this process and all that
    it starts, for ever.

    Where the kernel can (version 6 for signals, `ABI_TCP`), signals, and abstract sockets unless `abstract_sockets`,
    reach only processes that are confined alike, and TCP is denied unless `network`. Before `ABI_TRUNCATE`, files can
    still be emptied. Paths that do not exist are left out, but for those of `writable`.

    Raises:
        OSError: no Landlock, or a path of `writable` does not exist.
    """
    abi = landlock_abi()
    handled = _READ | _WRITE_FILE | _CHANGE_TREE
    handled |= _REFER if abi >= _ABI_REFER else 0
    handled |= _TRUNCATE if abi >= ABI_TRUNCATE else 0
    handled |= _IOCTL_DEVICE if abi >= _ABI_IOCTL else 0
    attributes = struct.pack("=Q", handled)
    attributes += struct.pack("=Q", 0 if network else _NET_TCP) if abi >= ABI_TCP else b""
    scope = _SCOPE_SIGNALS | (0 if abstract_sockets else _SCOPE_SOCKETS)
    attributes += struct.pack("=Q", scope) if abi >= _ABI_SIGNALS else b""
    ruleset = syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for paths, rights in ((readable, _READ), (devices, _READ | _CHANGE | _IOCTL_DEVICE), (listable, _READ_DIR)):
            for path in paths:
                with contextlib.suppress(OSError):
                    _allow(ruleset, path, handled & rights)
        for path in writable:
            _allow(ruleset, path, handled & ~_IOCTL_DEVICE)
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = rights if stat.S_ISDIR(os.fstat(descriptor).st_mode) else rights & _FOR_FILES
        syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", allowed, descriptor), 0)
    finally:
        os.close(descriptor)
