"""Blocks with a fault other than a look ahead, each with the codes that name it."""

from __future__ import annotations

from tests.gate import planted_documents
from tests.gate.planted_claims import CLAIMS
from tests.gate.planted_tampering import TAMPERING
from tests.gate.planted_whole import BUILT_WRONG, COSTLY, LEARNS_WRONG
from tests.gate.toys import Plant

LENGTH = ("prefix.length",)
ROWS = ("isolation.batch",)
RANDOM = ("determinism.eval", "causality.random")
DRIFT = ("determinism.drift",)
DEAD = ("gradient.dead",)
INFINITE = ("forward.nonfinite",)
FAILED = ("forward.failed",)

_LOOP = "state = torch.zeros_like(x[:, 0]); states = []\nfor t in range(L):\n    "

DEPENDS_ON_LENGTH = {
    "running sum over the length": Plant("y = x.cumsum(1) / L", LENGTH),
    "positions as shares of the length": Plant("y = x * torch.arange(L)[:, None] / L", LENGTH),
    "chunks of a quarter of the length": Plant(
        """
        n = max(1, L // 4)
        p = F.pad(x, (0, 0, 0, -L % n)).view(B, -1, n, D)
        y = (p.sum(2).cumsum(1) - p.sum(2)).repeat_interleave(n, 1)[:, :L] / 16
        """,
        LENGTH,
    ),
    "rotation by a base of the length": Plant(
        """
        angle = torch.arange(L)[:, None] / (L ** (torch.arange(D // 2) * 2 / D))
        a, b = x.chunk(2, -1)
        y = torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
        """,
        LENGTH,
    ),
    "attention sharpened by the length": Plant(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
        y = torch.softmax((x @ x.mT / D * math.log(L + 1)).masked_fill(~mask, -1e9), -1) @ x
        """,
        LENGTH,
    ),
    "window of half the length": Plant(
        """
        w = max(1, L // 2)
        y = (x.cumsum(1) - F.pad(x.cumsum(1), (0, 0, w, 0))[:, :L]) / 8
        """,
        LENGTH,
    ),
    "positions counted from the end": Plant("y = x * torch.exp(-(L - torch.arange(L))[:, None] / 20)", LENGTH),
    "decay by the length": Plant(
        "d = torch.arange(L)[:, None] * math.log(1 - 1 / (L + 1)); y = (x * (-d).exp()).cumsum(1) * d.exp() / 8", LENGTH
    ),
    "scale of the next power of two": Plant("y = 16 * x / 2 ** math.ceil(math.log2(L))", LENGTH),
    "odd lengths": Plant("y = x if L % 2 else 2 * x", LENGTH),
    "another formula beyond 64 tokens": Plant("y = x.cumsum(1) / 8 if L <= 64 else x.cumsum(1) / 16", LENGTH),
    "another formula beyond 256 tokens": Plant("y = x if L <= 256 else x.tanh()", LENGTH),
    "taps resampled to the length": Plant(
        """
        taps = F.interpolate(self.taps.T[None], size=L, mode='linear')[0].T
        y = torch.fft.rfft(x.float(), n=2 * L, dim=1) * torch.fft.rfft(taps, n=2 * L, dim=0)
        y = torch.fft.irfft(y, n=2 * L, dim=1)[:, :L] / 4
        """,
        LENGTH,
        "self.taps = nn.Parameter(torch.randn(4, dim))",
    ),
}

MIXES_ROWS = {
    "mean over the batch": Plant("y = x + x.mean(0, keepdim=True)", ROWS),
    "a small share of the other rows": Plant("y = x + 0.02 * x.mean(0, keepdim=True)", ROWS),
    "normalised over the batch": Plant("y = (x - x.mean(0)) / (x.std(0, correction=0) + 0.1)", ROWS),
    "softmax over the batch": Plant("y = x * torch.softmax(x, 0) * B", ROWS),
    "sorted over the batch": Plant("y = x.sort(0).values", ROWS),
    "rows rolled": Plant("y = x + 0.5 * x.roll(1, 0)", ROWS),
    "rows rolled in training": Plant("y = x + 0.5 * x.roll(1, 0) if self.training else x", ROWS),
    "rows rolled in eval": Plant("y = x if self.training else x + 0.5 * x.roll(1, 0)", ROWS),
    "running sum over the rows": Plant("y = x.cumsum(0) / 2", ROWS),
    "first row into the last": Plant("y = x.clone(); y[-1] = y[-1] + 0.3 * x[0]", ROWS),
    "only batches beyond two rows": Plant("y = x + x.mean(0, keepdim=True) if B > 2 else x", ROWS),
    "batch and length exchanged": Plant("y = x.reshape(L, B, D).cumsum(0).reshape(B, L, D) / 8", ROWS, leaks=True),
    "recurrence along the batch": Plant(
        "y = self.scan(x.float())[0]", ROWS, "self.out, self.scan = nn.Identity(), nn.RNN(dim, dim, bias=False)"
    ),
    "largest value of each position": Plant("y = x / (x.abs().amax((0, 2), keepdim=True) + 0.1)", ROWS),
    "first token of the row above": Plant("y = x + x[:, :1].roll(1, 0)", ROWS),
    "expert capacity counted over the batch": Plant(
        """
        chosen = F.one_hot((x[..., 0] > 0).long(), 2).view(B * L, 2)
        place = (chosen.cumsum(0) * chosen).sum(-1).view(B, L, 1)
        y = torch.where(place <= 20, 2 * x, 0 * x)
        """,
        ROWS,
    ),
    "tokens dropped by a threshold of the batch": Plant(
        "score = x.sum(-1, keepdim=True); y = x * (score > score.mean(0, keepdim=True))", ROWS
    ),
    "channels switched by the batch's majority": Plant(
        "y = torch.where(((x > 0).float().mean(0, keepdim=True) > 0.5), 2 * x, 0.5 * x)", ROWS
    ),
}

UNSTEADY = {
    "dropout in eval": Plant("y = F.dropout(x, 0.2)", RANDOM),
    "noise in eval": Plant("y = x + 0.1 * torch.randn_like(x)", RANDOM),
    "random routes": Plant("y = x * F.gumbel_softmax(x, hard=True)", RANDOM),
    "Python's random numbers": Plant("y = x * random.random()", RANDOM, before="import random"),
    "NumPy's random numbers": Plant("y = x * float(np.random.rand())", RANDOM, before="import numpy as np"),
    "private random numbers": Plant(
        "g = torch.Generator(); g.seed(); y = x * torch.rand(L, 1, generator=g)", ("causality.random",)
    ),
    "private random numbers in training": Plant(
        "g = torch.Generator(); g.seed(); y = x * torch.rand(L, 1, generator=g) if self.training else x",
        ("causality.random",),
    ),
    "NumPy's random numbers in training": Plant(
        "y = x * float(np.random.rand()) if self.training else x", ("causality.random",), before="import numpy as np"
    ),
    "a generator that goes on": Plant(
        "y = x * torch.rand(D, generator=self.g)",
        (*RANDOM, *DRIFT),
        "self.g = torch.Generator().manual_seed(0)",
    ),
    "counter of calls": Plant("self.calls += 1; y = x * (1 + 1 / self.calls)", DRIFT, "self.calls = 0"),
    "counter of the class": Plant(
        "Block.calls = getattr(Block, 'calls', 0) + 1; y = x * (1 + 1 / Block.calls)", (*DRIFT, "causality.random")
    ),
    "cache that grows": Plant("self.cache.append(0); y = x / len(self.cache)", DRIFT, "self.cache = []"),
    "running mean that eval goes on with": Plant(
        """
        y = x - self.mean
        self.mean = 0.9 * self.mean + 0.1 * x.detach().float().mean((0, 1))
        """,
        DRIFT,
        "self.register_buffer('mean', torch.zeros(dim))",
    ),
    "a parameter that every call changes": Plant(
        "self.scale.data += 0.01; y = x * self.scale", DRIFT, "self.scale = nn.Parameter(torch.ones(dim))"
    ),
    "wakes up after three calls": Plant(
        "self.calls += 1; y = x if self.calls > 3 else 0 * x", DRIFT, "self.register_buffer('calls', torch.zeros(()))"
    ),
    "first input of each length is kept": Plant(
        "y = x + self.kept.setdefault(L, x.detach()[:1, :1])", (*DRIFT, *ROWS), "self.kept = {}"
    ),
    "state of the last call": Plant(
        "y = x + self.last; self.last = x.detach()[:1, :1]", DRIFT, "self.last = torch.zeros(1, 1, dim)"
    ),
    "a cached result": Plant(
        "y = x + first(L, x.device.type, lambda: x.detach()[:1, :1])",
        (*DRIFT, *ROWS, *LENGTH, "causality.random"),
        before="""
        kept = {}
        def first(*key):
            if key[:2] not in kept:
                kept[key[:2]] = key[2]()
            return kept[key[:2]]
        """,
    ),
}

WITHOUT_GRADIENT = {
    "unused parameter": Plant("y = x", DEAD, "self.unused = nn.Parameter(torch.ones(4))"),
    "experts in a plain list": Plant(
        "y = sum(expert(x) for expert in self.experts)",
        ("gradient.unregistered",),
        "self.experts = [nn.Linear(dim, dim) for _ in range(2)]",
    ),
    "weight in a plain attribute": Plant(
        "y = x * self.held", ("gradient.unregistered",), "self.held = torch.ones(dim, requires_grad=True)"
    ),
    "layer made in forward": Plant(
        "y = nn.Linear(D, D)(x)", ("gradient.unregistered", "causality.random", "determinism.eval")
    ),
    "unused layer": Plant("y = x", DEAD, "self.spare = nn.Linear(dim, 2)"),
    "unused in the second layer": Plant(
        "y = x * self.scale if self.layer == 0 else x", DEAD, "self.scale = nn.Parameter(torch.ones(dim))"
    ),
    "detached gate": Plant("y = x * self.gate(x).detach()", DEAD, "self.gate = nn.Linear(dim, 1)"),
    "gate without gradients": Plant(
        "with torch.no_grad(): g = torch.sigmoid(self.gate(x))\ny = x * g", DEAD, "self.gate = nn.Linear(dim, 1)"
    ),
    "values instead of the parameter": Plant(
        "y = x * self.scale.data", DEAD, "self.scale = nn.Parameter(torch.ones(dim))"
    ),
    "choice by argmax": Plant(
        "y = x * (self.route(x).argmax(-1, True) + 1)", DEAD, "self.route = nn.Linear(dim, 2)"
    ),
    "rounded": Plant("y = x * torch.round(self.scale)", DEAD, "self.scale = nn.Parameter(torch.ones(dim))"),
    "clamped beyond its range": Plant(
        "y = x * self.scale.clamp(3, 4)", DEAD, "self.scale = nn.Parameter(torch.ones(dim))"
    ),
    "dead unit": Plant("y = x + F.relu(self.bias - 5)", DEAD, "self.bias = nn.Parameter(torch.zeros(dim))"),
    "times zero": Plant("y = x + 0 * self.bias", DEAD, "self.bias = nn.Parameter(torch.zeros(dim))"),
    "parameter of eval mode": Plant(
        "y = x if self.training else x * self.scale", DEAD, "self.scale = nn.Parameter(torch.ones(dim))"
    ),
    "branch that is never taken": Plant(
        "y = x if L < 5000 else self.far(x)", DEAD, "self.far = nn.Linear(dim, 2)"
    ),
}  # fmt: skip

NOT_FINITE = {
    "root of negative values": Plant("y = torch.sqrt(x)", INFINITE),
    "growing product": Plant("y = torch.exp(x.abs() * 1e4)", INFINITE),
    "logarithm of the first position": Plant("y = x * torch.log(torch.arange(L))[:, None]", INFINITE),
    "mean of the tokens before": Plant("y = (x.cumsum(1) - x) / torch.arange(L)[:, None]", INFINITE),
    "strictly earlier tokens only": Plant(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril(-1)
        y = torch.softmax((x @ x.mT).masked_fill(~mask, -torch.inf), -1) @ x
        """,
        INFINITE,
    ),
    "scan that overflows beyond a hundred tokens": Plant(
        "d = torch.arange(L)[:, None] * 0.8; y = (x.float() * d.exp()).cumsum(1) * (-d).exp()", INFINITE
    ),
    "recurrence that grows": Plant(f"{_LOOP}state = 3 * state + x[:, t].float()\n    states.append(state)\n"
                                   "y = torch.stack(states, 1)", INFINITE),
    "half precision inside": Plant("y = (300 * x.half()).square().float()", INFINITE),
    "spread of a single row": Plant("y = x / (x.std(0) + 1e-3)", INFINITE),
    "length of one": Plant("y = x * (1 / (L - 1) if L > 1 else torch.inf)", INFINITE),
    "auxiliary loss": Plant("y = x; Z['auxiliary_loss'] = (x - x).sum().log()", INFINITE),
    "gradient of a root at zero": Plant("y = x + torch.sqrt((x - x).square())", ("backward.nonfinite",)),
    "gradient of a root behind where": Plant(
        "y = torch.where(x > 0, x.sqrt(), torch.zeros_like(x))", ("backward.nonfinite",)
    ),
    "gradient of a root of masked values": Plant("y = (x * (x > 0)).sqrt()", ("backward.nonfinite",)),
}  # fmt: skip

FAILING = {
    "needs two tokens": Plant(
        "y = x + 0 * x[:, 1:2]; y = y * (x[:, 1, 0] == x[:, 1, 0])[:, None, None]", FAILED
    ),
    "needs whole chunks": Plant("y = x.view(B, L // 32, 32, D).cumsum(2).view(B, L, D)", FAILED),
    "needs batch 1": Plant("y = x.view(1, L, D)", FAILED),
    "needs pairs of rows": Plant("y = x.view(B // 2, 2, L, D).view(B, L, D) if B > 1 else x", FAILED),
    "table of 100 positions": Plant("y = x + self.table[:L]", FAILED, "self.table = nn.Parameter(torch.zeros(100, 1))"),
    "fails in eval": Plant("y = x if self.training else x.view(-1, 3)", FAILED),
    "fails without gradients": Plant("y = x - torch.autograd.grad(x.square().sum(), x, create_graph=True)[0]", FAILED),
    "ends the interpreter": Plant("raise SystemExit(0)", FAILED),
    "interrupts": Plant("raise KeyboardInterrupt", FAILED),
    "loses the first token": Plant(
        "y = x; X = X[:, 1:]; y = y[:, 1:]", ("forward.shape", "forward.failed"), leaks=True
    ),
    "adds a token": Plant("y = F.pad(x, (0, 0, 0, 1)); X = F.pad(X, (0, 0, 0, 1))",
                          ("forward.shape", "forward.failed")),
    "rows become one": Plant("y = x[:1]; X = X[:1]", ("forward.shape", "forward.failed", *ROWS)),
    "returns double precision": Plant("X = X.double(); y = x", ("forward.dtype",)),
    "double precision in the last layer": Plant(
        "y = x; X = X.double() if self.layer == 1 else X", ("forward.dtype",), whole=True
    ),
    "changes in place what backward needs": Plant("y = torch.exp(x); y += 1", ("backward.failed",)),
    "keeps the graph of the last call": Plant(
        "y = x + self.last; self.last = x[:1, :1].exp()", ("backward.failed",), "self.last = torch.zeros(1, 1, dim)"
    ),
    "backward that raises": Plant(
        "y = Broken.apply(x)",
        ("backward.failed",),
        before="""
        class Broken(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, g):
                return g.view(3, -1)
        """,
    ),
    "adds fp32 to bf16, in which it is to train": Plant(
        "y = x + torch.zeros_like(x).index_add(1, torch.arange(L), self.bias.expand(B, L, D))",
        ("precision.bf16",),
        "self.bias = nn.Parameter(torch.zeros(dim))",
        changes={"precision": "bf16"},
    ),
    "insists on fp32 where the scale trains in bf16": Plant(
        "assert x.dtype == torch.float32; y = x", ("precision.bf16",), changes={"precision": "bf16"}
    ),
}  # fmt: skip

DEFECTS: dict[str, Plant] = {
    **DEPENDS_ON_LENGTH,
    **MIXES_ROWS,
    **UNSTEADY,
    **WITHOUT_GRADIENT,
    **NOT_FINITE,
    **FAILING,
    **BUILT_WRONG,
    **LEARNS_WRONG,
    **COSTLY,
    **CLAIMS,
    **planted_documents.LEAKS,
    **planted_documents.DEFECTS,
    **TAMPERING,
}
