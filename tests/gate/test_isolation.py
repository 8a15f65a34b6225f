from __future__ import annotations

import pytest

from asiarch_hpc.designs.seeds import seed_program
from asiarch_hpc.gate.checks.isolation import examine_isolation
from asiarch_hpc.records import Finding
from tests.gate.layers import design_specimen, found, program, program_specimen
from tests.gate.planted import SOUND
from tests.gate.toys import design

MIXING = {
    "mean over the batch": "y = x - x.mean(0, True)",
    "statistics of the batch": "y = (x - x.mean((0, 1), keepdim=True)) / x.std()",
    "attention over all tokens": "f = x.reshape(1, B * L, D)\ny = ((f @ f.mT).tril().softmax(-1) @ f).view(B, L, D)",
    "roll over the batch": "y = x.roll(1, 0)",
    "scan over joined rows": "y = x.reshape(B * L, D).cumsum(0).view(B, L, D) / 10",
    "chosen among all rows": "y = x * (x.norm(dim=-1) >= x.norm(dim=-1).flatten().median())[..., None]",
    "only in training": "y = x - x.mean(0, True) if self.training else x",
    "only in evaluation": "y = x if self.training else x - x.mean(0, True)",
    "divided by the number of rows": "y = x / B",
    "capacity counted over all rows": """
        place = torch.ones(B * L, 1).cumsum(0).view(B, L, 1)
        y = torch.where(place <= 20, x, 0 * x)
    """,
    "only in short rows": "y = x - x.mean(0, True) if L < 40 else x",
}

KEPT_APART = """
if attention_mask is None:
    y = self._conv(x)[0]
else:
    real = attention_mask[..., None].bool()
    order = attention_mask.argsort(dim=1, stable=True)[..., None].expand_as(x)
    moved = self._conv((x * real).gather(1, order))[0]
    y = torch.zeros_like(x).scatter(1, order, moved) * real
"""
JOINED = """
if attention_mask is None:
    y = self._conv(x)[0]
else:
    real = attention_mask.bool()
    y = torch.zeros_like(x)
    y[real] = self._conv(x[real][None])[0][0]
"""
IGNORED = "y = self._conv(x)[0]"
PACKED = """
cu_seqlens = kwargs.get("cu_seqlens")
ends = [x.shape[1]] if cu_seqlens is None else cu_seqlens[1:].tolist()
starts = [0, *ends[:-1]]
y = torch.cat([self._conv(x[:, a:b])[0] for a, b in zip(starts, ends)], 1)
"""


def run(source: str, code: str) -> list[Finding]:
    return [item for item in found(examine_isolation, program_specimen(source)) if item.code == code]


@pytest.mark.parametrize("name", MIXING)
def test_rows_that_influence_each_other_are_caught(name: str) -> None:
    items = [i for i in found(examine_isolation, design_specimen(design(MIXING[name]))) if i.severity != "property"]
    assert [item.code for item in items] == ["isolation.batch"]
    assert ("how many rows" in items[0].message) or ("other rows" in items[0].message)


def test_the_mode_is_named() -> None:
    specimen = design_specimen(design(MIXING["only in training"]))
    assert "in train mode" in found(examine_isolation, specimen)[0].message


@pytest.mark.parametrize("name", SOUND)
def test_sound_designs_pass(name: str) -> None:
    items = found(examine_isolation, design_specimen(SOUND[name]))
    assert {item.severity for item in items} == {"property"}
    assert {item.code for item in items} == {"isolation.packing"}


def test_random_numbers_are_not_taken_for_a_mixing() -> None:
    for mix in ("y = F.dropout(x, 0.3)", "g = torch.Generator(); g.seed(); y = x * torch.rand(L, 1, generator=g)"):
        assert all(i.severity == "property" for i in found(examine_isolation, design_specimen(design(mix))))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (KEPT_APART, None),
        (JOINED, "rows mix"),
        (IGNORED, "with left padding, padding reaches the tokens"),
        ("assert attention_mask is None, 'no mask'\ny = self._conv(x)[0]", "the forward pass fails"),
        ("y = self._conv(x)[0] * (1 if attention_mask is None else 2)", "other outputs than without padding"),
    ],
)
def test_masks_are_tried(body: str, said: str | None) -> None:
    for claims, severity in (((), "warn"), (("padding",), "reject")):
        items = run(program(body, claims=claims), "isolation.mask")
        assert [item.severity for item in items] == ([] if said is None else [severity])
        assert all(str(said) in item.message for item in items)


def test_documents_that_stay_apart_are_recorded() -> None:
    for claims in ((), ("packing",)):
        (item,) = run(program(PACKED, claims=claims), "isolation.packing")
        assert (item.severity, item.message) == ("property", "packed documents stay apart")


@pytest.mark.parametrize(
    ("body", "extra", "said"),
    [
        (IGNORED, "", "not offered"),
        (IGNORED, "cu_seqlens=None, ", "other outputs than alone"),
        ("assert cu_seqlens is None\ny = self._conv(x)[0]", "cu_seqlens=None, ", "fails"),
    ],
)
def test_packing_without_effect_is_a_fault_only_where_it_is_claimed(body: str, extra: str, said: str) -> None:
    for claims, severity in (((), "property"), (("packing",), "reject")):
        (item,) = run(program(body, claims=claims, extra=extra), "isolation.packing")
        assert item.severity == severity
        assert said in item.message


def test_an_ability_without_an_input_cannot_be_claimed() -> None:
    source = design("y = x").replace("    def __init__", "    CLAIMS = ('padding',)\n\n    def __init__", 1)
    items = found(examine_isolation, design_specimen(source, claims=frozenset({"padding"})))
    assert "isolation.mask" in [item.code for item in items if item.severity == "reject"]


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_the_seed_programs_keep_rows_apart(name: str) -> None:
    items = found(examine_isolation, program_specimen(seed_program(name)))
    assert [(item.code, item.severity) for item in items] == [("isolation.packing", "property")]
