from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from asiarch_hpc.gate import static
from asiarch_hpc.gate.checks.documents import examine_documents
from asiarch_hpc.gate.checks.gradients import examine_gradients
from asiarch_hpc.gate.checks.passes import examine_passes
from asiarch_hpc.gate.checks.subject import Specimen
from asiarch_hpc.records import Finding
from tests.gate.layers import design_specimen, found, program, program_specimen
from tests.gate.planted_documents import DEFECTS, LEAKS, SOUND
from tests.gate.toys import CONFIG, Plant, design, specimen_of

CROSSES = "asks and crosses all the same"


def specimen(plant: Plant) -> Specimen:
    return design_specimen(plant.source, claims=static.claims(plant.source))


def run(plant: Plant) -> dict[str, Finding]:
    return {item.code: item for item in found(examine_documents, specimen(plant))}


@pytest.mark.parametrize("name", LEAKS)
def test_what_later_documents_tell_is_caught(name: str) -> None:
    item = run(LEAKS[name])["causality.documents"]
    assert item.severity == "reject"
    assert ("only later tokens" in item.message) == ("instead of its past" in name or "not places" in name)
    assert "only the documents of later tokens" in item.message
    assert ("in eval and train mode" in item.message) != ("in training alone" in name)


@pytest.mark.parametrize("name", DEFECTS)
def test_misuse_is_caught_with_its_code(name: str) -> None:
    plant = DEFECTS[name]
    items = [*run(plant).values(), *found(examine_passes, specimen(plant))]
    assert {item.code for item in items if item.severity == "reject"} >= set(plant.codes)


@pytest.mark.parametrize("name", SOUND)
def test_sound_designs_that_ask_pass(name: str) -> None:
    (item,) = run(SOUND[name]).values()
    assert (item.code, item.severity) == ("isolation.documents", "property")
    assert ("stay apart" in item.message) == (name != CROSSES)
    assert not [item for item in found(examine_passes, specimen(SOUND[name])) if item.severity == "reject"]


def test_who_does_not_ask_is_given_none() -> None:
    (item,) = found(examine_documents, design_specimen(design("assert not Z; y = x")))
    assert (item.severity, "does not ask" in item.message) == ("property", True)
    claiming = program("y = x", claims=("documents",))
    (item,) = found(examine_documents, program_specimen(claiming))
    assert item.severity == "reject"


def test_layer_programs_ask_by_a_parameter() -> None:
    body = "y = x if documents is None else x * (1 + documents[..., None].amax(1, True))"
    assert "causality.documents" in {
        item.code for item in found(examine_documents, program_specimen(program(body, extra="documents=None, ")))
    }
    silent = program(
        body.replace("documents", "kwargs.get('documents')", 1).replace("documents[", "kwargs['documents'][")
    )
    assert {item.severity for item in found(examine_documents, program_specimen(silent))} == {"property"}


def test_a_leak_without_documents_is_left_to_the_other_check() -> None:
    plant = Plant('d = Z.get("documents"); y = x + x.mean(1, True)')
    assert "causality.documents" not in run(plant)


def test_rows_that_mix_without_documents_are_left_to_the_other_check() -> None:
    plant = Plant('d = Z.get("documents"); y = x + x.mean(0, True)')
    assert "isolation.batch" not in run(plant)


def test_a_small_share_of_the_document_s_later_tokens_shows_in_gradients() -> None:
    small = Plant(
        """
        d = Z.get("documents")
        y = x if d is None else x + 1e-5 * (d[:, :, None] == d[:, None]).to(x.dtype) @ x
        """
    )
    assert "causality.documents" not in run(small)
    (item,) = found(examine_gradients, specimen(small))
    assert (item.code, item.message[:16]) == ("causality.gradient", "given documents,")


def test_random_numbers_are_not_taken_for_a_fault() -> None:
    apart = SOUND["mean over the document's past"]
    items = run(Plant(apart.mix + "\ny = F.dropout(y, 0.1, self.training)", claims=("documents",)))
    assert [(item.code, item.severity) for item in items.values()] == [("isolation.documents", "property")]
    unsteady = "g = torch.Generator(); g.seed(); y = x * torch.rand(L, 1, generator=g)"
    assert "causality.documents" not in run(Plant(f'd = Z.get("documents"); {unsteady}'))


def test_packed_rows_are_as_training_packs_them() -> None:
    """Counted from 0 without gaps; padding at the end of the last row alone."""
    model = nn.Identity()
    probe = specimen_of(lambda dim, depth, vocab: model, config=CONFIG)
    documents = probe.documents(5, 64, probe.generator())
    assert documents.dtype == torch.int32
    assert (documents[:, 0] == 0).all()
    assert (documents[-1, 56:] == -1).all()
    real = documents.masked_fill(documents < 0, int(documents[-1].max()))
    steps: Tensor = real.diff(dim=1)
    assert set(steps.unique().tolist()) == {0, 1}
    assert (documents[:-1] >= 0).all()
