"""Candidates of the tuner that are refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernels.configurations import find, read_table
from tests.kernels.bench_channels import norm
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
    candidates = Candidates("rms_norm", [norm(64, 1024, gated=False)], start, capability=90, most_shared=160)
    assert str(candidates.refusal(start)).endswith("backward_kernel: 3936 bytes more of shared memory than there are")


def test_configurations_of_the_same_kernels_are_one() -> None:
    start = find(read_table(), "rms_norm", "sm_90", {"bits": 16, "width": 2048, "gated": 0})
    candidates = Candidates("rms_norm", [norm(33, 2048, gated=False)], start, capability=90, most_shared=232_448)
    assert candidates.identity(start) == candidates.identity(changed(start, "elements", 1024))  # a row as well
    assert candidates.identity(start) != candidates.identity(changed(start, "elements", 4096))
    assert candidates.refusal({"elements": 2048, "warps": 4}) == (
        "TypeError Sizes.__init__() missing 2 required positional arguments: 'programs' and 'stages'"
    )
