"""Sound blocks that carry information along the sequence in unusual ways."""

from __future__ import annotations

from tests.gate.toys import SOUND_MIX, Plant

_ATTENTION = "y = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]"
_LOOP = "state = torch.zeros_like(x[:, 0]); states = []\nfor t in range(L):\n    "

CONVOLUTIONS = {
    "causal FFT convolution": Plant(
        """
        n = 2 * L
        y = torch.fft.rfft(x.float(), n=n, dim=1) * torch.fft.rfft(self.taps[:L], n=n, dim=0)
        y = torch.fft.irfft(y, n=n, dim=1)[:, :L]
        """,
        init="self.taps = nn.Parameter(torch.randn(5, dim) / 5)",
    ),
    "FFT convolution padded to a power of two": Plant(
        """
        n = 2 ** math.ceil(math.log2(2 * L))
        y = torch.fft.rfft(x.float(), n=n, dim=1) * torch.fft.rfft(self.taps, n=n, dim=0)
        y = torch.fft.irfft(y, n=n, dim=1)[:, :L]
        """,
        init="self.taps = nn.Parameter(torch.randn(2, dim) / 5)",
    ),
    "FFT convolution padded by its taps alone": Plant(
        """
        n = L + 5
        y = torch.fft.rfft(x.float(), n=n, dim=1) * torch.fft.rfft(self.taps, n=n, dim=0)
        y = torch.fft.irfft(y, n=n, dim=1)[:, :L]
        """,
        init="self.taps = nn.Parameter(torch.randn(6, dim) / 5)",
    ),
    "implicit filter over all positions": Plant(
        """
        t = torch.arange(L)[:, None] / 64
        taps = (torch.sin(t * self.waves) * torch.exp(-t * 3)).to(x.device)
        y = torch.fft.rfft(x.float(), n=2 * L, dim=1) * torch.fft.rfft(taps, n=2 * L, dim=0)
        y = torch.fft.irfft(y, n=2 * L, dim=1)[:, :L] / 8
        """,
        init="self.waves = nn.Parameter(torch.linspace(1, 30, dim))",
    ),
    "complex FFT convolution": Plant(
        """
        taps = torch.exp(-torch.arange(L)[:, None] * (self.rate.abs() + 0.05))
        y = torch.fft.ifft(torch.fft.fft(x.float(), n=2 * L, dim=1) * torch.fft.fft(taps, n=2 * L, dim=0), dim=1)
        y = y.real[:, :L] / 4
        """,
        init="self.rate = nn.Parameter(torch.linspace(0.1, 2, dim))",
    ),
    "left-padded convolution": Plant(
        "y = self.conv(F.pad(x.mT, (3, 0))).mT", init="self.conv = nn.Conv1d(dim, dim, 4, groups=dim)"
    ),
    "convolution padded on both sides and cut": Plant(
        "y = self.conv(x.mT)[..., :L].mT", init="self.conv = nn.Conv1d(dim, dim, 4, padding=3, groups=dim)"
    ),
    "dilated convolution": Plant(
        "y = self.conv(F.pad(x.mT, (8, 0))).mT", init="self.conv = nn.Conv1d(dim, dim, 3, dilation=4, groups=dim)"
    ),
    "convolution by unfolding": Plant(
        "y = torch.einsum('bldk,dk->bld', F.pad(x, (0, 0, 3, 0)).unfold(1, 4, 1), self.taps)",
        init="self.taps = nn.Parameter(torch.randn(dim, 4) / 2)",
    ),
    "weight-normed convolution": Plant(
        "y = self.conv(F.pad(x.mT, (2, 0))).mT",
        init="self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(dim, dim, 3, groups=dim))",
    ),
    "causal pooling, then shifted upsampling": Plant(
        """
        p = F.avg_pool1d(F.pad(x.mT, (0, -L % 4)), 4).repeat_interleave(4, -1)
        y = F.pad(p, (4, 0))[..., :L].mT
        """
    ),
    "strided convolution of whole windows before": Plant(
        "y = self.conv(F.pad(x.mT, (4, -L % 4))).repeat_interleave(4, -1)[..., :L].mT",
        init="self.conv = nn.Conv1d(dim, dim, 4, stride=4, groups=dim)",
    ),
    "wavelets": Plant(
        """
        y = x
        for reach in (1, 2, 4, 8):
            y = (y + F.pad(y, (0, 0, reach, 0))[:, :L]) / 2
        """
    ),
    "median of the last three tokens": Plant("y = F.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1).median(-1).values"),
    "channel-wise convolution along the width": Plant(
        "y = self.conv(x.reshape(B * L, 1, D)).view(B, L, D)", init="self.conv = nn.Conv1d(1, 1, 3, padding=1)"
    ),
}

