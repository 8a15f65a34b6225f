"""Blocks that claim an ability which they lack."""

from __future__ import annotations

from tests.gate.toys import Plant

CLAIMS = {
    "padding claimed without a mask": Plant("y = x", ("isolation.mask",), claims=("padding",), whole=True),
    "padding in the running sum": Plant(
        "Z.pop('attention_mask', None); y = x.cumsum(1) / 16", ("isolation.mask",), claims=("padding",), whole=True
    ),
    "padding cut out and rows joined": Plant(
        """
        mask = Z.pop("attention_mask", None)
        y = x.cumsum(1) / 16
        if mask is not None:
            y = torch.zeros_like(x)
            y[mask.bool()] = x[mask.bool()].cumsum(0) / 16
        """,
        ("isolation.mask",),
        claims=("padding",),
        whole=True,
    ),
    "packing claimed without offsets": Plant("y = x", ("isolation.packing",), claims=("packing",), whole=True),
    "offsets that are not read": Plant(
        "Z.pop('cu_seqlens', None); y = x.cumsum(1) / 16", ("isolation.packing",), claims=("packing",), whole=True
    ),
    "documents that begin one late": Plant(
        """
        total, offsets = x.cumsum(1), Z.pop("cu_seqlens", None)
        if offsets is not None:
            document = torch.bucketize(torch.arange(L), offsets[1:])
            total = total - F.pad(total, (0, 0, 1, 0))[:, offsets[document].long()]
        y = total / 16
        """,
        ("isolation.packing",),
        claims=("packing",),
        whole=True,
    ),
    "decoding claimed without a cache": Plant("y = x", ("decoding.cached",), claims=("cached_decoding",), whole=True),
}
