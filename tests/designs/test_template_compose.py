"""Composition: one file that keeps the contract, in which every unit keeps its own arguments and names."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest
import torch
from template_examples import IMPORTS, MIXER, NORM, ROOT, example, spoilt
from torch import nn

from asiarch_hpc.designs.contract import build_block, form_of
from asiarch_hpc.designs.genesys_names import ACTIVATIONS, InterleavedRotary, PlainRMSNorm
from asiarch_hpc.designs.template import TemplateTree, Unit
from asiarch_hpc.designs.template_compose import compose_template, compose_tests
from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate import static


def leaf(name: str, body: str, *, head: str = "", arguments: str = "", init: str = "pass") -> str:
    """A unit without children: `body` computes Y from X, `init` ends its constructor."""
    return (
        f"{IMPORTS}{head}\n\nclass {name}(GAUBase):\n"
        f"    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, {arguments}**kwargs):\n"
        '        self.factory_kwargs = {"device": device, "dtype": dtype}\n'
        "        super().__init__(embed_dim, block_loc, kwarg_all)\n"
        f"        {init}\n\n    def _forward(self, X, **Z):\n        {body}\n\n\nCHILDREN_DECLARATIONS = []\n"
    )


def parent(*children: str, first: str = "pass", name: str = "Top") -> str:
    """A unit that calls its children one after another; `first` stands before they are made."""
    made = "".join(
        f"        self.c{number} = {child}(embed_dim=self.embed_dim, block_loc=self.block_loc, "
        "kwarg_all=self.kwarg_all, **self.factory_kwargs, **self.kwarg_all)\n"
        for number, child in enumerate(children)
    )
    calls = "".join(f"        X, Z = self.c{number}(X, **Z)\n" for number in range(len(children)))
    declared = ", ".join(f'UnitDecl(unitname="{child}", requirements="")' for child in dict.fromkeys(children))
    return (
        f"{IMPORTS}\n\nclass {name}(GAUBase):\n"
        "    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, **kwargs):\n"
        '        self.factory_kwargs = {"device": device, "dtype": dtype}\n'
        f"        super().__init__(embed_dim, block_loc, kwarg_all)\n        {first}\n{made}\n"
        f"    def _forward(self, X, **Z):\n{calls}        return X, Z\n\n\nCHILDREN_DECLARATIONS = [{declared}]\n"
    )


def tree(root: str, **units: str) -> TemplateTree:
    return TemplateTree("test", root, {name: Unit(code) for name, code in units.items()})


def built(design: TemplateTree, dim: int = 16, heads: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return build_block(compose_template(design), dim=dim, heads=heads, layer_idx=3, ffn_multiple=2.0)


def answer(design: TemplateTree, value: float = 1.0) -> float:
    """What the design makes of a sequence of equal values."""
    return float(built(design)(torch.full((1, 3, 16), value))[0].detach().flatten()[0])


@pytest.mark.parametrize(("dim", "heads"), [(16, 2), (24, 3), (40, 4)])
def test_the_composed_file_keeps_the_contract(dim: int, heads: int) -> None:
    source = compose_template(example())
    assert form_of(source) == "tree"
    assert static.examine(source) == []
    block = built(example(), dim, heads)
    x = torch.randn(2, 9, dim, requires_grad=True)
    y, auxiliary = block(x)
    assert (y.shape, y.dtype, auxiliary) == (x.shape, x.dtype, None)
    y.sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_the_text_depends_on_the_tree_alone() -> None:
    units = dict(reversed(example().units.items()))
    spare = {**units, "Spare": Unit("not Python")}
    assert compose_template(TemplateTree("ladder", "Ladder", spare)) == compose_template(example())
    text = compose_template(example())
    assert "UnitDecl" not in text
    assert "gau_test" not in text
    assert "asiarch_hpc" not in text
    assert "# a comment that stays" in text
    quoted = compose_template(TemplateTree('a"""\nimport os\\', "Norm", {"Norm": Unit(NORM)}))
    assert not any(isinstance(node, ast.Import) and node.names[0].name == "os" for node in ast.walk(ast.parse(quoted)))


def test_units_keep_their_own_arguments_of_one_name() -> None:
    """Genesys puts all into one dictionary, in which the last one wins."""
    one = leaf("One", "return X * self.gain", arguments="gain=3.0, ", init="self.gain = gain")
    two = leaf("Two", "return X + self.gain", arguments="gain=5.0, ", init="self.gain = gain")
    assert answer(tree("Top", Top=parent("One", "Two"), One=one, Two=two)) == 8.0


def test_published_values_stand_where_the_file_has_others() -> None:
    init = "self.gain, self.more = gain, more"
    one = leaf("One", "return X * self.gain + self.more", arguments="gain=3.0, more=1.0, ", init=init)
    units = {"Top": Unit(parent("One")), "One": Unit(one, {"gain": 7.0, "unknown": 1})}
    assert answer(TemplateTree("test", "Top", units)) == 8.0
    required = spoilt(one, "device=None, dtype=None, gain=3.0, more=1.0", "gain, more=1.0, device=None, dtype=None")
    assert answer(TemplateTree("test", "Top", {**units, "One": Unit(required, {"gain": 7.0})})) == 8.0


