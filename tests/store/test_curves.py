"""Curves: what is written comes back, whole or not at all."""

import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import AsiarchError, RecordError, StoreError
from asiarch_hpc.store.curves import read_curves, write_curves

ROWS = [{"step": i, "loss": 7.0 / (i + 1), "step_seconds": math.nan if i == 3 else 0.5} for i in range(20)]


def test_one_file_one_chunk_a_column(tmp_path: Path) -> None:
    path = tmp_path / "trial" / "curves.zarr.zip"
    write_curves(ROWS, path)
    curves = read_curves(path)
    assert list(curves) == ["step", "loss", "step_seconds"]
    assert curves["step"].tolist() == list(range(20))
    assert curves["loss"].dtype == np.float64
    assert math.isnan(curves["step_seconds"][3])
    assert os.listdir(path.parent) == ["curves.zarr.zip"]
    with zipfile.ZipFile(path) as archive:
        assert sum("/c/" in name for name in archive.namelist()) == 3


def test_plain_zarr_opens_the_file(tmp_path: Path) -> None:
    import zarr

    write_curves(ROWS, tmp_path / "c.zarr.zip")
    with zarr.storage.ZipStore(tmp_path / "c.zarr.zip", mode="r") as store:
        assert zarr.open_group(store, mode="r")["loss"][0] == 7.0


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "loss", "x_2"]), st.floats(allow_nan=True), min_size=1), max_size=5)
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]]) -> None:
    path = tmp_path_factory.mktemp("curves") / "c.zarr.zip"
    write_curves(rows, path)
    curves = read_curves(path)
    assert set(curves) == {name for row in rows for name in row}
    for name, values in curves.items():
        np.testing.assert_array_equal(values, [row.get(name, math.nan) for row in rows])


def test_rewriting_replaces(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr.zip"
    write_curves(ROWS, path)
    write_curves(ROWS[:2], path)
    assert len(read_curves(path)["loss"]) == 2


@pytest.mark.parametrize("rows", [[{"a/b": 1.0}], [{"": 1.0}], [{"loss": "low"}], [{"loss": None}], [{"ä": 1.0}]])
def test_unusable_rows_are_refused_and_leave_nothing(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    with pytest.raises(RecordError, match="expected"):
        write_curves(rows, tmp_path / "c.zarr.zip")
    assert os.listdir(tmp_path) == []


def test_failure_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.zarr.zip"
    write_curves(ROWS, path)

    def full_disk(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StoreError, match="disk or quota is full"):
        write_curves(ROWS[:1], path)
    assert len(read_curves(path)["loss"]) == 20
    assert os.listdir(tmp_path) == ["c.zarr.zip"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"gone\.zarr\.zip"):
        read_curves(tmp_path / "gone.zarr.zip")


def test_other_zip_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(RecordError, match="curves file"):
        read_curves(path)


def test_absent_chunk_is_damage_not_nan(tmp_path: Path) -> None:
    path, cut = tmp_path / "c.zarr.zip", tmp_path / "cut.zarr.zip"
    write_curves(ROWS, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(cut, "w") as new:
        for name in old.namelist():
            if name != "loss/c/0":
                new.writestr(name, old.read(name))
    with pytest.raises(RecordError, match="loss"):
        read_curves(cut)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_damage_never_passes_for_data(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = folder / "c.zarr.zip"
    write_curves(ROWS, path)
    whole = path.read_bytes()
    original = read_curves(path)
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:position])
    else:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
    try:
        curves = read_curves(path)
    except AsiarchError:
        return
    for name in original:  # a flipped byte in unused zip fields may go unnoticed, but never changes a value
        np.testing.assert_array_equal(curves[name], original[name])


def test_importing_the_store_stays_light() -> None:
    code = "import asiarch_hpc.store.curves, sys; print([m for m in ('zarr', 'numpy', 'torch') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
