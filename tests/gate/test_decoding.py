from __future__ import annotations

import pytest

from asiarch_hpc.designs.seeds import seed_program
from asiarch_hpc.gate.checks.decoding import examine_decoding
from tests.gate.layers import design_specimen, found, program, program_specimen
from tests.gate.toys import design

KEPT = """
last = None
if past_key_values is not None and len(past_key_values) > self.layer_idx:
    last = past_key_values[self.layer_idx]["conv_state"]
y, last = self._conv(x, last)
if past_key_values is not None and use_cache:
    past_key_values.update(conv_state=last, layer_idx=self.layer_idx, offset=x.shape[1])
"""
FORGOTTEN = KEPT.replace("self._conv(x, last)", "self._conv(x)")
FAILS = KEPT.replace("y, last =", "assert last is None, 'no second call'\ny, last =")
OWN = """
cache = past_key_values if isinstance(past_key_values, dict) else {}
y, cache["last"] = self._conv(x, cache.get("last"))
past_key_values = cache if use_cache else None
"""
NOT_OFFERED = "y = self._conv(x)[0]"


@pytest.mark.parametrize("body", [KEPT, OWN])
def test_decoding_that_equals_the_full_pass_is_recorded(body: str) -> None:
    for claims in ((), ("cached_decoding",)):
        (item,) = found(examine_decoding, program_specimen(program(body, claims=claims)))
        assert (item.code, item.severity) == ("decoding.cached", "property")
        assert "equals" in item.message
        assert item.measured is not None
        assert item.measured < 1e-5


@pytest.mark.parametrize(
    ("body", "said"), [(FORGOTTEN, "differs"), (FAILS, "fails: AssertionError"), (NOT_OFFERED, "not offered")]
)
def test_decoding_that_differs_is_a_fault_only_where_it_is_claimed(body: str, said: str) -> None:
    for claims, severity in (((), "property"), (("cached_decoding",), "reject")):
        (item,) = found(examine_decoding, program_specimen(program(body, claims=claims)))
        assert (item.code, item.severity) == ("decoding.cached", severity)
        assert said in item.message
        assert ("CLAIMS" in item.message) is (severity == "reject")


def test_unit_trees_offer_none() -> None:
    (item,) = found(examine_decoding, design_specimen(design("y = x")))
    assert (item.severity, item.message) == ("property", "cached decoding is not offered")


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_the_seed_programs_decode_token_by_token(name: str) -> None:
    (item,) = found(examine_decoding, program_specimen(seed_program(name)))
    assert "equals" in item.message