def test_what_a_parent_sets_reaches_the_units_below() -> None:
    one = leaf("One", "return X * self.gain", arguments="gain=3.0, ", init="self.gain = gain")
    top = parent("Middle", first="kwarg_all['gain'] = 11.0")
    assert answer(tree("Top", Top=top, Middle=parent("One", name="Middle"), One=one)) == 11.0


def test_a_unit_gets_the_side_values_that_it_names() -> None:
    giver = leaf("Giver", "return X, {'extra': X.new_tensor(2.0), 'other': X}")
    taker = spoilt(leaf("Taker", "return X * extra if not Z else X"), "X, **Z", "X, extra=None, **Z")
    assert answer(tree("Top", Top=parent("Giver", "Taker"), Giver=giver, Taker=taker)) == 2.0


@pytest.mark.parametrize(
    ("dim", "heads", "found"), [(64, 2, 8), (32, 8, 8), (40, 2, 2), (48, 4, 4), (12, 2, 1), (56, 7, 7), (6, 3, 3)]
)
def test_own_heads_stand_where_they_fit_the_width(dim: int, heads: int, found: int) -> None:
    one = leaf("One", "return X", arguments="num_heads=8, ", init="self.heads = num_heads")
    two = leaf("Two", "return X", arguments="num_heads=1, ", init="self.heads = num_heads")
    block = built(tree("Top", Top=parent("One", "Two"), One=one, Two=two), dim, heads)
    assert {type(m).__name__: m.heads for m in block.modules() if hasattr(m, "heads")} == {"One": found, "Two": 1}


def test_a_missing_child_is_an_error_or_an_identity() -> None:
    design = tree("Top", Top=parent("One", "Later").replace('"Later", requirements=""', '"Later", outputs=["Y", "m"]'),
                  One=leaf("One", "return X * 2"))  # fmt: skip
    with pytest.raises(DesignError, match="Later: Top uses it"):
        compose_template(design)
    source = compose_template(design, placeholders=True)
    block = build_block(source, dim=16, heads=2, layer_idx=0, ffn_multiple=2.0)
    assert float(block(torch.ones(1, 2, 16))[0].max()) == 2.0
    assert '"m": None' in source