RECURRENCES = {
    "running mean": Plant(SOUND_MIX),
    "token by token recurrence": Plant(
        f"{_LOOP}state = torch.sigmoid(self.decay) * state + x[:, t]\n    states.append(state)\n"
        "y = torch.stack(states, 1)",
        init="self.decay = nn.Parameter(torch.zeros(dim))",
    ),
    "writes into a prepared tensor": Plant(
        """
        y = torch.zeros_like(x)
        state = torch.zeros_like(x[:, 0])
        for t in range(L):
            state = 0.9 * state + x[:, t]
            y[:, t] = state
        """
    ),
    "scan in log space": Plant(
        "d = F.logsigmoid(self.decay) * torch.arange(L)[:, None]; y = (x * (-d).exp()).cumsum(1) * d.exp()",
        init="self.decay = nn.Parameter(torch.full((dim,), 3.0))",
    ),
    "associative scan by doubling": Plant(
        """
        a, y, reach = torch.sigmoid(x + 1), x, 1
        while reach < L:
            y = y + a * F.pad(y, (0, 0, reach, 0))[:, :L]
            a = a * F.pad(a, (0, 0, reach, 0))[:, :L]
            reach *= 2
        """
    ),
    "chunks with a carried state": Plant(
        """
        p = F.pad(x, (0, 0, 0, -L % 16)).view(B, -1, 16, D)
        carried = p.sum(2).cumsum(1) - p.sum(2)
        y = (p.cumsum(2) + carried[:, :, None]).view(B, -1, D)[:, :L] / 16
        """
    ),
    "summaries of the chunks before": Plant(
        """
        chunk_size = 32
        p = F.pad(x, (0, 0, 0, -L % chunk_size)).view(B, -1, chunk_size, D)
        y = x + F.pad(p.mean(2), (0, 0, 1, -1)).repeat_interleave(chunk_size, 1)[:, :L]
        """
    ),
    "complex recurrence": Plant(
        """
        rotation = torch.polar(torch.sigmoid(self.size), self.angle)
        state = torch.zeros(B, D // 2, dtype=torch.complex64, device=x.device)
        u, states = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous()), []
        for t in range(L):
            state = rotation * state + u[:, t]
            states.append(state)
        y = torch.view_as_real(torch.stack(states, 1)).flatten(2)
        """,
        init="self.size = nn.Parameter(torch.ones(dim // 2)); self.angle = nn.Parameter(torch.rand(dim // 2))",
    ),
    "Legendre memory": Plant(
        """
        state, states = torch.zeros(B, 6, D, device=x.device), []
        for t in range(L):
            state = torch.einsum('ij,bjd->bid', self.a, state) + self.b[:, None] * x[:, t, None].float()
            states.append((self.c[:, None] * state).sum(1))
        y = torch.stack(states, 1)
        """,
        init="""
        n = torch.arange(6)
        r = (2 * n + 1) / 24
        a = torch.where(n[:, None] < n, -1.0, (-1.0) ** (n[:, None] - n + 1)) * r[:, None]
        self.register_buffer('a', torch.matrix_exp(a))
        self.register_buffer('b', (-1.0) ** n * r)
        self.c = nn.Parameter(torch.ones(6))
        """,
    ),
    "maximum so far": Plant("y = x.cummax(1).values"),
    "log-sum-exp so far": Plant("y = x.logcumsumexp(1)"),
    "norm of the past": Plant(
        "n = torch.arange(1, L + 1, device=x.device)[:, None]; "
        "y = x / ((x.float().square().mean(-1, keepdim=True).cumsum(1) / n).sqrt() + 0.1)"
    ),
    "running softmax below a global maximum that cancels": Plant(
        """
        s = self.score(x).float()
        w = (s - s.amax(1, keepdim=True)).exp()
        y = (w * x).cumsum(1) / w.cumsum(1).clamp_min(1e-30)
        """,
        init="self.score = nn.Linear(dim, 1)",
    ),
    "linear attention": Plant(
        """
        q, k = F.elu(x.float()) + 1, F.elu(-x.float()) + 1
        kv = torch.einsum('bld,ble->blde', k, x.float()).cumsum(1)
        y = torch.einsum('bld,blde->ble', q, kv) / (q * k.cumsum(1)).sum(-1, keepdim=True)
        """
    ),
    "slots of the past": Plant(
        """
        w = torch.exp(torch.tanh(self.slots(x).float()))
        held = torch.einsum('bls,bld->blsd', w, x.float()).cumsum(1) / w.cumsum(1)[..., None]
        y = torch.einsum('bls,blsd->bld', torch.softmax(self.slots(x).float(), -1), held)
        """,
        init="self.slots = nn.Linear(dim, 4)",
    ),
    "gated memory": Plant(
        "y = self.scan(x.float())[0]", init="self.out, self.scan = nn.Identity(), nn.GRU(dim, dim // 4, "
        "batch_first=True); self.out = nn.Linear(dim // 4, dim)"
    ),
    "averages on several scales": Plant(
        """
        n = torch.arange(L, device=x.device)
        d = (n[:, None] - n).clamp(0)
        kernel = torch.stack([(-d / s).exp().tril() / s for s in (2.0, 8.0, 32.0)]).mean(0)
        y = kernel @ x.float()
        """
    ),
    "state handed to the next layer": Plant("y = x + Z.get('memory', 0); Z['memory'] = x.cumsum(1) / 16"),
    "fast weights by gradient descent": Plant(
        """
        w, parts = torch.zeros(B, 1, D, device=x.device), []
        for u in x.float().split(32, 1):
            parts.append(u + w * u)
            with torch.enable_grad():
                v = w if w.requires_grad else w.requires_grad_()
                loss = (v * u - u.roll(1, -1)).square().mean((1, 2)).sum()
                w = v - 0.5 * torch.autograd.grad(loss, v, create_graph=self.training)[0]
        y = torch.cat(parts, 1)
        """
    ),
    "kernel of the delta rule": Plant(
        """
        h = x.unflatten(-1, (2, -1))
        k = F.normalize(h, dim=-1)
        y = delta_rule(k, k, h, torch.sigmoid(h[..., 0]))[0].flatten(-2)
        """,
        before="from kernels.delta_rule import delta_rule",
    ),
    "kernel of the linear scan": Plant(
        "y = linear_scan(x, F.logsigmoid(x + 2))", before="from kernels.linear_scan import linear_scan"
    ),
    "kernel of the short convolution": Plant(
        "y = short_convolution(x, self.taps, activation=None)",
        before="from kernels.short_convolution import short_convolution",
        init="self.taps = nn.Parameter(torch.randn(dim, 4) / 2)",
    ),
    "kernel of the long convolution": Plant(
        "y = long_convolution(x, self.taps)",
        before="from kernels.long_convolution import long_convolution",
        init="self.taps = nn.Parameter(torch.randn(dim, 70) / 9)",
    ),
}  # fmt: skip

