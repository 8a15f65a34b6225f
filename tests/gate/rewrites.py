"""Layer programs in pairs: one function written in two ways, and small changes that make another function of it."""

from __future__ import annotations

import ast
import textwrap

FRAME = """
import math
import torch
import torch.nn.functional as F
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, mode="chunk", d_model=None, hidden_size=64, expand_k=1.0, expand_v=1.0, num_heads=4,
                 use_beta=True, use_gate=False, use_short_conv=True, conv_size=4, conv_bias=False,
                 allow_neg_eigval=False, layer_idx=0, qk_activation="silu", qk_norm="l2", norm_eps=1e-5, **kwargs):
        super().__init__()
        d, h = hidden_size, num_heads
        self.h, self.dh = h, d // h
{init}

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False,
                output_attentions=False, **kwargs):
        x = hidden_states
        b, l, d = x.shape
{body}
        return y, None, past_key_values
"""


def program(init: str, body: str) -> str:
    """A layer program: statements that make parameters from d and h, and statements from x to y."""
    indented = [textwrap.indent(textwrap.dedent(text).strip("\n"), " " * 8) for text in (init, body)]
    return FRAME.format(init=indented[0], body=indented[1])


LINEAR = (
    """
    self.q = nn.Linear(d, d, bias=False)
    self.k = nn.Linear(d, d, bias=False)
    self.v = nn.Linear(d, d, bias=False)
    self.o = nn.Linear(d, d, bias=False)
    self.beta = nn.Linear(d, h)
    self.gate = nn.Linear(d, h)
    self.scale = nn.Parameter(torch.ones(self.dh))
    self.register_buffer("decay", 1 - 2.0 ** (-2 - torch.arange(h).float()))
    """,
    """
    q, k, v = (f(x).view(b, l, self.h, self.dh).transpose(1, 2) for f in (self.q, self.k, self.v))
    k = F.normalize(k, dim=-1) * torch.sigmoid(self.beta(x)).transpose(1, 2).unsqueeze(-1)
    step = torch.arange(l)
    apart = (step[:, None] - step).clamp(min=0)
    mask = torch.tril(self.decay.view(-1, 1, 1) ** apart)
    y = (q @ k.transpose(-1, -2) * mask) @ v
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale
    y = y * F.silu(self.gate(x)).transpose(1, 2).unsqueeze(-1)
    y = self.o(y.transpose(1, 2).reshape(b, l, d))
    """,
)
_RECURRENT = """
    state = x.new_zeros(b, self.h, self.dh, self.dh)
    outs = []
    for t in range(l):
        state = self.decay.view(1, -1, 1, 1) * state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    o = torch.stack(outs, 1).float()
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + self.w)
    y = torch.einsum("blhv,hvd->bld", o.to(x) * (g * g.sigmoid())[..., None], self.out)
"""
FUSED = (
    """
    self.out = nn.Parameter(torch.randn(h, self.dh, d) * 0.02)
    self.w = nn.Parameter(torch.zeros(self.dh))
    self.gates = nn.Parameter(torch.randn(d, 2 * h))
    self.bias = nn.Parameter(torch.zeros(2 * h))
    self.dead = nn.Parameter(torch.randn(7))
    self.vqk = nn.Parameter(torch.randn(d, 3 * d) / d**0.5)
    self.register_buffer("decay", 1 - torch.exp2(-2 - torch.arange(h, dtype=torch.float32)))
    """,
    """
    v, q, k = [part.reshape(b, l, self.h, self.dh) for part in (x @ self.vqk).chunk(3, -1)]
    g, beta = (x @ self.gates + self.bias).split(self.h, -1)
    k = k / k.norm(dim=-1, keepdim=True).clamp(min=1e-12) * (1 / (1 + (-beta).exp()))[..., None]
    """
    + _RECURRENT,
)
INTERLEAVED = (
    FUSED[0].replace(
        "self.vqk = nn.Parameter(torch.randn(d, 3 * d) / d**0.5)", "self.qkv = nn.Linear(d, 3 * d, False)"
    ),
    """
    q, k, v = self.qkv(x).view(b, l, self.h, 3, self.dh).unbind(3)
    g, beta = (x @ self.gates + self.bias).split(self.h, -1)
    k = F.normalize(k, dim=-1) * torch.sigmoid(beta)[..., None]
    """
    + _RECURRENT,
)

