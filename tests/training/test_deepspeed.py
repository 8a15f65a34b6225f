"""Several processes, by DeepSpeed on gloo, against the plain engine: the same losses, whatever is shared out."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asiarch_hpc.config import ScaleConfig, load_config
from asiarch_hpc.designs.seeds import seed_program
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.records import Json
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.backbone import LanguageModel, build_model
from asiarch_hpc.training.corpus import Corpus
from asiarch_hpc.training.data import IGNORED, Batch
from asiarch_hpc.training.deepspeed_engine import DeepSpeedEngine
from asiarch_hpc.training.engine import StepResult, TorchEngine
from asiarch_hpc.training.loop import train
from asiarch_hpc.training.world import World
from tests.training.ranks import run_ranks

TOLERANCE = 2e-5  # nats, of losses of about 5


@pytest.fixture
def plain_source(asking: str) -> str:
    """Without dropout, whose random numbers differ between processes; it keeps documents apart."""
    return asking.replace("nn.Dropout(0.1)", "nn.Dropout(0.0)")


Part = Callable[..., Callable[[World], Json]]


@pytest.fixture
def part(plain_source: str, corpus: Corpus, tmp_path: Path) -> Part:
    """A training, or a part of it, as a function of its place among the processes."""

    def make(
        scale: ScaleConfig, name: str, *, stop_at: int = 10**9, text: str = plain_source
    ) -> Callable[[World], Json]:
        def go(world: World) -> Json:
            rows: list[Json] = []
            asked = itertools.count()
            outcome = train(
                text,
                scale=scale,
                dim=scale.dim,
                depth=scale.depth,
                corpus=corpus,
                seed=0,
                checkpoint_path=tmp_path / name,
                on_metrics=rows.append,
                # Only the last rank is told to stop.
                should_stop=lambda: next(asked) >= stop_at and world.rank == world.size - 1,
                clock=time.monotonic,
                world=world,
            )
            return {
                "losses": [row["loss"] for row in rows],
                "norms": [row["gradient_norm"] for row in rows],
                "status": outcome.status,
                "steps": outcome.steps,
                "tokens": outcome.tokens,
                "ranks": outcome.ranks,
                "micro_batch": outcome.micro_batch,
                "compiled": outcome.compiled,
                "sha": outcome.weights_sha256,
            }

        return go

    return make


@pytest.fixture
def whole(part: Part, scale: ScaleConfig) -> Json:
    """The plain engine's training."""
    return part(scale, "whole")(World())


def weights(path: Path) -> torch.Tensor:
    state, _ = checkpoint.load_weights(path.with_name(path.name + ".weights"))
    return torch.cat([value.flatten() for value in state.values()])


def test_two_processes_train_the_laptop_scale_as_one(part: Part, tmp_path: Path) -> None:
    """Its first steps; rounding errors grow until, after a hundred steps and more, losses differ visibly."""
    laptop = replace(load_config("laptop").scale, steps=40, device="cpu")
    design = seed_program("delta_net")
    whole = part(replace(laptop, micro_batch=2), "whole", text=design)(World())
    for stage in (0, 1, 2):
        scale = replace(laptop, zero_stage=stage, micro_batch=1 if stage == 2 else 0)
        first, second = run_ranks(2, part(scale, f"shared-{stage}", text=design), tmp_path)
        assert first["losses"] == pytest.approx(whole["losses"], abs=TOLERANCE)
        assert first["norms"] == pytest.approx(whole["norms"], rel=1e-3)
        assert (first["tokens"], first["ranks"], first["status"]) == (whole["tokens"], 2, "finished")
        assert second["losses"] == []
        torch.testing.assert_close(
            weights(tmp_path / f"shared-{stage}"), weights(tmp_path / "whole"), atol=2e-3, rtol=1e-3
        )


