"""Blocks whose earlier outputs depend on later tokens, each by another way."""

from __future__ import annotations

import dataclasses

from tests.gate.toys import CONFIG, Plant

LEAK = ("causality.leak",)
SMALL_LEAK = ("causality.leak", "causality.gradient")  # below the tolerance of the former the latter sees it


def leak(mix: str, init: str = "", before: str = "", codes: tuple[str, ...] = LEAK) -> Plant:
    return Plant(mix, codes, init, before)


STATISTICS = {
    "mean over the length": leak("y = x + x.mean(1, keepdim=True)"),
    "a small share of the mean": leak("y = x + 0.02 * x.mean(1, keepdim=True)"),
    "a thousandth of the next token": leak("y = x + 1e-3 * torch.cat([x[:, 1:], x[:, -1:]], 1)", codes=SMALL_LEAK),
    "a thousandth of the mean": leak("y = x + 1e-3 * x.mean(1, keepdim=True)", codes=SMALL_LEAK),
    "a learned share of the mean that starts at zero": leak(
        "y = x + self.share * x.mean(1, keepdim=True)",
        "self.share = nn.Parameter(torch.zeros(dim))",
        codes=SMALL_LEAK,
    ),
    "root mean square of the sequence": leak("y = x / (x.square().mean((1, 2), keepdim=True) + 1e-6).sqrt()"),
    "maximum of the sequence": leak("y = x - x.amax(1, keepdim=True)"),
    "median of the sequence": leak("y = x - x.median(1, keepdim=True).values"),
    "quantile of the sequence": leak("y = x - x.float().quantile(0.8, dim=1, keepdim=True)"),
    "normalisation over batch and length": leak("y = self.bn(x.mT).mT", "self.bn = nn.BatchNorm1d(dim)"),
    "group norm over the length": leak("y = self.gn(x.mT).mT", "self.gn = nn.GroupNorm(2, dim)"),
    "instance norm over the length": leak(
        "y = F.instance_norm(x.mT).mT if L > 1 else x"
    ),
    "layer norm over length and channels": leak("y = F.layer_norm(x, (L, D))"),
    "standard deviation of everything": leak("y = x / (x.std() + 0.1)"),
    "softmax over the length": leak("y = torch.softmax(x, 1) * L * x"),
    "running sum divided by the total": leak("y = 8 * x.cumsum(1) / (1 + x.abs().sum(1, keepdim=True))"),
    "running softmax with an epsilon beside a global maximum": leak(
        """
        w = torch.exp(4 * (x[..., :1] - x[..., :1].amax(1, keepdim=True)))
        y = (w * x).cumsum(1) / (w.cumsum(1) + 0.1)
        """
    ),
    "quantisation by the sequence's range": leak(
        """
        step = x.detach().abs().amax((1, 2), keepdim=True) / 7 + 1e-6
        y = x + (torch.round(x / step) * step - x).detach()
        """
    ),
    "count of positive values ahead": leak("y = x * (x[..., :1] > 0).flip(1).cumsum(1).flip(1) / 8"),
    "statistics of the last call's buffer and this one": leak(
        """
        if self.training:
            self.mean = self.mean * 0.9 + 0.1 * x.detach().float().mean((0, 1))
        y = x - self.mean
        """,
        "self.register_buffer('mean', torch.zeros(dim))",
    ),
    "layers that talk through a class": leak(
        """
        if self.layer == 0:
            Block.summary = x.mean(1, keepdim=True)
        y = x + Block.summary
        """
    ),
    "summary handed to the next layer": Plant(
        "y = x + Z.get('summary', 0); Z['summary'] = x.mean(1, keepdim=True)", LEAK, whole=True
    ),
    "half of the channels": leak("a, b = x.chunk(2, -1); y = torch.cat([a, b + b.mean(1, keepdim=True)], -1)"),
    "a single channel": leak("y = x.clone(); y[..., -1] = x[..., -1].mean(1, keepdim=True)"),
    "one head of two": leak(
        "h = x.unflatten(-1, (2, -1)); y = torch.cat([h[:, :, 0].cumsum(1) / 8, h[:, :, 1].flip(1)], -1)"
    ),
    "only in the second layer": leak("y = x + x.mean(1, keepdim=True) if self.layer >= 1 else x"),
    "only in train mode": leak("y = x + x.mean(1, keepdim=True) if self.training else x"),
    "only in eval mode": leak("y = x if self.training else x + x.mean(1, keepdim=True)"),
    "slots written by all tokens": leak(
        """
        w = torch.softmax(self.slots(x), 1)
        y = torch.softmax(self.slots(x), -1) @ (w.mT @ x)
        """,
        "self.slots = nn.Linear(dim, 4)",
    ),
    "linear attention over all tokens": leak("q = F.elu(x) + 1; y = q @ (q.mT @ x) / L"),
}  # fmt: skip

