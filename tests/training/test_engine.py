import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.backbone import build_model
from asiarch_hpc.training.data import IGNORED, Batch
from asiarch_hpc.training.engine import TorchEngine, choose_device
from asiarch_hpc.training.objective import Objective, choose_precision


def make_batch(vocab: int = 30, seed: int = 0, rows: int = 2) -> Batch:
    ids = torch.randint(0, vocab, (rows, 9), generator=torch.Generator().manual_seed(seed))
    return Batch(ids[:, :-1], ids[:, 1:], 8 * rows, torch.zeros(rows, 8, dtype=torch.int32), 8 * rows)


def test_the_loss_is_the_mean_over_real_predictions(source: str, scale: ScaleConfig) -> None:
    model = build_model(source.replace("Dropout(0.1)", "Identity()"), vocab=30, scale=scale, dim=16, depth=1, seed=0)
    batch = make_batch()
    targets = batch.targets.clone()
    targets[:, 3:] = IGNORED
    with torch.no_grad():
        logits, _ = model(batch.inputs[:, :3])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, :3].flatten())
    objective = Objective(model, scale, torch.device("cpu"))
    total, nats = objective.loss(batch.inputs, targets, tokens=6, share=1.0)
    assert float(nats) == pytest.approx(float(expected), rel=1e-6)
    assert float(total.detach()) == float(nats)


def test_micro_batches_add_up_to_the_step(source: str, scale: ScaleConfig) -> None:
    source, batch = source.replace("Dropout(0.1)", "Identity()"), make_batch()
    targets = batch.targets.clone()
    targets[0, 5:] = IGNORED  # rows with different numbers of predictions count by their predictions
    batch = replace(batch, targets=targets, tokens=13, global_tokens=13)
    results, weights = [], []
    for rows in (0, 1):
        scale.micro_batch = rows
        model = build_model(source, vocab=30, scale=scale, dim=16, depth=1, seed=0)
        results.append(TorchEngine(model, scale).step(batch, 0.1))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].gradient_norm == pytest.approx(results[1].gradient_norm, rel=1e-5)
    assert (weights[0] - weights[1]).norm() < 1e-3 * weights[0].norm()


def short_of_memory(source: str, condition: str) -> str:
    """The design, in whose second block memory runs out where a condition on `X` and `self.passes` holds: after the
    first block drew random numbers."""
    short = source.replace("self.norm =", "self.passes, self.place = 0, layer_idx\n        self.norm =", 1)
    begin = f"""self.passes += 1
        if self.place == 1 and ({condition}):
            raise torch.OutOfMemoryError('CUDA out of memory')
        mean ="""
    return short.replace("mean =", begin, 1)


def trained(source: str, scale: ScaleConfig, *, steps: int = 3) -> tuple[list[float], torch.Tensor, TorchEngine]:
    """Losses, weights, and the engine after steps of four rows."""
    model = build_model(source, vocab=30, scale=scale, dim=16, depth=2, seed=0)
    torch.manual_seed(0)
    engine = TorchEngine(model, scale)
    losses = [engine.step(make_batch(rows=4, seed=step), 1e-2).loss for step in range(steps)]
    return losses, torch.cat([p.detach().flatten() for p in model.parameters()]), engine


@pytest.mark.parametrize(("fitting", "condition"), [(2, "len(X) > 2"), (1, "len(X) > 1"), (2, "self.passes == 1")])
def test_a_step_out_of_memory_goes_on_as_if_begun_with_fewer_rows(
    source: str, scale: ScaleConfig, fitting: int, condition: str, caplog: pytest.LogCaptureFixture
) -> None:
    losses, weights, engine = trained(short_of_memory(source, condition), scale)
    expected_losses, expected, _ = trained(source, replace(scale, micro_batch=fitting))
    assert losses == expected_losses  # dropout's random numbers included
    assert torch.equal(weights, expected)
    assert engine.micro_batch == fitting
    assert "4 rows a pass are too many, the step is done again with 2: OutOfMemoryError: CUDA out" in caplog.text
    assert len(caplog.records) == (2 if fitting == 1 else 1)


