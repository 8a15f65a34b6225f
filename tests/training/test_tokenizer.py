import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import CorpusError
from asiarch_hpc.training import tokenizer as tokenizers
from asiarch_hpc.training.tokenizer import ByteTokenizer, Tokenizer

TEXTS = ["the river runs and the river runs again", "def run(self):\n        return self.river  # ünïcode"] * 5


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tokenizers.train_bpe(TEXTS, 300)


@given(text=st.text())
@settings(deadline=None, max_examples=50)
def test_any_text_survives(text: str, bpe: Tokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab for i in ids)
        assert tokenizer.eos not in ids
        assert tokenizer.encode_batch([text, text]) == [ids, ids]


def test_training_is_repeatable_and_compresses(bpe: Tokenizer) -> None:
    assert tokenizers.train_bpe(iter(TEXTS), 300).to_json() == bpe.to_json()
    assert bpe.vocab == 300
    assert len(bpe.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2


def test_json_form_rebuilds_it_with_special_tokens_kept_as_text(bpe: Tokenizer) -> None:
    spelled = "a<|endoftext|>b"
    for tokenizer in (ByteTokenizer(), bpe):
        again = tokenizers.from_json(tokenizer.to_json())
        assert (again.vocab, again.eos) == (tokenizer.vocab, tokenizer.eos)
        assert again.encode(spelled) == tokenizer.encode(spelled)
        assert again.eos not in again.encode(spelled)
        assert again.decode([again.eos]) == "<|endoftext|>"


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"vocab_size=100.*257"):
        tokenizers.train_bpe(TEXTS, 100)


def test_the_environment_is_left_alone(monkeypatch: pytest.MonkeyPatch, bpe: Tokenizer) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    bpe.encode_batch(TEXTS)
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    bpe.encode_batch(TEXTS)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_a_folder_names_its_end_of_text_token(tmp_path: Path, bpe: Tokenizer) -> None:
    inner = json.loads(bpe.to_json())["tokenizer"].replace("<|endoftext|>", "<finis>")
    (tmp_path / "tokenizer.json").write_text(inner)
    with pytest.raises(CorpusError, match=r"none of the end-of-text tokens"):
        tokenizers.load(tmp_path)
    without = tokenizers.identity(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<finis>"}))
    assert tokenizers.load(tmp_path).eos == bpe.eos
    assert tokenizers.load(tmp_path / "tokenizer.json").encode("the river") == bpe.encode("the river")
    assert tokenizers.identity(str(tmp_path)) != without


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_bad_tokenizer_paths_are_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CorpusError, match=str(tmp_path)):
        tokenizers.load(tmp_path)


def test_gpt2(shared_data: Path) -> None:
    gpt2 = tokenizers.load(shared_data / "tokenizer" / "gpt2")
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.eos, gpt2.vocab) == (50256, 50257)
    assert gpt2.decode([15496, 995]) == "Hello world"
