"""The same weights get the same numbers here and from lm-eval's own class for Hugging Face models."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_toy import InProcess, texts
from lm_eval.evaluator import evaluate as run_harness

from asiarch_hpc.config import EvaluationConfig
from asiarch_hpc.evaluation.harness import _quiet, published_tasks
from asiarch_hpc.evaluation.model import HarnessModel
from asiarch_hpc.evaluation.scores import Measured, task_scores
from asiarch_hpc.evaluation.scoring import ServedModel
from asiarch_hpc.records import TaskScore
from asiarch_hpc.training.tokenizer import END_OF_TEXT, SubwordTokenizer, train_bpe

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

LENGTH = 300
DRAWS = 20  # of standard errors that have no formula; 0 leaves out all
_WORDS = "the model reads a long line of text and then it says what comes after that line"
WORDS = _WORDS.split()


def sentence(seed: int, words: int) -> str:
    return " ".join(WORDS[(seed * 7 + at * (seed % 5 + 1)) % len(WORDS)] for at in range(words))


def choices(seed: int) -> dict[str, Any]:
    """Choices of several tokens, of one, and one that begins another."""
    texts = [sentence(seed + 1, 1), sentence(seed + 1, 3), sentence(seed + 2, 2), "line"]
    return {"text": texts, "label": ["A", "B", "C", "D"]}


ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy/test": [
        {"question": sentence(i, 5 + i), "choices": choices(i), "answerKey": "ABCD"[i % 4]} for i in range(20)
    ],
    "winogrande/validation": [
        {"sentence": f"{sentence(i, 4)} _ {sentence(i + 3, 4)}", "option1": "text", "option2": "line", "answer": "1"}
        for i in range(20)
    ],
    "lambada_openai/test": [{"text": sentence(i, 400 if i == 3 else 20)} for i in range(20)],  # one does not fit
    "blimp/passive_1": [
        {"sentence_good": sentence(i, 6), "sentence_bad": sentence(i + 1, 6), "UID": "passive_1"} for i in range(20)
    ],
    "squad_completion/validation": [{"text": sentence(i, 20), "value": WORDS[i % len(WORDS)]} for i in range(2)],
}


class Stock:
    """A GPT-2 with random weights, as Hugging Face has it and in the two halves of the evaluation."""

    def __init__(self, tokenizer: SubwordTokenizer) -> None:
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=tokenizer.vocab,
            n_positions=LENGTH,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=tokenizer.eos,
            eos_token_id=tokenizer.eos,
            initializer_range=0.3,
        )
        self.model = transformers.GPT2LMHeadModel(config).eval()
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer._inner, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
        )
        self.last_norm = self.model.transformer.ln_f

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        self.model.transformer.ln_f = torch.nn.Identity()
        try:
            states: torch.Tensor = self.model.transformer(ids).last_hidden_state
        finally:
            self.model.transformer.ln_f = self.last_norm
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            answer: torch.Tensor = self.model.lm_head(self.last_norm(states))
        return answer


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    made = train_bpe([*texts(), " ".join(WORDS)], 400)
    assert isinstance(made, SubwordTokenizer)
    return made


@pytest.fixture(scope="module")
def stock(tokenizer: SubwordTokenizer) -> Stock:
    return Stock(tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def report(model: Any, names: Sequence[str], data: Path, limit: int) -> tuple[dict[str, Any], list[Any]]:
    """lm-eval's results, and the answers to all requests in order."""
    tasks = [task for group in published_tasks(names, str(data)).values() for task in group]
    with _quiet():
        found = run_harness(
            model, {"tasks": {task.config.task: task for task in tasks}}, limit=limit, bootstrap_iters=DRAWS
        )
    return found["results"], [instance.resps[0] for task in tasks for instance in task.instances]


def compare(stock: Stock, tokenizer: SubwordTokenizer, names: Sequence[str], data: Path, limit: int) -> None:
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=stock.model, tokenizer=stock.tokenizer, backend="causal", batch_size=4, max_length=LENGTH)
    served = ServedModel([InProcess(stock.states)], stock.logits, rows=50, pad_multiple=8)
    ours = HarnessModel(served, tokenizer=tokenizer, max_length=LENGTH, batch_size=4, begin_with_eos=False)
    expected, their_answers = report(theirs, names, data, limit)
    results, our_answers = report(ours, names, data, limit)
    assert len(our_answers) == len(their_answers) > 0
    for mine, other in zip(our_answers, their_answers, strict=True):
        if isinstance(other, str):
            assert mine == other
        else:
            assert mine[0] == pytest.approx(other[0], rel=1e-5, abs=1e-4)
            assert mine[1] == other[1]
    for name, values in expected.items():
        for key, value in values.items():
            if key.startswith("perplexity"):  # a mean of log-likelihoods, and bootstrapped
                assert results[name][key] == pytest.approx(value, rel=1e-4), (name, key)
            else:
                assert results[name][key] == value, (name, key)
        if "acc,none" in values:
            score = own_score(name, results[name])
            questions = values["sample_len"]
            # The harness divides by n - 1 under the root.
            assert score.stderr * math.sqrt(questions / (questions - 1)) == pytest.approx(values["acc_stderr,none"])


def own_score(name: str, values: dict[str, Any]) -> TaskScore:
    """The score of a task in evaluation.json, of what the harness reports."""
    measured = Measured(values, values["sample_len"], 0.5)
    return task_scores({name: [measured]}, EvaluationConfig(tasks=[name]))[name]


@pytest.fixture
def real() -> Path:
    data = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval"
    if not data.is_dir():
        pytest.skip("no ../shared/data/eval")
    return data


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    os.environ |= {"HF_HUB_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}  # the latter: bootstraps in this process
    yield
    del os.environ["HF_HUB_OFFLINE"], os.environ["DISABLE_MULTIPROC"]


def test_made_up_questions_of_every_form(stock: Stock, tokenizer: SubwordTokenizer, data: Path) -> None:
    names = ["arc_easy", "winogrande", "lambada_openai", "blimp_passive_1"]
    (data / "blimp_passive_1").symlink_to(data / "blimp")
    compare(stock, tokenizer, names, data, 20)


@pytest.mark.slow  # each of 256 new tokens computes its whole text again here
def test_generated_text(stock: Stock, tokenizer: SubwordTokenizer, data: Path) -> None:
    compare(stock, tokenizer, ["squad_completion"], data, 2)


REAL = {
    "arc_challenge": 15, "arc_easy": 15, "blimp": 2, "boolq": 15, "hellaswag": 15, "lambada_openai": 15,
    "openbookqa": 15, "piqa": 15, "winogrande": 15, "wnli": 15, "wsc273": 15,
}  # fmt: skip


@pytest.mark.slow
def test_real_questions(stock: Stock, tokenizer: SubwordTokenizer, real: Path) -> None:
    for limit in set(REAL.values()):
        compare(stock, tokenizer, [name for name, count in REAL.items() if count == limit], real, limit)


@pytest.mark.slow  # generated, and cut to fit: as with made-up text
def test_real_questions_with_generated_answers(stock: Stock, tokenizer: SubwordTokenizer, real: Path) -> None:
    compare(stock, tokenizer, ["squadv2"], real, 3)