ATTENTION = {
    "causal attention": Plant(_ATTENTION),
    "masked attention": Plant(
        "mask = torch.full((L, L), -torch.inf, device=x.device).triu(1); "
        "y = torch.softmax(x @ x.mT / math.sqrt(D) + mask, -1) @ x"
    ),
    "mask that grows with the length": Plant(
        """
        if self.mask.shape[0] < L:
            self.mask = torch.ones(L, L, dtype=torch.bool, device=x.device).triu(1)
        y = torch.softmax((x @ x.mT).masked_fill(self.mask[:L, :L], -1e9), -1) @ x
        """,
        init="self.mask = torch.ones(0, 0, dtype=torch.bool)",
    ),
    "strictly earlier tokens and a learned sink": Plant(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).triu()
        scores = torch.cat([(x @ self.sink).unsqueeze(-1), (x @ x.mT).masked_fill(mask, -1e9)], -1)
        y = torch.softmax(scores, -1)[..., 1:] @ x
        """,
        init="self.sink = nn.Parameter(torch.randn(dim))",
    ),
    "distance as a penalty": Plant(
        """
        n = torch.arange(L, device=x.device)
        d = n[:, None] - n
        y = torch.softmax((x @ x.mT - self.slope * d).masked_fill(d < 0, -1e9), -1) @ x
        """,
        init="self.slope = nn.Parameter(torch.ones(1))",
    ),
    "sliding window": Plant(
        "w = F.pad(x, (0, 0, 7, 0)).unfold(1, 8, 1); n = torch.arange(L)[:, None] + torch.arange(8) - 7; "
        "s = torch.einsum('bld,bldk->blk', x, w).masked_fill(n < 0, -1e9); "
        "y = torch.einsum('blk,bldk->bld', torch.softmax(s, -1), w)"
    ),
    "fixed tokens before": Plant(
        """
        past = torch.stack([F.pad(x, (0, 0, reach, 0))[:, :L] for reach in (0, 1, 2, 4, 8, 16)], 2)
        y = (torch.softmax((past * x[:, :, None]).sum(-1), -1)[..., None] * past).sum(2)
        """
    ),
    "rotary positions": Plant(
        """
        angle = torch.arange(L)[:, None] / (100 ** (torch.arange(D // 2) * 2 / D))
        a, b = x.chunk(2, -1)
        q = torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
        y = F.scaled_dot_product_attention(q[:, None], q[:, None], x.to(q.dtype)[:, None], is_causal=True)[:, 0]
        """
    ),
    "top-k of the past": Plant(
        """
        mask = torch.ones(L, L, dtype=torch.bool, device=x.device).triu(1)
        s = (x @ x.mT / math.sqrt(D)).float().masked_fill(mask, -1e9)
        s = s.masked_fill(s < s.topk(min(4, L), -1).values[..., -1:], -1e9)
        y = torch.softmax(s, -1) @ x.float()
        """
    ),
    "einops": Plant(
        "h = rearrange(x, 'b l (h d) -> b h l d', h=2); "
        "y = rearrange(F.scaled_dot_product_attention(h, h, h, is_causal=True), 'b h l d -> b l (h d)')",
        before="from einops import rearrange",
    ),
}

MIXING: dict[str, Plant] = {**CONVOLUTIONS, **RECURRENCES, **ATTENTION}
