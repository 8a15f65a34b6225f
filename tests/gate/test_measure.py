from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.gate.checks.measure import BackwardError, Meter, measure
from tests.gate.planted import SOUND
from tests.gate.toys import CONFIG, DEPTH, DIM, LENGTH, VOCAB, builder, reference_model


class Mixer(nn.Module):
    def __init__(self, kind: str, dim: int = 16, vocab: int = 16) -> None:
        super().__init__()
        self.kind = kind
        self.embedding, self.linear = nn.Embedding(vocab, dim), nn.Linear(dim, dim, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, None]:
        x = self.embedding(ids)
        if self.kind == "attention":
            return torch.softmax((x @ x.mT).tril(), -1) @ x, None
        if self.kind == "fused attention":
            return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0], None
        if self.kind == "fft":
            return torch.fft.irfft(torch.fft.rfft(x, dim=1), dim=1), None
        if self.kind == "values":
            return self.linear(x) * float(x.sum()), None
        if self.kind == "no gradient":
            return self.linear(x).detach(), None
        if self.kind == "four products":
            return self.linear(self.linear(self.linear(self.linear(x)))), None
        if self.kind == "short":
            assert ids.shape[1] <= 64
        return self.linear(x), None


def test_arithmetic_of_a_matrix_product_is_exact() -> None:
    measured = measure(Mixer("linear"), 16, 64, config=GateConfig())
    assert measured.flops_per_token == 2 * 16 * 16
    assert measured.launches == 2  # the look-up and the product


def test_fused_and_plain_attention_have_the_same_matrix_products() -> None:
    fused = measure(Mixer("fused attention"), 16, 64, config=GateConfig()).flops_per_token
    assert pytest.approx(fused, rel=0.5) == 2 * 64 * (16 + 16)


@pytest.mark.parametrize("name", ["running mean", "left-padded convolution", "chunks with a carried state"])
def test_counts_on_values_equal_counts_on_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = builder(SOUND[name])(DIM, DEPTH, VOCAB)
    on_shapes = Meter(model, VOCAB, CONFIG)
    monkeypatch.setattr(copy, "deepcopy", lambda value: (_ for _ in ()).throw(TypeError("not copied")))
    on_values = Meter(model, VOCAB, CONFIG)
    assert on_shapes.step(2, LENGTH) == on_values.step(2, LENGTH)
    assert on_values.values_needed
    assert not on_shapes.values_needed


def test_models_that_look_at_values_are_measured_too() -> None:
    assert measure(Mixer("values"), 16, 64, config=GateConfig()).flops_per_token > 2 * 16 * 16


def test_a_length_that_is_refused_does_not_spoil_the_next() -> None:
    meter = Meter(Mixer("short"), 16, GateConfig())
    first = meter.step(1, 64)
    with pytest.raises(AssertionError):
        meter.step(1, 128)
    assert not meter.values_needed
    assert meter.step(1, 64) == first


def test_what_the_backward_pass_raises_is_told_apart() -> None:
    with pytest.raises(BackwardError) as raised:
        Meter(Mixer("no gradient"), 16, GateConfig()).step(1, 8)
    assert raised.value.__cause__ is not None


def test_a_training_step_costs_about_three_forward_passes() -> None:
    step = Meter(Mixer("linear", dim=64, vocab=64), 64, GateConfig()).step(1, 256)
    assert 2.5 < step.whole.flops / step.forward.flops < 4


def test_peak_memory_is_what_the_backward_pass_keeps() -> None:
    length, dim = 128, 16
    linear = Meter(Mixer("linear"), 16, GateConfig()).step(1, length).peak_bytes
    kept = Meter(Mixer("four products"), 16, GateConfig()).step(1, length).peak_bytes
    row = 4 * length * dim  # bytes of one activation
    assert kept - linear == pytest.approx(3 * row, abs=row)
    assert Meter(Mixer("fused attention"), 16, GateConfig()).step(1, 2048).peak_bytes < 4 * 2048**2
    assert Meter(Mixer("attention"), 16, GateConfig()).step(1, 2048).peak_bytes > 3 * 4 * 2048**2


def test_the_model_and_the_random_state_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = reference_model().eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    measure(model, VOCAB, LENGTH, config=CONFIG)
    monkeypatch.setattr(copy, "deepcopy", lambda value: (_ for _ in ()).throw(TypeError("not copied")))
    measure(model, VOCAB, LENGTH, config=CONFIG)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modelled_time_follows_the_nominal_machine() -> None:
    slow = measure(Mixer("linear"), 16, 64, config=GateConfig(roofline_launch_s=1.0))
    assert slow.modelled_seconds_per_token == pytest.approx(2 / 64, rel=1e-3)
    fast = GateConfig(roofline_launch_s=0.0, roofline_bytes=1e30)
    bound = measure(Mixer("linear"), 16, 64, config=fast).modelled_seconds_per_token
    assert bound == pytest.approx(2 * 16 * 16 / fast.roofline_flops)
