"""Names what untrusted code reaches for: files, processes, sockets, signals.

Python tells an audit hook of such calls before they happen, and no Python code can take a hook away. The sandbox
refuses what would do harm; this says what was tried, also where the code hides that it was refused. Only calls by
code without a file (a design's text), directly or through Python's standard library, are named: torch and compilers
open files and start processes of their own. Code that reaches the kernel by other ways goes unnamed, not uncontained.
Source: PEP 578.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_EVENTS = frozenset({
    "ctypes.dlopen", "gc.get_objects", "gc.get_referrers", "os.chmod", "os.chown", "os.exec", "os.fork", "os.forkpty",
    "os.kill", "os.killpg", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir",
    "os.setxattr", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.utime", "pty.spawn", "resource.prlimit",
    "resource.setrlimit", "shutil.rmtree", "signal.pthread_kill", "socket.bind", "socket.connect", "socket.sendto",
    "subprocess.Popen", "sys.addaudithook", "sys.setprofile", "sys.settrace",
})  # fmt: skip
_CODE_SUFFIXES = (".py", ".pyc", ".so")  # read for the lines of a message
_LIBRARY = os.path.dirname(os.__file__) + os.sep
_PACKAGES = ("site-packages", "dist-packages")
_MOST = 20
_CHARS = 80


def report_attempts(tell: Callable[[str], None]) -> None:
    """Calls `tell` with a line for each different attempt from now on, at most twenty; for the process's life."""
    seen: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS and event != "open":
            return
        if len(seen) >= _MOST or (event == "open" and not _is_telling(arguments)) or not _is_by_a_design():
            return
        line = f"{event}({', '.join(_short(word) for word in arguments[:2] if word is not None)})"
        if line not in seen:
            seen.add(line)
            tell(line)

    sys.addaudithook(hook)


def _short(value: Any) -> str:
    """The end of it, where a path says most."""
    text = str(value)
    return text if len(text) <= _CHARS else f"…{text[-_CHARS:]}"


def _is_telling(arguments: tuple[Any, ...]) -> bool:
    """Whether an opened file is more than a line of source text that a message shows."""
    path, mode, flags = arguments
    writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    writes = writes or (isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR)))
    return writes or not str(path).endswith(_CODE_SUFFIXES)


def _is_by_a_design() -> bool:
    """Whether the nearest frame outside the standard library belongs to code without a file."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith("<frozen importlib"):
            return False  # an import reads files of its own accord
        frozen = name.startswith("<frozen")
        if name.startswith("<") and not frozen:
            return True
        if not frozen and (not name.startswith(_LIBRARY) or any(folder in name for folder in _PACKAGES)):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False