SELECTION = {
    "sorting along the length": leak("y = x.sort(1).values"),
    "rank along the length": leak("y = x * x.argsort(1).argsort(1) / 16"),
    "top-k tokens of the sequence": leak(
        """
        chosen = x.norm(dim=-1).topk(max(1, L // 2), 1).indices
        y = x * 0.5 + torch.zeros_like(x).scatter(1, chosen[..., None].expand(-1, -1, D), 1.0) * x
        """
    ),
    "experts that choose their tokens": leak(
        """
        scores = self.route(x).softmax(-1)
        kept = scores >= scores.topk(max(1, L // 3), 1).values[:, -1:]
        y = (scores * kept) @ self.experts
        """,
        "self.route = nn.Linear(dim, 3); self.experts = nn.Parameter(torch.randn(3, dim))",
    ),
    "depth by a threshold of the sequence": leak(
        """
        score = x.sum(-1, keepdim=True)
        y = torch.where(score >= score.kthvalue(L // 2 + 1, dim=1, keepdim=True).values, 2 * x, 0.5 * x)
        """
    ),
    "whether the largest token lies ahead": leak(
        "later = x[..., 0].argmax(1)[:, None, None]; y = torch.where(torch.arange(L)[:, None] < later, 2 * x, 0.5 * x)"
    ),
    "argmax of the next token": leak(
        "ahead = torch.cat([x[:, 1:], x[:, -1:]], 1).argmax(-1, keepdim=True); y = x * (1 + 0.5 * (ahead % 2))"
    ),
    "sign of the last token": leak("y = x * (1.5 + 0.5 * torch.sign(x[:, -1:, :1]).detach())"),
    "magnitude of the next token": leak("y = torch.cat([x[:, 1:], x[:, -1:]], 1).abs()"),
}

SHIFTS = {
    "roll backwards": leak("y = x.roll(-1, dims=1)"),
    "roll forwards wraps the last token to the front": leak("y = x.roll(1, dims=1)"),
    "token shift the wrong way": leak("y = F.pad(x, (0, 0, -1, 1)) + x"),
    "write through an alias": leak("y = x * 1; window = y[:, :-1]; window += 0.5 * y[:, 1:]"),
    "off by one at chunk borders": leak(
        """
        n = torch.arange(L, device=x.device)
        n = torch.where((n % 32 == 31) & (n + 1 < L), n + 1, n)
        y = x + x[:, n]
        """
    ),
    "from the third chunk into the second": leak(
        """
        y = x.clone()
        if L > 128:
            y[:, 100] = y[:, 100] + x[:, 128]
        """
    ),
    "whole chunks of 32": leak(
        """
        p = F.pad(x, (0, 0, 0, -L % 32)).view(B, -1, 32, D)
        y = (p + p.mean(2, keepdim=True)).view(B, -1, D)[:, :L]
        """
    ),
    "carried state that includes the own chunk": leak(
        """
        p = F.pad(x, (0, 0, 0, -L % 16)).view(B, -1, 16, D)
        y = (p.cumsum(2) + p.sum(2).cumsum(1)[:, :, None]).view(B, -1, D)[:, :L] / 16
        """
    ),
    "attention within a chunk without a mask": leak(
        """
        size = 64
        p = F.pad(x, (0, 0, 0, -L % size)).view(B, -1, size, D)
        real = (torch.arange(p.shape[1] * size, device=x.device) < L).view(1, -1, 1, size)
        y = (torch.softmax((p @ p.mT / math.sqrt(D)).masked_fill(~real, -1e4), -1) @ p).view(B, -1, D)[:, :L]
        """
    ),
    "only beyond the second chunk": leak("y = torch.cat([x[:, :64], x[:, 64:] + x[:, 64:].mean(1, True)], 1)"
                                         " if L > 64 else x"),
    "only beyond 128 tokens": leak("y = x + x.mean(1, keepdim=True) if L > 128 else x"),
    "only beyond 256 tokens": leak("y = x + x.mean(1, keepdim=True) if L > 256 else x"),
    "only beyond a chunk with a name": leak("chunk_size = 200; y = x if L <= 2 * chunk_size else x + x.mean(1, True)"),
    "only beyond a chunk with a keyword": leak(
        "y = self.mix(x)",
        before="""
        class Mix(nn.Module):
            def __init__(self, block_len=150):
                super().__init__()
                self.block_len = block_len

            def forward(self, x):
                head, tail = x[:, :self.block_len], x[:, self.block_len:]
                return torch.cat([head, tail + tail.mean(1, True)], 1) if tail.shape[1] > 1 else x
        """,
        init="self.mix = Mix()",
    ),
    "bidirectional recurrence": leak(
        "y = self.scan(x.float())[0]",
        "self.out, self.scan = nn.Identity(), nn.RNN(dim, dim // 2, batch_first=True, bidirectional=True)",
    ),
    "running sum from the end": leak("y = x.flip(1).cumsum(1).flip(1) / 16"),
    "difference to the end's running sum": leak("y = (x.sum(1, keepdim=True) - x.cumsum(1)) / 16"),
}  # fmt: skip

