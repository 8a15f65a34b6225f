"""Each rule of the template finds what breaks it, and nothing in units that keep it."""

from __future__ import annotations

import pytest
from template_examples import MIXER, NORM, SLIPS, SOURCES, example, spoilt

from asiarch_hpc.designs.template_rules import HINTS, examine_tree, examine_unit

_CHILD = "Norm(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all, **self.factory_kwargs, "
_CHILD += "**self.kwarg_all)"
_CALL = "Y, Z = self.norm(self.out(mean), **Z)"
_RETURN = 'return Y, {"mean": mean}'
_DECLARED = 'CHILDREN_DECLARATIONS = [UnitDecl(unitname="Norm", requirements="", inputs=["X"], outputs=["Y"])]'
_TESTS = MIXER[MIXER.index("@gau_test") :]


@pytest.mark.parametrize("name", SOURCES)
def test_a_good_unit_has_no_findings(name: str) -> None:
    assert examine_unit(SOURCES[name], name=name) == []


def test_a_good_tree_has_no_findings() -> None:
    assert examine_tree(example()) == []


FAULTS = {
    "text": ("unit.syntax", "Here is the unit:\n```python"),
    "no class": ("unit.class", "x = 1"),
    "two classes": ("unit.class", MIXER + NORM),
    "two bases": ("unit.base", spoilt(MIXER, "Mixer(GAUBase)", "Mixer(GAUBase, Extra)")),
    "module beside": ("unit.module", MIXER + "\n\nclass Part(nn.Module):\n    pass\n"),
    "module inside": (
        "unit.module",
        spoilt(MIXER, "    def _forward", "    class Part(torch.nn.Module):\n        pass\n\n    def _forward"),
    ),
    "own name": ("unit.name", MIXER.replace("Mixer", "Blender")),
    "no init": ("unit.signature", NORM.replace("__init__", "setup").replace("Norm", "Mixer")),
    "argument without default": (
        "unit.argument_default",
        spoilt(MIXER, "kwarg_all, device", "kwarg_all, width, device"),
    ),
    "no forward": ("unit.forward", spoilt(MIXER, "_forward", "_run")),
    "forward of nothing": ("unit.forward", spoilt(MIXER, "_forward(self, X, mean=None, **Z)", "_forward(self)")),
    "own forward": ("unit.forward_override", spoilt(MIXER, "def _forward", "def forward")),
    "own call": ("unit.forward_override", spoilt(MIXER, "def _forward", "def __call__")),
    "three values": ("unit.returns", spoilt(MIXER, _RETURN, "return Y, Z, mean")),
    "list": ("unit.returns", spoilt(MIXER, _RETURN, "return [Y, Z]")),
    "no dictionary": ("unit.returns", spoilt(MIXER, _RETURN, "return Y, None")),
    "bare return": ("unit.returns", spoilt(MIXER, _RETURN, "return")),
    "no return": ("unit.returns", spoilt(MIXER, _RETURN, "pass")),
    "computed declarations": ("unit.declarations", spoilt(MIXER, _DECLARED, "CHILDREN_DECLARATIONS = list(x)")),
    "no declarations": ("unit.declarations", spoilt(MIXER, _DECLARED, "")),
    "declared twice": ("unit.declarations", spoilt(MIXER, "= [UnitDecl", '= [UnitDecl(unitname="Norm"), UnitDecl')),
    "undeclared": ("unit.children_undeclared", spoilt(MIXER, _DECLARED, "CHILDREN_DECLARATIONS = []")),
    "never made": ("unit.children_unused", spoilt(MIXER, "= [UnitDecl", '= [UnitDecl(unitname="Gate"), UnitDecl')),
    "never called": ("unit.children_unused", spoilt(MIXER, _CALL, "Y = self.out(mean)")),
    "sequential": (
        "unit.child_in_sequential",
        spoilt(MIXER, "self.eps, self", f"self.both = nn.Sequential({_CHILD}, nn.SiLU())\n        self.eps, self"),
    ),
    "made in forward": (
        "unit.child_in_forward",
        spoilt(MIXER, "        mean = X", f"        n = {_CHILD}\n        mean = X"),
    ),
    "side value by place": ("unit.child_call", spoilt(MIXER, _CALL, "Y, Z = self.norm(self.out(mean), mean)")),
    "no test": ("unit.tests", spoilt(MIXER, _TESTS, "")),
    "test with needs": ("unit.tests", spoilt(MIXER, "causal(device", "causal(width, device")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rule_finds_what_breaks_it(fault: str) -> None:
    code, source = FAULTS[fault]
    findings = examine_unit(source, name="Mixer")
    assert [item.code for item in findings] == [code]
    assert findings[0].severity == ("warn" if code == "unit.argument_default" else "reject")
    assert findings[0].message.startswith("unit Mixer")
    assert findings[0].hint


@pytest.mark.parametrize("slip", SLIPS)
def test_a_rule_finds_what_is_repaired_too(slip: str) -> None:
    spoil, code = SLIPS[slip]
    assert code in {item.code for item in examine_unit(spoil(MIXER), name="Mixer")}


def test_all_faults_of_a_unit_are_told_at_once() -> None:
    source = MIXER
    for slip in ("no kwargs", "no super", "bare child", "unmarked test", "main"):
        source = SLIPS[slip][0](source)
    found = {item.code for item in examine_unit(source, name="Mixer")}
    assert found >= {SLIPS[slip][1] for slip in ("no kwargs", "no super", "bare child", "unmarked test", "main")}


LENIENT = {
    "sequence alone": spoilt(MIXER, _RETURN, "return Y"),
    "what a call returns": spoilt(MIXER, _RETURN, "return self.norm(Y, **Z)"),
    "two ways": spoilt(MIXER, _RETURN, "if mean is None:\n            return Y, {}\n        return Y, dict(mean=mean)"),
    "inner function": spoilt(MIXER, _RETURN, "f = lambda v: (v, v, v)\n        " + _RETURN),
    "side value by name": spoilt(MIXER, _CALL, "Y, Z = self.norm(self.out(mean), mean=mean, **Z)"),
    "pair kept": spoilt(MIXER, _CALL, "pair = self.norm(self.out(mean), **Z)\n        Y, Z = pair"),
    "pair indexed": spoilt(MIXER, _CALL, "pair = self.norm(self.out(mean), **Z)\n        Y = pair[0]"),
    "child of a test": spoilt(MIXER, "    unit = Mixer", "    class P(nn.Module):\n        pass\n\n    unit = Mixer"),
    "child by its own width": spoilt(MIXER, "Norm(embed_dim=self.embed_dim", "Norm(embed_dim=embed_dim"),
    "child with a setting": spoilt(MIXER, "s, **self.kwarg_all", "s, **{**self.kwarg_all, 'eps': 1.0}"),
    "reached in general": spoilt(MIXER, _CALL, "Y, Z = next(self.children())(mean, **Z)"),
}  # fmt: skip


@pytest.mark.parametrize("case", LENIENT)
def test_other_ways_to_keep_a_rule_are_no_fault(case: str) -> None:
    assert examine_unit(LENIENT[case], name="Mixer") == []


def test_a_child_that_no_unit_of_the_tree_is() -> None:
    tree = example(Mixer=MIXER.replace("Norm", "Scale"))
    assert [item.code for item in examine_tree(tree)] == ["unit.children_missing"]


def test_an_undeclared_child_is_known_by_the_tree() -> None:
    made = MIXER[MIXER.index("Norm(embed") : MIXER.index("\n\n    def _f")]
    source = spoilt(spoilt(MIXER, _DECLARED, "CHILDREN_DECLARATIONS = []"), made, "Norm()")
    assert "unit.children_undeclared" not in {item.code for item in examine_unit(source, name="Mixer")}
    assert "unit.children_undeclared" in {item.code for item in examine_tree(example(Mixer=source))}


def test_a_unit_that_nothing_uses_is_named_and_not_examined() -> None:
    findings = examine_tree(example(Spare="not Python at all"))
    assert [(item.code, item.severity) for item in findings] == [("unit.unreachable", "warn")]


def test_a_unit_must_not_be_its_own_ancestor() -> None:
    circle = MIXER.replace("Norm", "Ladder")
    findings = examine_tree(example(Mixer=circle))
    assert "unit.cycle" in {item.code for item in findings}


def test_every_code_has_a_hint() -> None:
    codes = {code for code, _ in FAULTS.values()} | {code for _, code in SLIPS.values()}
    codes |= {"unit.children_missing", "unit.unreachable", "unit.cycle", "unit.compose"}
    assert codes == set(HINTS)
