"""What lm-eval is told equals a token-by-token computation in float64."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_toy import DIM, VOCAB, Bytes, InProcess, Toy, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asiarch_hpc.errors import EvaluationError
from asiarch_hpc.evaluation.harness import own_tasks, run_tasks
from asiarch_hpc.evaluation.model import HarnessModel
from asiarch_hpc.evaluation.scoring import ServedModel
from asiarch_hpc.evaluation.tasks import build_tasks

EOS = Bytes.eos


def loud_toy() -> Toy:
    """Random weights whose predictions are far from uniform."""
    model = Toy(seed=3)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    return model.eval()


TOY = loud_toy()


@torch.no_grad()
def naive(ids: list[int], count: int, limit: int) -> tuple[float, bool]:
    """Log-likelihood of the last `count` ids, one model call a token, each after at most the whole window's ids.

    A window that lost its beginning has the end-of-text token instead of its first id, as the rows of a training.
    """
    total, greedy = 0.0, True
    window = ids if len(ids) <= limit + 1 else [EOS, *ids[-limit:]]
    for at in range(len(window) - count, len(window)):
        logits = TOY(torch.tensor([window[:at]]))[0, -1].double()
        total += float(torch.log_softmax(logits, -1)[window[at]])
        greedy = greedy and int(logits.argmax()) == window[at]
    return total, greedy


def harness(
    states: Callable[[Tensor], Tensor] = TOY.states, *, max_length: int = 24, batch_size: int = 3, **options: Any
) -> HarnessModel:
    head = torch.no_grad()(options.pop("head", TOY.head))
    children = [InProcess(states) for _ in range(options.pop("devices", 1))]
    served = ServedModel(children, head, options.pop("rows", 7), options.pop("pad_multiple", 1))
    codec = options.pop("tokenizer", Bytes())
    return HarnessModel(served, tokenizer=codec, max_length=max_length, batch_size=batch_size, **options)


def requests(*args: tuple[Any, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=arg) for arg in args]


# lm-eval moves space at the end of a context to the continuation, which must still fit.
contexts = st.text(max_size=30).filter(lambda text: len(text) - len(text.rstrip()) <= 2)


@given(
    pairs=st.lists(st.tuples(contexts, st.text("ab \né", min_size=1, max_size=8)), min_size=1, max_size=6),
    batch_size=st.integers(1, 4),
)
@settings(deadline=None, max_examples=25)
def test_likelihood_equals_the_naive_one(pairs: list[tuple[str, str]], batch_size: int) -> None:
    found = harness(batch_size=batch_size).loglikelihood(requests(*pairs))
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        count = (
            len((context[len(context.rstrip()) :] + continuation).encode()) if context else len(continuation.encode())
        )
        expected, expected_greedy = naive([EOS, *(context + continuation).encode()], count, 24)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert greedy == expected_greedy


@given(documents=st.lists(st.text(max_size=90), min_size=1, max_size=4), max_length=st.integers(1, 30))
@settings(deadline=None, max_examples=25)
def test_rolling_likelihood_scores_each_token_once(documents: list[str], max_length: int) -> None:
    model = harness(max_length=max_length)
    found = model.loglikelihood_rolling(requests(*((text,) for text in documents)))
    assert model.scored_tokens == sum(len(text.encode()) for text in documents)
    for text, value in zip(documents, found, strict=True):
        ids = [EOS, *text.encode()]
        expected = 0.0
        for at in range(1, len(ids)):
            # Windows of max_length tokens; the last one is moved back to be full.
            end = min(-(-at // max_length) * max_length, len(ids) - 1)
            start = max(0, end - max_length) if at > max_length else 0
            expected += naive([EOS, *ids[start + 1 : at + 1]], 1, max_length)[0]
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("size", [1, 22, 23, 24, 25, 60])
def test_inputs_in_mid_document_begin_as_the_rows_of_a_training_do(begin: bool, size: int) -> None:
    inputs: list[list[int]] = []

    def recording(ids: Tensor) -> Tensor:
        inputs.extend(ids.tolist())
        return TOY.states(ids)

    model = harness(recording, begin_with_eos=begin)
    text = "".join(chr(ord("A") + i) for i in range(size))
    model.loglikelihood_rolling(requests((text,)))
    assert len(inputs) == -(-size // 24)
    # without the setting only the beginning of a text has the token, as in lm-eval
    assert sum(row[0] == EOS for row in inputs) == (len(inputs) if begin else 1)
    inputs.clear()
    model.loglikelihood(requests((text, "xyz")))
    model.generate_until(requests((text, {"max_gen_toks": 1})))
    assert [row[0] == EOS for row in inputs] == [begin, begin]
    scored, continued = (text + "xyz").encode()[:-1], text.encode()
    assert inputs == [[EOS, *scored[-23:]], [EOS, *continued[-22:]]] if begin else [[*scored[-24:]], [*continued[-23:]]]


class Spelling(Bytes):
    """Shows the end-of-text token, as most tokenizers do."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("<end>" if i == EOS else chr(i) for i in ids)


