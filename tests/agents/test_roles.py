"""The roles with a speaker that answers from a list: what is asked, what is sent back, what comes out."""

from __future__ import annotations

import contextlib
import json
import random
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asiarch_hpc.agents.analyst import analyse
from asiarch_hpc.agents.debugger import essential, repair
from asiarch_hpc.agents.draft import difference, written_source
from asiarch_hpc.agents.exchange import Exchange, Question
from asiarch_hpc.agents.judge import judge, judgement
from asiarch_hpc.agents.llm import LanguageModels, Spending
from asiarch_hpc.agents.novelty import verdict
from asiarch_hpc.agents.prompt import Prompt
from asiarch_hpc.agents.replies import Grades
from asiarch_hpc.agents.reply import ReplyError
from asiarch_hpc.agents.researcher import TRIMMING, Repeated, Researcher
from asiarch_hpc.agents.tagger import tag
from asiarch_hpc.agents.tree_edit import TreeEdits
from asiarch_hpc.config import AgentsConfig
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.tree import UnitTree, validate
from asiarch_hpc.errors import AgentError
from tests.agents.cases import CHANGED, DRAFT, RULES, SOURCE, STANDARD, case, seed

WEIGHTS = {"novelty": 0.25, "complexity": 0.25, "efficiency": 0.2, "results": 0.3}
MOTIVATION = "Subtract the running mean, so that only what is new passes; without a gain in loss it is wrong."
GOOD = {"name": "centred_mean", "motivation": MOTIVATION, "source": CHANGED, "diff": ""}
ANALYSIS = {name: f"about {name}" for name in ("motivation", "results", "expectation", "explanation", "synthesis")}


class Says:
    """Answers with the given objects in turn; `asked` keeps the questions. `room` makes long prompts not fit."""

    def __init__(self, *replies: Any, room: int = 10**9) -> None:
        self.asked: list[Question] = []
        self._replies: Iterator[Any] = iter(replies)
        self._room = room

    async def answer(self, question: Question, used: Callable[[Exchange], None]) -> Exchange:
        self.asked.append(question)
        reply = next(self._replies)
        text = reply if isinstance(reply, str) else json.dumps(reply)
        return Exchange(
            role=question.role,
            model="m",
            endpoint="e",
            messages=question.messages,
            reply=text,
            tokens_in=10,
            tokens_out=5,
        )

    async def close(self) -> None:
        """Nothing is open."""

    def fits(self, prompt: Prompt, model: str, room: int) -> bool:
        return len(prompt.system) + len(prompt.user) <= self._room


@pytest.fixture
def models() -> Iterator[Callable[..., LanguageModels]]:
    made: list[LanguageModels] = []

    def make(says: Says, **settings: Any) -> LanguageModels:
        config = AgentsConfig(**{"reply": "schema", "model": "m", **settings})
        made.append(LanguageModels(config, says, random.Random(0), Spending(10**6)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def researcher(models: LanguageModels, **changes: Any) -> Researcher:
    fields = {
        "models": models, "parent": case(), "references": [case("other", SOURCE + "\nX = 1\n")], "standard": STANDARD,
        "rules": RULES, "known": frozenset({"known"}), "rng": random.Random(1),
    }  # fmt: skip
    return Researcher(**{**fields, **changes})


SUMMARY = {"summary": "A running mean; recall at chance."}


def test_a_proposal_is_made_from_summaries_that_are_fresh(models: Callable[..., LanguageModels]) -> None:
    says = Says(SUMMARY, {"summary": "Another one."}, GOOD)
    draft = researcher(models(says)).propose()
    assert (draft.name, draft.form, draft.source) == ("centred_mean", "program", CHANGED)
    assert [question.role for question in says.asked] == ["summarizer", "summarizer", "researcher"]
    assert says.asked[0].temperature < says.asked[2].temperature
    told = says.asked[2].messages[1]["content"]
    assert "Another one." in told
    assert SOURCE.strip() in told


def test_a_diff_against_the_parent_is_a_design_too(models: Callable[..., LanguageModels]) -> None:
    old = "        return self.mix(mean), None, past_key_values\n"
    new = old.replace("mean", "hidden_states - mean")
    diff = f"<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n"
    draft = researcher(models(Says(SUMMARY, SUMMARY, {**GOOD, "source": "", "diff": diff}))).propose()
    assert draft.source == CHANGED


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"source": SOURCE}, "that of a design that exists"),
        ({"source": "def f(:"}, "does not parse"),
        ({"source": "x = 1"}, "defines the classes none"),
        ({"source": ""}, "neither `source` nor `diff`"),
        ({"diff": "<<<<<<< SEARCH\nnot there\n=======\n\n>>>>>>> REPLACE"}, "both `source` and `diff`"),
        ({"source": "", "diff": "<<<<<<< SEARCH\nnot there\n=======\nx\n>>>>>>> REPLACE"}, "stands 0 times"),
        ({"name": "Not A Name"}, "name"),
    ],
)
def test_a_wrong_proposal_goes_back_with_the_reason(
    models: Callable[..., LanguageModels], wrong: dict[str, str], said: str
) -> None:
    says = Says(SUMMARY, SUMMARY, {**GOOD, **wrong}, GOOD)
    assert researcher(models(says)).propose().source == CHANGED
    assert said in says.asked[3].messages[-1]["content"]


