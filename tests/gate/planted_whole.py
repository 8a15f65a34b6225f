"""Blocks that cannot be built, do not learn, or cost too much."""

from __future__ import annotations

from typing import Any

from tests.gate.toys import DEPTH, DIM, REFERENCE, Plant, builder

# At these calls cost is judged: no leave for quadratic growth, and the toy reference beside the design.
STRICT: dict[str, Any] = {
    "attention": False,
    "build_reference": lambda vocab: builder(REFERENCE)(DIM, DEPTH, vocab),
}

_LOOP = "state = torch.zeros_like(x[:, 0]); states = []\nfor t in range(L):\n    "

BUILT_WRONG = {
    "constructor raises": Plant("y = x", ("construct.failed",), "raise ValueError('no such layer')"),
    "constructor of the second layer raises": Plant("y = x", ("construct.failed",), "assert layer_idx == 0",
                                                    whole=True),
    "file raises": Plant("y = x", ("construct.failed",), before="assert torch.ones(1) == 2"),
    "layer without its base": Plant(
        "y = self.mix(x)",
        ("construct.failed",),
        "self.mix = Mix(dim)",
        "class Mix(nn.Module):\n    def __init__(self, dim):\n        self.linear = nn.Linear(dim, dim)\n",
    ),
    "width written into a layer": Plant("y = self.mix(x)", ("construct.width",), "self.mix = nn.Linear(16, 16); "
                                        "self.out = nn.Identity()", whole=True),
    "width written into a view": Plant("y = x.view(B, L, 4, 4).flatten(2)", ("construct.width",), whole=True),
    "width looked up": Plant("y = x", ("construct.width",), "self.heads = {16: 2, 32: 4}[dim]", whole=True),
    "width a power of two": Plant("y = x", ("construct.width",), "assert dim & (dim - 1) == 0", whole=True),
    "width of the kernel": Plant(
        "y = x * self.taps", ("construct.width",), "self.taps = nn.Parameter(torch.ones(16))", whole=True
    ),
    "too large": Plant(
        "y = x + self.wide(x).view(B, L, 4, D).sum(2)", ("size.parameters",), "self.wide = nn.Linear(dim, 4 * dim)",
        whole=True,
    ),
    "too small": Plant("y = x", ("size.parameters",), "self.into = self.out = nn.Identity()", whole=True),
    "table of its own": Plant(
        "y = x + self.table(torch.arange(L, device=x.device) % 64)",
        ("size.parameters",),
        "self.table = nn.Embedding(64, dim)",
        whole=True,
    ),
    "hidden width that ignores dim": Plant(
        "y = x + self.down(torch.relu(self.up(x)))",
        ("size.parameters",),
        "self.up, self.down = nn.Linear(dim, 200), nn.Linear(200, dim)",
        whole=True,
    ),
    "cubic in the width": Plant(
        "y = x + torch.einsum('bld,def->blf', x, self.cube)",
        ("size.parameters",),
        "self.cube = nn.Parameter(torch.randn(dim, dim, dim) / dim)",
        whole=True,
    ),
}  # fmt: skip

LEARNS_WRONG = {
    "nothing but a constant": Plant(
        "y = x; X = X * 0; self.out.weight.data.zero_(); self.out.bias.data.zero_()", ("learn.no_progress",), whole=True
    ),
    "vanishing output": Plant("y = x * 1e-12; X = X * 1e-12; self.out.bias.data.zero_()", ("learn.no_progress",),
                              whole=True),
    "noise above the signal": Plant(
        "y = x; X = X + 1e4 * torch.randn_like(X) if self.training else X", ("learn.no_progress",), whole=True
    ),
    "exploding gradient": Plant(
        "y = x * 1; y.requires_grad and y.register_hook(lambda g: g * 1e9)", ("learn.gradient_norm",)
    ),
    "gradient of a steep step": Plant("y = Steep.apply(x)",
                                      ("learn.gradient_norm",), before="""
        class Steep(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.sign()

            @staticmethod
            def backward(ctx, g):
                return g * 1e8
        """),
}  # fmt: skip

COSTLY = {
    "quadratic attention": Plant(
        "y = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]",
        ("complexity.quadratic",), changes=STRICT,
    ),
    "differences of all pairs": Plant(
        "d = torch.relu(x[:, :, None] - x[:, None]); y = (d * torch.ones(L, L).tril()[..., None]).sum(2) / 64",
        ("complexity.quadratic", "complexity.memory"),
        changes=STRICT,
    ),
    "convolution by a full matrix": Plant(
        "n = torch.arange(L); d = (n[:, None] - n).clamp(0); y = torch.exp(-d / 9.0).tril() @ x.float() / 8",
        ("complexity.quadratic",), changes=STRICT,
    ),
    "sums anew for each token": Plant(
        "y = torch.stack([x[:, :t + 1].mean(1) for t in range(L)], 1)", ("complexity.quadratic", "complexity.slow"),
        changes=STRICT,
    ),
    "memory grown by cat": Plant(
        """
        kept, states = x[:, :0], []
        for t in range(L):
            kept = torch.cat([kept, x[:, t:t + 1]], 1)
            states.append(kept.mean(1))
        y = torch.stack(states, 1)
        """,
        ("complexity.quadratic", "complexity.slow"), changes=STRICT,
    ),
    "heavy loop over tokens": Plant(
        f"{_LOOP}state = torch.tanh(self.into(state + x[:, t]))\n    states.append(state)\ny = torch.stack(states, 1)",
        ("complexity.slow",), changes=STRICT, whole=True,
    ),
    "thirty more layers": Plant(
        "y = x\nfor _ in range(30): y = y + 0.01 * torch.tanh(y) @ self.into.weight",
        ("complexity.slow",), changes=STRICT, whole=True,
    ),
    "wide detour": Plant(
        "w = torch.cos(torch.arange(400 * D).view(D, 400) * 1.0) / 20; y = torch.relu(x.float() @ w) @ w.T",
        ("complexity.slow", "complexity.memory"), changes=STRICT, whole=True,
    ),
    "a state for every token": Plant(
        "s = torch.einsum('bld,ble->blde', x, x).cumsum(1); y = torch.einsum('bld,blde->ble', x, s) / 64",
        ("complexity.memory",), changes=STRICT, whole=True,
    ),
    "sixty copies of the activations": Plant(
        "y = torch.sin(x[..., None] * torch.arange(60)).mean(-1)", ("complexity.memory", "complexity.slow"),
        changes=STRICT, whole=True,
    ),
}  # fmt: skip
