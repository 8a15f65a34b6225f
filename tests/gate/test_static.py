from __future__ import annotations

import pytest

from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import SEEDS, seed_program, seed_tree
from asiarch_hpc.gate.static import examine
from tests.gate.planted import SOUND, STATIC
from tests.gate.toys import design


@pytest.mark.parametrize("name", SEEDS)
def test_seed_designs_have_nothing_to_say(name: str) -> None:
    assert examine(compose(seed_tree(name))) == []


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_layer_programs_have_nothing_to_say(name: str) -> None:
    assert examine(seed_program(name)) == []


@pytest.mark.parametrize("name", SOUND)
def test_sound_designs_have_nothing_to_say(name: str) -> None:
    assert examine(SOUND[name]) == []


@pytest.mark.parametrize(
    "mix",
    [
        "self.eval(); y = x",
        "y = torch.compile(lambda v: v)(x)",
        "setattr(self, 'width', D); y = x",
        "self.os = 1; y = x * self.os",
        "torch.signal.windows.hann(8); y = x",
        "import torch.nn.functional as G; y = G.relu(x)",
        "open = lambda v: v; y = x",
        "F2 = dict(relu=F.relu); F2['relu'] = F.silu; y = F2['relu'](x)",
    ],
)
def test_harmless_text_that_looks_alike(mix: str) -> None:
    assert examine(design(mix)) == []


@pytest.mark.parametrize("name", STATIC)
def test_findings_reject_and_say_where_and_what_to_do(name: str) -> None:
    source, code = STATIC[name]
    findings = examine(source)
    assert code in {item.code for item in findings}
    assert all(item.severity == "reject" and item.message and item.hint for item in findings)


def test_all_faults_of_a_text_are_named_at_once() -> None:
    source = design("y = eval('x') + torch.load('f')", before="import os\nimport socket\nF.relu = None")
    found = [(item.code, item.message) for item in examine(source)]
    assert [code for code, _ in found].count("static.import") == 2
    assert {code for code, _ in found} == {"static.import", "static.call", "static.patch"}
    assert len(found) == 5


def test_the_line_is_named() -> None:
    source = design("y = x\nopen('a')")
    line = source.splitlines().index("        open('a')") + 1
    assert examine(source)[0].message == f"line {line}: call of open()"