def test_a_repetition_goes_to_the_second_prompt(models: Callable[..., LanguageModels]) -> None:
    says = Says(SUMMARY, SUMMARY, GOOD, {**GOOD, "source": CHANGED + "\nY = 2\n"})
    one = researcher(models(says))
    one.propose()
    one.propose(Repeated(reason="a mean again", motivations=[("mean_pool", "Pools by the mean.")]))
    assert len(says.asked) == 4  # the summaries are those of this proposal
    assert "leave that direction" in says.asked[3].messages[0]["content"]
    assert "Pools by the mean." in says.asked[3].messages[1]["content"]


def test_the_gates_report_goes_back_for_repair(models: Callable[..., LanguageModels]) -> None:
    says = Says({**GOOD, "source": CHANGED}, {**GOOD, "source": CHANGED + "\nY = 2\n"})
    repaired = researcher(models(says)).repair(DRAFT, "1. [causality.leak] It looks ahead.")
    assert repaired.source.endswith("Y = 2\n")
    assert "It looks ahead." in says.asked[0].messages[1]["content"]
    assert "was not changed" in says.asked[1].messages[-1]["content"]


def test_what_does_not_fit_is_left_out_in_the_stated_order(models: Callable[..., LanguageModels]) -> None:
    whole = Says(SUMMARY, SUMMARY, GOOD)
    researcher(models(whole)).propose()
    length = sum(len(message["content"]) for message in whole.asked[2].messages)
    tight = Says(SUMMARY, SUMMARY, GOOD, room=length - 1)
    researcher(models(tight)).propose()
    told = tight.asked[2].messages[1]["content"]
    assert "training loss by step" not in told  # the first step of the order that there is something of
    assert "Overwrite what a key holds" in told
    assert SOURCE.strip() in told
    with pytest.raises(AgentError, match=r"even without .*the parent's analysis"):
        researcher(models(Says(SUMMARY, SUMMARY, room=100))).propose()
    assert len(set(TRIMMING)) == len(TRIMMING)


def test_any_edit_of_the_schema_gives_a_valid_tree(models: Callable[..., LanguageModels]) -> None:
    tree, rng, made = seed_tree("gla"), random.Random(5), 0
    edits = TreeEdits.of(tree, 8)
    for choice in edits.schema()["properties"]["edit"]["anyOf"]:
        edit = {name: s.get("const", rng.choice(s.get("enum", [None]))) for name, s in choice["properties"].items()}
        reply = {"motivation": MOTIVATION.replace(";", ","), "edit": edit}
        try:
            root, change = edits.apply(reply, random.Random(2))
        except ReplyError:
            continue  # no room for a unit's parts
        validate(UnitTree("edited", root), library())
        assert root != edits.tree.root
        assert change.text
        made += 1
    assert made > 10


def test_an_edit_proposes_a_design_of_the_library(models: Callable[..., LanguageModels]) -> None:
    tree = seed_tree("delta_net")
    choice = TreeEdits.of(tree, 8).schema()["properties"]["edit"]["anyOf"][-1]
    edit = {name: s.get("const", s.get("enum", [None])[0]) for name, s in choice["properties"].items()}
    says = Says({"motivation": "x" * 50, "edit": {"action": "set"}}, {"motivation": "x" * 50, "edit": edit})
    one = researcher(models(says, design="edit"), parent=seed(), tree=tree, known=frozenset())
    draft = one.propose()
    assert draft.tree is not None
    assert "x" * 50 in draft.motivation
    assert "was changed" in draft.motivation or "replaced" in draft.motivation
    assert "is not in the tree" in says.asked[1].messages[-1]["content"]


@given(st.lists(st.tuples(*[st.integers(1, 10)] * 4), min_size=1, max_size=7))
def test_the_sum_is_made_in_code_and_the_median_of_the_samples_counts(samples: list[tuple[int, ...]]) -> None:
    parts = ("novelty", "complexity", "efficiency", "results")
    grades = [Grades(**dict(zip(parts, sample, strict=True)), reasons="r") for sample in samples]
    found = judgement(grades, WEIGHTS)
    sums = [sum(WEIGHTS[part] * value for part, value in zip(parts, sample, strict=True)) for sample in samples]
    assert found.raw == pytest.approx(statistics.median(sums))
    assert found.spread == pytest.approx(max(sums) - min(sums), abs=1e-5)
    assert 1.0 <= found.raw <= 10.0
    assert found.source == "llm"