def test_gradients_of_a_step_that_ran_out_of_memory_half_way_do_not_count(source: str, scale: ScaleConfig) -> None:
    """In the backward pass of its last rows."""
    source = source.replace("Dropout(0.1)", "Identity()")
    scale.micro_batch = 2
    model = build_model(source, vocab=30, scale=scale, dim=16, depth=1, seed=0)
    calls = []

    def fail(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        if calls[-1] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient

    model.embedding.weight.register_hook(fail)
    engine = TorchEngine(model, scale)
    result = engine.step(make_batch(rows=4), 1e-2)
    plain = TorchEngine(
        build_model(source, vocab=30, scale=scale, dim=16, depth=1, seed=0), replace(scale, micro_batch=1)
    )
    wanted = plain.step(make_batch(rows=4), 1e-2)
    assert (result.loss, result.gradient_norm) == (wanted.loss, wanted.gradient_norm)
    assert (engine.micro_batch, len(calls)) == (1, 2 + 4)


def test_out_of_memory_with_one_row_is_the_designs_fault(source: str, scale: ScaleConfig) -> None:
    model = build_model(short_of_memory(source, "True"), vocab=30, scale=scale, dim=16, depth=2, seed=0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(torch.OutOfMemoryError):
        TorchEngine(model, scale).step(make_batch(rows=4), 1e-2)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """torch keeps what it compiled by the code of a block, which tests share."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning")
def test_a_compiled_design_is_compiled_anew_for_fewer_rows(
    source: str, scale: ScaleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale.compile = "on"
    compiled = []

    def compile_fx(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **_: object) -> object:
        compiled.append([len(value) for value in inputs if value.ndim == 3])
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    model = build_model(source, vocab=30, scale=scale, dim=16, depth=1, seed=0)

    def fail(_: object, arguments: tuple[torch.Tensor]) -> None:
        if len(arguments[0]) > 2 and compiled:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = TorchEngine(model, scale)
    engine.step(make_batch(rows=4), 1e-2)
    model.embedding.register_forward_pre_hook(fail)
    resets = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda reset=torch._dynamo.reset: resets.append(reset()))
    for _ in range(2):
        engine.step(make_batch(rows=4), 1e-2)
    assert (engine.micro_batch, engine.compiled, len(resets)) == (2, True, 1)
    assert compiled == [[4], [2]]


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning")
def test_a_design_that_cannot_be_compiled_trains_as_it_is(
    source: str, scale: ScaleConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale.compile = "on"

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    model = build_model(source, vocab=30, scale=scale, dim=16, depth=1, seed=0)
    engine = TorchEngine(model, scale)
    losses = [engine.step(make_batch(), 1e-2).loss for _ in range(20)]
    assert not engine.compiled
    assert "no compiler here" in engine.not_compiled_because
    assert len(engine.not_compiled_because.splitlines()) == 1
    assert losses[-1] < losses[0] / 2


def test_weights_survive_a_step_that_is_not_finite(source: str, scale: ScaleConfig) -> None:
    poisoned = source.replace("return X +", "return X * float('nan') +")
    model = build_model(poisoned, vocab=30, scale=scale, dim=16, depth=1, seed=0)
    before = {n: p.clone() for n, p in model.named_parameters()}
    result = TorchEngine(model, scale).step(make_batch(), 0.1)
    assert result.loss != result.loss
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_decay_shrinks_matrices_only(source: str, scale: ScaleConfig) -> None:
    scale.weight_decay = 0.5
    frozen = source.replace("return X +", "return X + 0 *")
    model = build_model(frozen, vocab=30, scale=scale, dim=16, depth=1, seed=0)
    gate, norm = (model.get_parameter(f"blocks.0.block.{n}.weight") for n in ("gate", "norm"))
    size = gate.norm().item()
    TorchEngine(model, scale).step(make_batch(), 0.1)
    assert gate.norm().item() == pytest.approx(size * (1 - 0.5 * 0.1), rel=1e-4)
    assert torch.equal(norm, torch.ones(16))


def test_complex_parameters_train(source: str, scale: ScaleConfig) -> None:
    phases = source.replace(
        "self.norm =", "self.phase = nn.Parameter(torch.ones(dim, dtype=torch.cfloat))\n        self.norm ="
    )
    phases = phases.replace("return X +", "return X * self.phase.real +")
    model = build_model(phases, vocab=30, scale=scale, dim=16, depth=1, seed=0)
    engine = TorchEngine(model, scale)
    losses = [engine.step(make_batch(), 1e-2).loss for _ in range(20)]
    assert losses[-1] < losses[0]


def test_clipping_reports_the_norm_before(source: str, scale: ScaleConfig) -> None:
    norms = []
    for clip in (1e9, 1e-3):
        scale.grad_clip = clip
        model = build_model(source, vocab=30, scale=scale, dim=16, depth=1, seed=0)
        torch.manual_seed(0)
        norms.append(TorchEngine(model, scale).step(make_batch(), 0.1).gradient_norm)
    assert norms[0] == norms[1] > 1e-2


def test_bf16_trains_where_asked_for(source: str, scale: ScaleConfig) -> None:
    scale.precision, scale.device = "bf16", "cpu"
    model = build_model(source, vocab=30, scale=scale, dim=16, depth=2, seed=0)
    engine = TorchEngine(model, scale)
    losses = [engine.step(make_batch(), 1e-2).loss for _ in range(30)]
    assert (engine.device, engine.precision) == ("cpu", "bf16")
    assert losses[-1] < losses[0] / 2
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(("device", "precision"), [("tpu", "auto"), ("cpu", "fp8")])
def test_unknown_settings(device: str, precision: str) -> None:
    with pytest.raises(ConfigError, match="was expected"):
        choose_precision(precision, choose_device(device))


def test_a_missing_gpu_is_named_and_auto_falls_back() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda", has_cuda=lambda: False)
    assert choose_device("auto", has_cuda=lambda: False).type == "cpu"
    assert choose_device("auto", has_cuda=lambda: True).type == "cuda"
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch 2.11 on RMSNorm under autocast
def test_gpu_trains_in_bf16_and_continues(source: str, scale: ScaleConfig, tmp_path: Path) -> None:
    scale.device = "cuda"
    model = build_model(source, vocab=30, scale=scale, dim=16, depth=2, seed=0)
    engine = TorchEngine(model, scale)
    losses = [engine.step(make_batch(), 1e-2).loss for _ in range(30)]
    assert engine.precision == "bf16"
    assert losses[-1] < losses[0] / 2
    checkpoint.save({"identity": "gpu", "engine": engine.state()}, tmp_path / "ck")
    expected = engine.step(make_batch(), 1e-2).loss  # first: both engines draw from the same random state
    loaded = checkpoint.load(tmp_path / "ck", identity="gpu")
    assert loaded is not None
    other = TorchEngine(build_model(source, vocab=30, scale=scale, dim=16, depth=2, seed=1), scale)
    other.restore(loaded["engine"])
    assert other.step(make_batch(), 1e-2).loss == pytest.approx(expected, abs=1e-3)


def test_the_compiler_is_loaded_aside() -> None:
    program = (
        "import sys; from asiarch_hpc.training.objective import load_compiler_aside as load; "
        "before = 'torch._inductor.compile_fx' in sys.modules; load().join(); "
        "print(before, 'torch._inductor.compile_fx' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True"]
