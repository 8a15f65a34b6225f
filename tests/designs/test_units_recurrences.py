"""Units that no seed uses, against their definition written token by token in float64; and how far units look back."""

import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.designs import units as units_package
from asiarch_hpc.designs.library import UNITS, library
from asiarch_hpc.designs.tree import UnitNode

DIM, HEADS, LENGTH = 16, 2, 37
SIZE = DIM // HEADS


def build(name: str, args: dict | None = None, **children: str) -> nn.Module:
    """A unit whose children are leaves, with parameters moved off their starting values."""

    def recipe(node: UnitNode) -> object:
        modules = (import_module(f"{units_package.__name__}.{path.stem}") for path in UNITS.glob("*.py"))
        cls = next(getattr(module, node.unit) for module in modules if hasattr(module, node.unit))
        values = {key: arg.resolve(node.args.get(key)) for key, arg in library()[node.unit].args.items()}
        return cls.of(**values, **{slot: recipe(child) for slot, child in node.children.items()})

    torch.manual_seed(0)
    node = UnitNode(name, args or {}, {slot: UnitNode(unit) for slot, unit in children.items()})
    module = recipe(node)(DIM, HEADS, 1, None, torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(LENGTH, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same(module: nn.Module, x: Tensor, wanted: list[Tensor]) -> None:
    torch.testing.assert_close(module(x.unsqueeze(0))[0][0], torch.stack(wanted), rtol=1e-9, atol=1e-11)


def project(layer: nn.Linear, x: Tensor, parts: int) -> list[Tensor]:
    """The projection in parts [length, heads, channels]."""
    return [part.unflatten(-1, (HEADS, -1)) for part in (x @ layer.weight.T).chunk(parts, -1)]


def test_softmax_attention_with_distances_is_alibi(x):
    m = build("SoftmaxAttention", position="DistanceDecay", qk_norm="NoNorm", gate="NoGate")
    q, k, v = project(m.qkv, x, 3)
    slope = torch.log(1 + torch.exp(m.position.rate))
    out = []
    for t in range(LENGTH):
        scores = torch.einsum("hd,shd->hs", q[t], k[: t + 1]) / math.sqrt(SIZE)
        scores = scores - slope[:, None] * torch.arange(t, -1, -1)
        out.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v[: t + 1]).flatten() @ m.out.weight.T)
    same(m, x, out)


def test_sliding_window_attention_is_masked_softmax(x):
    m = build("SlidingWindowAttention", {"window": 8}, position="DistanceDecay", gate="NoGate")
    q, k, v = project(m.qkv, x, 3)
    slope = torch.log(1 + torch.exp(m.position.rate))
    out = []
    for t in range(LENGTH):
        first = max(0, t - 7)
        scores = torch.einsum("hd,shd->hs", q[t], k[first : t + 1]) / math.sqrt(SIZE)
        scores = scores - slope[:, None] * torch.arange(t - first, -1, -1)
        out.append(torch.einsum("hs,shd->hd", scores.softmax(-1), v[first : t + 1]).flatten() @ m.out.weight.T)
    same(m, x, out)


def test_forgetting_attention(x):
    m = build("ForgettingAttention", position="NoPosition", qk_norm="NoNorm", gate="NoGate")
    q, k, v = project(m.qkv, x, 3)
    forget = torch.sigmoid(x @ m.forget.weight.T + m.forget_bias)
    out = []
    for t in range(LENGTH):
        scores = torch.einsum("hd,shd->hs", q[t], k[: t + 1]) / math.sqrt(SIZE)
        faded = torch.stack([forget[s + 1 : t + 1].prod(0) for s in range(t + 1)], -1)
        weights = (scores.exp() * faded) / (scores.exp() * faded).sum(-1, keepdim=True)
        out.append(torch.einsum("hs,shd->hd", weights, v[: t + 1]).flatten() @ m.out.weight.T)
    same(m, x, out)


