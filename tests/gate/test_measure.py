from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.gate.measure import measure
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
        if self.kind == "short":
            assert ids.shape[1] <= 64
        return self.linear(x), None


def test_arithmetic_of_a_matrix_product_is_exact() -> None:
    measured = measure(Mixer("linear"), 16, 64, config=GateConfig())
    assert measured.flops_per_token == 2 * 16 * 16
    assert measured.launches == 2  # the look-up and the product


def test_growth_with_length() -> None:
    exponents = {
        k: measure(Mixer(k), 16, 64, config=GateConfig()).time_exponent for k in ("linear", "fft", "attention")
    }
    assert exponents["linear"] == pytest.approx(1.0, abs=0.05)
    assert exponents["fft"] == pytest.approx(1.0, abs=0.2)
    assert 1.7 < exponents["attention"] < 2.1
    assert measure(Mixer("fused attention"), 16, 64, config=GateConfig()).time_exponent > 1.5


def test_fused_and_plain_attention_have_the_same_matrix_products() -> None:
    fused = measure(Mixer("fused attention"), 16, 64, config=GateConfig()).flops_per_token
    assert pytest.approx(fused, rel=0.5) == 2 * 64 * (16 + 16)


@pytest.mark.parametrize("name", ["running mean", "left-padded convolution", "chunks with a carried state"])
def test_counts_on_values_equal_counts_on_shapes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = builder(SOUND[name])(DIM, DEPTH)
    on_shapes = measure(model, VOCAB, LENGTH, config=CONFIG)
    monkeypatch.setattr(copy, "deepcopy", lambda value: (_ for _ in ()).throw(TypeError("not copied")))
    assert measure(model, VOCAB, LENGTH, config=CONFIG) == on_shapes


def test_models_that_look_at_values_are_measured_too() -> None:
    assert measure(Mixer("values"), 16, 64, config=GateConfig()).flops_per_token > 2 * 16 * 16


def test_models_that_refuse_long_inputs_are_measured_at_short_ones() -> None:
    assert measure(Mixer("short"), 16, 64, config=GateConfig()).time_exponent == pytest.approx(1.0, abs=0.2)


def test_the_model_and_the_random_state_stay_as_they_were() -> None:
    model = reference_model().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    measure(model, VOCAB, LENGTH, config=CONFIG)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modelled_time_follows_the_nominal_machine() -> None:
    slow = measure(Mixer("linear"), 16, 64, config=GateConfig(roofline_launch_s=1.0))
    assert slow.modelled_seconds_per_token == pytest.approx(2 / 64, rel=1e-3)
    fast = GateConfig(roofline_launch_s=0.0, roofline_bytes=1e30)
    bound = measure(Mixer("linear"), 16, 64, config=fast).modelled_seconds_per_token
    assert bound == pytest.approx(2 * 16 * 16 / fast.roofline_flops)
