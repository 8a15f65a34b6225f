"""A research team that answers by script: valid replies for every role, with designs of the labelled collection.

Some designs are wrong on purpose: one looks ahead, one fails in training alone, many repeat earlier ones.
"""

from __future__ import annotations

import ast
import json
import random
import re
from pathlib import Path
from typing import Any

from tests.agents.behaviours import Behaviour, Json, Script, Text, by_name, hostile

IDEAS = Path(__file__).parent / "novelty"
VARIANTS = ("base", "related", "reworded", "renamed", "rewritten")

LOOKS_AHEAD = """import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=64, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.mix = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False,
                output_attentions=False, **kwargs):
        return self.mix(hidden_states.mean(1, keepdim=True) + hidden_states), None, past_key_values
"""
# Its loss pushes `w` up by a hundredth a step, until the root is that of a negative number: after the gate's ten steps.
FAILS_LATE = """import torch
from torch import nn


class DeltaNet(nn.Module):
    def __init__(self, hidden_size=64, num_heads=4, layer_idx=None, **kwargs):
        super().__init__()
        self.mix = nn.Linear(hidden_size, hidden_size, bias=False)
        self.w = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False,
                output_attentions=False, **kwargs):
        steps = torch.arange(1, hidden_states.shape[1] + 1, device=hidden_states.device)
        mean = hidden_states.cumsum(1) / steps[:, None]
        bounded = torch.sqrt(0.17 - self.w)
        return self.mix(mean) * bounded, -self.w.sum(), past_key_values
"""
REPAIRED = FAILS_LATE.replace("torch.sqrt(0.17 - self.w)", "torch.sqrt(0.17 + torch.relu(1.0 - self.w))")
LOOKS_BACK = LOOKS_AHEAD.replace(
    "hidden_states.mean(1, keepdim=True) + hidden_states", "torch.tanh(hidden_states).cumsum(1) / 64 + hidden_states"
)
MOTIVATION = "Tries {}: the numbers of the parent show a weakness that it answers to; no gain in loss would refute it."
SUMMARY = {"summary": "A design of this search; its loss lies near the baseline's and recall at chance."}
VERDICT = {"duplicate": False, "of": 0, "reason": "Another mechanism."}
TAGS = {"changes": [{"component": "decay or forgetting", "change": "another decay", "origin": "cognition"}]}
ANALYSIS = {
    "motivation": "Sound.", "results": "Within the noise.", "expectation": "A gain was expected.",
    "explanation": "The state is only added to.", "synthesis": "Keep it simple.",
    "shortcomings": "Recall stays at chance although the loss is good, since the memory never overwrites a value.",
}  # fmt: skip


def designs() -> list[tuple[str, str]]:
    """Names and sources in the order in which they are proposed."""
    found = [("fails_late", FAILS_LATE), ("looks_ahead", LOOKS_AHEAD)]
    folders = sorted(path for path in IDEAS.iterdir() if path.is_dir() and not path.name.startswith("_"))
    for variant in VARIANTS:
        found += [(f"{folder.name[:36]}_{variant}", (folder / f"{variant}.py").read_text()) for folder in folders]
    return found


class Team:
    """Answers as every role; each new proposal is the next design of the collection."""

    def __init__(self, first: int = 0) -> None:
        self._designs = designs()
        self._next = first

    def script(self) -> Script:
        return by_name(
            {
                "summary": _json(SUMMARY), "design": self._design, "verdict": _json(VERDICT), "tags": _json(TAGS),
                "analysis": _json(ANALYSIS), "grades": self._grades, "repair": self._repair,
            },
            otherwise=_json({}),
        )  # fmt: skip

    def _design(self, request: Json, number: int) -> Behaviour:
        asked = request["messages"][-1]["content"]
        if "# What the checks found" in str(request["messages"][1]["content"]):
            return _json({"name": "looks_back", "motivation": MOTIVATION.format("the past"), **_whole(LOOKS_BACK)})
        assert asked
        name, source = self._designs[self._next % len(self._designs)]
        self._next += 1
        return _json({"name": name, "motivation": _motivation(name, source), **_whole(source)})

    def _grades(self, request: Json, number: int) -> Behaviour:
        rng = random.Random(number)
        parts = {part: rng.randint(4, 7) for part in ("novelty", "complexity", "efficiency", "results")}
        return _json({**parts, "reasons": "As the numbers say."})

    def _repair(self, request: Json, number: int) -> Behaviour:
        source = re.search(r"# Source\n\n```python\n(.*?)```", request["messages"][1]["content"], re.DOTALL)
        assert source is not None
        mended = source[1].replace("torch.sqrt(0.17 - self.w)", "torch.sqrt(0.17 + torch.relu(1.0 - self.w))")
        if mended == source[1]:
            mended += f"\nATTEMPT = {number}\n"
        said = {"diagnosis": "The root of a negative number.", "change": "Its argument is bounded."}
        return _json({**said, **_whole(mended)})


def hostile_team(seed: int, share: float) -> Script:
    """The team on a server that misbehaves in a share of all requests."""
    return hostile(seed, share, Team().script())


def _whole(source: str) -> Json:
    return {"source": source, "diff": ""}


def _motivation(name: str, source: str) -> str:
    return ast.get_docstring(ast.parse(source)) or MOTIVATION.format(name.replace("_", " "))


def _json(value: Any) -> Text:
    return Text(json.dumps(value))
