"""Repairs set right what breaks a rule, change nothing else, and keep what the code means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from template_examples import MIXER, SLIPS, SOURCES, example, spoilt

from asiarch_hpc.designs.contract import build_block
from asiarch_hpc.designs.template import TemplateTree
from asiarch_hpc.designs.template_compose import compose_template
from asiarch_hpc.designs.template_repair import repair, repair_tree
from asiarch_hpc.designs.template_rules import examine_unit

_SLIPS_BY_PLACE = {
    "signature": ("no kwargs", "no device", "no default", "no block_loc"),
    "init": ("no super", "bare super", "no factory"),
    "child": ("bare child", "positional child", "own setting"),
    "result": ("pair as tensor",),
    "test": ("unmarked test", "test without device", "test without default", "test of no unit"),
    "main": ("main",),
}


def output(tree: TemplateTree) -> torch.Tensor:
    """[2, 9, 16] of the composed design, from fixed weights and inputs."""
    torch.manual_seed(0)
    block = build_block(compose_template(tree), dim=16, heads=2, layer_idx=0, ffn_multiple=2.0)
    result: torch.Tensor = block(torch.randn(2, 9, 16))[0]
    return result


@pytest.mark.parametrize("name", SOURCES)
def test_a_good_unit_is_left_alone(name: str) -> None:
    assert repair(SOURCES[name]) == (SOURCES[name], [])


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_repaired_told_and_means_what_was_meant(slip: str) -> None:
    spoil, code = SLIPS[slip]
    repaired, findings = repair(spoil(MIXER))
    assert examine_unit(repaired, name="Mixer") == []
    assert {item.code for item in findings} == {code}
    assert all(item.severity == "warn" and "unit Mixer: repaired: " in item.message for item in findings)
    torch.testing.assert_close(output(example(Mixer=repaired)), output(example()))


@st.composite
def combinations(draw: st.DrawFn) -> list[str]:
    """Slips of different places, which can be made together, in the order in which texts still match."""
    places = draw(st.sets(st.sampled_from(sorted(_SLIPS_BY_PLACE)), min_size=1))
    return [draw(st.sampled_from(_SLIPS_BY_PLACE[place])) for place in sorted(places)]


@settings(deadline=None, max_examples=40)
@given(combinations(), st.sampled_from(["\n", "\r\n"]))
def test_repairing_twice_is_repairing_once(slips: list[str], end: str) -> None:
    source = MIXER
    for slip in slips:
        source = SLIPS[slip][0](source)
    source = source.replace("\n", end)
    repaired, findings = repair(source)
    assert repair(repaired) == (repaired, [])
    left = {item.code for item in examine_unit(repaired, name="Mixer")}
    assert not left & {SLIPS[slip][1] for slip in slips}
    assert {item.code for item in findings} >= {SLIPS[slip][1] for slip in slips}
    torch.testing.assert_close(output(example(Mixer=repaired)), output(example()))


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=60), st.integers(0, len(MIXER)))
def test_any_text_is_repaired_once(noise: str, place: int) -> None:
    source = MIXER[:place] + noise + MIXER[place:]
    repaired, _ = repair(source)
    assert repair(repaired) == (repaired, [])


def test_what_the_parent_sets_for_a_child_is_kept() -> None:
    old = MIXER[MIXER.index("Norm(embed") : MIXER.index("\n\n    def _f")]
    repaired, _ = repair(spoilt(MIXER, old, "Norm(embed_dim, block_loc, kwarg_all, eps=10.0, dtype=dtype)"))
    assert '**{**self.kwarg_all, "eps": 10.0}' in repaired
    assert '**{**self.factory_kwargs, "dtype": dtype}' in repaired
    assert not torch.allclose(output(example(Mixer=repaired)), output(example()))


UNSAFE = {
    "pair that is unpacked later": ("Y, Z = self.norm(self.out(mean), **Z)",
                                    "Y = self.norm(self.out(mean), **Z)\n        Y, Z = Y"),
    "pair that is returned": ("Y, Z = self.norm(self.out(mean), **Z)\n        return Y, {\"mean\": mean}",
                              "Y = self.norm(self.out(mean), **Z)\n        return Y"),
    "setting that is written too": ("self.eps, self.heads = eps, num_heads",
                                    "kwarg_all['gain'] = 2\n        self.eps = kwarg_all.get('gain', 1)\n"
                                    "        self.heads = num_heads"),
    "setting that could change": ("self.eps, self.heads = eps, num_heads",
                                  "self.eps = kwarg_all.get('gain', [1])[0]\n        self.heads = num_heads"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSAFE)
def test_what_may_be_meant_is_not_repaired(case: str) -> None:
    source = spoilt(MIXER, *UNSAFE[case])
    assert repair(source) == (source, [])


def test_a_tree_is_repaired_unit_by_unit() -> None:
    broken = SLIPS["bare child"][0](MIXER)
    tree, findings = repair_tree(example(Mixer=broken))
    assert [item.code for item in findings] == ["unit.child_arguments"]
    assert tree.units["Norm"] is not None
    assert repair_tree(tree) == (tree, [])
    torch.testing.assert_close(output(tree), output(example()))


def test_an_undeclared_child_of_the_tree_is_made_as_one() -> None:
    """Without the tree nothing shows that `Norm()` is a unit."""
    declared = 'UnitDecl(unitname="Norm", requirements="", inputs=["X"], outputs=["Y"])'
    source = spoilt(SLIPS["bare child"][0](MIXER), declared, "")
    assert repair(source)[0] == source
    assert "Norm(embed_dim=self.embed_dim" in repair(source, known=frozenset({"Norm"}))[0]