def test_linear_attention_is_a_weighted_mean(x):
    m = build("LinearAttention", feature_map="ELUFeatures", position="NoPosition", norm="NoNorm", gate="NoGate")
    q, k, v = project(m.qkv, x, 3)
    q, k = (torch.where(part > 0, part + 1, part.exp()) for part in (q, k))
    out = []
    for t in range(LENGTH):
        weights = torch.einsum("hd,shd->hs", q[t], k[: t + 1])
        mean = torch.einsum("hs,shd->hd", weights / weights.sum(-1, keepdim=True), v[: t + 1])
        out.append(mean.flatten() @ m.out.weight.T)
    same(m, x, out)


def test_matrix_lstm(x):
    m = build("MatrixLSTM", convolution="NoConvolution", norm="NoNorm", gate="NoGate")
    q, k = project(m.qk, x, 2)
    v = project(m.value, x, 1)[0]
    let_in, keep = (x @ m.gates.weight.T).chunk(2, -1)
    let_in, keep = torch.sigmoid(let_in + m.input_bias), torch.sigmoid(keep + m.forget_bias)
    memory, norm, out = torch.zeros(HEADS, SIZE, SIZE).double(), torch.zeros(HEADS, SIZE).double(), []
    for t in range(LENGTH):
        memory = keep[t, :, None, None] * memory + let_in[t, :, None, None] * k[t, :, :, None] * v[t, :, None, :]
        norm = keep[t, :, None] * norm + let_in[t, :, None] * k[t]
        query = q[t] / math.sqrt(SIZE)
        least = (norm * query).sum(-1).abs().clamp(min=1.0)
        out.append((torch.einsum("hkv,hk->hv", memory, query) / least[:, None]).flatten() @ m.out.weight.T)
    same(m, x, out)


def test_hgrn2(x):
    m = build("HGRN2", convolution="NoConvolution", norm="NoNorm", gate="NoGate")
    q, f, v = project(m.qfv, x, 3)
    floor = torch.sigmoid(m.floor).view(HEADS, SIZE)
    keep = floor + (1 - floor) * torch.sigmoid(f)
    state, out = torch.zeros(HEADS, SIZE, SIZE).double(), []
    for t in range(LENGTH):
        state = keep[t, :, :, None] * state + (1 - keep[t])[:, :, None] * v[t, :, None, :]
        out.append(torch.einsum("hkv,hk->hv", state, F.silu(q[t])).flatten() / math.sqrt(SIZE) @ m.out.weight.T)
    same(m, x, out)


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def test_delta_product_takes_several_steps_a_token(x):
    m = build("DeltaProduct", {"steps": 3, "most": 2.0}, convolution="NoConvolution", norm="NoNorm", gate="NoGate")
    q = unit(project(m.query, x, 1)[0])
    kv = (x @ m.key_value.weight.T).view(LENGTH, 3, HEADS, 2 * SIZE)
    k, v = unit(kv[..., :SIZE]), kv[..., SIZE:]
    beta = 2 * torch.sigmoid(x @ m.strength.weight.T).view(LENGTH, 3, HEADS)
    state, out = torch.zeros(HEADS, SIZE, SIZE).double(), []
    for t in range(LENGTH):
        for step in range(3):
            held = torch.einsum("hkv,hk->hv", state, k[t, step])
            change = beta[t, step, :, None] * (v[t, step] - held)
            state = state + k[t, step, :, :, None] * change[:, None, :]
        out.append(torch.einsum("hkv,hk->hv", state, q[t]).flatten() / math.sqrt(SIZE) @ m.out.weight.T)
    same(m, x, out)


def test_minimal_gru(x):
    m = build("MinimalGRU", convolution="NoConvolution", gate="NoGate")
    update, candidate = (x @ m.update_candidate.weight.T).chunk(2, -1)
    update = torch.sigmoid(update + m.update_bias)
    h, out = torch.zeros(DIM).double(), []
    for t in range(LENGTH):
        h = (1 - update[t]) * h + update[t] * candidate[t]
        out.append(h @ m.out.weight.T)
    same(m, x, out)


