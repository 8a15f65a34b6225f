import itertools
import json
import lzma
import os
import subprocess
import sys
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


SEVERAL = """
import os, sys
from pathlib import Path
from asiarch_hpc.training import tokenizer

bpe, texts = tokenizer.from_json(Path(sys.argv[1]).read_text()), ["one text", "another"] * 1000
found = bpe.encode_batch(texts, 3)
threads = len(os.listdir("/proc/self/task"))
if (child := os.fork()) == 0:
    os._exit(bpe.encode_batch(texts) != found)
same = found == [bpe.encode(text) for text in texts]
print(threads, os.waitpid(child, 0)[1], same, "RAYON_NUM_THREADS" in os.environ)
"""


def test_several_threads_give_the_same_and_forks_go_on(tmp_path: Path, bpe: Tokenizer) -> None:
    (tmp_path / "bpe").write_text(bpe.to_json())
    ran = subprocess.run(
        [sys.executable, "-c", SEVERAL, str(tmp_path / "bpe")], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.split() == ["4", "0", "True", "False"]


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


def merged(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding as published: the pair of the lowest rank is joined everywhere, again and again."""
    parts = list(word)
    while pairs := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
        best = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts


def test_gpt2_follows_the_published_merges(shared_data: Path) -> None:
    regex = pytest.importorskip("regex")
    folder = shared_data / "tokenizer" / "gpt2"
    ids = json.loads((folder / "encoder.json").read_text())
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    ranks = {(a, b): rank for rank, (a, b) in enumerate(line.split() for line in lines)}
    # printable bytes stand for themselves, the others for the characters from 256 on
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in letters)}
    words = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    with lzma.open(shared_data / "text" / "wiki_en_2018" / "val.jsonl.xz", "rt") as file:
        articles = [json.loads(line)["text"][:4000] for line in itertools.islice(file, 40)]
    odd = [
        "",
        " ",
        "\n\n \t x",
        "I'll've I'LL 3.14159 ½٣",
        "naïve Ελλάδα 東京都 \u200d🧑\u200d🚀\x00\x7f",
        "<|endoftext|>",
        "a" * 300,
    ]
    gpt2 = tokenizers.load(folder)
    for text, found in zip([*articles, *odd], gpt2.encode_batch([*articles, *odd]), strict=True):
        spelled = ["".join(letters[byte] for byte in word.encode()) for word in words.findall(text)]
        assert found == [ids[part] for word in spelled for part in merged(word, ranks)]
        assert gpt2.decode(found) == text


def test_a_name_on_the_hub_is_taken_from_the_cache(tmp_path: Path, bpe: Tokenizer) -> None:
    """The cache is laid out as the hub's library does it, and the library finds it there without network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--someone--words"
    snapshot = cached / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    (snapshot / "tokenizer.json").write_text(json.loads(bpe.to_json())["tokenizer"])
    (snapshot / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    code = (
        "from asiarch_hpc.training import tokenizer\n"
        "print(tokenizer.load(tokenizer.locate('someone/words')).encode('the river'))\n"
        "print(tokenizer.identity('someone/words'))\n"
        "tokenizer.locate('someone/else')"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(bpe.encode("the river")), tokenizers.identity(str(snapshot))]
    last = done.stderr.strip()
    assert "CorpusError: data.tokenizer='someone/else': no such file or folder, and as a name on the hub" in last
    assert "Without internet" in last
