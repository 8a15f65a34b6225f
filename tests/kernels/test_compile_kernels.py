"""Kernels compiled without a GPU. Those of the mixers, the scan and the convolutions: in the files of their own."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels import bench, compile_kernels
from tests.kernels.absent_gpu import Launch, compiled, launches
from tests.kernels.bench import all_cases
from tests.kernels.bench_case import Case
from tests.kernels.bench_channels import gates, head, norm
from tests.kernels.bench_mixers import delta
from tests.kernels.compile_kernels import Use, main, use


def test_every_case_of_the_benchmark_reaches_its_kernels() -> None:
    """At its full size; what it launches there is what a GPU would be given."""
    for case in all_cases():
        assert bool(launches(case)) == (case.operation not in ("ttt_linear", "long_convolution")), case.name


@pytest.mark.parametrize(
    ("capability", "short", "twice", "times"), [(86, 1024, "states", [2, 4]), (90, 256, "walk_adjoint", [0, 2])]
)
def test_long_sequences_are_cut_into_segments(capability: int, short: int, twice: str, times: list[int]) -> None:
    kernels = [[kernel.__name__ for kernel, _, _ in launches(delta(1, length, 8, 128, gated=False), capability)]
               for length in (short, 32_768)]  # fmt: skip
    assert [names.count(twice) for names in kernels] == times
    assert [names.count("links") for names in kernels] == [0, 2]


@pytest.mark.parametrize("capability", [86, 90])
def test_links_of_wide_heads_fit(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = launches(delta(1, 32_768, 8, 256, gated=False), capability)
    uses = [use(launch, capability) for launch in made if launch[0].__name__ == "links"]
    assert len(uses) == 2
    assert not any(one.over for one in uses)


@pytest.mark.parametrize(
    ("case", "kernels"),
    [(head(1, 65, 128), 4), (head(1, 65, 1024), 4), (norm(33, 100, gated=True), 3), (gates(20, 100), 2)],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_compiles_for_hopper(case: Case, kernels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    uses = [use(launch, 90) for launch in launches(case)]
    assert len(uses) == kernels
    assert all(one.registers > 0 and not one.over for one in uses)


def test_a_width_that_eight_divides_is_moved_by_16_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = compiled(launches(gates(20, 680)), 90)
    moves = [re.findall(r"(?:ld|st)\.global\S*", kernel.asm["ptx"]) for kernel in kernels]
    assert [len(kernel) > 0 for kernel in moves] == [True, True]
    assert all(move.endswith(".v4.b32") for kernel in moves for move in kernel), moves


def test_what_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 256 in bfloat16 do not fit compute capability 8.6, as their README says."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = launches(delta(1, 80, 4, 256, gated=False), 86)
    states = use(next(launch for launch in made if launch[0].__name__ == "states"), 86)
    assert states.over == 147_456 - 101_376
    assert str(states).endswith("46080 MORE THAN THERE IS")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert main(["swiglu", "96", "--type", "float16"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.endswith("compute capability 90, float16")
    assert [line.split()[4] for line in lines] == ["forward_kernel", "backward_kernel"]

    def refuse(launch: Launch, capability: int) -> Use:
        raise RuntimeError("no such layout\nand more")

    monkeypatch.setattr(compile_kernels, "use", refuse)
    assert main(["swiglu", "96"]) == 1
    assert "forward_kernel      RuntimeError no such layout" in capsys.readouterr().out


def test_the_benchmark_compiles_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes with the same kernels, and a case that fails, which its check will tell."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    broken = replace(gates(20, 96), ours=lambda x: x.no_such_thing)
    assert bench.compile_kernels([gates(320, 96), broken, gates(640, 96)]).startswith("2 kernels compiled in ")
    assert len(list(tmp_path.rglob("*.cubin"))) == 2
