"""Blocks that are sound though they look unusual: none may be refused."""

from __future__ import annotations

from tests.gate import planted_documents
from tests.gate.planted_mixing import MIXING
from tests.gate.toys import SOUND_MIX, Plant

ROUTING = {
    "routing by token": Plant(
        "g = self.route(x).softmax(-1); y = x * g.amax(-1, True) * (1 + g.argmax(-1, True))",
        init="self.route = nn.Linear(dim, 3)",
    ),
    "two experts of four": Plant(
        """
        g, chosen = self.route(x).float().softmax(-1).topk(2, -1)
        y = (g[..., None] * self.experts[chosen] * x[:, :, None]).sum(2)
        """,
        init="self.route = nn.Linear(dim, 4); self.experts = nn.Parameter(torch.randn(4, dim))",
    ),
    "experts by selected rows": Plant(
        """
        y, chosen = torch.zeros_like(x), self.route(x).argmax(-1)
        gate = self.route(x).softmax(-1)
        for e in range(3):
            b, t = torch.where(chosen == e)
            y[b, t] = x[b, t] * self.experts[e].to(x.dtype) * gate[b, t, e, None]
        """,
        init="self.route = nn.Linear(dim, 3); self.experts = nn.Parameter(torch.randn(3, dim))",
    ),
    "largest channels of a token": Plant("y = x * (x >= x.topk(4, -1).values[..., -1:])"),
    "sorted channels of a token": Plant("y = x.sort(-1).values"),
    "selection by value": Plant("y = x.clone(); chosen = x[..., 0] > 0; y[chosen] = 2 * x[chosen]"),
    "straight-through binary values": Plant("y = x + (x.sign() - x).detach()"),
    "quantised by each token's range": Plant(
        "step = x.detach().abs().amax(-1, keepdim=True) / 7 + 1e-6; y = x + (torch.round(x / step) * step - x).detach()"
    ),
    "hashing to a table": Plant(
        "bucket = ((x[..., :3] > 0) * torch.tensor([1, 2, 4])).sum(-1); y = x * self.table(bucket)",
        init="self.table = nn.Embedding(8, dim)",
    ),
    "auxiliary loss": Plant("y = x; Z['auxiliary_loss'] = Z.get('auxiliary_loss', 0.0) + 1e-3 * x.square().mean()"),
    "balance of experts over the batch in the auxiliary loss": Plant(
        """
        g = self.route(x).softmax(-1)
        y = x * g.amax(-1, True)
        Z['auxiliary_loss'] = Z.get('auxiliary_loss', 0.0) + 1e-2 * g.float().mean((0, 1)).square().sum()
        """,
        init="self.route = nn.Linear(dim, 3)",
    ),
}

TRAINING = {
    "dropout": Plant("y = F.dropout(x, 0.2, self.training)"),
    "dropout of whole channels": Plant("y = F.dropout1d(x.mT, 0.2, self.training).mT"),
    "stochastic depth": Plant("y = x * (torch.rand(()) > 0.3) if self.training else x"),
    "stochastic depth by row": Plant("y = x * (torch.rand(B, 1, 1) > 0.3) if self.training else x"),
    "noise in training": Plant("y = x + 0.1 * torch.randn_like(x) if self.training else x"),
    "random features of a fixed seed": Plant(
        "y = torch.cos(x.float() @ self.features)",
        init="g = torch.Generator().manual_seed(1); "
        "self.register_buffer('features', torch.randn(dim, dim, generator=g))",
    ),
    "random features drawn anew each time from one seed": Plant(
        "y = torch.cos(x.float() @ torch.randn(D, D, generator=torch.Generator().manual_seed(3)))"
    ),
    "counter of training": Plant(
        "self.calls += int(self.training); y = x * (1 + 0.1 / (1 + self.calls))", init="self.calls = 0"
    ),
    "statistics that training collects and eval uses": Plant(
        """
        y = x - self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().float().mean((0, 1))
        """,
        init="self.register_buffer('mean', torch.zeros(dim))",
    ),
    "keeps its activations": Plant("y = x * 2; self.last = y"),
    "counts without using it": Plant("self.calls += 1; y = x", init="self.calls = 0"),
}

