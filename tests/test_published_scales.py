"""`paper` and `genesys` are the published scales: each number beside where it was published.

A scale that is changed on purpose is changed here too, and in README.md's table of deviations.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from asiarch_hpc.config import at_stage, load_config

MILLION, BILLION = 1e6, 1e9


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published scale. `warmup` is a share of the steps, `promoted` how many designs are trained."""

    config: str
    stage: str | None
    tokens: float
    warmup: float
    schedule: str
    rate: float
    width: int
    depth: int
    heads: int
    tied: bool
    promoted: int
    least_rate: float | None = None  # share of the peak; None: not published


# ASI-Arch: arXiv 2507.18074, section A.2 (sizes, rate, schedules, batch, steps), 3.5 and 4.2 (tokens, designs).
# Genesys: arXiv 2506.20249, table 12 (rates, schedule, warm-up), table 19 (multiples of the parameters, runs), figure
# 11 (runs of 350M; its multiple here is that of 125M). Widths, depths and 350M's rate: allenai/genesys,
# model_discovery/configs/gam_config.py, after GPT-3 (arXiv 2005.14165, table 2.1) and Pythia, as are the heads.
ASI_ARCH = {"config": "paper", "rate": 3e-4, "heads": 8, "tied": False}
GENESYS = {"config": "genesys", "warmup": 0.02, "schedule": "cosine", "least_rate": 0.1, "tied": True}
SCALES = [
    Published(
        **ASI_ARCH, stage=None, tokens=BILLION, warmup=1000 / 2000, schedule="wsd", width=256, depth=8, promoted=1773
    ),
    Published(
        **ASI_ARCH, stage="verify", tokens=BILLION, warmup=1000 / 2000, schedule="wsd", width=1024, depth=24,
        promoted=400,
    ),
    Published(
        **ASI_ARCH, stage="final", tokens=15 * BILLION, warmup=0.5 / 15, schedule="cosine", width=1024, depth=24,
        promoted=5,
    ),
    Published(
        **GENESYS, stage=None, tokens=50 * 14 * MILLION, rate=1e-3, width=128, depth=6, heads=4, promoted=1000
    ),
    Published(
        **GENESYS, stage="31M", tokens=40 * 31 * MILLION, rate=1e-3, width=256, depth=6, heads=8, promoted=400
    ),
    Published(
        **GENESYS, stage="70M", tokens=30 * 70 * MILLION, rate=1e-3, width=512, depth=6, heads=8, promoted=150
    ),
    Published(
        **GENESYS, stage="125M", tokens=20 * 125 * MILLION, rate=6e-4, width=768, depth=12, heads=12, promoted=40
    ),
    Published(
        **GENESYS, stage="350M", tokens=20 * 350 * MILLION, rate=3e-4, width=1024, depth=24, heads=16, promoted=5
    ),
]  # fmt: skip


@pytest.mark.parametrize("published", SCALES, ids=lambda p: f"{p.config}-{p.stage or 'explore'}")
def test_a_scale_is_the_published_one(published: Published) -> None:
    config = load_config(published.config)
    found = at_stage(config, published.stage)
    scale = found.scale
    assert (scale.batch_size, scale.length) == (256, 2048)  # A.2; half a million tokens a step in Genesys's table 12
    # 2,000 steps of A.2 are 5 % more than 1B tokens; all others are within a step.
    assert scale.steps * scale.batch_size * scale.length == pytest.approx(published.tokens, rel=0.05)
    assert scale.warmup_steps / scale.steps == pytest.approx(published.warmup, abs=1 / scale.steps)
    assert (scale.schedule, scale.learning_rate) == (published.schedule, published.rate)
    assert published.least_rate is None or scale.min_lr_ratio == published.least_rate
    assert (scale.dim, scale.depth, scale.heads) == (published.width, published.depth, published.heads)
    assert (scale.tie_embeddings, found.data.tokenizer) == (published.tied, "gpt2")
    promoted = config.search.designs if published.stage is None else config.stages[published.stage].promote.top
    assert promoted == published.promoted


def test_steps_are_the_published_ones() -> None:
    paper, genesys = load_config("paper"), load_config("genesys")
    assert [at_stage(paper, name).scale.steps for name in (None, "verify")] == [2000, 2000]  # section A.2
    assert [at_stage(paper, name).scale.warmup_steps for name in (None, "verify")] == [1000, 1000]
    step = 256 * 2048
    wanted = {published.stage: published.tokens for published in SCALES if published.config == "genesys"}
    assert {name: at_stage(genesys, name).scale.steps for name in wanted} == {
        name: pytest.approx(tokens / step, abs=1) for name, tokens in wanted.items()
    }
    assert paper.stages["final"].scale.steps == pytest.approx(15 * BILLION / step, abs=1)


def test_a_stage_compares_with_the_published_baselines() -> None:
    paper, genesys = load_config("paper"), load_config("genesys")
    for stage in paper.stages.values():  # 2507.18074, section 4.2
        assert (paper.baselines.reference, *stage.baselines) == ("delta_net", "gated_delta_net", "mamba2")
        assert stage.promote.beat_baseline
    assert (genesys.baselines.reference, *genesys.stages["350M"].baselines) == (
        "gpt", "mamba2", "retnet", "rwkv6", "ttt_linear",
    )  # fmt: skip  # 2506.20249, table 5
    assert paper.evaluation.limit == 500  # section A.2: exploration
    assert [stage.evaluation.limit for stage in paper.stages.values()] == [0, 0]  # all documents