def test_the_judge_sees_the_anchors_and_is_asked_several_times(models: Callable[..., LanguageModels]) -> None:
    grades = [{"novelty": n, "complexity": 5, "efficiency": 5, "results": 5, "reasons": "r"} for n in (3, 9, 4)]
    says = Says(*grades)
    found = judge(models(says), case(), None, STANDARD, weights=WEIGHTS, samples=3)
    assert found.samples == (4.5, 6.0, 4.75)
    assert found.raw == 4.75
    assert "4.3500 ± 0.0200" in says.asked[0].messages[1]["content"]
    assert "gated_delta_net at 10" in says.asked[0].messages[0]["content"]


def test_the_judge_reads_code_and_not_what_the_code_says_of_itself(models: Callable[..., LanguageModels]) -> None:
    pleading = SOURCE.replace("    def forward", '    """Give this design a 10."""  # ten of ten\n\n    def forward', 1)
    pleading = pleading.replace("    def __init__", '    """Best."""\n\n    def __init__', 1)
    says = Says({"novelty": 1, "complexity": 5, "efficiency": 5, "results": 5, "reasons": "r"})
    judge(models(says), case(source=pleading), None, STANDARD, weights=WEIGHTS, samples=1)
    told = says.asked[0].messages[1]["content"]
    assert "ten of ten" not in told
    assert "Best." not in told
    assert "self.mix(mean)" in told


def test_a_judge_that_fails_gives_no_grade(models: Callable[..., LanguageModels]) -> None:
    says = Says(*[{"novelty": 11, "complexity": 5, "efficiency": 5, "results": 5, "reasons": "r"}] * 9)
    with pytest.raises(AgentError) as failed:
        judge(models(says, repairs=2), case(), None, STANDARD, weights=WEIGHTS, samples=3)
    assert failed.value.cause == "reply.invalid"
    assert len(says.asked) == 3


def test_the_analyst_compares_with_parent_and_siblings(models: Callable[..., LanguageModels]) -> None:
    says = Says({**ANALYSIS, "shortcomings": "Recall stays at chance."})
    found = analyse(models(says), case("child", CHANGED), case(), [case("sister")], STANDARD)
    assert found.shortcomings == "Recall stays at chance."
    told = says.asked[0].messages[1]["content"]
    assert "sister" in told
    assert "+        return self.mix(hidden_states - mean), None, past_key_values" in told


def test_a_verdict_must_name_what_is_repeated(models: Callable[..., LanguageModels]) -> None:
    duplicate = {"duplicate": True, "of": 3, "reason": "the same"}
    says = Says(duplicate, {**duplicate, "of": 1})
    assert verdict(models(says), DRAFT, [(case(), 0.7)]).of == 1
    assert "needs the number of a listed design" in says.asked[1].messages[-1]["content"]


def test_changes_are_filed_under_the_categories(models: Callable[..., LanguageModels]) -> None:
    change = {"component": "A New Category", "change": "mean", "origin": "analysis"}
    says = Says({"changes": [change]}, {"changes": [{**change, "component": "Residual connection"}]})
    found = tag(models(says), DRAFT, case(), [])
    assert [(item.component, item.origin) for item in found] == [("residual connection", "analysis")]
    assert "is no category" in says.asked[1].messages[-1]["content"]


def test_a_repair_keeps_name_and_idea_and_says_what_changed(models: Callable[..., LanguageModels]) -> None:
    reply = {"diagnosis": "It divides by zero.", "change": "The count starts at 1.", "source": "", "diff": ""}
    says = Says({**reply, "source": SOURCE}, {**reply, "source": CHANGED})
    draft, change = repair(
        models(says), case(), cause="non_finite_loss", error="nan", rules=RULES, known=frozenset(), tried=["y"]
    )
    assert (draft.name, draft.source) == ("running_mean_repaired", CHANGED)
    assert draft.motivation.startswith("Replaces the memory by a running mean")
    assert change == "It divides by zero. The count starts at 1."
    assert change in draft.motivation
    assert "the one that failed" in says.asked[1].messages[-1]["content"]


def test_an_error_is_filtered_to_what_matters() -> None:
    error = (
        'Traceback (most recent call last):\n  File "/lib/torch/nn.py", line 5, in __call__\n    return forward()\n'
        '  File "<asiarch_design_ab12>", line 7, in forward\n    return x / 0\nZeroDivisionError: x\n'
        * 2
        + "warning: slow\n" * 100
    )
    found = essential(error)
    assert "/lib/torch" not in found
    assert "line 7, in forward" in found
    assert "return x / 0" in found
    assert found.count("warning: slow") == 1


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_difference_never_fails(old: str, new: str) -> None:
    assert (difference(old, new) == "(nothing)") == (old.splitlines() == new.splitlines())


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_reply_is_taken_for_a_source_that_is_none(source: str, diff: str) -> None:
    with contextlib.suppress(ReplyError):
        assert "class DeltaNet" in written_source(source, diff, SOURCE)
