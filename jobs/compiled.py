"""Compiled kernels that the jobs of a run share, so that a training reaches its first step quickly.

A training compiles into a folder of its own on the node's disk. What it leaves there is packed into one file, named
after its design. A later training begins with the files of the reference baseline, whose source is ours, and of its
own design: never with what another candidate's code could have written.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def environment(folder: Path) -> dict[str, str]:
    """Variables that make torch and Triton keep what they compile in `folder`."""
    return {name: str(folder / part) for name, part in FOLDERS.items()}


def unpack(archives: Path, designs: Sequence[str | None], folder: Path) -> None:
    """Puts what earlier trainings of these designs compiled into `folder`; what is missing or damaged is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for design in dict.fromkeys(filter(None, designs)):
        try:
            with tarfile.open(archives / f"{design}.tar") as archive:
                archive.extractall(folder, filter="data")
        except (OSError, tarfile.TarError):
            continue  # it is compiled again


def pack(folder: Path, archives: Path, design: str) -> None:
    """Keeps what a training of `design` compiled, unless an earlier one did. A full disk is no reason to fail."""
    target = archives / f"{design}.tar"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if target.exists() or not files:
        return
    try:
        archives.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".draft-", dir=archives)
        try:
            with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
                for path in files:
                    archive.add(path, arcname=str(path.relative_to(folder)), recursive=False)
            os.replace(draft, target)
        except OSError:
            os.unlink(draft)
    except OSError:
        return