def test_generated_text_ends_with_the_text() -> None:
    follows = torch.zeros(VOCAB, VOCAB)
    for one, other in ((ord("a"), ord("b")), (ord("b"), EOS), (EOS, ord("a"))):
        follows[one, other] = 1.0
    model = harness(
        lambda ids: torch.nn.functional.one_hot(ids, VOCAB).float(),
        head=lambda states: states @ follows,
        tokenizer=Spelling(),
    )
    found = model.generate_until(requests(("xa", {"max_gen_toks": 9}), ("", {"max_gen_toks": 1})))
    assert found == ["b", "a"]


class Fallback(Bytes):
    """Bytes, of which a whole run is unreadable where one is, as in Llama's tokenizer; from 200 on letters."""

    def decode(self, ids: Sequence[int]) -> str:
        found = ""
        for letters, run in itertools.groupby(ids, lambda token: token >= 200):
            some = list(run)
            text = bytes(0 if letters else token for token in some).decode(errors="replace")
            found += "".join(map(chr, some)) if letters else "\ufffd" * len(some) if "\ufffd" in text else text
        return found


@given(seed=st.integers(0, 10**6), until=st.lists(st.sampled_from(["\n", "a\n", "éa", "é", " ", ""]), max_size=2))
@settings(deadline=None, max_examples=150)
def test_text_ends_where_its_tokens_one_after_the_other_end_it(seed: int, until: list[str]) -> None:
    generator, codec = torch.Generator().manual_seed(seed), Fallback()
    some = torch.tensor([10, 32, 97, 195, 169])  # among them parts of a character
    follows = torch.zeros(VOCAB, VOCAB)
    follows[:, some] = torch.randn(VOCAB, len(some), generator=generator)
    after = follows.argmax(-1).tolist()
    ids = [97]
    while len(ids) < 40:  # one token after the other, and the whole text at each
        ids.append(after[(ids[-1] * 7 + (ids[-2] if len(ids) > 1 else 0)) % VOCAB])
        if any(end and end in codec.decode(ids[1:]) for end in until):
            break
    expected = codec.decode(ids[1:])
    for end in filter(None, until):
        expected = expected.split(end)[0]

    def states(rows: Tensor) -> Tensor:
        before = torch.nn.functional.pad(rows, (1, 0))[:, :-1]
        return torch.nn.functional.one_hot((rows * 7 + before) % VOCAB, VOCAB).float()

    model = harness(states, head=lambda x: x @ follows, max_length=64, tokenizer=codec, begin_with_eos=False)
    assert model.generate_until(requests(("a", {"max_gen_toks": 39, "until": until}))) == [expected]


@pytest.mark.parametrize("text", ["xyabcab", "q"])
def test_text_that_repeats_itself_takes_few_passes(text: str) -> None:
    passes = []

    def counted(ids: Tensor) -> Tensor:
        passes.append(len(ids))
        return torch.nn.functional.one_hot(ids, VOCAB).float()

    follows = torch.zeros(VOCAB, VOCAB)
    follows[torch.arange(VOCAB), ord("a")] = 0.5
    for one, other in ("ab", "bc", "cd", "da"):  # unlike the prompt, which has an a after its c
        follows[ord(one), ord(other)] = 1.0
    model = harness(counted, head=lambda states: states @ follows, max_length=300)
    (found,) = model.generate_until(requests((text, {"max_gen_toks": 200})))
    assert found == {"b": "cdab" * 50, "q": "abcd" * 50}[text[-1]]
    assert len(passes) < 20
    passes.clear()
    (found,) = model.generate_until(requests((text, {"max_gen_toks": 200, "until": ["dabcda"]})))
    assert found == {"b": "c", "q": "abc"}[text[-1]]
    assert len(passes) < 10


def test_a_uniform_model_has_the_uniform_loss() -> None:
    model = harness(head=lambda states: torch.zeros(len(states), VOCAB))
    (value,) = model.loglikelihood_rolling(requests(("x" * 1000,)))
    assert -value / 1000 == pytest.approx(math.log(VOCAB), rel=1e-6)


def test_equal_inputs_are_computed_once_and_calls_keep_to_the_budget() -> None:
    sizes: list[tuple[int, ...]] = []

    def counting(ids: Tensor) -> Tensor:
        sizes.append(tuple(ids.shape))
        return TOY.states(ids)

    found = harness(counting).loglikelihood(requests(*(("same context", choice) for choice in "abcdefgh")))
    assert sizes == [(1, 13)]
    assert len({value for value, _ in found}) == 8
    sizes.clear()
    harness(counting, max_length=24, batch_size=2).loglikelihood(requests(*((f"{i:08}", "x") for i in range(20))))
    assert all(rows * length <= 48 for rows, length in sizes)
    assert sum(rows for rows, _ in sizes) == 20


def test_padding_is_on_the_right_and_invisible() -> None:
    one = harness().loglikelihood(requests(("abc", "d")))
    many = harness(batch_size=8).loglikelihood(requests(("abc", "d"), ("a much longer one", " x"), ("m", "xyz")))
    assert many[0][0] == pytest.approx(one[0][0], abs=1e-5)


