"""Candidates of the tuner that are refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernels.configurations import find, read_table
from tests.kernels.bench_channels import gates, norm
from tests.kernels.bench_mixers import delta
from tests.kernels.candidates import Candidates
from tests.kernels.tune import changed


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def test_rows_that_might_fault_are_refused() -> None:
    """Value columns of 32 in `outputs`, which the kernels of the table do not have."""
    start = find(read_table(), "delta_rule", "sm_90", {"bits": 16, "width": 64, "gated": 0})
    candidates = Candidates("delta_rule", [delta(1, 80, 2, 64)], start, capability=90, most_shared=232_448)
    assert candidates.refusal(start) is None
    narrow = changed(start, "outputs.part", 32)
    assert candidates.refusal(narrow) == "outputs: a product of rows narrower than 128 bytes"


def test_what_does_not_fit_is_refused() -> None:
    shape = {"bits": 16, "width": 1024, "gated": 0}
    start = find(read_table(), "rms_norm", "sm_90", shape)
    candidates = Candidates("rms_norm", [norm(64, 1024, gated=False)], start, capability=90, most_shared=96)
    assert str(candidates.refusal(start)).endswith("_kernel: 4000 bytes more of shared memory than there are")


def test_configurations_of_the_same_kernels_are_one() -> None:
    start = find(read_table(), "swiglu", "sm_90", {"bits": 16, "width": 96})
    candidates = Candidates("swiglu", [gates(20, 96)], start, capability=90, most_shared=232_448)
    assert candidates.identity(start) == candidates.identity(changed(start, "columns", 512))  # as many as 128 there
    assert candidates.identity(start) != candidates.identity(changed(start, "columns", 64))
    assert candidates.refusal({"elements": 2048}) == (
        "TypeError Sizes.__init__() missing 2 required positional arguments: 'columns' and 'warps'"
    )