CLASHES: dict[str, tuple[str, str, float]] = {
    "values": (
        leaf("One", "return X * GAIN", head="GAIN = 3.0\n"), leaf("Two", "return X + GAIN", head="GAIN = 5.0\n"), 8.0,
    ),
    "functions": (
        leaf("One", "return f(X)", head="def f(x):\n    return x * 3\n"),
        leaf("Two", "return f(X)", head="def f(x):\n    return x + 5\n"),
        8.0,
    ),
    "values of values": (
        leaf("One", "return X * B", head="A = 3.0\nB = A\n"), leaf("Two", "return X + B", head="A = 5.0\nB = A\n"), 8.0,
    ),
    "imports": (
        leaf("One", "return X * floor(3.5)", head="from math import floor\n"),
        leaf("Two", "return X + floor(X.new_tensor(5.5))", head="from torch import floor\n"),
        8.0,
    ),
    "import and unit": (
        leaf("One", "return Two(X) * 3", head="from torch import relu as Two\n"), leaf("Two", "return X + 5"), 8.0,
    ),
    "functions that call others": (
        leaf("One", "return f(X)", head="def f(x):\n    return g(x)\ndef g(x):\n    return x * 3\n"),
        leaf("Two", "return f(X)", head="def f(x):\n    return g(x)\ndef g(x):\n    return x + 5\n"),
        8.0,
    ),
    "same function": (
        leaf("One", "return f(X)", head="def f(x):\n    return x * 3\n"),
        leaf("Two", "return f(X)", head="def f(x):\n    return x * 3\n"),
        9.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("clash", CLASHES)
def test_names_of_two_units_are_told_apart(clash: str) -> None:
    one, two, expected = CLASHES[clash]
    assert answer(tree("Top", Top=parent("One", "Two"), One=one, Two=two)) == expected


def test_names_that_cannot_be_told_apart_are_an_error() -> None:
    one = leaf("One", "return X * GAIN", head="GAIN = 3.0\n")
    two = leaf("Two", "return (lambda GAIN: X + GAIN)(GAIN)", head="GAIN = 5.0\n")
    with pytest.raises(DesignError, match=r"unit Two, line .*: GAIN means one thing here"):
        compose_template(tree("Top", Top=parent("One", "Two"), One=one, Two=two))


@pytest.mark.parametrize("name", ["Block", "DeltaNet", "Tensor", "nn"])
def test_units_may_be_called_as_the_composed_file_needs(name: str) -> None:
    child = leaf(name, "return X * 3")
    child = child.replace("import torch.nn as nn\n", "") if name == "nn" else child
    assert answer(tree("Top", Top=parent(name, name), **{name: child})) == 9.0
    assert answer(tree(name, **{name: child})) == 3.0


@pytest.mark.parametrize("package", ["flash_attn", "causal_conv1d"])
def test_optional_packages_are_taken_for_absent(package: str) -> None:
    head = f"try:\n    from {package} import f\n    HAS = True\nexcept ImportError:\n    f, HAS = None, False\n"
    source = compose_template(tree("One", One=leaf("One", "return f(X) if HAS else X * 3", head=head)))
    assert package not in source
    assert static.examine(source) == []
    assert answer(tree("One", One=leaf("One", "return f(X) if HAS else X * 3", head=head))) == 3.0


def test_names_of_other_packages_have_stand_ins() -> None:
    head = "from torchtune.modules import RMSNorm\nfrom transformers.activations import ACT2FN\n"
    init = "self.norm, self.act = RMSNorm(embed_dim), ACT2FN['silu']"
    one = leaf("One", "return self.act(self.norm(X))", head=head, init=init)
    design = tree("Top", Top=parent("One", "RMSNorm"), One=one, RMSNorm=leaf("RMSNorm", "return X * 2"))
    assert static.examine(compose_template(design)) == []
    assert answer(design) == pytest.approx(2 * float(torch.sigmoid(torch.tensor(1.0))), abs=1e-4)


def test_what_nothing_uses_is_left_out() -> None:
    head = "import time\nfrom transformers.utils import logging\nlogger = logging.get_logger(__name__)\n"
    source = compose_template(tree("One", One=leaf("One", "return X * 3", head=head)))
    assert "logg" not in source
    assert static.examine(source) == []


def test_a_submodule_that_a_unit_imports_is_imported() -> None:
    one = leaf("One", "return torch.utils.checkpoint.checkpoint(torch.relu, X, use_reentrant=False)",
               head="import torch.utils.checkpoint\n")  # fmt: skip
    assert "import torch.utils.checkpoint" in compose_template(tree("One", One=one)).splitlines()


@pytest.mark.parametrize(("change", "said"), [
    ({"Mixer": MIXER.replace("Norm", "Ladder")}, "its own ancestor: Ladder -> Mixer -> Ladder"),
    ({"Mixer": MIXER.replace("Mixer", "Blender")}, "unit Mixer: its class is called Blender"),
    ({"Mixer": "class ("}, "expected valid Python"),
    ({"Mixer": MIXER + ROOT}, "found the unit classes Mixer, Ladder"),
])  # fmt: skip
def test_what_cannot_be_composed_is_named(change: dict[str, str], said: str) -> None:
    with pytest.raises(DesignError, match=said):
        compose_template(example(**change))


@pytest.mark.parametrize("move", [lambda m: m.double(), lambda m: m.to(torch.bfloat16), lambda m: m.to("meta")])
def test_tensors_that_units_make_follow_the_module(move: Callable[[nn.Module], nn.Module]) -> None:
    block = move(built(example()))
    place = next(block.parameters())
    y, _ = block(torch.ones(2, 5, 16, dtype=place.dtype, device=place.device))
    assert (y.dtype, y.device) == (place.dtype, place.device)
    assert set(block.state_dict()) == {name for name, _ in block.named_parameters()}, "no state beside parameters"


def test_a_unit_that_changes_the_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"One: Y has the shape \[1, 2, 16\], expected that of X, \[1, 3, 16\]"):
        answer(tree("One", One=leaf("One", "return X[:, 1:]")))


def test_tests_come_with_the_imports_that_only_they_need() -> None:
    one = leaf("One", "return X", head="import math\nWIDTH = 4\n")
    one += "\n\n@gau_test\ndef test_One_pi(device=None, dtype=None):\n    assert math.pi < WIDTH\n"
    text = compose_tests(tree("One", One=one))
    assert text.splitlines()[0] == "import math"
    assert "WIDTH = 4" in text
    assert "class One" not in text
    assert "math" not in compose_template(tree("One", One=one))
    names = [node.name for node in ast.parse(compose_tests(example())).body if isinstance(node, ast.FunctionDef)]
    assert names == ["test_Ladder_keeps_the_shape", "test_Norm_makes_unit_rows", "test_Mixer_is_causal"]
    assert compose_tests(tree("One", One="class (")) == ""


def test_stand_ins_compute_what_their_names_say() -> None:
    x = torch.randn(2, 5, 3, 8)
    assert torch.allclose(PlainRMSNorm(8)(x), nn.functional.rms_norm(x, (8,), eps=1e-6), atol=1e-6)
    rotary = InterleavedRotary(8)
    turned = rotary(x)
    assert torch.allclose(turned[:, 0], x[:, 0]), "position 0 is not turned"
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    same = rotary(x[:, :1].expand(-1, 5, -1, -1))
    scores = (same[:, :, None] * same[:, None]).sum(-1)
    assert torch.allclose(scores[:, 0, 2], scores[:, 2, 4], atol=1e-4), "scores depend on distances alone"
    later = torch.tensor([[3, 4, 5, 6, 7]]).expand(2, -1)
    assert torch.allclose(rotary(x, input_pos=later)[:, 0], rotary(x[:, :1].expand(-1, 4, -1, -1))[:, 3], atol=1e-5)
    assert torch.allclose(ACTIVATIONS["gelu_new"](x), nn.functional.gelu(x, approximate="tanh"))
