"""What a process gives up of its own, and what can be known of others: limits, capabilities, files, /proc.

Sources: the Linux manual pages capset(2), prctl(2), setrlimit(2), proc(5).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Mapping
from pathlib import Path

from asiarch_hpc.gate.sandbox.syscalls import check, libc, prctl

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_CAPABILITY_VERSION_3 = 0x20080522
OWN_PROC = Path("/proc/self")
_GPU_DEVICES = ("nvidia*", "nvidia-caps/*", "nvidia-caps-imex-channels/*", "kfd", "dri/*")
_INTERCONNECT_DEVICES = ("infiniband/*",)
_START_TIME, _ENV_START, _ENV_END = 22, 50, 51  # fields of /proc/self/stat, counted from 1 (proc(5))


def drop_capabilities() -> None:
    """Gives up every capability: root becomes a user that merely owns root's files."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    check(libc().capset(header, bytes(24)), "capset")


def set_parent_death_signal(number: int) -> None:
    """Asks the kernel for signal `number` when the thread that forked this process ends."""
    prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, so that it can find and end them."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reset_signals() -> None:
    """Default actions for whatever the forking process handles in Python, and an empty mask; warnings are ignored, by
    all that is started from here on too: Slurm sends them to every process of a job, for the job's own to heed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored one would take away the exit codes of children
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and not isinstance(signal.getsignal(number), signal.Handlers):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def limit_resources(*, cpu_s: float | None, file_bytes: int, address_bytes: int | None) -> None:
    """Processor seconds, bytes of one file, no core file, and bytes of address space beyond the present ones.

    The hard address limit leaves a little room above the soft one, for reporting that the soft one was met
    (`lift_address_limit`).
    """
    if cpu_s is not None:
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


def keep_files(kept: Mapping[int, int], *, above: int) -> None:
    """Closes every open file above descriptor `above` but the values of `kept`, which get the keys as numbers."""
    limit = os.sysconf("SC_OPEN_MAX")
    spare = max([above, *kept]) + 1
    copies = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD, spare) for number, descriptor in kept.items()}
    for number, copy in copies.items():
        os.dup2(copy, number)
    first = above + 1
    for number in [*sorted(kept), limit]:
        if first < number:  # Python closes all there are where both are 0
            os.closerange(first, number)
        first = number + 1


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
    """Device files of GPUs."""
    return _devices(_GPU_DEVICES)


def interconnect_paths() -> list[Path]:
    """Device files of the network between nodes that needs some."""
    return _devices(_INTERCONNECT_DEVICES)


def hold_own_proc() -> int:
    """A descriptor to keep open: Landlock knows a folder by its inode, which in /proc lasts while somebody holds it."""
    return os.open(OWN_PROC, os.O_PATH)


def _devices(patterns: tuple[str, ...]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(Path("/dev").glob(pattern))]


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
