"""The two halves of a served model, blocks in a child and head in this process, are the model that was trained."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from asiarch_hpc.config import Config
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.scoring import Call
from asiarch_hpc.records import GateReport
from asiarch_hpc.training.backbone import LanguageModel, build_model
from jobs.evaluate import _ends, _serve
from jobs.workspace import Workspace

VOCAB = 300  # no multiple of 128, to which embedding and head are padded
SOURCE = compose(seed_tree("gpt"))
GATE = cast(GateReport, SimpleNamespace(dim=16, depth=2, only_precision=""))
IDS = torch.randint(0, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))


def space(*, tied: bool) -> Workspace:
    config = Config()
    config.scale.dim, config.scale.heads, config.scale.length, config.scale.tie_embeddings = 16, 2, 8, tied
    config.evaluation.batch_size = 4
    config.gate.sandbox = "limits"
    return cast(Workspace, SimpleNamespace(config=config, corpus=SimpleNamespace(vocab=VOCAB)))


def build(tied: bool, seed: int, change: bool) -> LanguageModel:
    scale = space(tied=tied).config.scale
    model = build_model(SOURCE, vocab=VOCAB, scale=scale, dim=16, depth=2, seed=seed)
    if change:  # the norm's weight is ones in a new model
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval().requires_grad_(False)


def log_probabilities(weights: bytes | None, tied: bool, devices: int = 1) -> torch.Tensor:
    """Of each next token, as the evaluation computes them, row after row: [rows, length - 1]."""
    where = space(tied=tied)
    where.config.evaluation.devices = devices
    with _serve(where, SOURCE, GATE, 5, weights) as model:
        assert len(model.states) == devices
        rows = [Call(row[None], torch.arange(len(row) - 1)) for row in IDS]
        found = [model.score(states, call.ids[0, 1:])[0] for call, states in model.run(rows)]
        return torch.stack(found)


def expected(model: LanguageModel) -> torch.Tensor:
    logits = model(IDS)[0]
    assert logits.shape[-1] == VOCAB
    return torch.log_softmax(logits, -1)[:, :-1].gather(2, IDS[:, 1:, None])[..., 0].double()


@pytest.mark.parametrize(("tied", "devices"), [(False, 1), (True, 1), (False, 2)])
def test_together_they_give_the_trained_models_probabilities(tied: bool, devices: int) -> None:
    model, buffer = build(tied, seed=9, change=True), io.BytesIO()
    torch.save(model.state_dict(), buffer)
    found = log_probabilities(buffer.getvalue(), tied, devices)
    torch.testing.assert_close(found, expected(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_fresh_weights_are_those_of_a_new_model(tied: bool) -> None:
    found = log_probabilities(None, tied)
    model = build(tied, seed=5, change=False)
    model.load_state_dict(_ends(space(tied=tied), GATE, 5, None).state_dict(), strict=False)
    torch.testing.assert_close(found, expected(model), rtol=1e-5, atol=1e-5)
    assert -float(found.mean()) == pytest.approx(math.log(VOCAB), rel=0.03)


def states_without(name: str, value: Any = None) -> bytes:
    state, buffer = build(False, seed=9, change=True).state_dict(), io.BytesIO()
    state.pop(name)
    if value is not None:
        state[name] = value
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "weights", [states_without("norm.weight"), states_without("head.weight", torch.zeros(3, 16)), b"nothing"]
)
def test_weights_without_a_head_are_refused_here(weights: bytes) -> None:
    with (
        pytest.raises(EvaluationError, match="do not hold the backbone's"),
        _serve(space(tied=False), SOURCE, GATE, 5, weights),
    ):
        pass
