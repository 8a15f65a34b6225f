import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest

from asiarch_hpc.config import DataConfig
from asiarch_hpc.errors import CorpusError, StoreError
from asiarch_hpc.training import text_sources
from asiarch_hpc.training.corpus import Corpus, open_corpus, prepare

Recall = Callable[[int], Iterable[str]]


def base_of(array: object) -> object:
    """What an array is a view of, down to the first thing that is none."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_come_back(corpus: Corpus, data_config: DataConfig) -> None:
    decode = corpus.tokenizer.decode
    texts = set(text_sources.documents(data_config))
    for documents in (corpus.train, corpus.heldout):
        assert all(documents[i][0] == corpus.tokenizer.eos for i in range(len(documents)))
    heldout = [decode(corpus.heldout[i][1:].tolist()) for i in range(len(corpus.heldout))]
    train = [decode(corpus.train[i][1:].tolist()) for i in range(len(corpus.train))]
    assert heldout == list(corpus.heldout_texts)
    assert corpus.heldout_bytes == [len(t.encode()) for t in heldout]
    recalled = {t for t in train if t.startswith("recall ")}
    assert set(heldout) | set(train) - recalled == texts
    assert not set(heldout) & set(train)
    assert isinstance(base_of(corpus.train[0]), mmap)
    assert corpus.train.dtype == np.uint16
    assert (corpus.vocab, corpus.source["source"]) == (257, "text")


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_recall_documents_make_up_their_share(
    data_config: DataConfig, tmp_path: Path, recall: Recall, fraction: float
) -> None:
    corpus = open_corpus(prepare(replace(data_config, recall_fraction=fraction), root=tmp_path, synthetic=recall))
    texts = [corpus.tokenizer.decode(corpus.train[i].tolist()) for i in range(len(corpus.train))]
    is_recall = [t.startswith("<|endoftext|>recall ") for t in texts]
    share = sum(len(corpus.train[i]) for i, hit in enumerate(is_recall) if hit) / corpus.train.tokens
    assert abs(share - fraction) < 0.02
    if fraction:  # spread over the corpus, not one block
        halves = sum(is_recall[: len(texts) // 2]) / sum(is_recall)
        assert 0.3 < halves < 0.7


def test_second_call_only_reads_and_equal_settings_give_equal_files(
    data_config: DataConfig, tmp_path: Path, recall: Recall
) -> None:
    first = prepare(data_config, root=tmp_path / "a", synthetic=recall)
    stamps = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert prepare(data_config, root=tmp_path / "a", synthetic=recall) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == stamps
    second = prepare(data_config, root=tmp_path / "b", synthetic=recall)
    assert second.name == first.name
    assert bytes_in(second) == bytes_in(first)
    assert sorted(bytes_in(first)) == ["corpus.json", "shard-00000.h5", "tokenizer.json"]


def test_whatever_defines_the_content_changes_the_key(data_config: DataConfig, tmp_path: Path, recall: Recall) -> None:
    def other_recall(seed: int) -> Iterator[str]:
        yield "other"

    changed: list[tuple[DataConfig, Recall]] = [
        (data_config, recall),
        (data_config, other_recall),
        (replace(data_config, heldout_fraction=0.3), recall),
        (replace(data_config, recall_fraction=0.2), recall),
        (replace(data_config, tokenizer="bpe", vocab_size=300), recall),
        (replace(data_config, tokenizer="bpe", vocab_size=310), recall),
        (replace(data_config, max_heldout_tokens=999), recall),
        (replace(data_config, max_tokens=4000), recall),
        (replace(data_config, shard_tokens=4000), recall),
        (replace(data_config, document_kilobytes=0.1), recall),
    ]
    names = [prepare(config, root=tmp_path, synthetic=synthetic).name for config, synthetic in changed]
    assert len(set(names)) == len(names)
    assert files_in(tmp_path) == sorted(names)


def test_size_limit(data_config: DataConfig, tmp_path: Path, recall: Recall) -> None:
    small = replace(data_config, max_megabytes=0.005, recall_fraction=0.0)
    corpus = open_corpus(prepare(small, root=tmp_path, synthetic=recall))
    size = corpus.train.tokens + corpus.heldout.tokens
    assert 0.005 * 2**20 <= size < 0.005 * 2**20 + 1000


@pytest.mark.parametrize("harm", ["truncated", "empty", "text", "missing"])
@pytest.mark.parametrize("name", ["shard-00001.h5", "corpus.json", "tokenizer.json"])
def test_a_damaged_file_is_named_and_prepared_again(
    data_config: DataConfig, tmp_path: Path, recall: Recall, name: str, harm: str
) -> None:
    config = replace(data_config, shard_tokens=3000)
    folder = prepare(config, root=tmp_path, synthetic=recall)
    good = bytes_in(folder)
    assert len(good) > 5
    harmed = {"truncated": good[name][: len(good[name]) // 2], "empty": b"", "text": b"hello" * 1000}
    if harm == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(harmed[harm])
    with pytest.raises(CorpusError, match=f"{folder}.*: not a readable corpus"):
        open_corpus(folder)
    assert prepare(config, root=tmp_path, synthetic=recall) == folder
    again = bytes_in(folder)
    assert {kept: content for kept, content in again.items() if not kept.endswith(".damaged")} == good
    assert harm == "missing" or f"{name}.damaged" in again


def test_a_shard_of_another_corpus_is_not_used(data_config: DataConfig, tmp_path: Path, recall: Recall) -> None:
    folders = [
        prepare(replace(data_config, heldout_fraction=fraction), root=tmp_path, synthetic=recall)
        for fraction in (0.2, 0.3)
    ]
    good = bytes_in(folders[0])
    shard = folders[0] / "shard-00000.h5"
    shard.write_bytes(bytes_in(folders[1])[shard.name])
    with pytest.raises(CorpusError, match=f"expected layout 2 and .*{folders[0].name}"):
        open_corpus(folders[0])
    prepare(replace(data_config, heldout_fraction=0.2), root=tmp_path, synthetic=recall)
    assert shard.read_bytes() == good[shard.name]


def test_another_layout_is_refused(data_config: DataConfig, tmp_path: Path, recall: Recall) -> None:
    folder = prepare(data_config, root=tmp_path, synthetic=recall)
    index = json.loads((folder / "corpus.json").read_text())
    (folder / "corpus.json").write_text(json.dumps(index | {"layout": 99}))
    with pytest.raises(CorpusError, match="layout 99, expected 2"):
        open_corpus(folder)


def test_a_failure_midway_leaves_nothing(data_config: DataConfig, tmp_path: Path) -> None:
    def failing(seed: int) -> Iterator[str]:
        yield from ("recall",) * 8
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        prepare(data_config, root=tmp_path, synthetic=failing)
    assert files_in(tmp_path) == []


def test_errors_name_the_source(data_config: DataConfig, tmp_path: Path, recall: Recall) -> None:
    (tmp_path / "one.txt").write_text("only one document")
    one = replace(data_config, paths=[str(tmp_path / "one.txt")])
    with pytest.raises(CorpusError, match=r"one\.txt: none of \d+ documents fell into the held-out part"):
        prepare(replace(one, heldout_fraction=1e-9), root=tmp_path / "c", synthetic=recall)
    with pytest.raises(CorpusError, match=r"one\.txt: no text to train on"):
        prepare(replace(one, heldout_fraction=1 - 1e-9), root=tmp_path / "c", synthetic=recall)
    with pytest.raises(CorpusError, match=r"recall_fraction=1\.5"):
        prepare(replace(data_config, recall_fraction=1.5), root=tmp_path / "c", synthetic=recall)
    with pytest.raises(CorpusError, match="gave none for seed 0"):
        prepare(data_config, root=tmp_path / "c", synthetic=lambda seed: [])
    (tmp_path / "blocked").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"blocked.*cannot be written"):
        prepare(data_config, root=tmp_path / "blocked", synthetic=recall)


def test_two_processes_at_once(
    data_config: DataConfig, tmp_path: Path, recall: Recall, make_texts: Callable[[Path], Path]
) -> None:
    texts = make_texts(tmp_path / "texts")
    root = tmp_path / "corpora"
    code = (
        "import sys; from pathlib import Path; from asiarch_hpc.config import DataConfig\n"
        "from asiarch_hpc.training.corpus import open_corpus, prepare\n"
        "config = DataConfig(source='text', paths=[sys.argv[1]], tokenizer='bytes', heldout_fraction=0.2)\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "path = prepare(config, root=Path(sys.argv[2]), synthetic=lambda seed: ['recall ab cd'] * 3)\n"
        "print(open_corpus(path).key)"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(texts), str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    outputs = []
    for worker in workers:  # both begin as close together as possible
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    outputs = [worker.communicate()[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs[0] == outputs[1]
    assert files_in(root) == [outputs[0]]
    assert files_in(root / outputs[0]) == ["corpus.json", "shard-00000.h5", "tokenizer.json"]


def test_real_articles_with_the_gpt2_tokenizer(shared_data: Path, tmp_path: Path, recall: Recall) -> None:
    config = DataConfig(
        source="jsonl",
        paths=[str(shared_data / "text" / "wiki_en_2018" / "val.jsonl.xz")],
        tokenizer=str(shared_data / "tokenizer" / "gpt2"),
        max_megabytes=0.5,
        heldout_fraction=0.2,
    )
    corpus = open_corpus(prepare(config, root=tmp_path, synthetic=recall))
    assert corpus.vocab == 50257
    assert corpus.heldout[0][0] == 50256
    bytes_per_token = sum(corpus.heldout_bytes) / corpus.heldout.tokens
    assert 3.5 < bytes_per_token < 5.5