CONVOLUTIONS = {
    "convolution padded on both sides": leak(
        "y = self.conv(x.mT).mT", "self.conv = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)"
    ),
    "dilated convolution padded on both sides": leak(
        "y = self.conv(x.mT).mT", "self.conv = nn.Conv1d(dim, dim, 3, padding=4, dilation=4, groups=dim)"
    ),
    "dilated convolution padded one short": leak(
        "y = self.conv(F.pad(x.mT, (7, 1))).mT", "self.conv = nn.Conv1d(dim, dim, 3, dilation=4, groups=dim)"
    ),
    "right-sided padding": leak(
        "y = self.conv(F.pad(x.mT, (0, 3))).mT", "self.conv = nn.Conv1d(dim, dim, 4, groups=dim)"
    ),
    "cut at the wrong end": leak(
        "y = self.conv(x.mT)[..., 3:].mT", "self.conv = nn.Conv1d(dim, dim, 4, padding=3, groups=dim)"
    ),
    "reflected at the left": leak(
        "y = self.conv(F.pad(x.mT, (2, 0), mode='reflect')).mT if L > 2 else x",
        "self.conv = nn.Conv1d(dim, dim, 3, groups=dim)",
    ),
    "circular at the left": leak(
        "y = self.conv(F.pad(x.mT, (2, 0), mode='circular')).mT if L > 2 else x",
        "self.conv = nn.Conv1d(dim, dim, 3, groups=dim)",
    ),
    "strided convolution spread over its window": leak(
        "y = self.conv(F.pad(x.mT, (0, -L % 4))).repeat_interleave(4, -1)[..., :L].mT",
        "self.conv = nn.Conv1d(dim, dim, 4, stride=4, groups=dim)",
    ),
    "pooling, then upsampling": leak(
        "y = F.avg_pool1d(F.pad(x.mT, (0, -L % 4)), 4).repeat_interleave(4, -1)[..., :L].mT"
    ),
    "pooling, then interpolation": leak(
        """
        p = F.avg_pool1d(F.pad(x.float().mT, (4, -L % 4)), 4)  # of the previous window, but drawn on to the next
        y = F.interpolate(p, scale_factor=4, mode='linear').mT[:, :L]
        """
    ),
    "circular FFT convolution": leak(
        "y = torch.fft.irfft(torch.fft.rfft(x.float(), dim=1) * torch.fft.rfft(self.taps, n=L, dim=0), n=L, dim=1)",
        "self.taps = nn.Parameter(torch.randn(8, dim) / 3)",
    ),
    "FFT convolution padded too little": leak(
        """
        n = L + 4
        y = torch.fft.rfft(x.float(), n=n, dim=1) * torch.fft.rfft(self.taps, n=n, dim=0)
        y = torch.fft.irfft(y, n=n, dim=1)[:, :L]
        """,
        "self.taps = nn.Parameter(torch.randn(7, dim) / 3)",
    ),
    "low-pass filter of the spectrum": leak(
        "f = torch.fft.rfft(x.float(), dim=1); f = f * (torch.arange(f.shape[1]) < L // 4 + 1)[:, None]; "
        "y = torch.fft.irfft(f, n=L, dim=1)"
    ),
    "Fourier mixing": leak("y = torch.fft.fft2(x.float()).real / 16"),
}

ATTENTION = {
    "attention without a mask": leak("y = torch.softmax(x @ x.mT / math.sqrt(D), -1) @ x"),
    "mask off by one": leak(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril(1)
        y = torch.softmax((x @ x.mT).masked_fill(~mask, -1e9), -1) @ x
        """
    ),
    "mask of the wrong triangle": leak(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).triu()
        y = torch.softmax((x @ x.mT).masked_fill(~mask, -1e9), -1) @ x
        """
    ),
    "mask that only weakens": leak(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
        y = torch.softmax((x @ x.mT).masked_fill(~mask, -4.0), -1) @ x
        """
    ),
    "mask after the softmax": leak("y = torch.softmax(x @ x.mT / math.sqrt(D), -1).tril() @ x * 4"),
    "last token as everyone's sink": leak(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).tril()
        mask[:, -1] = True
        y = torch.softmax((x @ x.mT).masked_fill(~mask, -1e9), -1) @ x
        """
    ),
    "window around each token": leak(
        """
        n = torch.arange(L, device=x.device)
        mask = (n[:, None] - n[None]).abs() <= 2
        y = torch.softmax((x @ x.mT).masked_fill(~mask, -1e9), -1) @ x
        """
    ),
    "token mixing by a fixed matrix": leak("n = torch.arange(L); y = torch.cos(n[:, None] * n / 7.0) @ x.float() / 8"),
}

FAR = {
    "next piece of 256, a size that no name tells": Plant(
        "p = x.split(256, 1); y = torch.cat([a + b.mean(1, True) for a, b in zip(p, p[1:] + p[-1:])], 1)",
        ("causality.leak",),
        changes={"config": dataclasses.replace(CONFIG, far_length=515)},
        leaks=True,
    ),
    "in three steps of ten of the training": leak(
        "y = x + x.mean(1, keepdim=True) if self.training and torch.rand(()) < 0.3 else x"
    ),
}

LEAKS: dict[str, Plant] = {**STATISTICS, **SELECTION, **SHIFTS, **CONVOLUTIONS, **ATTENTION, **FAR}
