"""Bubblewrap (the program `bwrap`) as a maker of namespaces and mounts, which a forked process then joins.

bwrap can only start programs, and a child that is to keep what its caller has loaded is a fork. So bwrap lays its
sandbox around `cat`, which waits for the end of its input, and the child enters the namespaces of that process. The
user who made a user namespace may join it; where bwrap is installed setuid root, root made it, and nobody else may.
Sources: bwrap(1), setns(2), user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from asiarch_hpc.errors import SandboxError
from asiarch_hpc.gate.sandbox import namespaces, seccomp
from asiarch_hpc.gate.sandbox.view import DEVICES, View

_KINDS = {
    "ipc": namespaces.NEWIPC,
    "uts": namespaces.NEWUTS,
    "net": namespaces.NEWNET,
    "mnt": namespaces.NEWNS,  # last: afterwards nothing of the caller's is in sight
}


class Bubble:
    """A running bwrap, a child of this process. It ends with this process, and all that joined it ends with it."""

    def __init__(self, view: View, *, network: bool, shared_memory: int, calls: seccomp.Filter) -> None:
        """Starts bwrap and waits until its mounts are made.

        Args:
            shared_memory: bytes of a private /dev/shm; 0 gives none.
            calls: what the bubble's own processes may do. They have no more rights than the child, which may be able
                to take them over; so they are confined as the child is.

        Raises:
            SandboxError: no bwrap, or it fails here; the message has its words.
        """
        self._view = view
        program = seccomp.assemble(calls, process=0) if seccomp.available() else b""
        self._process, told = _start(_arguments(view, network=network, shared_memory=shared_memory), program)
        first = int(json.loads(told)["child-pid"])
        waiter = int(Path(f"/proc/{first}/task/{first}/children").read_text().split()[0])
        self.helpers = (self._process.pid, first, waiter)
        self._namespaces = {
            name: os.open(f"/proc/{waiter}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            for name in ("user", "pid", *_KINDS)
            if not (network and name == "net")  # it is everybody's then
        }

    def enter_processes(self) -> None:
        """Makes this process one of the bubble's users, and its later children processes of the bubble.

        Raises:
            OSError: another user made the bubble's users (a bwrap that is setuid root).
        """
        namespaces.join(self._namespaces["user"], namespaces.NEWUSER)
        namespaces.join(self._namespaces["pid"], namespaces.NEWPID)

    def enter(self) -> None:
        """Gives this process, a child made after `enter_processes`, the bubble's mounts, network and the rest."""
        for name, kind in _KINDS.items():
            if name in self._namespaces:
                namespaces.join(self._namespaces[name], kind)
        for descriptor in self._namespaces.values():
            os.close(descriptor)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
        os.chdir(self._view.start)

    def end(self) -> None:
        """Kills bwrap, with whose end the kernel ends all in the bubble; the caller reaps."""
        self._process.kill()


def _start(arguments: list[str], calls: bytes) -> tuple[subprocess.Popen[bytes], bytes]:
    """The running process, and what it says about its child."""
    program, waiter = shutil.which("bwrap"), shutil.which("cat")
    if program is None or waiter is None:
        raise SandboxError("no program bwrap (Debian's package bubblewrap)" if waiter else "no program cat")
    (told, tell), (listed, listing), (filtered, filtering) = os.pipe(), os.pipe(), os.pipe()
    words = ["--args", str(listed), "--info-fd", str(tell), *(["--seccomp", str(filtered)] if calls else [])]
    process = subprocess.Popen(
        [program, *words, "--", os.path.realpath(waiter)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(listed, tell, filtered),
        env={},
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    for descriptor in (listed, tell, filtered):
        os.close(descriptor)
    with open(told, "rb", buffering=0) as answer:
        with contextlib.suppress(BrokenPipeError):
            _feed(listing, b"".join(os.fsencode(word) + b"\0" for word in arguments))
            _feed(filtering, calls)
            process.stdin.write(b"\n")
        if process.stdout.read(1) != b"\n":  # what cat repeats, once bwrap has become cat
            process.kill()
            complaint = process.stderr.read().decode(errors="replace").strip()
            process.wait()
            raise SandboxError(f"bwrap failed: {complaint or f'exit code {process.returncode}'}")
        return process, answer.read(1 << 16)


def _feed(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(data)


def _arguments(view: View, *, network: bool, shared_memory: int) -> list[str]:
    words = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session"]
    words += ["--cap-drop", "ALL"]  # root's sandbox would keep them
    words += [] if network else ["--unshare-net"]
    for link, target in view.links:
        words += ["--symlink", target, str(link)]
    for path in sorted({*view.readable, *view.writable}, key=lambda path: len(path.parts)):
        words += ["--bind" if path in view.writable else "--ro-bind", str(path), str(path)]
    for path in (*(Path("/dev") / name for name in DEVICES), *view.devices):
        words += ["--dev-bind", str(path), str(path)]
    words += ["--size", str(shared_memory), "--tmpfs", "/dev/shm"] if shared_memory else []
    words += ["--proc", "/proc"]
    for name in namespaces.COVERED_PROC:
        words += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    return [*words, "--dir", str(view.start), "--remount-ro", "/"]
