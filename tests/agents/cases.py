"""Case files that the tests of prompts and roles share."""

from __future__ import annotations

from asiarch_hpc.agents.casefile import CaseFile, Lesson, Standard
from asiarch_hpc.agents.draft import Draft
from asiarch_hpc.agents.researcher import Rules
from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.records import Analysis, BaselineStats, GateReport, Judgement, Score, TaskScore

SOURCE = """import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=64, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.mix = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, **kwargs):
        steps = torch.arange(1, hidden_states.shape[1] + 1, device=hidden_states.device)
        mean = hidden_states.cumsum(1) / steps[:, None]
        return self.mix(mean), None, past_key_values
"""
CHANGED = SOURCE.replace("self.mix(mean)", "self.mix(hidden_states - mean)")


def baseline(name: str, loss: float) -> BaselineStats:
    return BaselineStats(
        experiment=f"id-{name}", name=name, seeds=3, loss_mean=loss, loss_sd=0.02, benchmark_mean=0.3,
        benchmark_sd=0.01, bits_per_byte_mean=loss / 2, bits_per_byte_sd=0.01, flops_per_token=2e5,
        modelled_seconds_per_token=1e-6, time_exponent=1.01, parameters=98_304,
    )  # fmt: skip


STANDARD = Standard(
    baselines=[baseline("delta_net", 4.4), baseline("gated_delta_net", 4.35)],
    tasks={"delta_net": {"recall": (0.1, 0.01)}, "gated_delta_net": {"recall": (0.12, 0.02)}},
)
GATE = GateReport(
    passed=True, dim=64, depth=2, parameters=99_000, flops_per_token=210_000.0, launches=321,
    modelled_seconds_per_token=1.1e-6, time_exponent=1.02, relative_seconds=1.1, relative_bytes=0.9,
)  # fmt: skip
ANALYSIS = Analysis(
    motivation="The idea is sound and the code does it.",
    results="Loss as the baseline's within the noise; recall at chance.",
    expectation="Better recall was expected and not found.",
    explanation="A mean over all tokens cannot tell which value belongs to which key.",
    synthesis="Keep the simplicity; give the state an address.",
    shortcomings="Recall stays at chance while the loss is good; the state is only added to.",
)
LESSON = Lesson(
    paper="2406.06484", title="A paper", insight="Overwrite what a key holds", algorithm="Write the difference.",
    mechanism="It fits its latest associations.", formulas="S = S + b (v - S k) k^T\no = S q",
    implementation="Replace the mixer.", conditions="Where recall matters.", similarity=0.41,
)  # fmt: skip
SCORE = Score(
    experiment="aaaa", fitness=0.512, fitness_sd=0.08, loss_part=0.5, benchmark_part=0.5, judge_part=0.53, loss=4.41,
    bits_per_byte=2.2, benchmark=0.31, judgement=Judgement(raw=5.8, source="llm", version="llm/1"), formula="f", slot=1,
)  # fmt: skip


def case(name: str = "running_mean", source: str = SOURCE, **changes: object) -> CaseFile:
    """A trained candidate with all that can be known of it."""
    fields: dict[str, object] = {
        "id": design_id(source), "name": name, "role": "candidate", "form": "program",
        "motivation": "Replaces the memory by a running mean, which has no state to saturate.", "source": source,
        "gate": GATE, "score": SCORE, "loss": 4.41, "bits_per_byte": 2.2, "benchmark": 0.31,
        "tasks": {"recall": TaskScore(accuracy=0.11, stderr=0.03, chance=0.1, questions=100)},
        "curve": [(step, 6.0 - step / 200) for step in range(1, 301)],
        "analysis": ANALYSIS, "lessons": [LESSON],
    }  # fmt: skip
    return CaseFile(**{**fields, **changes})  # type: ignore[arg-type]


def seed(name: str = "delta_net") -> CaseFile:
    """A seed design that was not trained."""
    source = compose(seed_tree(name))
    return CaseFile(
        id=design_id(source), name=name, role="seed", form="tree", motivation="A seed design.", source=source
    )


DRAFT = Draft(name="centred_mean", motivation="Subtracts the running mean.", source=CHANGED, form="program")
RULES = Rules.of(GateConfig(), attention=False)
