"""Compiled kernels that the jobs of a run share, so that a training reaches its first step quickly.

A training compiles into a folder of its own on the node's disk. What a baseline leaves there is packed into one file,
named after it; its source is ours. Baselines begin with their own files, candidates with the reference baseline's.
What a candidate's code could have written is never kept: through it a design would carry what it learned from one
training into another, or into its evaluation beside the weights that were hashed (truth rule 1).
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def environment(folder: Path) -> dict[str, str]:
    """Variables that make torch and Triton keep what they compile in `folder`."""
    return {name: str(folder / part) for name, part in FOLDERS.items()}


def unpack(archives: Path, baseline: str, folder: Path) -> None:
    """Puts what an earlier training of a baseline compiled into `folder`; nothing where that is missing or damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    # What cannot be read is compiled again. A zip file holds no links, and its paths are kept inside the folder.
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(archives / f"{baseline}.zip") as archive:
        archive.extractall(folder)


def pack(folder: Path, archives: Path, baseline: str) -> None:
    """Keeps what a training of a baseline compiled, unless an earlier one did. A full disk is no reason to fail."""
    target = archives / f"{baseline}.zip"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if target.exists() or not files:
        return
    try:
        archives.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".draft-", dir=archives)
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", strict_timestamps=False) as archive:
                for path in files:
                    archive.write(path, path.relative_to(folder))
            os.replace(draft, target)
        except OSError:
            os.unlink(draft)
    except OSError:
        return