CONV = (
    """
    self.conv = nn.Conv1d(d, d, 4, groups=d, padding=3)
    self.mix = nn.Linear(d, d)
    self.rate = nn.Parameter(torch.rand(d))
    """,
    """
    y = F.silu(self.conv(x.transpose(1, 2))[..., :l]).transpose(1, 2)
    y = self.mix(y) * torch.exp(-self.rate)
    """,
)
SHIFTS = (
    """
    self.taps = nn.ParameterList([torch.zeros(d) for _ in range(4)])
    self.rate = nn.Parameter(torch.rand(1, 1, d) * 3)
    self.bias = nn.Parameter(torch.zeros(d))
    self.w, self.c = nn.Parameter(torch.randn(d, d)), nn.Parameter(torch.zeros(d))
    """,
    """
    past = F.pad(x, (0, 0, 3, 0))
    y = sum(w * past[:, 3 - i : 3 - i + l] for i, w in enumerate(self.taps)) + self.bias
    y = y / (1 + torch.exp(-y))
    y = torch.addmm(self.c, y.reshape(-1, d), self.w).view(b, l, d) / self.rate.exp()
    """,
)
STACKED_TAPS = (
    SHIFTS[0].replace("nn.ParameterList([torch.zeros(d) for _ in range(4)])", "nn.Parameter(torch.randn(4, d))"),
    SHIFTS[1],
)
UNFOLDED = (
    SHIFTS[0].replace("nn.ParameterList([torch.zeros(d) for _ in range(4)])", "nn.Parameter(torch.randn(d, 4))"),
    "\n    y = (F.pad(x, (0, 0, 3, 0)).unfold(1, 4, 1) * self.taps).sum(-1) + self.bias"
    + SHIFTS[1].partition("bias")[2],
)

EXPERTS = (
    """
    self.experts = nn.ModuleList([nn.Linear(d, d, bias=False) for _ in range(4)])
    self.router = nn.Linear(d, 4, bias=False)
    """,
    """
    w = self.router(x).softmax(-1)
    y = sum(w[..., i : i + 1] * torch.tanh(e(x)) for i, e in enumerate(self.experts))
    """,
)
BATCHED_EXPERTS = (
    """
    self.route = nn.Parameter(torch.zeros(d, 4))
    self.stack = nn.Parameter(torch.randn(4, d, d) * 0.1)
    """,
    """
    w = (x @ self.route).exp()
    w = w / w.sum(-1, keepdim=True)
    y = torch.einsum("ble,bleo->blo", w, torch.einsum("bli,eio->bleo", x, self.stack).tanh())
    """,
)


def _changed(pair: tuple[str, str], *changes: tuple[str, str]) -> str:
    init, body = pair
    for old, new in changes:
        assert old in init + body, old
        init, body = init.replace(old, new), body.replace(old, new)
    return program(init, body)


