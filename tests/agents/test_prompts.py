"""Whole rendered prompts, pinned: a change of a template, a table or the contract shows as a changed golden file.

`python -m tests.agents.test_prompts` writes the files anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asiarch_hpc.agents.components import COMPONENTS
from asiarch_hpc.agents.draft import difference
from asiarch_hpc.agents.prompt import PROMPTS, Prompt, render
from asiarch_hpc.agents.replies import AnalysisReply, Grades, ProgramReply, Repair, Summary, Tags, Verdict
from asiarch_hpc.agents.reply import Reply
from asiarch_hpc.agents.researcher import Repeated
from asiarch_hpc.agents.tree_edit import TreeEdits
from asiarch_hpc.designs.seeds import seed_tree
from tests.agents.cases import CHANGED, DRAFT, LESSON, RULES, STANDARD, case, seed

GOLDEN = Path(__file__).parent / "golden"
DESIGN = Reply("design", ProgramReply, code={"source": "python", "diff": "diff"})
REPAIR = Reply("repair", Repair, code={"source": "python", "diff": "diff"})
REPEATED = Repeated(reason="it is a mean again", motivations=[("mean_pool", "Pools all tokens by their mean.")])
TOLD = [("other_net", "fitness 0.500, held-out loss 4.4200, mean accuracy 0.300", "It gates the values.")]


def prompts() -> dict[str, Prompt]:
    parent = replace(case(), curve=[(1, 6.0), (150, 5.25), (300, 4.5)])
    edits = TreeEdits.of(seed_tree("delta_net"), 8)
    shared = {"standard": STANDARD, "rules": RULES, "form": "program"}
    research = {**shared, "parent": parent, "parent_summary": "A mean.", "lessons": [LESSON], "references": TOLD}
    return {
        "summarizer": render("summarizer", case=case(), format=Reply("summary", Summary).format("schema")),
        "researcher": render("researcher", **research, repeated=None, format=DESIGN.format("schema")),
        "researcher_blocks": render("researcher", **research, repeated=None, format=DESIGN.format("blocks")),
        "researcher_bare": render(
            "researcher",
            **{**research, "parent": seed(), "form": "tree", "lessons": [], "references": []},
            repeated=REPEATED,
            format=DESIGN.format("schema"),
        ),
        "researcher_again": render("researcher_again", **research, repeated=REPEATED, format=DESIGN.format("schema")),
        "researcher_repair": render(
            "researcher_repair", draft=DRAFT, report="1. [causality.leak] …", form="program", rules=RULES,
            format=DESIGN.format("schema"),
        ),
        "researcher_edit": render(
            "researcher_edit", parent=seed(), lessons=[], references=TOLD,
            standard=STANDARD, tree=edits.listing(), units="- RMSNorm (norm): Root mean square.", feedback="It exists.",
            format="Answer with one JSON object that fits the schema you are held to.",
        ),
        "novelty": render(
            "novelty", draft=DRAFT, neighbours=[(case(), 0.71), (seed(), 0.2)],
            format=Reply("verdict", Verdict).format("schema"),
        ),
        "debugger": render(
            "debugger", case=parent, cause="non_finite_loss", error="step 12: the loss is nan", tried=["after x: y"],
            report="1. [forward.failed] …", source=CHANGED, form="program", rules=RULES, format=REPAIR.format("blocks"),
        ),
        "analyst": render(
            "analyst", case=parent, parent=seed(), siblings=[case("sister")], standard=STANDARD,
            difference=difference(seed().source, CHANGED)[:300],
            format=Reply("analysis", AnalysisReply).format("schema"),
        ),
        "judge": render(
            "judge", case=case(), parent=None, standard=STANDARD, anchors=["delta_net", "gated_delta_net"],
            format=Reply("grades", Grades).format("schema"),
        ),
        "tagger": render(
            "tagger", draft=DRAFT, parent=parent, lessons=[LESSON], references=TOLD, components=COMPONENTS,
            difference=difference(parent.source, CHANGED), format=Reply("tags", Tags).format("schema"),
        ),
    }  # fmt: skip


def text(prompt: Prompt) -> str:
    return f"<<< system >>>\n{prompt.system}\n<<< user >>>\n{prompt.user}"


@pytest.mark.parametrize("name", sorted(prompts()))
def test_the_whole_prompt_is_as_pinned(name: str) -> None:
    assert text(prompts()[name]) == (GOLDEN / f"{name}.md").read_text(encoding="utf-8")


def test_every_template_is_pinned() -> None:
    templates = {path.name.partition(".")[0] for path in PROMPTS.glob("[a-z]*.j2")}
    assert templates - {"extractor"} <= set(prompts())  # that one is pinned beside its own tests


def test_nothing_undefined_or_doubled_is_left_in_a_prompt() -> None:
    for name, prompt in prompts().items():
        assert "\n\n\n\n" not in text(prompt), name
        assert not any(mark in text(prompt) for mark in ("{{", "{%", "Undefined")), name


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for found, prompt in prompts().items():
        (GOLDEN / f"{found}.md").write_text(text(prompt), encoding="utf-8")
