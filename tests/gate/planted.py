"""Designs with a planted defect, each with the code it must be caught by, and sound designs that look unusual."""

from tests.gate.toys import SOUND_MIX, design

LEAKS = {
    "mean over the length": design("y = x + x.mean(1, keepdim=True)"),
    "magnitude of the next token": design("y = torch.cat([x[:, 1:], x[:, -1:]], 1).abs()"),
    "roll backwards": design("y = x.roll(-1, dims=1)"),
    "roll forwards wraps the last token to the front": design("y = x.roll(1, dims=1)"),
    "attention without a mask": design("y = torch.softmax(x @ x.mT / math.sqrt(D), -1) @ x"),
    "mask off by one": design(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril(1)
        y = torch.softmax((x @ x.mT).masked_fill(~mask, -1e9), -1) @ x
        """
    ),
    "whole chunks of 32": design(
        """
        p = F.pad(x, (0, 0, 0, -L % 32)).view(B, -1, 32, D)
        y = (p + p.mean(2, keepdim=True)).view(B, -1, D)[:, :L]
        """
    ),
    "off by one at chunk borders": design(
        """
        n = torch.arange(L, device=x.device)
        n = torch.where((n % 32 == 31) & (n + 1 < L), n + 1, n)
        y = x + x[:, n]
        """
    ),
    "from the third chunk into the second": design(
        """
        y = x.clone()
        if L > 128:
            y[:, 100] = y[:, 100] + x[:, 128]
        """
    ),
    "only beyond the second chunk": design("y = torch.cat([x[:, :64], x[:, 64:] + x[:, 64:].mean(1, True)], 1)"),
    "only beyond 128 tokens": design("y = x + x.mean(1, keepdim=True) if L > 128 else x"),
    "only in train mode": design("y = x + x.mean(1, keepdim=True) if self.training else x"),
    "only in eval mode": design("y = x if self.training else x + x.mean(1, keepdim=True)"),
    "root mean square of the sequence": design("y = x / x.square().mean((1, 2), keepdim=True).sqrt()"),
    "maximum of the sequence": design("y = x - x.amax(1, keepdim=True)"),
    "normalisation statistics over batch and length": design("y = self.bn(x.mT).mT", "self.bn = nn.BatchNorm1d(dim)"),
    "softmax over the length": design("y = torch.softmax(x, 1) * L * x"),
    "circular FFT convolution": design(
        "y = torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.fft.rfft(self.taps, n=L, dim=0), n=L, dim=1)",
        "self.taps = nn.Parameter(torch.randn(8, dim))",
    ),
    "convolution padded on both sides": design(
        "y = self.conv(x.mT).mT", "self.conv = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)"
    ),
    "sorting along the length": design("y = x.sort(1).values"),
    "top-k tokens of the sequence": design(
        """
        chosen = x.norm(dim=-1).topk(max(1, L // 2), 1).indices
        y = x * 0.5 + torch.zeros_like(x).scatter(1, chosen[..., None].expand(-1, -1, D), 1.0) * x
        """
    ),
    "cumulative sum from the end": design("y = x.flip(1).cumsum(1).flip(1) / L"),
    "layers that talk through a class": design(
        """
        if self.layer == 0:
            Block.summary = x.mean(1, keepdim=True)
        y = x + Block.summary
        """
    ),
    "a small share of the mean": design("y = x + 0.02 * x.mean(1, keepdim=True)"),
}

DEFECTS = {
    "unused parameter": (design("y = x", "self.unused = nn.Parameter(torch.ones(4))"), "gradient.dead"),
    "detached gate": (design("y = x * self.gate(x).detach()", "self.gate = nn.Linear(dim, 1)"), "gradient.dead"),
    "choice by argmax": (
        design("y = x * (self.route(x).argmax(-1, True) + 1)", "self.route = nn.Linear(dim, 2)"),
        "gradient.dead",
    ),
    "parameter of eval mode": (
        design("y = x if self.training else x * self.scale", "self.scale = nn.Parameter(torch.ones(dim))"),
        "gradient.dead",
    ),
    "root of negative values": (design("y = torch.sqrt(x)"), "forward.nonfinite"),
    "growing product": (design("y = torch.exp(x.abs() * 1e4)"), "forward.nonfinite"),
    "root at zero": (design("y = x + torch.sqrt((x - x).square())"), "backward.nonfinite"),
    "needs two tokens": (design("y = x + 0 * x[:, 1:2]; y = y * (x[:, 1, 0] == x[:, 1, 0])[:, None, None]"),
                         "forward.failed"),
    "needs whole chunks": (design("y = x.view(B, L // 32, 32, D).cumsum(2).view(B, L, D)"), "forward.failed"),
    "needs batch 1": (design("y = x.view(1, L, D)"), "forward.failed"),
    "ends the interpreter": (design("raise SystemExit(0)"), "forward.failed"),
    "interrupts": (design("raise KeyboardInterrupt"), "forward.failed"),
    "loses a token": (design("y = x; X = X[:, 1:]; y = y[:, 1:]"), "forward.shape"),
    "changes in place what backward needs": (
        design("y = torch.exp(x); y += 1"), "backward.failed"),
    "constructor raises": (design("y = x", "raise ValueError('no such layer')"), "construct.failed"),
    "constructor of the second layer raises": (design("y = x", "assert layer_idx == 0"), "construct.failed"),
    "too large": (design("y = x + self.wide(x).view(B, L, 4, D).sum(2)", "self.wide = nn.Linear(dim, 4 * dim)"),
                  "size.parameters"),
    "too small": (design("y = x", "self.into = self.out = nn.Identity()"), "size.parameters"),
    "does not learn": (design("y = x; X = X * 0"
                              "; self.out.weight.data.zero_(); self.out.bias.data.zero_()"), "learn.no_progress"),
    "exploding gradient": (
        design("y = x * 1; y.requires_grad and y.register_hook(lambda g: g * 1e9)"), "learn.gradient_norm"),
    "private random numbers": (design("g = torch.Generator(); g.seed(); y = x * torch.rand(L, 1, generator=g)"),
                               "causality.random"),
}  # fmt: skip

SOUND = {
    "running mean": design(SOUND_MIX),
    "causal attention": design(
        "y = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]"
    ),
    "causal FFT convolution": design(
        """
        n = 2 * L
        y = torch.fft.irfft(torch.fft.rfft(x, n=n, dim=1) * torch.fft.rfft(self.taps[:L], n=n, dim=0), n=n, dim=1)
        y = y[:, :L]
        """,
        "self.taps = nn.Parameter(torch.randn(5, dim) / 5)",
    ),
    "left-padded convolution": design(
        "y = self.conv(F.pad(x.mT, (3, 0))).mT", "self.conv = nn.Conv1d(dim, dim, 4, groups=dim)"
    ),
    "token by token recurrence": design(
        """
        state, states = torch.zeros_like(x[:, 0]), []
        for t in range(L):
            state = torch.sigmoid(self.decay) * state + x[:, t]
            states.append(state)
        y = torch.stack(states, 1)
        """,
        "self.decay = nn.Parameter(torch.zeros(dim))",
    ),
    "scan in log space": design(
        "d = F.logsigmoid(self.decay) * torch.arange(L)[:, None]; y = (x * (-d).exp()).cumsum(1) * d.exp()",
        "self.decay = nn.Parameter(torch.full((dim,), 3.0))",
    ),
    "chunks with a carried state": design(
        """
        p = F.pad(x, (0, 0, 0, -L % 16)).view(B, -1, 16, D)
        carried = p.sum(2).cumsum(1) - p.sum(2)
        y = (p.cumsum(2) + carried[:, :, None]).view(B, -1, D)[:, :L] / 16
        """
    ),
    "routing by token": design(
        "g = self.route(x).softmax(-1); y = x * g.amax(-1, True) * (1 + g.argmax(-1, True))",
        "self.route = nn.Linear(dim, 3)",
    ),
    "data-dependent selection": design("y = x.clone(); chosen = x[..., 0] > 0; y[chosen] = 2 * x[chosen]"),
    "dropout": design("y = F.dropout(x, 0.2, self.training)"),
    "random features of a fixed seed": design(
        "y = torch.cos(x @ self.features)",
        "g = torch.Generator().manual_seed(1); "
        "self.register_buffer('features', torch.randn(dim, dim, generator=g))",
    ),
    "output that starts at zero": design(SOUND_MIX, "nn.init.zeros_(self.out.weight)"),
    "counter of calls": design("self.calls += 1; y = x * (1 + 0.1 / self.calls)", "self.calls = 0"),
    "auxiliary loss": design("y = x; Z['auxiliary_loss'] = Z.get('auxiliary_loss', 0.0) + 1e-3 * x.square().mean()"),
    "double precision inside": design(SOUND_MIX.replace("x.cumsum(1)", "x.double().cumsum(1).float()")),
    "window by unfolding": design("y = F.pad(x, (0, 0, 7, 0)).unfold(1, 8, 1).mean(-1)"),
    "time-constant buffer without a device": design("y = x * torch.linspace(1, 2, D)"),
    "keeps its activations": design("y = x * 2; self.last = y"),
    "cannot be copied": design(
        "y = self.mix(x)", "self.mix = nn.Linear(dim, dim); self.held = self.mix.weight * 2; self.out = nn.Identity()"
    ),
    "frozen parameter": design("y = x * self.fixed", "self.fixed = nn.Parameter(torch.ones(dim), requires_grad=False)"),
}  # fmt: skip

STATIC = {
    "not Python": ("class Block(nn.Module:\n  pass", "static.syntax"),
    "Markdown around it": ("```python\nclass Block: pass\n```", "static.syntax"),
    "zero byte": ("x = '\0'", "static.syntax"),
    "endless nesting": ("x = " + "(" * 5000 + ")" * 5000, "static.syntax"),
    "neither form": ("class Mixer:\n    pass", "static.contract"),
    "Block without Z": (design("y = x").replace("forward(self, X, **Z)", "forward(self, X)"), "static.contract"),
    "Block without heads": (design("y = x").replace("dim, heads, layer", "dim, layer"), "static.contract"),
    "program without sizes": (
        "class DeltaNet:\n  def __init__(self, **kwargs): ...\n  def forward(self, hidden_states): ...",
        "static.contract",
    ),
    "program with another input": (
        "class DeltaNet:\n  def __init__(self, hidden_size=8, num_heads=2, layer_idx=0, **kwargs): ...\n"
        "  def forward(self, x): ...",
        "static.contract",
    ),
    "imports os": (design("y = x", before="import os"), "static.import"),
    "imports within a function": (design("from subprocess import run; y = x"), "static.import"),
    "relative import": (design("y = x", before="from . import sibling"), "static.import"),
    "a package that is not there": (design("y = x", before="import scipy.linalg"), "static.import"),
    "downloads": (design("y = x", before="from torch.hub import load"), "static.import"),
    "another module's import": (design("y = torch.os.getpid() * x"), "static.import"),
    "reads a file": (design("y = x * len(open('/etc/passwd').read())"), "static.call"),
    "generated code": (design("y = eval('x')"), "static.call"),
    "loads weights": (design("y = x + torch.load('weights.pt')"), "static.call"),
    "climbs out": (design("y = x * len(F.relu.__globals__)"), "static.escape"),
    "replaces a function": (design("y = x", before="F.cross_entropy = lambda *a, **k: 0"), "static.patch"),
    "replaces a method": (design("nn.Linear.forward = None; y = x"), "static.patch"),
    "replaces by name": (design("y = x", before="setattr(torch, 'isfinite', torch.ones_like)"), "static.patch"),
    "changes a setting": (design("y = x", before="torch.backends.mkldnn.enabled = False"), "static.patch"),
}