PARAMETERS = {
    "output that starts at zero": Plant(SOUND_MIX, init="nn.init.zeros_(self.out.weight)"),
    "zero gate": Plant("y = x * torch.tanh(self.gate)", init="self.gate = nn.Parameter(torch.zeros(dim))"),
    "frozen parameter": Plant(
        "y = x * self.fixed", init="self.fixed = nn.Parameter(torch.ones(dim), requires_grad=False)"
    ),
    "buffer of positions": Plant(
        "y = x * self.wave[torch.arange(L) % 64, None]",
        init="self.register_buffer('wave', torch.linspace(0, 6, 64).cos())",
    ),
    "learned positions that repeat": Plant(
        "y = x + self.table[torch.arange(L, device=x.device) % 8]",
        init="self.table = nn.Parameter(torch.randn(8, dim))",
    ),
    "one matrix used three times": Plant("y = self.into(torch.tanh(self.into(x)))"),
    "low-rank change": Plant(
        "y = x @ self.a @ self.b",
        init="self.a = nn.Parameter(torch.randn(dim, 2) / 4); self.b = nn.Parameter(torch.randn(2, dim))",
    ),
    "orthogonal matrix": Plant(
        "y = self.turn(x)", init="self.turn = nn.utils.parametrizations.orthogonal(nn.Linear(dim, dim, bias=False))"
    ),
    "cannot be copied": Plant(
        "y = self.mix(x)",
        init="self.mix = nn.Linear(dim, dim); self.held = self.mix.weight * 2; self.out = nn.Identity()",
    ),
    "double precision inside": Plant(SOUND_MIX.replace("x.cumsum(1)", "x.double().cumsum(1).float()")),
    "reversible halves": Plant(
        "a, b = x.chunk(2, -1); a = a + torch.tanh(b.cumsum(1) / 8); b = b + torch.tanh(a.cumsum(1) / 8); "
        "y = torch.cat([b, a], -1)"
    ),
    "Chebyshev polynomials": Plant(
        "u = torch.tanh(x); a, b, y = 1, u, 0\nfor w in self.w: y = y + w * b; a, b = b, 2 * u * b - a",
        init="self.w = nn.Parameter(torch.ones(4) / 2)",
    ),
}

CONTROL = {
    "one token returns early": Plant("if L == 1: return X + self.out(x), Z\ny = x + F.pad(x, (0, 0, 1, -1))"),
    "two ways to the same sum": Plant(
        """
        if L <= 32:
            y = torch.ones(L, L).tril() @ x.float() / 16
        else:
            y = x.cumsum(1) / 16
        """
    ),
    "token shift": Plant("y = x + F.pad(x, (0, 0, 1, -1))"),
    "gated token shift": Plant(
        "y = torch.lerp(x, F.pad(x, (0, 0, 1, -1)), torch.sigmoid(self.mu).to(x.dtype))",
        init="self.mu = nn.Parameter(torch.zeros(dim))",
    ),
    "checkpointed": Plant(
        "y = checkpoint(lambda v: torch.tanh(self.into(v)), x, use_reentrant=False)",
        before="from torch.utils.checkpoint import checkpoint",
    ),
    "own backward": Plant(
        "y = Cube.apply(x)",
        before="""
        class Cube(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x ** 3

            @staticmethod
            def backward(ctx, g):
                (x,) = ctx.saved_tensors
                return 3 * g * x * x
        """,
    ),
    "vmap over rows": Plant("y = torch.vmap(lambda row: row.cumsum(0))(x) / 16"),
    "flip there and back": Plant("y = x.flip(1).flip(1).cumsum(1) / 16"),
    "roll with its first token put out": Plant("y = x.roll(1, 1) * (torch.arange(L) > 0)[:, None]"),
    "rows flattened, positions kept": Plant("y = self.into(x.reshape(B * L, D)).view(B, L, D)"),
    "a mean over the length that is not used": Plant("unused = x.mean(1); y = x"),
    "default device": Plant("y = x * torch.linspace(1, 2, D) + torch.zeros(1)"),
}

CLAIMED = {
    "padding that is kept out": Plant(
        """
        mask = Z.pop("attention_mask", None)
        x = x if mask is None else x * mask[..., None]
        y = x.cumsum(1) / 16
        """,
        claims=("padding",),
    ),
    "packed documents that are kept apart": Plant(
        """
        total, offsets = x.cumsum(1), Z.pop("cu_seqlens", None)
        if offsets is not None:
            document = torch.bucketize(torch.arange(L), offsets[1:], right=True)
            total = total - F.pad(total, (0, 0, 1, 0))[:, offsets[document].long()]
        y = total / 16
        """,
        claims=("packing",),
    ),
}

AMPLIFIED = {
    "normalised output of an FFT convolution with growing taps": Plant(
        """
        n = 2 * L
        taps = torch.randn(L, D, generator=torch.Generator().manual_seed(0)) * 1.06 ** torch.arange(L)[:, None]
        mixed = torch.fft.rfft(x, n=n, dim=1) * torch.fft.rfft(taps.to(x), n=n, dim=0)
        y = F.layer_norm(torch.fft.irfft(mixed, n=n, dim=1)[:, :L], (D,))
        """
    ),
}

SOUND: dict[str, Plant] = {
    **AMPLIFIED,
    **MIXING, **ROUTING, **TRAINING, **PARAMETERS, **CONTROL, **CLAIMED,
    **planted_documents.SOUND,
}  # fmt: skip
