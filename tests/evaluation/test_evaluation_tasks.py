"""The local tasks: same questions everywhere, answers that are right, nothing shared with training."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
from pathlib import Path

import pytest
from evaluation_toy import texts
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation import tasks

NAMES = ["text_choice", "line_completion", "recall", "selective_copy"]


def build(folder: Path, *, seed: int = 0, questions: int = 12) -> Path:
    return tasks.build_tasks(
        texts(), names=NAMES, questions=questions, seed=seed, folder=folder, rolling=["some text", "more"]
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_same_arguments_give_the_same_folder_and_bytes(tmp_path: Path) -> None:
    one, two, other = build(tmp_path / "a"), build(tmp_path / "b"), build(tmp_path / "a", seed=1)
    assert one.name == two.name != other.name
    assert content(one) == content(two)
    assert sorted(content(one)) == sorted(f"{n}.{e}" for n in [*NAMES, "heldout_text"] for e in ("yaml", "jsonl"))


def test_building_again_leaves_files_alone_and_repairs_damaged_ones(tmp_path: Path) -> None:
    folder = build(tmp_path)
    expected = content(folder)
    untouched, damaged = folder / "text_choice.jsonl", folder / "recall.jsonl"
    before = untouched.stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert build(tmp_path) == folder
    assert content(folder) == expected
    assert untouched.stat().st_mtime_ns == before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_may_build_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(build, [tmp_path] * 8)
    assert len(set(found)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]
    assert content(found[0]) == content(build(tmp_path / "alone"))


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_answers_of_recall_and_copy_follow_from_the_context(seed: int) -> None:
    for row in tasks._questions("recall", [], 5, seed):
        words = str(row["context"]).split()
        pairs = dict(zip(words[1::2], words[2::2], strict=False))
        key = words[-1]
        assert row["choices"][row["answer"]] == f" {pairs[key]}"  # type: ignore[index]
        assert len(set(row["choices"])) == len(row["choices"]) == words.index("get:") // 2  # type: ignore[call-overload]
    for row in tasks._questions("selective_copy", [], 5, seed):
        words = str(row["context"]).split()
        marked = [after for mark, after in itertools.pairwise(words) if mark == "+"]
        assert str(row["choices"][row["answer"]]).split() == marked  # type: ignore[index]
        choices = [tuple(str(choice).split()) for choice in row["choices"]]  # type: ignore[attr-defined]
        assert len(set(choices)) == len(choices) >= 2
        assert all(sorted(choice) == sorted(marked) for choice in choices)


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_text_questions_hold_the_true_place_and_three_others(seed: int) -> None:
    documents = texts()
    for row in tasks._questions("text_choice", documents, 4, seed):
        assert len(set(row["choices"])) == 4  # type: ignore[call-overload]
        homes = [[i for i, text in enumerate(documents) if context in text] for context in row["choices"]]  # type: ignore[attr-defined]
        true = row["choices"][row["answer"]] + row["continuation"]  # type: ignore[index]
        assert any(true in documents[i] for i in homes[row["answer"]])  # type: ignore[call-overload]
        assert len({tuple(home) for home in homes}) == 4  # other documents
        assert 60 <= len(str(row["continuation"]).encode()) <= 64
    for row in tasks._questions("line_completion", documents, 4, seed):
        assert len(set(row["choices"])) == 4  # type: ignore[call-overload]
        true = row["choices"][row["answer"]] + row["continuation"]  # type: ignore[index]
        assert any(true in text for text in documents)
        assert str(row["continuation"]).startswith("\n")


def test_answers_are_spread_over_the_places(tmp_path: Path) -> None:
    folder = build(tmp_path, questions=100)
    for name in NAMES:
        answers = [row["answer"] for row in rows(folder, name)]
        assert max(answers.count(answer) for answer in set(answers)) < 60


@given(seed=st.integers(0, 10**6), questions_seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=10)
def test_training_documents_never_hold_an_evaluation_context(seed: int, questions_seed: int) -> None:
    documents = list(itertools.islice(tasks.recall_documents(seed), 200))
    assert documents == list(itertools.islice(tasks.recall_documents(seed), 200))
    # The context ends with the colon of "get:" or "out:"; a recall question goes on with its key.
    trained = {document[: document.index(":", 6) + 1] for document in documents}
    for name in ("recall", "selective_copy"):
        rows = tasks._questions(name, [], 20, questions_seed)
        asked = {context[: context.index(":", 6) + 1] for context in (str(row["context"]) for row in rows)}
        assert not trained & asked
        assert all(map(tasks._is_heldout, asked))
    assert not any(map(tasks._is_heldout, trained))
    # Even contexts that both could draw are divided between them.
    rng = random.Random(seed)
    contexts = [tasks._recall_context(tasks._pairs(rng)) for _ in range(200)]
    assert 0 < sum(map(tasks._is_heldout, contexts)) < 100


def test_documents_are_short_with_a_small_vocabulary() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    documents = itertools.islice(tasks.recall_documents(3), 300)
    assert max(len(tokenizer.encode(document).ids) for document in documents) <= 100
    for name in ("recall", "selective_copy"):
        for row in tasks._questions(name, [], 50, 0):
            assert len(tokenizer.encode(str(row["context"]) + max(row["choices"], key=len)).ids) < 128  # type: ignore[call-overload]


@pytest.mark.parametrize("documents", [[], ["short"] * 6, ["word " * 500] * 3])
def test_too_little_text_is_refused(tmp_path: Path, documents: list[str]) -> None:
    with pytest.raises(EvaluationError, match=r"found 0 of 5 questions in \d held-out documents.*heldout_fraction"):
        tasks.build_tasks(documents, names=["text_choice"], questions=5, seed=0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"'hellaswag'; expected .*line_completion.*text_choice"):
        tasks.build_tasks([], names=["hellaswag"], questions=5, seed=0, folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EvaluationError, match=r"file/.*cannot be written"):
        build(tmp_path / "file")
