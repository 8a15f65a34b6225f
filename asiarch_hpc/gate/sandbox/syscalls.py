"""System calls that Python does not offer, through the C library; errors become OSError."""

from __future__ import annotations

import ctypes
import os


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """`result` of a C call, unless it says that the call failed.

    Raises:
        OSError: with the call's errno; its text begins with `what`.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """A system call by its number; integers are passed as machine words, bytes as pointers to them."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return check(int(libc().syscall(ctypes.c_long(number), *words)), f"system call {number}")


def prctl(option: int, value: int) -> None:
    words = [ctypes.c_ulong(word) for word in (value, 0, 0, 0)]
    check(libc().prctl(ctypes.c_int(option), *words), f"prctl {option}")
