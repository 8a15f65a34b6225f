"""Training curves as one Zarr zip, written once when a trial ends; the only module that imports zarr.

While a trial runs, its curves grow as JSON lines: appending to a Zarr zip rewrites chunks and loses everything
when the writer dies before closing it.
"""

from __future__ import annotations

import contextlib
import math
import os
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asiarch_hpc.errors import RecordError
from asiarch_hpc.records import SCHEMA_VERSION
from asiarch_hpc.store.files import store_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes one float64 array `[rows]` per column, in one chunk each; a value absent from a row becomes NaN.

    The file appears whole under its name or not at all.

    Raises:
        RecordError: a column name that Zarr cannot hold, or a value that is no number.
        StoreError: disk full, no permission.
    """
    columns = _columns(rows, path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_zip(columns, len(rows), temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise store_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_curves(path: Path, *names: str) -> dict[str, NDArray[np.float64]]:
    """The columns of a curves file, each `[rows]` float64; all of them, or those named.

    Raises:
        RecordError: absent, truncated, damaged, or not written by `write_curves`; the message names the file.
        StoreError: it exists but the system refuses to read it.
    """
    if not path.exists():
        raise RecordError(f"{path}: no such file; curves are written when a trial ends, until then see metrics.jsonl")
    try:
        return _read_zip(path, names)
    except RecordError:
        raise
    except PermissionError as error:
        raise store_error(error, path) from error
    except Exception as error:  # zip, zarr and codecs raise whatever the damage leads them to
        raise RecordError(f"{path}: not a readable curves file ({type(error).__name__}: {error}); {_ADVICE}") from error


_ADVICE = "the file is truncated or was changed, move it away"


def _columns(rows: Sequence[Mapping[str, float]], path: Path) -> dict[str, list[float]]:
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        if not name or not name.replace("_", "a").isalnum() or not name.isascii():
            raise RecordError(f"{path}: column {name!r}, expected a name of letters, digits and underscores")
    columns: dict[str, list[float]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        for name, values in columns.items():
            value = row.get(name, math.nan)
            if not isinstance(value, int | float):
                raise RecordError(f"{path}: row {index} has {name}={value!r}, expected a number")
            values.append(float(value))
    return columns


def _write_zip(columns: Mapping[str, Sequence[float]], rows: int, path: Path) -> None:
    import numpy as np
    import zarr
    from zarr.storage import ZipStore

    with ZipStore(path, mode="w") as store:
        attributes = {"schema_version": SCHEMA_VERSION, "rows": rows, "columns": list(columns)}
        group = zarr.create_group(store, attributes=attributes)
        for name, values in columns.items():
            data = np.asarray(values, dtype=np.float64)
            # An empty chunk is written too: its absence then always means damage.
            group.create_array(name, data=data, chunks=data.shape, config={"write_empty_chunks": True})


def _read_zip(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    import numpy as np
    import zarr
    from zarr.storage import ZipStore

    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    with ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        attributes: dict[str, Any] = dict(group.attrs)
        if attributes.get("schema_version") != SCHEMA_VERSION:
            raise RecordError(
                f"{path}: schema_version {attributes.get('schema_version')!r}, expected {SCHEMA_VERSION}; "
                "it was written by another version of asiarch-hpc"
            )
        curves: dict[str, NDArray[np.float64]] = {}
        if missing := sorted(set(names) - set(attributes["columns"])):
            raise RecordError(f"{path}: no column {', '.join(missing)}; found {attributes['columns']}")
        for name in names or attributes["columns"]:
            array = group[name]
            if not isinstance(array, zarr.Array):
                raise RecordError(f"{path}: column {name} is no array; {_ADVICE}")
            # Not by zarr's own count: in a zip it takes an array whose name another name begins with for its parent.
            chunks = [member for member in members if member.startswith(f"{name}/c/")]
            if array.shape != (attributes["rows"],) or len(chunks) != 1:
                raise RecordError(
                    f"{path}: column {name} has shape {array.shape} and {len(chunks)} chunks, "
                    f"expected {attributes['rows']} values in one; {_ADVICE}"
                )
            curves[name] = np.asarray(array[:], dtype=np.float64)
        return curves
