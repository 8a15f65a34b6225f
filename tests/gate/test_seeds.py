"""The gate on real designs, at the default configuration."""

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
from asiarch_hpc.gate.report import to_text
from asiarch_hpc.records import GateReport
from asiarch_hpc.training.backbone import build_model, count_parameters
from asiarch_hpc.training.tuner import match_size

SCALE, VOCAB = ScaleConfig(), 2048


def examine(source: str, writable: Path) -> GateReport:
    config = GateConfig()

    def count(source: str, dim: int, depth: int) -> int:
        return count_parameters(source, dim=dim, depth=depth, heads=SCALE.heads, ffn_multiple=SCALE.ffn_multiple)

    target = count(compose(seed_tree("delta_net")), SCALE.dim, SCALE.depth)

    def build(dim: int, depth: int, vocab: int) -> nn.Module:
        return build_model(source, vocab=vocab, scale=SCALE, dim=dim, depth=depth, seed=0)

    def size() -> tuple[int, int]:
        return match_size(
            functools.partial(count, source),
            target=target,
            reference_dim=SCALE.dim,
            reference_depth=SCALE.depth,
            dim_step=config.dim_step,
            tolerance=config.parameter_tolerance,
        )

    text = torch.tensor(list(Path(__file__).read_bytes()[: 4 * (SCALE.length + 1)])).view(4, -1)
    return check(
        source,
        config=config,
        build=build,
        vocab=VOCAB,
        length=SCALE.length,
        size=size,
        target_parameters=target,
        text=text,
        seed=0,
        writable=writable,
    )


@pytest.mark.parametrize("name", ["delta_net", "ttt_linear", "gpt"])
def test_seed_designs_pass(name: str, tmp_path: Path) -> None:
    report = examine(compose(seed_tree(name)), tmp_path)
    assert report.passed, to_text(report)
    assert all(item.severity == "property" for item in report.findings), to_text(report)
    quadratic = name == "gpt"
    assert (report.time_exponent > 1.3) is quadratic
    assert report.flops_per_token > 2 * report.parameters


def test_a_leak_planted_into_a_seed_is_caught(tmp_path: Path) -> None:
    source = compose(seed_tree("gla"))
    assert source.count("return X, Z") >= 1
    leaking = "return X + 0.1 * X.mean(1, keepdim=True), Z".join(source.rsplit("return X, Z", 1))
    report = examine(leaking, tmp_path)
    refused = {item.code for item in report.findings if item.severity == "reject"}
    assert refused == {"causality.leak", "causality.gradient", "causality.documents"}, to_text(report)
