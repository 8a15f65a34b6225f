"""The whole gate on a GPU: the seed designs pass there too. `pytest -s` shows what it takes."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from asiarch_hpc.config import GateConfig, ScaleConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.gate.check import check
from asiarch_hpc.gate.checks.subject import Precision
from asiarch_hpc.gate.report import to_text
from asiarch_hpc.records import GateReport
from asiarch_hpc.training.backbone import build_model, count_parameters
from asiarch_hpc.training.tuner import match_size

pytestmark = [pytest.mark.gpu, pytest.mark.sandboxed]

SCALE, VOCAB, REFERENCE = ScaleConfig(), 1024, "delta_net"
CONFIG = GateConfig(device="cuda", memory_gb=16.0, clock_decides=False)
SEEDS = ["delta_net", "gated_delta_net", "gla", "mamba2", "retnet", "rwkv6", "ttt_linear", "gpt"]


def examine(source: str, writable: Path, *, precision: Precision = "bf16", config: GateConfig = CONFIG) -> GateReport:
    """The report of a design beside the reference, at the default scale."""
    reference = compose(seed_tree(REFERENCE))

    def build(text: str, dim: int, depth: int, vocab: int) -> nn.Module:
        return build_model(text, vocab=vocab, scale=SCALE, dim=dim, depth=depth, seed=0)

    def count(text: str, dim: int, depth: int) -> int:
        return count_parameters(text, dim=dim, depth=depth, heads=SCALE.heads, ffn_multiple=SCALE.ffn_multiple)

    target = count(reference, SCALE.dim, SCALE.depth)
    size = functools.partial(
        match_size,
        functools.partial(count, source),
        target=target,
        reference_dim=SCALE.dim,
        reference_depth=SCALE.depth,
        dim_step=config.dim_step,
        tolerance=config.parameter_tolerance,
    )
    return check(
        source,
        config=config,
        build=functools.partial(build, source),
        build_reference=functools.partial(build, reference, SCALE.dim, SCALE.depth),
        vocab=VOCAB,
        length=SCALE.length,
        size=size,
        target_parameters=target,
        text=torch.tensor(list(Path(__file__).read_bytes()[: 4 * (SCALE.length + 1)])).view(4, -1),
        seed=0,
        writable=writable,
        precision=precision,
    )


@pytest.mark.parametrize("name", SEEDS)
def test_seed_designs_pass(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(compose(seed_tree(name)), tmp_path)
    with capsys.disabled():
        print(f"\n{to_text(report, name=name)}")
    assert report.passed, to_text(report)
    assert report.device == "cuda"
    assert report.clock_bytes > 0
    assert report.clock_relative_seconds > 0


def test_fp32_on_a_gpu_gives_the_same_verdict(tmp_path: Path) -> None:
    report = examine(compose(seed_tree("gla")), tmp_path, precision="fp32")
    assert report.passed, to_text(report)


def test_a_leak_is_caught(tmp_path: Path) -> None:
    source = compose(seed_tree("gla"))
    leaking = "return X + 0.1 * X.mean(1, keepdim=True), Z".join(source.rsplit("return X, Z", 1))
    report = examine(leaking, tmp_path)
    assert "causality.leak" in {item.code for item in report.findings}, to_text(report)


def test_cost_is_counted_alike_on_a_gpu_and_a_cpu(tmp_path: Path) -> None:
    source = compose(seed_tree("retnet"))
    there = examine(source, tmp_path)
    here = examine(source, tmp_path, config=GateConfig(device="cpu", clock_decides=False))
    for name in ("flops_per_token", "launches", "modelled_seconds_per_token", "time_exponent", "relative_seconds"):
        assert getattr(there, name) == getattr(here, name), name
