"""Atomic files: a reader sees the old content or the new, never a part; a full disk leaves the old."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

from asiarch_hpc.errors import RecordError, StoreError


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`: temporary name in the same folder, fsync, rename.

    Raises:
        StoreError: disk full, no permission, a path component that is not a folder.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise store_error(error, path) from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """`write_bytes` of indented JSON that a person can read; NaN is refused, it is no JSON."""
    write_bytes(path, json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """The content of a JSON file, so that another record can hold its hash."""
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def create_json(path: Path, data: Any) -> bool:
    """Writes a file that must not exist yet, whole or not at all; False if it exists. Atomic on NFS too (link)."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    write_json(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise store_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return True


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
        RecordError: absent, truncated, or not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RecordError(f"{path}: the file is missing; it was expected by a record that refers to it") from error
    except OSError as error:
        raise store_error(error, path) from error
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors
        raise RecordError(f"{path}: not valid JSON ({error}); the file is truncated or was edited by hand") from error


def move_aside(path: Path) -> Path:
    """Renames a damaged file or folder to the first free `<name>.damaged-N`, and returns that name."""
    number = 1
    while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    try:
        os.rename(path, target)
    except OSError as error:
        raise store_error(error, path) from error
    return target


def store_error(error: OSError, path: Path) -> StoreError:
    """The project's error for an operating-system error, with what the user can do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "the disk or quota is full; free some space and start the same command again, nothing is lost"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "check the owner and permissions of the results folder"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        advice = "a file stands where a folder is expected; move it away"
    else:
        advice = "check the file system"
    return StoreError(error.errno, f"{path}: {os.strerror(error.errno or 0)}; {advice}")
