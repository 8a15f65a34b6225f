"""Compiled kernels that the jobs of a run share, so that a training reaches its first step quickly.

A job compiles into a folder of its own on the node's disk. What the jobs of baselines leave there is packed, one file
for each baseline and kind of job; their source is ours. All jobs begin with all of it. What a candidate's code could
have written is never kept: through it a design would carry what it learned from one training into another, or into
its evaluation beside the weights that were hashed (truth rule 1).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from asiarch_hpc.errors import StoreError
from asiarch_hpc.store.files import write_bytes

FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def environment(folder: Path) -> dict[str, str]:
    """Variables that make torch and Triton keep what they compile in `folder`."""
    return {name: str(folder / part) for name, part in FOLDERS.items()}


def unpack(archives: Path, folder: Path) -> None:
    """Puts what the jobs of baselines compiled into `folder`; what is missing or damaged is compiled again."""
    folder.mkdir(parents=True, exist_ok=True)
    for archive in sorted(archives.glob("*.zip")):
        for member, content in _content(archive):
            target = folder / member
            if not target.resolve().is_relative_to(folder.resolve()):
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            except OSError:  # a file that is cut short would be taken for whole
                target.unlink(missing_ok=True)
    for group in (folder / FOLDERS["TRITON_CACHE_DIR"]).glob("*/__grp__*"):
        _relocate(group)


def pack(folder: Path, archives: Path, name: str) -> None:
    """Adds to the archive `name` what no archive has yet of a folder. A full disk is no reason to fail.

    Of two jobs that pack at once under one name the last one's addition stays; the next job adds the other again.
    """
    known = {member for archive in archives.glob("*.zip") for member, _ in _content(archive)}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    fresh = [path for path in files if str(path.relative_to(folder)) not in known]
    if not fresh:
        return
    target, whole = archives / f"{name}.zip", io.BytesIO()
    with suppress(OSError, StoreError):
        with zipfile.ZipFile(whole, "w", strict_timestamps=False) as archive:
            for member, content in _content(target):
                archive.writestr(member, content)
            for path in fresh:
                archive.write(path, path.relative_to(folder))
        write_bytes(target, whole.getvalue())


def _relocate(group: Path) -> None:
    """Triton finds the files of a kernel by absolute paths in a file beside them; they have moved with it."""
    with suppress(OSError, ValueError, AttributeError, KeyError, TypeError):
        children = json.loads(group.read_text())["child_paths"]
        moved = {child: str(group.parent / Path(path).name) for child, path in children.items()}
        group.write_text(json.dumps({"child_paths": moved}))


def _content(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files of an archive that can be read whole."""
    try:
        content = zipfile.ZipFile(archive)
    except Exception:  # a damaged one raises errors of many kinds, and has nothing that cannot be compiled again
        return
    with content:
        for member in content.namelist():
            try:
                data = content.read(member)
            except Exception:
                continue
            yield member, data
