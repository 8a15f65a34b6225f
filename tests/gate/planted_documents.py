"""Blocks that ask which documents the tokens of a row are of, and what they make of it."""

from __future__ import annotations

from tests.gate.toys import Plant

LEAK = ("causality.documents",)
_SAME = """
d = Z.get("documents")
same = torch.ones(B, L, L, dtype=torch.bool, device=x.device) if d is None else d[:, :, None] == d[:, None]
"""
_BEGINS = """
d = Z.get("documents")
d = torch.zeros(B, L, dtype=torch.int32, device=x.device) if d is None else d
begins = F.pad(d[:, 1:] != d[:, :-1], (1, 0))
"""


def leak(mix: str) -> Plant:
    return Plant(mix, LEAK)


LEAKS = {
    "mean over the document instead of its past": leak(
        f"{_SAME}m = (same.tril() if d is None else same).to(x.dtype)\ny = m @ x / m.sum(-1, keepdim=True)"
    ),
    "attention that compares documents but not places": leak(
        f"{_SAME}mask = same.tril() if d is None else same\n"
        "y = torch.softmax((x @ x.mT).masked_fill(~mask, -1e9), -1) @ x"
    ),
    "whether the next token begins a document": leak(
        f"{_BEGINS}y = x * (2 - F.pad(begins[:, 1:], (0, 1)).to(x.dtype)[..., None])"
    ),
    "number of documents in the row": leak(f"{_BEGINS}y = x * (1 + begins.sum(1).to(x.dtype)[:, None, None] / 4)"),
    "padding of the row": leak(f"{_BEGINS}y = x * (1 + (d < 0).sum(1).to(x.dtype)[:, None, None] / 8)"),
    "length of the document": leak(f"{_SAME}y = x if d is None else x * same.sum(-1)[..., None].to(x.dtype) / 16"),
    "tokens left in the document": leak(
        f"{_SAME}y = x if d is None else x * same.triu().sum(-1)[..., None].to(x.dtype) / 16"
    ),
    "the row's documents sorted by their length": leak(
        f"{_BEGINS}sizes = F.one_hot(begins.cumsum(1), L).sum(1).sort(-1, descending=True).values\n"
        "y = x * (1 + sizes[:, :1, None].to(x.dtype) / 16)"
    ),
    "next document's border, in training alone": leak(
        f"{_BEGINS}y = x * (2 - F.pad(begins[:, 1:], (0, 1)).to(x.dtype)[..., None]) if self.training else x"
    ),
}

DEFECTS = {
    "rows joined by the numbers of their documents": Plant(
        """
        d = Z.get("documents")
        f = (torch.arange(B, device=x.device)[:, None].expand(B, L) if d is None else d).reshape(-1)
        n = F.pad(f[1:] != f[:-1], (1, 0)).cumsum(0)
        m = (n[:, None] == n).tril().to(x.dtype)
        y = (m @ x.reshape(B * L, D) / m.sum(-1, keepdim=True)).view(B, L, D)
        """,
        ("isolation.batch",),
    ),
    "most documents of any row": Plant(
        f"{_BEGINS}y = x * (1 + begins.sum(1).amax().to(x.dtype) / 4)", ("isolation.batch",)
    ),
    "documents claimed and not read": Plant(
        "y = x.cumsum(1) / 16", ("isolation.documents",), claims=("documents",), whole=True
    ),
    "documents claimed, with a shift that crosses": Plant(
        f"{_SAME}m = same.tril().to(x.dtype)\ny = m @ x / m.sum(-1, keepdim=True) + F.pad(x, (0, 0, 1, 0))[:, :L]",
        ("isolation.documents",),
        claims=("documents",),
        whole=True,
    ),
    "documents claimed, told apart by their number": Plant(
        f"{_BEGINS}y = x * (1 + d[..., None] % 2)", ("isolation.documents",), claims=("documents",), whole=True
    ),
    "a table of eight documents": Plant(
        f"{_BEGINS}y = x + self.table[d.long()]",
        ("forward.failed",),
        init="self.table = nn.Parameter(torch.zeros(8, dim))",
    ),
    "divided by the document's number": Plant(f"{_BEGINS}y = x / (1 + d[..., None])", ("forward.nonfinite",)),
    "root of nothing outside the second document": Plant(
        'd = Z.get("documents")\ny = x if d is None else x + (x * (d[..., None] == 1)).square().sum(-1, True).sqrt()',
        ("backward.nonfinite",),
    ),
}

SOUND = {
    "mean over the document's past": Plant(f"{_SAME}m = same.tril().to(x.dtype)\ny = m @ x / m.sum(-1, keepdim=True)"),
    "attention within documents, claimed": Plant(
        f"{_SAME}y = torch.softmax((x @ x.mT / math.sqrt(D)).masked_fill(~same.tril(), -1e9), -1) @ x",
        claims=("documents",),
    ),
    "forgets at borders": Plant(
        f"{_BEGINS}y, state = [], torch.zeros_like(x[:, 0])\n"
        "for t in range(L):\n    state = 0.9 * state.masked_fill(begins[:, t, None], 0) + x[:, t]\n"
        "    y.append(state)\n"
        "y = torch.stack(y, 1)",
        claims=("documents",),
    ),
    "place in the document": Plant(
        f"{_BEGINS}n = torch.arange(L, device=x.device)\n"
        "n = n - torch.where(begins, n, 0).cummax(1).values\n"
        "y = x * torch.cos(n / 8).to(x.dtype)[..., None]"
    ),
    "asks and crosses all the same": Plant(f"{_BEGINS}y = x.cumsum(1) / 16 * (1 + begins[..., None].to(x.dtype))"),
    "kernel of the delta rule with documents": Plant(
        """
        h = x.unflatten(-1, (2, -1))
        k = F.normalize(h, dim=-1)
        y = delta_rule(k, k, h, torch.sigmoid(h[..., 0]), documents=Z.get("documents"))[0].flatten(-2)
        """,
        before="from kernels.delta_rule import delta_rule",
        claims=("documents",),
    ),
    "kernel of the linear scan with documents": Plant(
        'y = linear_scan(x, F.logsigmoid(x + 2), documents=Z.get("documents"))',
        before="from kernels.linear_scan import linear_scan",
        claims=("documents",),
    ),
}  # fmt: skip
