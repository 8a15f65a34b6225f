"""A small design in units as code, and ways to spoil its units."""

from __future__ import annotations

from collections.abc import Callable

from asiarch_hpc.designs.template import TemplateTree, Unit

IMPORTS = """\
import torch
import torch.nn as nn
from asiarch_hpc.designs.genesys_base import GAUBase, UnitDecl, gau_test
"""

ROOT = f'''{IMPORTS}

class Ladder(GAUBase):
    """Mixer and feed-forward, each with norm and residual."""

    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, rungs: int = 2, **kwargs):
        self.factory_kwargs = {{"device": device, "dtype": dtype}}
        super().__init__(embed_dim, block_loc, kwarg_all)
        self.rungs = rungs
        self.norms = nn.ModuleList([
            Norm(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all, **self.factory_kwargs,
                 **self.kwarg_all)
            for _ in range(rungs)
        ])
        self.mixer = Mixer(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all,
                           **self.factory_kwargs, **self.kwarg_all)

    def _forward(self, X, **Z):
        for norm in self.norms:  # a comment that stays
            Y, Z = norm(X, **Z)
            Y, Z = self.mixer(Y, **Z)
            X = X + Y
        return X, Z


CHILDREN_DECLARATIONS = [
    UnitDecl(unitname="Norm", requirements="any norm", inputs=["X"], outputs=["Y"]),
    UnitDecl(unitname="Mixer", requirements="causal", inputs=["X"], outputs=["Y", "mean"]),
]


@gau_test
def test_Ladder_keeps_the_shape(device=None, dtype=None):
    unit = Ladder(8, (0, 1), {{}}, device=device, dtype=dtype)
    Y, Z = unit(torch.zeros(2, 5, 8, device=device, dtype=dtype))
    assert Y.shape == (2, 5, 8)
'''

MIXER = f'''{IMPORTS}

class Mixer(GAUBase):
    """A causal running mean."""

    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, eps=1e-3, num_heads=4, **kwargs):
        self.factory_kwargs = {{"device": device, "dtype": dtype}}
        super().__init__(embed_dim, block_loc, kwarg_all)
        if embed_dim % num_heads:
            raise ValueError(f"{{embed_dim}} channels for {{num_heads}} heads")
        self.eps, self.heads = eps, num_heads
        self.out = nn.Linear(embed_dim, embed_dim, **self.factory_kwargs)
        self.norm = Norm(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all,
                         **self.factory_kwargs, **self.kwarg_all)

    def _forward(self, X, mean=None, **Z):
        steps = torch.arange(1, X.shape[1] + 1, **self.factory_kwargs).view(1, -1, 1)
        mean = X.cumsum(1) / (steps + self.eps) + (0 if mean is None else mean)
        Y, Z = self.norm(self.out(mean), **Z)
        return Y, {{"mean": mean}}


CHILDREN_DECLARATIONS = [UnitDecl(unitname="Norm", requirements="", inputs=["X"], outputs=["Y"])]


@gau_test
def test_Mixer_is_causal(device=None, dtype=None):
    unit = Mixer(8, (0, 1), {{}}, device=device, dtype=dtype)
    X = torch.randn(1, 6, 8, device=device, dtype=dtype)
    assert torch.allclose(unit(X)[0][:, :3], unit(X[:, :3])[0], atol=1e-5)
'''

NORM = f'''{IMPORTS}

class Norm(GAUBase):
    """RMSNorm."""

    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, eps=1e-6, **kwargs):
        self.factory_kwargs = {{"device": device, "dtype": dtype}}
        super().__init__(embed_dim, block_loc, kwarg_all)
        self.weight = nn.Parameter(torch.ones(embed_dim, **self.factory_kwargs))
        self.eps = eps

    def _forward(self, X):
        return X * (X.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


CHILDREN_DECLARATIONS = []


@gau_test
def test_Norm_makes_unit_rows(device=None, dtype=None):
    Y, _ = Norm(8, (0, 1), {{}}, device=device, dtype=dtype)(torch.randn(1, 2, 8, device=device, dtype=dtype))
    assert torch.allclose(Y.square().mean(-1), torch.ones(1, 2, device=device, dtype=dtype), atol=1e-3)
'''

SOURCES = {"Ladder": ROOT, "Mixer": MIXER, "Norm": NORM}


def example(**changed: str) -> TemplateTree:
    """The design, with the code of some units replaced."""
    return TemplateTree("ladder", "Ladder", {name: Unit(code) for name, code in (SOURCES | changed).items()})


def spoilt(source: str, old: str, new: str) -> str:
    """The source with one place changed; it must be there."""
    assert old in source, old
    return source.replace(old, new)


def _change(old: str, new: str) -> Callable[[str], str]:
    return lambda source: spoilt(source, old, new)


_FIXED = """Norm(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all,
                         **self.factory_kwargs, **self.kwarg_all)"""
_TEST = "@gau_test\ndef test_Mixer_is_causal(device=None, dtype=None):"

# Slips in MIXER that are repaired: name -> (what makes it, the rule it breaks). Each can be made with any others of
# another place.
SLIPS: dict[str, tuple[Callable[[str], str], str]] = {
    "no kwargs": (_change(", num_heads=4, **kwargs)", ", num_heads=4)"), "unit.signature"),
    "no device": (_change("kwarg_all, device=None, dtype=None, eps", "kwarg_all, eps"), "unit.signature"),
    "no default": (
        _change("kwarg_all, device=None, dtype=None, eps", "kwarg_all, device, dtype, eps"),
        "unit.signature",
    ),
    "no block_loc": (_change("embed_dim, block_loc, kwarg_all, dev", "embed_dim, kwarg_all, dev"), "unit.signature"),
    "no super": (_change("        super().__init__(embed_dim, block_loc, kwarg_all)\n", ""), "unit.init"),
    "bare super": (_change("super().__init__(embed_dim, block_loc, kwarg_all)", "super().__init__()"), "unit.init"),
    "no factory": (_change('        self.factory_kwargs = {"device": device, "dtype": dtype}\n', ""), "unit.init"),
    "read setting": (
        lambda source: spoilt(
            spoilt(source, "eps=1e-3, ", ""),
            "self.eps, self.heads = eps, num_heads",
            'self.eps = kwarg_all.get("eps", 1e-3)\n        self.heads = num_heads',
        ),
        "unit.arguments",
    ),
    "bare child": (_change(_FIXED, "Norm()"), "unit.child_arguments"),
    "positional child": (_change(_FIXED, "Norm(embed_dim, block_loc, kwarg_all)"), "unit.child_arguments"),
    "own setting": (
        _change(_FIXED, "Norm(embed_dim, block_loc=block_loc, kwarg_all=kwarg_all, device=device)"),
        "unit.child_arguments",
    ),
    "pair as tensor": (
        _change("Y, Z = self.norm(self.out(mean), **Z)", "Y = self.norm(self.out(mean), **Z)\n        Y = 1.0 * Y"),
        "unit.child_result",
    ),
    "unmarked test": (_change(_TEST, _TEST.removeprefix("@gau_test\n")), "unit.tests"),
    "test without device": (_change(_TEST, _TEST.replace("device=None, ", "")), "unit.tests"),
    "test without default": (_change(_TEST, _TEST.replace("=None", "")), "unit.tests"),
    "test of no unit": (_change(_TEST, _TEST.replace("test_Mixer_is_causal", "test_causality")), "unit.tests"),
    "main": (lambda source: source + '\n\nif __name__ == "__main__":\n    print(Mixer)\n', "unit.main"),
}
