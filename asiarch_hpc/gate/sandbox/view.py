"""What a confined process may see of the file system: a list of what is needed, nothing else.

Interpreter, packages, compilers, libraries, devices, and what its caller names. Home folders, other runs, sockets of
services and temporary files of others are on no list. The same view serves Landlock, as rules, and mount
namespaces, as the only things that are mounted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom")
SHARED_MEMORY = Path("/dev/shm")
_SYSTEM: tuple[str, ...] = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store", "/gnu/store")
_SYSTEM += ("/sys/devices", "/sys/class", "/sys/bus", "/sys/dev", "/sys/module", "/sys/kernel/mm")
_SETTINGS: tuple[str, ...] = (
    "alternatives",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ld.so.preload",
    "localtime",
    "locale.alias",
)
_SETTINGS += ("group", "passwd", "nsswitch.conf", "mime.types", "os-release", "OpenCL", "vulkan", "nvidia")
_NETWORK_SETTINGS = ("hosts", "host.conf", "resolv.conf", "gai.conf", "services", "protocols", "libibverbs.d", "rdma")
_PROJECT = ("asiarch_hpc", "kernels", "jobs", "configs")  # of a working copy: all but results
_VARIABLES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "ROCM_PATH")
_COMPILERS = ("cc", "gcc", "g++", "clang", "nvcc")
_LINKS_FOLLOWED = 40  # as many as the kernel follows


@dataclass(frozen=True, slots=True)
class View:
    """Real paths that are seen, the symbolic links on the way to them, and the folder to start in.

    `writable` are folders, or files that exist. `devices` may hold the machine's shared memory.
    """

    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    devices: tuple[Path, ...]
    links: tuple[tuple[Path, str], ...]
    start: Path


def view_of(readable: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path], *, network: bool) -> View:
    """The view for a child of this process: what it needs to run Python and torch, and what is asked for.

    Raises:
        FileNotFoundError: a path of `readable` or `writable` does not exist.
    """
    links: dict[Path, str] = {}
    wanted = [follow(path, links) for path in writable]
    seen = [follow(path, links) for path in readable]
    missing = [str(path) for path in (*wanted, *seen) if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{missing} do not exist; what a sandbox is to show must be there before")
    # What is loaded tells what to show; it is looked at again when more is.
    usual, usual_links = _usual(network, len(sys.modules), tuple(sys.path), os.getcwd())
    seen = _outermost([*seen, *usual])
    covered = [str(path) for path in (*seen, *wanted)]
    shown = {link: to for link, to in (links | usual_links).items() if not _lies_in(str(link), covered)}
    return View(
        readable=tuple(seen),
        writable=tuple(wanted),
        devices=tuple(path for path in devices if path.exists()),
        links=tuple(shown.items()),
        start=Path.cwd(),
    )


def follow(path: Path, links: dict[Path, str]) -> Path:
    """The real path; `links` gets each symbolic link on the way, and what it points to."""
    real = Path("/")
    parts = list(Path(os.path.abspath(path)).parts[1:])
    for _ in range(_LINKS_FOLLOWED + len(parts)):
        if not parts:
            break
        part = parts.pop(0)
        step = real.parent if part == ".." else real / part
        try:
            target = os.readlink(step)
        except OSError:  # no link, or nothing at all
            real = step
            continue
        links[step] = target
        real = Path("/") if target.startswith("/") else real
        parts = [word for word in Path(target).parts if word != "/"] + parts
    return real


def covers(view: View, path: Path) -> bool:
    """Whether a path lies in what is seen."""
    return _lies_in(str(follow(path, {})), [str(shown) for shown in (*view.readable, *view.writable)])


@functools.lru_cache(maxsize=4)
def _usual(network: bool, modules: int, paths: tuple[str, ...], start: str) -> tuple[list[Path], dict[Path, str]]:
    """What every child of this process needs, and the links on the way; the arguments are what it depends on."""
    links: dict[Path, str] = {}
    etc = (*_SETTINGS, *_NETWORK_SETTINGS) if network else _SETTINGS
    known = [*_SYSTEM, *(f"/etc/{name}" for name in etc)]
    known += [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, sys.executable]
    found = [follow(Path(path), links) for path in known]
    found += [follow(path, links) for module in list(sys.modules.values()) for path in _origin(module)]
    found += [real for path in _named(paths) if not _is_private(real := follow(path, links))]
    return _outermost(path for path in found if path.exists()), links


def _named(paths: Iterable[str]) -> Iterator[Path]:
    """Folders of packages, of libraries and of compilers that variables name."""
    for entry in map(Path, filter(None, paths)):
        if entry.is_file() or any(entry.glob("*.dist-info")):
            yield entry
    for name in _VARIABLES:
        yield from map(Path, filter(None, os.environ.get(name, "").split(":")))
    for name in (*_COMPILERS, os.environ.get("CC", ""), os.environ.get("CXX", "")):
        program = shutil.which(name)
        if program:
            folder = Path(os.path.realpath(program)).parent
            yield folder.parent if folder.name == "bin" else folder


def _origin(module: object) -> Iterator[Path]:
    """Folder or file of a loaded top-level package, or script, that lies outside the usual folders of packages."""
    name = getattr(module, "__name__", "")
    if "." in name:
        return
    source = getattr(getattr(module, "__spec__", None), "origin", None) or getattr(module, "__file__", None)
    if not isinstance(source, str) or not source.startswith("/") or source.startswith((sys.prefix, sys.base_prefix)):
        return
    path = Path(source)
    if path.name != "__init__.py":
        yield path
        return
    yield path.parent
    if name == __name__.partition(".")[0]:
        yield from (path.parent.parent / other for other in _PROJECT)


def _is_private(path: Path) -> bool:
    """Whether a folder is too much to show because some variable names it: it holds a home, or the like."""
    homes = {os.path.expanduser("~"), tempfile.gettempdir(), os.getcwd()}
    with contextlib.suppress(KeyError):
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    return any(_lies_in(os.path.realpath(home), [str(path)]) for home in homes)


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """The paths that lie beneath no other one, sorted."""
    kept: list[str] = []
    for path in sorted(set(map(str, paths))):
        if not _lies_in(path, kept):
            kept.append(path)
    return list(map(Path, kept))


def _lies_in(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