def test_gated_linear_recurrence(x):
    m = build("GatedLinearRecurrence", convolution="NoConvolution", gate="NoGate")
    value = x @ m.value.weight.T
    gates = torch.sigmoid(torch.einsum("lhi,hio->lho", value.view(LENGTH, HEADS, SIZE), m.gates))
    slow, let_in = gates[..., :SIZE].flatten(1), gates[..., SIZE:].flatten(1)
    keep = torch.exp(-8 * torch.log(1 + torch.exp(m.rate)) * slow)
    h, out = torch.zeros(DIM).double(), []
    for t in range(LENGTH):
        h = keep[t] * h + torch.sqrt(1 - keep[t] ** 2 + 1e-6) * let_in[t] * value[t]
        out.append(h @ m.out.weight.T)
    same(m, x, out)


def test_rwkv4(x):
    m = build("RWKV4TimeMix", shift="NoConvolution")
    k, v = (x @ m.key_value.weight.T).chunk(2, -1)
    weight, keep = torch.exp(8 * torch.tanh(k / 8)), torch.exp(-torch.exp(m.decay))
    receive = torch.sigmoid(x @ m.receptance.weight.T)
    above, below, out = torch.zeros(DIM).double(), torch.zeros(DIM).double(), []
    for t in range(LENGTH):
        own = weight[t] * torch.exp(m.bonus)
        out.append((receive[t] * (above + own * v[t]) / (below + own)) @ m.out.weight.T)
        above, below = keep * above + weight[t] * v[t], keep * below + weight[t]
    same(m, x, out)


def test_hyena_convolves_with_its_filter(x):
    m = build("Hyena", convolution="NoConvolution")
    before, after, v = (x @ m.project.weight.T).chunk(3, -1)
    v, taps = before * v, []
    for distance in range(LENGTH):
        angles = torch.tensor([distance * 1000.0 ** (-wave / 8) for wave in range(8)], dtype=torch.float64)
        features = torch.cat((angles.sin(), angles.cos()))
        tap = torch.sin(features @ m.filter_in.weight.T) @ m.filter_out.weight.T
        taps.append(tap * torch.exp(-distance * torch.exp(m.fade)))
    sums = [sum(taps[t - s] * v[s] for s in range(t + 1)) + m.direct * v[t] for t in range(LENGTH)]
    same(m, x, [(after[t] * sums[t]) @ m.out.weight.T for t in range(LENGTH)])


@pytest.mark.parametrize(
    ("name", "args", "children", "reach"),
    [
        ("ShortConvolution", {"width": 4}, {}, 3),
        ("DilatedConvolution", {"width": 3, "dilation": 4}, {}, 8),
        ("MultiScaleConvolution", {"scales": 3}, {}, 7),
        ("LongConvolution", {"taps": 32}, {}, 31),
        ("TokenShift", {}, {}, 1),
        ("NoConvolution", {}, {}, 0),
        ("ChangeGate", {}, {}, 1),
        ("RWKVChannelMix", {}, {}, 1),
        ("HeadShift", {}, {"gate": "NoGate"}, 2),
        ("DynamicConvolution", {"width": 6}, {"gate": "NoGate"}, 5),
        ("SlidingWindowAttention", {"window": 8}, {"position": "NoPosition", "gate": "NoGate"}, 7),
        ("GatedConvolution", {}, {"convolution": "ShortConvolution"}, 3),
        ("MovingAverage", {}, {}, LENGTH - 3),
        ("CumulativeAverage", {}, {"norm": "NoNorm", "gate": "NoGate"}, LENGTH - 3),
    ],
)
def test_how_far_a_unit_looks_back(name, args, children, reach, x):
    module = build(name, args, **children)
    changed = x.clone()
    changed[2] += 1.0
    difference = (module(changed[None])[0] - module(x[None])[0])[0].abs().amax(-1)
    assert difference.gt(1e-12).nonzero().max().item() == 2 + reach
