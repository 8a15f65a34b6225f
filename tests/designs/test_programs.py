"""The two layer programs against step-by-step recurrences in float64, alone, padded, and continued."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asiarch_hpc.designs.compatibility import Cache, ShortConvolution
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.contract import PROGRAM_KEYWORDS, build_block, form_of, load_class
from asiarch_hpc.designs.seeds import seed_program as source_of
from asiarch_hpc.designs.seeds import seed_tree

NAMES = ("delta_net", "gated_delta_net")


def layer_of(name: str, **options: object) -> nn.Module:
    torch.manual_seed(3)
    settings = {"hidden_size": 16, "num_heads": 2, "layer_idx": 0, **options}
    return load_class(source_of(name))(**settings).double()


def inputs(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def convolve(layer: nn.Module, name: str, x: Tensor) -> Tensor:
    if not hasattr(layer, name):
        return x
    conv, y = getattr(layer, name), torch.zeros_like(x)
    width = conv.weight.shape[-1]
    for t in range(x.shape[0]):
        for tap in range(min(width, t + 1)):
            y[t] += conv.weight[:, 0, width - 1 - tap] * x[t - tap]
    return y if conv.bias is None else y + conv.bias


def recurrence(layer: nn.Module, x: Tensor, options: dict[str, object]) -> Tensor:
    """One row [length, 16], token by token, from the equations of the two papers."""
    heads = 2
    activate = {"silu": F.silu, "relu": F.relu, "elu": lambda z: F.elu(z) + 1, "identity": lambda z: z}
    act = activate[str(options.get("qk_activation", "silu"))]
    q = act(convolve(layer, "q_conv1d", layer.q_proj(x))).view(len(x), heads, -1)
    k = act(convolve(layer, "k_conv1d", layer.k_proj(x))).view(len(x), heads, -1)
    v = F.silu(convolve(layer, "v_conv1d", layer.v_proj(x))).view(len(x), heads, -1)
    if options.get("qk_norm") == "sum":
        q, k = q / q.sum(-1, keepdim=True), k / k.sum(-1, keepdim=True)
    else:
        q, k = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
    beta = layer.b_proj(x).sigmoid() if options.get("use_beta", True) else x.new_ones(len(x), heads)
    beta = beta * 2 if options.get("allow_neg_eigval") else beta
    decay = torch.ones_like(beta)
    if hasattr(layer, "A_log"):
        decay = torch.exp(-layer.A_log.exp() * F.softplus(layer.a_proj(x) + layer.dt_bias))
    rows = []
    for h in range(heads):
        memory = x.new_zeros(k.shape[-1], v.shape[-1])
        for t in range(len(x)):
            memory = memory * decay[t, h]
            memory = memory + beta[t, h] * torch.outer(k[t, h], v[t, h] - memory.T @ k[t, h])
            rows.append(memory.T @ q[t, h] / k.shape[-1] ** 0.5)
    o = torch.stack(rows).view(heads, len(x), -1).transpose(0, 1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.o_norm.weight
    if options.get("use_gate", hasattr(layer, "A_log")):
        o = o * F.silu(layer.g_proj(x).view_as(o))
    return layer.o_proj(o.flatten(1))


OPTIONS = [
    {},
    {"use_gate": True, "conv_bias": True},
    {"use_gate": False, "use_beta": False, "conv_size": 2},
    {"allow_neg_eigval": True, "use_short_conv": False},
    {"qk_activation": "elu", "qk_norm": "sum"},
    {"qk_activation": "relu"},
    {"qk_activation": "identity", "expand_k": 0.5, "expand_v": 2.0},
    {"hidden_size": 999, "d_model": 16, "unknown_keyword": "ignored"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_layers_follow_their_recurrence(name: str, options: dict[str, object]) -> None:
    layer = layer_of(name, **options)
    x = inputs(2, 70)  # past one chunk
    o, weights, cache = layer(x)
    assert weights is None
    assert cache is None
    torch.testing.assert_close(o, torch.stack([recurrence(layer, row, options) for row in x]))


masks = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 9).flatmap(
        lambda length: st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows)
    )
)


@settings(deadline=None, max_examples=40)
@given(masks, st.sampled_from(NAMES))
def test_padding_anywhere_changes_no_token(mask_rows: list[list[bool]], name: str) -> None:
    layer = layer_of(name, conv_bias=True)
    mask = torch.tensor(mask_rows).long()
    x = inputs(*mask.shape)
    x = x.masked_fill(mask.unsqueeze(-1) == 0, float("nan"))  # whatever stands at a padded place
    o, _, _ = layer(x, attention_mask=mask)
    assert torch.equal(o[mask == 0], torch.zeros_like(o[mask == 0]))
    for i, row in enumerate(mask.bool()):
        if row.any():
            torch.testing.assert_close(o[i, row], layer(x[i : i + 1, row])[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_mix_and_the_future_is_unseen(name: str) -> None:
    layer = layer_of(name)
    x = inputs(3, 80).requires_grad_()
    mask = torch.ones(3, 80)
    mask[1, :30] = 0
    for arguments in ({}, {"attention_mask": mask}):
        o, _, _ = layer(x, **arguments)
        (grad,) = torch.autograd.grad(o[1, 60].square().sum(), x)
        assert grad[[0, 2]].abs().max() == 0
        assert grad[1, 61:].abs().max() == 0
        assert grad[1, 59].abs().max() > 0
        assert grad[1, 35].abs().max() > 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from(NAMES), st.booleans())
def test_continuing_equals_the_whole(pieces: list[int], name: str, convolved: bool) -> None:
    layer = layer_of(name, use_short_conv=convolved)
    x = inputs(2, sum(pieces))
    cache, outputs = Cache(), []
    for piece in x.split(pieces, dim=1):
        o, _, cache = layer(piece, past_key_values=cache, use_cache=True)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x)[0])
    assert cache.get_seq_length() == sum(pieces)


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_prompt_can_be_continued(name: str) -> None:
    layer = layer_of(name)
    x = inputs(2, 6)
    mask = torch.ones(2, 5)
    mask[0, :3] = 0
    cache = Cache()
    layer(x[:, :5], attention_mask=mask, past_key_values=cache, use_cache=True)
    longer = torch.cat([mask, torch.ones(2, 1)], 1)
    o, _, _ = layer(x[:, 5:], attention_mask=longer, past_key_values=cache, use_cache=True)
    torch.testing.assert_close(o[0], layer(x[:1, 3:])[0][0, -1:])
    torch.testing.assert_close(o[1], layer(x[1:])[0][0, -1:])
    with pytest.raises(ValueError, match="padding inside a continuation"):
        layer(x, attention_mask=torch.eye(2, 6), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"conv_bias": True, "use_gate": False}, {"use_short_conv": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_documents_of_a_row_stay_apart(
    name: str, options: dict[str, object], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ShortConvolution.forward

    def swallowing(self: ShortConvolution, x: Tensor, documents: Tensor | None = None, **rest: Any) -> Any:
        return whole(self, x, **rest)  # as flash-linear-attention's module does

    monkeypatch.setattr(ShortConvolution, "forward", swallowing)
    layer, x = layer_of(name, **options), inputs(2, 80)
    documents = torch.tensor([[0] * 3 + [1] * 61 + [2] * 16, [0] * 40 + [-1] * 40])
    mask = torch.ones(2, 80)
    if masked:
        mask[0, 3:5] = mask[1, :7] = 0
    o = layer(x, attention_mask=mask if masked else None, documents=documents)[0]
    for row, numbers in enumerate(documents):
        for number in numbers.unique():
            own = (numbers == number) & (mask[row] == 1)
            torch.testing.assert_close(o[row, own], layer(x[row : row + 1, own])[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_documents_and_a_cache_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="documents together with a cache"):
        layer_of(name)(inputs(1, 2), past_key_values=Cache(), documents=torch.zeros(1, 2, dtype=torch.int32))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "fused"}, "mode='fused'"),
        ({"qk_activation": "tanh"}, "qk_activation='tanh'.*relu"),
        ({"qk_norm": "sum"}, "qk_norm='sum'"),
        ({"hidden_size": 1, "num_heads": 4}, "leaves nothing for 4 heads"),
    ],
)
def test_options_outside_the_layer_are_refused(options: dict[str, object], words: str) -> None:
    for name in NAMES:
        with pytest.raises(ValueError, match=words):
            layer_of(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_needs_a_layer_index(name: str) -> None:
    with pytest.raises(ValueError, match="layer_idx"):
        layer_of(name, layer_idx=None)(inputs(1, 2), past_key_values=Cache())


@pytest.mark.parametrize("name", NAMES)
def test_blocks_learn_with_every_parameter(name: str) -> None:
    source = source_of(name)
    assert form_of(source) == "program"
    assert all(f"        {keyword}: " in source for keyword in PROGRAM_KEYWORDS)
    torch.manual_seed(0)
    block = build_block(source, dim=24, heads=2, layer_idx=0, ffn_multiple=8 / 3)
    x = torch.randn(2, 67, 24)
    y, loss = block(x)
    assert loss is None
    y.square().mean().backward()
    assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = block(x)
    torch.testing.assert_close(low.float(), y, atol=0.1, rtol=0.1)


def weights_of_tree(name: str, program: nn.Module) -> dict[str, Tensor]:
    """The program's weights under the names of the unit tree of the same seed design."""
    own = dict(program.named_parameters())
    mixer = {n.removeprefix("mixer."): p for n, p in own.items() if n.startswith("mixer.")}
    weights = {
        "mixer_norm.scale": own["mixer_norm.weight"],
        "ffn_norm.scale": own["ffn_norm.weight"],
        "ffn.up.weight": torch.cat([own["ffn.gate.weight"], own["ffn.up.weight"]]),
        "ffn.down.weight": own["ffn.down.weight"],
        "mixer.qkv.weight": torch.cat([mixer[f"{x}_proj.weight"] for x in "qkv"]),
        "mixer.convolution.taps": torch.cat([mixer[f"{x}_conv1d.weight"][:, 0] for x in "qkv"]),
        "mixer.strength.weight": mixer["b_proj.weight"],
        "mixer.norm.scale": mixer["o_norm.weight"],
        "mixer.out.weight": mixer["o_proj.weight"],
    }
    if name == "gated_delta_net":
        weights |= {
            "mixer.step.weight": mixer["a_proj.weight"],
            "mixer.step_bias": mixer["dt_bias"],
            "mixer.log_rate": mixer["A_log"],
            "mixer.gate.project.weight": mixer["g_proj.weight"],
        }
    return {f"block.root.{n}": p for n, p in weights.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_tree_of_the_same_name_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    sizes = {"dim": 64, "heads": 4, "layer_idx": 0, "ffn_multiple": 2.67}
    program = build_block(source_of(name), **sizes).double()
    tree = build_block(compose(seed_tree(name)), **sizes).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    weights = weights_of_tree(name, program)
    tree.load_state_dict(weights)
    x = torch.randn(2, 70, 64, dtype=torch.float64)
    torch.testing.assert_close(program(x)[0], tree(x)[0], rtol=1e-4, atol=1e-4)


def test_initial_memories_last_between_a_few_and_thousands_of_tokens() -> None:
    torch.manual_seed(0)
    layer = load_class(source_of("gated_delta_net"))(hidden_size=256, num_heads=64)
    rate = layer.A_log.exp() * F.softplus(layer.dt_bias)
    assert rate.min() >= 1e-3 * 0.99
    assert rate.max() <= 1.6 * 1.01
