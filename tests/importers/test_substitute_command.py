"""Kernel substitution through the command: what is derived, what stays, and programs that do not play along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asiarch_hpc.cli import main
from asiarch_hpc.importers.substitution import Candidate, Operation
from asiarch_hpc.store.experiments import StoredPublished, scan
from asiarch_hpc.store.layout import RunLayout
from jobs.substitute import _sound
from tests.importers.conftest import gallery_record, save

# {first}: what the module does when it is loaded; {write}: how much of a value is written: beta in the delta rule.
PROGRAM = """import os
import torch
from torch import nn

{first}

def recurrence(q, k, v, beta):
    batch, heads, length, dim = k.shape
    state = k.new_zeros(batch, heads, dim, v.shape[-1])
    outputs = []
    for t in range(length):
        old = (state * k[:, :, t, :, None]).sum(-2)
        new = {write} * (v[:, :, t] - old)
        state = state + k[:, :, t, :, None] * new[:, :, None]
        outputs.append((state * q[:, :, t, :, None]).sum(-2))
    return torch.stack(outputs, 2), state


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=8, num_heads=1, layer_idx=0, **kwargs):
        super().__init__()

    def forward(self, hidden_states, **kwargs):
        heads = hidden_states.unsqueeze(1)
        output, _ = recurrence(heads, heads, heads, heads.mean(-1).sigmoid())
        return output.squeeze(1), None, None
"""
SOUND = PROGRAM.format(first="", write="beta[:, :, t, None]")
ANOTHER = PROGRAM.format(first="", write="0.5 * beta[:, :, t, None]")
HOSTILE = PROGRAM.format(first="os._exit(0)", write="beta[:, :, t, None]")
PLAIN = "import torch\n\n\nclass DeltaNet(torch.nn.Module):\n    pass\n"
BROKEN = "def ("
PROGRAMS = {1: SOUND, 2: ANOTHER, 3: HOSTILE, 4: PLAIN, 5: BROKEN}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [gallery_record(number, None, program=text) for number, text in PROGRAMS.items()]
    return save(tmp_path_factory.mktemp("published") / "gallery.json", records)


def substituted(gallery: Path, results: Path, *overrides: str) -> RunLayout:
    words = ["import", "asi-arch", str(gallery), *overrides, "--run", "asi", "--results", str(results), "--substitute"]
    assert main(words) == 0
    return RunLayout.of(results, "asi")


def derived_of(layout: RunLayout) -> list[StoredPublished]:
    found = scan(layout, moved=False)
    assert not found.damaged
    return [stored for stored in found.published if stored.published.substitutions]


def test_what_equals_a_kernel_is_derived_beside_its_original(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = substituted(gallery, tmp_path)
    (derived,) = derived_of(layout)
    originals = {s.published.key: s for s in scan(layout, moved=False).published if s not in (derived,)}
    for number, text in PROGRAMS.items():
        stored = originals.pop(str(number))
        assert layout.experiment(stored.record.id).architecture.read_text() == text
        if number == 1:
            assert derived.record.parents == (stored.record.id,)
    assert not originals
    assert derived.published.key == "1+kernel"
    assert derived.published.score is None
    assert derived.record.operator == "kernel_substitution"
    (one,) = derived.published.substitutions
    assert (one.function, one.operation) == ("recurrence", "delta_rule")
    assert 0 <= one.error < one.tolerance == 1e-4
    assert one.lengths
    assert one.errors
    place = layout.experiment(derived.record.id)
    assert "from kernels.delta_rule import delta_rule" in place.architecture.read_text()
    assert "for t in range" not in place.architecture.read_text()
    assert "`recurrence` is replaced by the operation delta_rule" in place.motivation.read_text()
    assert not place.score.exists()
    shown = capsys.readouterr().out
    assert "kernels substituted: in 1 designs beside these (1 delta_rule)" in shown
    assert "designs: 5, 5 with program" in shown
    assert "delta_net_2 keeps its own recurrence: recurrence: error" in shown
    assert "delta_net_3 keeps its own recurrence: ended early" in shown
    assert "programs without a function that carries a state along the sequence: 1\n" in shown
    assert "delta_net_5" not in shown


def test_it_is_made_once(tmp_path: Path) -> None:
    gallery = save(tmp_path / "gallery.json", [gallery_record(1, None, program=SOUND)])
    layout = substituted(gallery, tmp_path / "results")
    before = {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")}
    substituted(gallery, tmp_path / "results")
    assert {path: path.stat().st_mtime_ns for path in layout.root.rglob("*")} == before


def test_the_tolerance_is_the_configurations(tmp_path: Path) -> None:
    gallery = save(tmp_path / "gallery.json", [gallery_record(1, None, program=SOUND)])
    assert not derived_of(substituted(gallery, tmp_path / "results", "gate.substitution_tolerance=1e-30"))


def test_an_answer_that_no_measurement_gives_is_refused() -> None:
    candidate = Candidate(name="recurrence", tensors=("q", "k", "v", "beta"))
    good = Operation(name="delta_rule", roles={name: name for name in candidate.tensors})
    assert _sound(good, candidate)
    for bad in (
        replace(good, name="exec"),
        replace(good, roles={"q": "q"}),
        replace(good, roles={**good.roles, "q": "__import__('os').system('true')"}),
        replace(good, roles={**good.roles, "decay": "q"}),
        replace(good, norms={"q": "other"}),
        replace(good, norms={"v": "l2"}),
        replace(good, optional=("other",)),
    ):
        assert not _sound(bad, candidate)