@pytest.mark.parametrize(("before", "after"), [(1, None), (None, 2), (2, 0)])
def test_a_training_resumes_on_another_number_of_processes(
    part: Part, scale: ScaleConfig, whole: Json, tmp_path: Path, before: int | None, after: int | None
) -> None:
    """Stages of ZeRO with two processes; None is the plain engine alone."""

    def run(stage: int | None, **words: int) -> Json:
        changed = replace(scale, zero_stage=stage or 0)
        if stage is None:
            return part(changed, "shared", **words)(World())
        answer: Json = run_ranks(2, part(changed, "shared", **words), tmp_path)[0]
        return answer

    begun = run(before, stop_at=11)
    assert (begun["status"], begun["steps"]) == ("interrupted", 11)
    ended = run(after)
    assert (ended["status"], ended["steps"], ended["tokens"]) == ("finished", 30, whole["tokens"])
    assert begun["losses"] + ended["losses"] == pytest.approx(whole["losses"], abs=TOLERANCE)


def numbers(result: StepResult) -> Json:
    return {"loss": result.loss, "gradient_norm": result.gradient_norm}


@pytest.mark.parametrize("stage", [0, 2])
def test_ranks_with_different_numbers_of_tokens_and_a_step_that_is_not_finite(
    plain_source: str, scale: ScaleConfig, tmp_path: Path, stage: int
) -> None:
    scale = replace(scale, length=8, zero_stage=stage, micro_batch=1)

    def model() -> LanguageModel:
        return build_model(plain_source, vocab=30, scale=scale, dim=16, depth=1, seed=0)

    def batch(world: World) -> Batch:
        """Four rows, of which the last two have one prediction each."""
        ids = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(0))
        targets = ids[:, 1:].clone()
        targets[2:, 1:] = IGNORED
        share = 4 // world.size
        rows = slice(world.rank * share, (world.rank + 1) * share)
        tokens = int((targets[rows] != IGNORED).sum())
        return Batch(ids[rows, :-1], targets[rows], tokens, torch.zeros(share, 8, dtype=torch.int32), 18)

    def steps(world: World) -> Json:
        poisoned = model()
        with world.connected(torch.device("cpu")):
            engine = DeepSpeedEngine(poisoned, scale, world, seed=0)
            good = [numbers(engine.step(batch(world), 1e-2)) for _ in range(3)]
            before = [p.detach().clone() for p in poisoned.parameters()]
            hook = poisoned.embedding.register_forward_hook(lambda *_: _[2] * (math.nan if world.rank == 1 else 1.0))
            bad = engine.step(batch(world), 1e-2)
            kept = all(torch.equal(p, old) for p, old in zip(poisoned.parameters(), before, strict=True))
            hook.remove()
            return {"good": [*good, numbers(engine.step(batch(world), 1e-2))], "bad": bad.loss, "kept": kept}

    plain = TorchEngine(model(), scale)
    expected = [plain.step(batch(World()), 1e-2) for _ in range(4)]
    for answer in run_ranks(2, steps, tmp_path):
        assert math.isnan(answer["bad"])
        assert answer["kept"]
        for found, wanted in zip(answer["good"], expected, strict=True):
            assert found["loss"] == pytest.approx(wanted.loss, abs=TOLERANCE)
            assert found["gradient_norm"] == pytest.approx(wanted.gradient_norm, rel=1e-4)


def test_processes_may_use_different_parameters(
    part: Part, scale: ScaleConfig, plain_source: str, tmp_path: Path
) -> None:
    """As designs do that choose a path by what the data are."""
    text = plain_source.replace("import torch\n", "import os, torch\n", 1).replace(
        "self.norm =", "self.late, self.early = (nn.Parameter(torch.ones(dim)) for _ in range(2))\n        self.norm ="
    )
    text = text.replace("return X +", "return X * (self.late if os.environ['RANK'] == '1' else self.early) +")
    losses = []
    for stage in (0, 1, 2):
        go = part(replace(scale, steps=10, zero_stage=stage), f"stage-{stage}", text=text)
        losses.append(run_ranks(2, go, tmp_path)[0]["losses"])
    assert losses[1] == pytest.approx(losses[0], abs=TOLERANCE)
    assert losses[2] == pytest.approx(losses[0], abs=TOLERANCE)


