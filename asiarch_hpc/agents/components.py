"""Categories that a design's changes are filed under (ASI-Arch section 5.2)."""

COMPONENTS = (
    "state update rule", "delta rule", "decay or forgetting", "state size or expansion", "several states or timescales",
    "state normalisation", "input gate", "output gate", "token-wise gating", "channel-wise gating", "head-wise gating",
    "path fusion or routing", "mixture of experts", "short convolution", "long convolution", "multi-scale convolution",
    "dilated or strided convolution", "local attention", "sparse attention", "global attention", "linear attention",
    "feature map", "query and key normalisation", "value path", "residual connection", "skip or identity path",
    "normalisation layer", "positional encoding", "token shift", "memory slots", "retrieval or recall",
    "test-time training", "hierarchy", "recurrence or scan", "frequency-domain mixing", "feed-forward network",
    "activation function", "initialisation", "auxiliary loss or regularisation", "temperature or scaling",
    "head mixing", "other",
)  # fmt: skip
