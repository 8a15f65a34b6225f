"""Every seed's mixer against its paper's recurrence, token by token in float64, with the module's own weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.seeds import SEEDS, seed_program, seed_tree
from asiarch_hpc.designs.tree import validate
from asiarch_hpc.errors import DesignError

DIM, HEADS, BATCH = 16, 2, 2


def block(name: str, dim: int = DIM, heads: int = HEADS, dtype: torch.dtype = torch.float64) -> nn.Module:
    names: dict[str, object] = {"__name__": name}
    exec(compile(compose(seed_tree(name)), name, "exec"), names)
    torch.manual_seed(0)
    return names["Block"](dim, heads, dtype=dtype)


def tokens(x: Tensor) -> list[Tensor]:
    return list(x.unbind(1))


def convolved(x: Tensor, taps: Tensor, *, silu: bool) -> Tensor:
    """x [batch, length, channels], taps [channels, width], the last tap on the current token."""
    width, out = taps.shape[1], []
    for t in range(x.shape[1]):
        y = sum(taps[:, width - 1 - back] * x[:, t - back] for back in range(min(width, t + 1)))
        out.append(y * torch.sigmoid(y) if silu else y)
    return torch.stack(out, 1)


def rotated(x: Tensor, heads: int = HEADS) -> Tensor:
    """Each pair of channels (i, i + half) of a head as a complex number, turned by position * 10000^(-i / half)."""
    half = x.shape[-1] // heads // 2
    pairs = x.unflatten(-1, (heads, 2, half))
    number = torch.complex(pairs[..., 0, :], pairs[..., 1, :])
    speed = torch.tensor([10000.0 ** (-i / half) for i in range(half)], dtype=x.dtype)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None, None] * speed
    turned = number * torch.complex(angle.cos(), angle.sin())
    return torch.stack((turned.real, turned.imag), dim=-2).flatten(-3)


def split_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1))


def rms(x: Tensor) -> Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def delta_net(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = convolved(x @ m.qkv.weight.T, m.convolution.taps, silu=True).chunk(3, -1)
    beta = torch.sigmoid(x @ m.strength.weight.T)
    return delta_layer(m, x, q, k, v, beta, torch.ones_like(beta))


def gated_delta_net(m: nn.Module, x: Tensor) -> Tensor:
    key = m.key_dim
    assert key == HEADS * 6, "0.75 of the head's 8 channels"
    assert m.value_dim == 2 * key
    q, k, v = convolved(x @ m.qkv.weight.T, m.convolution.taps, silu=True).split([key, key, 2 * key], -1)
    beta = torch.sigmoid(x @ m.strength.weight.T)
    step = torch.log(1 + torch.exp(x @ m.step.weight.T + m.step_bias))
    return delta_layer(m, x, q, k, v, beta, torch.exp(-torch.exp(m.log_rate) * step))


def delta_layer(m: nn.Module, x: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    q, k, v = unit(split_heads(q)), unit(split_heads(k)), split_heads(v)
    state = x.new_zeros(BATCH, HEADS, k.shape[-1], v.shape[-1])
    identity = torch.eye(k.shape[-1], dtype=x.dtype)
    out = []
    for t in range(x.shape[1]):
        b, a = beta[:, t, :, None, None], alpha[:, t, :, None, None]
        kk = k[:, t, :, :, None] * k[:, t, :, None, :]
        state = a * (identity - b * kk) @ state + b * k[:, t, :, :, None] * v[:, t, :, None, :]
        o = (q[:, t, :, None, :] @ state).squeeze(-2) / math.sqrt(k.shape[-1])
        out.append((rms(o) * m.norm.scale).flatten(-2))
    return finish(m, torch.stack(out, 1), x)


def finish(m: nn.Module, o: Tensor, source: Tensor, activation=F.silu) -> Tensor:
    if list(m.gate.parameters()):
        o = o * activation(source @ m.gate.project.weight.T)
    return o @ m.out.weight.T


def gla(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (split_heads(part) for part in (x @ m.qkv.weight.T).split([DIM // 2, DIM // 2, DIM], -1))
    decay = torch.sigmoid(x @ m.decay_down.weight.T @ m.decay_up.weight.T + m.decay_bias) ** (1 / 16)
    decay = split_heads(decay)
    state, out = x.new_zeros(BATCH, HEADS, k.shape[-1], v.shape[-1]), []
    for t in range(x.shape[1]):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        o = (q[:, t, :, None, :] @ state).squeeze(-2) / math.sqrt(k.shape[-1])
        out.append((rms(o) * m.norm.scale).flatten(-2))
    return finish(m, torch.stack(out, 1), x)


def retnet(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (x @ m.qkv.weight.T).split([DIM, DIM, 2 * DIM], -1)
    q, k, v = split_heads(rotated(q)), split_heads(rotated(k)), split_heads(v)
    gamma = torch.tensor([1 - 2.0 ** (-5 - head) for head in range(HEADS)], dtype=x.dtype)[:, None, None]
    state, out = x.new_zeros(BATCH, HEADS, k.shape[-1], v.shape[-1]), []
    for t in range(x.shape[1]):
        state = gamma * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        o = (q[:, t, :, None, :] @ state).squeeze(-2) / math.sqrt(k.shape[-1])
        out.append((rms(o) * m.norm.scale).flatten(-2))
    return finish(m, torch.stack(out, 1), x)


def mamba2(m: nn.Module, x: Tensor) -> Tensor:
    inner, state_dim = 2 * DIM, 32
    u, b, c = convolved(x @ m.xbc.weight.T, m.convolution.taps, silu=True).split([inner, state_dim, state_dim], -1)
    u = split_heads(u)
    step = torch.log(1 + torch.exp(x @ m.step.weight.T + m.step_bias))
    state, out = x.new_zeros(BATCH, HEADS, u.shape[-1], state_dim), []
    for t in range(x.shape[1]):
        forget = torch.exp(-torch.exp(m.log_rate) * step[:, t])[..., None, None]
        state = forget * state + step[:, t, :, None, None] * u[:, t, :, :, None] * b[:, t, None, None, :]
        y = (state * c[:, t, None, None, :]).sum(-1) + m.direct[:, None] * u[:, t]
        out.append(y.flatten(-2))
    gated = torch.stack(out, 1) * F.silu(x @ m.gate.project.weight.T)
    return (rms(gated) * m.norm.scale) @ m.out.weight.T


def rwkv6(m: nn.Module, x: Tensor) -> Tensor:
    state, out = x.new_zeros(BATCH, HEADS, DIM // HEADS, DIM // HEADS), []
    before = torch.zeros_like(x[:, 0])
    for now in tokens(x):
        change = before - now
        low = torch.tanh((now + change * m.first_shift) @ m.shift_down.weight.T).chunk(5, -1)
        for_r, for_k, for_v, for_gate, for_decay = (
            now + change * (m.shift[i] + low[i] @ m.shift_up[i]) for i in range(5)
        )
        r, k, v = for_r @ m.receptance.weight.T, for_k @ m.key.weight.T, for_v @ m.value.weight.T
        w = torch.exp(-torch.exp(m.decay + torch.tanh(for_decay @ m.decay_down.weight.T) @ m.decay_up))
        r, k, v, w = (split_heads(part) for part in (r, k, v, w))
        kv = k[..., :, None] * v[..., None, :]
        o = (r[..., None, :] @ (state + m.bonus[..., None] * kv)).squeeze(-2)
        state = w[..., None] * state + kv
        o = F.layer_norm(o, (DIM // HEADS,), eps=64e-5).flatten(-2) * m.norm.scale + m.norm.shift
        out.append(finish(m, o, for_gate))
        before = now
    return torch.stack(out, 1)


def ttt_linear(m: nn.Module, x: Tensor) -> Tensor:
    """Mini-batches of 16: all gradients of one are taken at the weights with which it starts."""
    qk, v = (x @ m.qkv.weight.T).split([2 * DIM, DIM], -1)
    q, k = convolved(qk, m.convolution.taps, silu=False).chunk(2, -1)
    q, k, v = split_heads(rotated(q)), split_heads(rotated(k)), split_heads(v)
    eta = torch.sigmoid(x @ m.step.weight.T) / (DIM // HEADS)

    def model(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        linear = (z[:, :, None, :] @ weight).squeeze(-2) + bias
        return z + F.layer_norm(linear, (z.shape[-1],), eps=1e-6) * m.scale + m.shift

    weight = m.start.expand(BATCH, -1, -1, -1)
    bias = m.start_bias.expand(BATCH, -1, -1)
    out = []
    for t in range(x.shape[1]):
        if t % 16 == 0:
            first_weight, first_bias = weight, bias
        loss = 0.5 * (model(k[:, t], first_weight, first_bias) - v[:, t]).pow(2).sum()
        for_weight, for_bias = torch.autograd.grad(loss, (first_weight, first_bias), create_graph=True)
        weight = weight - eta[:, t, :, None, None] * for_weight
        bias = bias - eta[:, t, :, None] * for_bias
        out.append(model(q[:, t], weight, bias).flatten(-2))
    o = torch.stack(out, 1)
    o = F.layer_norm(o, (DIM,), m.norm.scale, m.norm.shift, 1e-5)
    return finish(m, o, x, F.gelu)


def gpt(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (x @ m.qkv.weight.T).chunk(3, -1)
    q, k, v = split_heads(rotated(q)), split_heads(rotated(k)), split_heads(v)
    out = []
    for t in range(x.shape[1]):
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, : t + 1]) / math.sqrt(q.shape[-1])
        out.append(torch.einsum("bhs,bshd->bhd", torch.softmax(scores, -1), v[:, : t + 1]).flatten(-2))
    return finish(m, torch.stack(out, 1), x)


RECURRENCES = {
    "delta_net": delta_net, "gated_delta_net": gated_delta_net, "gla": gla, "mamba2": mamba2, "retnet": retnet,
    "rwkv6": rwkv6, "ttt_linear": ttt_linear, "gpt": gpt,
}  # fmt: skip


@pytest.mark.parametrize("length", [1, 7, 67])
@pytest.mark.parametrize("name", SEEDS)
def test_the_mixer_is_the_papers_recurrence(name, length):
    mixer = block(name).root.mixer
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    x = torch.randn(BATCH, length, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(BATCH, length, DIM, generator=generator, dtype=torch.float64)
    parameters = dict(mixer.named_parameters())
    wanted = RECURRENCES[name](mixer, x)
    wanted_grads = torch.autograd.grad((wanted * weight).sum(), (x, *parameters.values()), allow_unused=True)
    found = mixer(x)[0]
    found_grads = torch.autograd.grad((found * weight).sum(), (x, *parameters.values()))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    for label, grad, expected in zip(("x", *parameters), found_grads, wanted_grads, strict=True):
        expected = torch.zeros_like(grad) if expected is None else expected
        torch.testing.assert_close(grad, expected, rtol=1e-8, atol=1e-10, msg=lambda text, at=label: f"{at}: {text}")


@pytest.mark.parametrize("name", SEEDS)
def test_the_block_adds_mixer_and_feed_forward_to_the_stream(name):
    root = block(name).root
    x = torch.randn(BATCH, 5, DIM, dtype=torch.float64)
    middle = x + root.mixer(rms(x) * root.mixer_norm.scale)[0]
    gate, value = (rms(middle) * root.ffn_norm.scale @ root.ffn.up.weight.T).chunk(2, -1)
    torch.testing.assert_close(root(x)[0], middle + (F.silu(gate) * value) @ root.ffn.down.weight.T)


@pytest.mark.parametrize("name", SEEDS)
def test_two_blocks_learn_at_the_laptop_rate(name):
    """Each target is the token before: impossible without the mixer."""
    torch.manual_seed(0)
    vocab, dim = 8, 32
    blocks = [block(name, dim, 4, torch.float32) for _ in range(2)]
    model = nn.ModuleList([nn.Embedding(vocab, dim), *blocks, nn.Linear(dim, vocab)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(50):
        ids = torch.randint(vocab, (8, 24))
        h = model[0](ids)
        for layer in blocks:
            h = layer(h)[0]
        loss = F.cross_entropy(model[-1](h)[:, 1:].flatten(0, 1), ids[:, :-1].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.8 * math.log(vocab), losses[::10]


def test_seed_trees_are_valid_and_named():
    assert SEEDS == ("delta_net", "gated_delta_net", "gla", "mamba2", "retnet", "rwkv6", "ttt_linear", "gpt")
    for name in SEEDS:
        tree = seed_tree(name)
        assert tree.name == name
        validate(tree, library())


def test_unknown_seeds_are_refused_with_the_known_ones():
    with pytest.raises(DesignError, match="no seed design 'lstm': expected one of delta_net, gated_delta_net, gla"):
        seed_tree("lstm")
    with pytest.raises(DesignError, match=r"no layer program '\.\./seeds': expected one of .*delta_net"):
        seed_program("../seeds")


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_layer_programs_are_read(name):
    assert "class DeltaNet(nn.Module)" in seed_program(name)