@given(
    words=st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=12),
    devices=st.integers(1, 3),
    pad_multiple=st.sampled_from([1, 8]),
    rows=st.integers(1, 40),
)
@settings(deadline=None, max_examples=25)
def test_no_way_of_sharing_the_work_changes_a_number(
    words: list[str], devices: int, pad_multiple: int, rows: int
) -> None:
    pairs = [("c", word) for word in words]
    found = harness(devices=devices, pad_multiple=pad_multiple, rows=rows).loglikelihood(requests(*pairs))
    for word, (value, greedy) in zip(words, found, strict=True):
        expected, expected_greedy = naive([EOS, *f"c{word}".encode()], len(word), 24)
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert greedy == expected_greedy


def test_what_another_row_begins_with_is_not_computed_again() -> None:
    inputs: list[Tensor] = []

    def counting(ids: Tensor) -> Tensor:
        inputs.append(ids)
        return TOY.states(ids)

    answers = ("no", "not", "nothing", "yes", "y")
    harness(counting, batch_size=8).loglikelihood(requests(*(("context: ", answer) for answer in answers)))
    (ids,) = inputs
    ends = {Bytes().decode(row).rstrip() for row in ids.tolist()}
    assert ends == {"context: nothin", "context: ye"}


def test_without_a_first_token_only_an_empty_context_gets_one() -> None:
    found = harness(begin_with_eos=False).loglikelihood(requests(("ab", "cd"), ("", "cd")))
    assert found[0][0] == pytest.approx(naive([*b"abcd"], 2, 24)[0], abs=1e-4)
    assert found[1][0] == pytest.approx(naive([EOS, *b"cd"], 2, 24)[0], abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    def broken(ids: Tensor) -> Tensor:
        return torch.full((*ids.shape, DIM), bad)

    with pytest.raises(EvaluationError, match="not finite"):
        harness(broken).loglikelihood(requests(("a", "b")))
    with pytest.raises(EvaluationError, match="not finite"):
        harness(broken).loglikelihood_rolling(requests(("ab",)))


def test_requests_that_cannot_be_scored_say_why() -> None:
    with pytest.raises(EvaluationError, match="adds no token"):
        harness().loglikelihood(requests(("a", "")))
    with pytest.raises(EvaluationError, match="50 tokens, the model reads 24"):
        harness().loglikelihood(requests(("a", "b" * 50)))
    with pytest.raises(EvaluationError, match="random continuations"):
        harness().generate_until(requests(("a", {"do_sample": True, "temperature": 0.7})))
    with pytest.raises(EvaluationError, match="256 new tokens, the model reads 24"):
        harness().generate_until(requests(("a", {})))


@torch.no_grad()
def greedy(text: str, count: int, limit: int) -> list[int]:
    ids = [EOS, *text.encode()[-(limit - count - 1) :]]
    for _ in range(count):
        ids.append(int(TOY(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-count:]


@given(texts=st.lists(st.text("abc ", max_size=30), min_size=1, max_size=5), batch_size=st.integers(1, 3))
@settings(deadline=None, max_examples=15)
def test_generated_text_is_the_likeliest_up_to_its_end(texts: list[str], batch_size: int) -> None:
    whole = [greedy(text, 6, 24) for text in texts]
    until = Bytes().decode(whole[0][3:4])  # ends at least the first text
    until = until if until.isascii() else ""  # part of a character
    arguments = {"until": [until] if until else [], "max_gen_toks": 6, "do_sample": False}
    found = harness(batch_size=batch_size).generate_until(requests(*((text, arguments) for text in texts)))
    for ids, answer in zip(whole, found, strict=True):
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        text = Bytes().decode(ids)
        assert answer == (text.split(until)[0] if until else text)


def test_lm_eval_counts_what_a_direct_computation_counts(tmp_path: Path) -> None:
    names = ["text_choice", "recall"]
    documents = [text[:700] for text in texts()[:3]]
    folder = build_tasks(texts(), names=names, questions=15, seed=0, folder=tmp_path, rolling=documents)
    tasks = own_tasks(folder, [*names, "heldout_text"])
    results = {name: found for name, (found,) in run_tasks(harness(max_length=128, batch_size=8), tasks).items()}
    for name in names:
        right, chance = 0, 0.0
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            row = json.loads(line)
            pairs = [
                (choice, row["continuation"]) if "continuation" in row else (row["context"], choice)
                for choice in row["choices"]
            ]
            scores = [naive([EOS, *(a + b).encode()], len(b.encode()), 128)[0] for a, b in pairs]
            right += max(range(len(scores)), key=scores.__getitem__) == row["answer"]
            chance += 1 / len(scores)
        assert results[name].values["acc,none"] == pytest.approx(right / 15)
        assert results[name].questions == 15
        assert results[name].chance == pytest.approx(chance / 15)
    nats = -sum(harness(max_length=128).loglikelihood_rolling(requests(*((text,) for text in documents))))
    size = sum(len(text.encode()) for text in documents)
    assert results["heldout_text"].values["bits_per_byte,none"] == pytest.approx(nats / size / math.log(2))