def short_of_memory(text: str, *, rank: str, rows: int, backward: bool = False) -> str:
    """A design that runs out of memory in one process, from its fifth pass on, with more than so many rows."""
    return text.replace("import torch\n", "import os, torch\n", 1).replace(
        "        mean =",
        f"""        def fail(_):
            raise torch.OutOfMemoryError('CUDA out of memory')
        self.passes = getattr(self, 'passes', 0) + 1
        if self.passes >= 5 and os.environ['RANK'] == '{rank}' and len(X) > {rows}:
            {"X.register_hook(fail)" if backward else "fail(X)"}
        mean =""",
        1,
    )


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize(("rank", "backward"), [("0", False), ("1", True)])
def test_all_take_fewer_rows_where_one_runs_out_of_memory(
    part: Part,
    scale: ScaleConfig,
    plain_source: str,
    whole: Json,
    tmp_path: Path,
    stage: int,
    rank: str,
    backward: bool,
) -> None:
    scale = replace(scale, zero_stage=stage)
    text = short_of_memory(plain_source, rank=rank, rows=1, backward=backward)
    first, second = run_ranks(2, part(scale, "shared", text=text), tmp_path)
    assert (first["micro_batch"], second["micro_batch"], first["status"]) == (1, 1, "finished")
    assert first["losses"] == pytest.approx(whole["losses"], abs=TOLERANCE)
    assert first["norms"] == pytest.approx(whole["norms"], rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2])
def test_all_end_where_one_runs_out_of_memory_with_one_row(
    part: Part, scale: ScaleConfig, plain_source: str, tmp_path: Path, stage: int
) -> None:
    text = short_of_memory(plain_source, rank="1", rows=0)
    first, second = run_ranks(2, part(replace(scale, zero_stage=stage), "shared", text=text), tmp_path)
    assert "PeerLostError: step 5: another process of this training ran out of memory with one row" in first
    assert "TrainingStoppedError: step 5: OutOfMemoryError: CUDA out of memory" in second


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning")
def test_compiled_blocks_take_fewer_rows_before_the_first_step(
    part: Part, scale: ScaleConfig, plain_source: str, whole: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph.forward)
    short = plain_source.replace("import torch\n", "import os, torch\n", 1).replace(
        "self.norm =", "self.rank = os.environ['RANK']\n        self.norm =", 1
    )
    # An allocation that fails, where dynamo would not compile a `raise`.
    short = short.replace(
        "        mean =", "        torch.empty(2**60 if self.rank == '1' and len(X) > 1 else 1)\n        mean =", 1
    )
    answers = run_ranks(2, part(replace(scale, compile="on"), "shared", text=short), tmp_path)
    assert [(answer["micro_batch"], answer["compiled"]) for answer in answers] == [(1, True)] * 2
    assert answers[0]["losses"] == pytest.approx(whole["losses"], abs=TOLERANCE)


def test_dropout_differs_between_ranks_and_a_resumed_training_draws_the_same(
    part: Part, source: str, scale: ScaleConfig, tmp_path: Path
) -> None:
    unbroken = run_ranks(2, part(scale, "unbroken", text=source), tmp_path)[0]
    begun = run_ranks(2, part(scale, "broken", text=source, stop_at=5), tmp_path)[0]
    ended = run_ranks(2, part(scale, "broken", text=source), tmp_path)[0]
    assert begun["losses"] + ended["losses"] == unbroken["losses"]


def test_the_plain_engine_takes_no_several_processes(part: Part, scale: ScaleConfig) -> None:
    with pytest.raises(ConfigError, match="one process was expected, not 2"):
        part(replace(scale, engine="torch"), "none")(World(rank=1, size=2, port=1))