EQUAL = {
    "linear": [program(*LINEAR), program(*FUSED), program(*INTERLEAVED)],
    "conv": [program(*CONV), program(*SHIFTS), program(*STACKED_TAPS), program(*UNFOLDED)],
    "experts": [program(*EXPERTS), program(*BATCHED_EXPERTS)],
}
VARIANTS = {
    "keys not normalised": _changed(LINEAR, ("F.normalize(k, dim=-1)", "k")),
    "gate on values": _changed(
        LINEAR,
        ("y = (q @", "v = v * F.silu(self.gate(x)).transpose(1, 2).unsqueeze(-1)\n    y = (q @"),
        ("    y = y * F.silu(self.gate(x)).transpose(1, 2).unsqueeze(-1)\n", ""),
    ),
    "gate and strength exchanged": _changed(
        LINEAR,
        ("self.beta(x)", "self.none(x)"),
        ("self.gate(x)", "self.beta(x)"),
        ("self.none(x)", "self.gate(x)"),
        ("F.silu", "torch.sigmoid"),
    ),
    "queries are keys": _changed(LINEAR, ("(self.q, self.k, self.v)", "(self.k, self.k, self.v)")),
    "one decay": _changed(LINEAR, ("torch.arange(h).float()", "torch.zeros(h)")),
    "norm over all heads": _changed(LINEAR, ("mean(-1, keepdim=True)", "mean((1, 3), keepdim=True)")),
    "no scale": _changed(LINEAR, (" * self.scale", "")),
    "mean of past": _changed(CONV, ("y = self.mix(y)", "y = self.mix(y) + y.cumsum(1)")),
    "three taps": _changed(CONV, ("d, d, 4, groups=d, padding=3", "d, d, 3, groups=d, padding=2")),
    "hard router": _changed(
        EXPERTS,
        (
            "w = self.router(x).softmax(-1)",
            "w = self.router(x).softmax(-1)\n    w = w * (w == w.amax(-1, keepdim=True))",
        ),
    ),
    "sigmoid router": _changed(EXPERTS, (".softmax(-1)", ".sigmoid()\n    w = w / w.sum(-1, keepdim=True)")),
    "sparse router": _changed(
        EXPERTS, ("self.router(x).softmax(-1)", "self.router(x).square()\n    w = w / w.sum(-1, keepdim=True)")
    ),
}


class Renamed(ast.NodeTransformer):
    """Renames the locals and attributes that a design makes, and reverses the order of its methods and parameters.

    Statements of `__init__` that only assign a module or parameter to an attribute are taken to be independent.
    """

    def __init__(self, tree: ast.Module) -> None:
        nodes = list(ast.walk(tree))
        stored = [node for node in nodes if isinstance(getattr(node, "ctx", None), ast.Store)]
        attributes = {node.attr for node in stored if isinstance(node, ast.Attribute)}
        local = {node.id for node in stored if isinstance(node, ast.Name)}
        given = {node.arg for node in nodes if isinstance(node, ast.arg | ast.keyword)}
        outside = [item for node in nodes if isinstance(node, ast.Module | ast.ClassDef) for item in node.body]
        kept = {
            node.id
            for item in outside
            if not isinstance(item, ast.FunctionDef | ast.ClassDef)
            for node in ast.walk(item)
            if isinstance(node, ast.Name)
        }
        self._locals = {name: f"name_{index}" for index, name in enumerate(sorted(local - given - kept))}
        self._attributes = {name: f"part_{index}" for index, name in enumerate(sorted(attributes))}

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._locals.get(node.id, node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            node.attr = self._attributes.get(node.attr, node.attr)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        at = [index for index, item in enumerate(node.body) if isinstance(item, ast.FunctionDef)]
        _reverse(node.body, at)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        if node.name == "__init__":
            _reverse(node.body, [index for index, item in enumerate(node.body) if _makes_parameters(item)])
        return node


def _makes_parameters(item: ast.stmt) -> bool:
    return isinstance(item, ast.Assign) and "nn." in ast.unparse(item.value) and "self." not in ast.unparse(item.value)


def _reverse(items: list[ast.stmt], at: list[int]) -> None:
    """Reverses the items at some places among themselves."""
    for index, item in zip(at, [items[index] for index in reversed(at)], strict=True):
        items[index] = item


def renamed(source: str) -> str:
    """The same design with other names, order and text."""
    tree = ast.parse(source)
    return ast.unparse(Renamed(tree).visit(tree))
