"""The seed designs: published architectures as unit trees, two of them also as layer programs.

Each tree is a pre-norm block: the published mixer with its own convolutions, norms, gates and positions, and the
same SwiGLU feed-forward, so that designs differ by their mixers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from asiarch_hpc.designs.library import Scalar
from asiarch_hpc.designs.tree import UnitNode, UnitTree
from asiarch_hpc.errors import DesignError

PROGRAMS = Path(__file__).resolve().parent / "programs"


def seed_tree(name: str) -> UnitTree:
    """The unit tree of a seed design; DesignError for a name outside SEEDS."""
    if name not in _MIXERS:
        raise DesignError(f"no seed design {name!r}: expected one of {', '.join(SEEDS)}")
    root = _unit(
        "ResidualBlock",
        mixer_norm=_unit("RMSNorm"),
        mixer=_MIXERS[name](),
        ffn_norm=_unit("RMSNorm"),
        ffn=_unit("SwiGLU", multiple=2.67),
    )
    return UnitTree(name=name, root=root)


def seed_program(name: str) -> str:
    """The source of a seed design as a layer program; DesignError where there is none of that name."""
    path = PROGRAMS / f"{name}.py"
    known = sorted(program.stem for program in PROGRAMS.glob("*.py") if program.stem != "__init__")
    if name not in known:
        raise DesignError(f"no layer program {name!r}: expected one of {', '.join(known)}")
    return path.read_text(encoding="utf-8")


def _unit(unit: str, **parts: UnitNode | Scalar) -> UnitNode:
    args = {name: part for name, part in parts.items() if not isinstance(part, UnitNode)}
    children = {name: part for name, part in parts.items() if isinstance(part, UnitNode)}
    return UnitNode(unit=unit, args=args, children=children)


def _short_convolution(activation: str = "silu") -> UnitNode:
    return _unit("ShortConvolution", width=4, activation=activation)


def _delta_net() -> UnitNode:
    return _unit(
        "DeltaRule", convolution=_short_convolution(), norm=_unit("HeadRMSNorm"), gate=_unit("NoGate"), most=1.0
    )


def _gated_delta_net() -> UnitNode:
    return _unit(
        "GatedDeltaRule",
        convolution=_short_convolution(),
        norm=_unit("HeadRMSNorm"),
        gate=_unit("SiLUGate"),
        expand_k=0.75,
        expand_v=2.0,
        most=1.0,
    )


def _gla() -> UnitNode:
    return _unit(
        "GatedLinearAttention",
        convolution=_unit("NoConvolution"),
        norm=_unit("HeadRMSNorm"),
        gate=_unit("SiLUGate"),
        expand_k=0.5,
        rank=16,
        slowness=16.0,
    )


def _mamba2() -> UnitNode:
    return _unit(
        "Mamba2",
        convolution=_short_convolution(),
        gate=_unit("SiLUGate"),
        norm=_unit("RMSNorm"),
        expand=2.0,
        state=32,
    )


def _retnet() -> UnitNode:
    return _unit(
        "Retention",
        position=_unit("Rotary", base=10000.0),
        norm=_unit("HeadRMSNorm"),
        gate=_unit("SiLUGate"),
        expand_v=2.0,
    )


def _rwkv6() -> UnitNode:
    return _unit(
        "RWKV6TimeMix", norm=_unit("HeadLayerNorm"), gate=_unit("SiLUGate"), shift_rank=16, decay_rank=16
    )  # fmt: skip


def _ttt_linear() -> UnitNode:
    return _unit(
        "TTTLinear",
        convolution=_short_convolution("none"),
        position=_unit("Rotary", base=10000.0),
        norm=_unit("LayerNorm"),
        gate=_unit("GELUGate"),
        rate=1.0,
    )


def _gpt() -> UnitNode:
    return _unit(
        "SoftmaxAttention",
        position=_unit("Rotary", base=10000.0),
        qk_norm=_unit("NoNorm"),
        gate=_unit("NoGate"),
    )


_MIXERS: Mapping[str, Callable[[], UnitNode]] = {
    "delta_net": _delta_net,
    "gated_delta_net": _gated_delta_net,
    "gla": _gla,
    "mamba2": _mamba2,
    "retnet": _retnet,
    "rwkv6": _rwkv6,
    "ttt_linear": _ttt_linear,
    "gpt": _gpt,
}
SEEDS = tuple(_MIXERS)
