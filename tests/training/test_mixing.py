"""What a corpus consists of, whoever tokenises, and however often it was killed meanwhile."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pyarrow
import pyarrow.parquet
import pytest

from asiarch_hpc.config import DataConfig, MixtureConfig
from asiarch_hpc.errors import CorpusError, StoreError
from asiarch_hpc.training import corpus as corpora
from asiarch_hpc.training.corpus import Corpus, open_corpus, prepare
from asiarch_hpc.training.data import Batches
from asiarch_hpc.training.mixing import Progress
from asiarch_hpc.training.shards import Shard

Recall = Callable[[int], Iterable[str]]


def write_set(folder: Path, name: str, kind: str, count: int = 200) -> MixtureConfig:
    """A source of its own words, in two files."""
    rng = random.Random(name)
    (folder / name).mkdir(parents=True)
    for part in range(2):
        texts = [f"{name} {part} {i} {' '.join(['word'] * rng.randrange(40))}" for i in range(count // 2)]
        path = folder / name / f"train-{part}"
        if kind == "jsonl":
            path.with_suffix(".jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        else:
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path.with_suffix(".parquet"), row_group_size=16)
    where = {"dataset": str(folder / name)} if kind == "huggingface" else {"paths": [str(folder / name)]}
    return MixtureConfig(source=kind, **where)  # type: ignore[arg-type]


@pytest.fixture
def mixture(tmp_path: Path) -> DataConfig:
    """Three kinds of sources, many small shards and chunks."""
    kinds = {"web": ("huggingface", 0.7, 500), "books": ("parquet", 0.2, 300), "code": ("jsonl", 0.1, 300)}
    sources = []
    for name, (kind, weight, count) in kinds.items():
        sources.append(replace(write_set(tmp_path / "texts", name, kind, count), weight=weight))
    return DataConfig(
        mixture=sources, tokenizer="bytes", heldout_fraction=0.1, shard_tokens=5000, chunk_megabytes=0.005, processes=1
    )


@pytest.fixture
def files(mixture: DataConfig) -> DataConfig:
    """The same without the hub's library."""
    return replace(mixture, mixture=mixture.mixture[1:], shard_tokens=1000)


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def content_of(folder: Path) -> dict[str, Any]:
    """The same, without the state of streams, which the hub's library writes as it likes."""
    found: dict[str, Any] = bytes_in(folder)
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            state = json.loads(file.attrs["state"])
            del state["readers"]
            found[path.name] = [state, {name: data[:].tolist() for name, data in file.items()}]
    return found


def texts_of(corpus: Corpus) -> list[str]:
    return [corpus.tokenizer.decode(corpus.train[i][1:].tolist()) for i in range(len(corpus.train))]


def test_a_mixture_keeps_its_shares_everywhere(mixture: DataConfig, tmp_path: Path, recall: Recall) -> None:
    corpus = open_corpus(prepare(mixture, root=tmp_path, synthetic=recall))
    names = [text.split()[0] for text in texts_of(corpus)]
    sizes = [len(corpus.train[i]) for i in range(len(corpus.train))]
    for end in (len(names) // 3, len(names)):
        counted = {name: sum(s for n, s in zip(names[:end], sizes[:end], strict=True) if n == name) for name in names}
        total = sum(counted.values())
        assert abs(counted["recall"] / total - mixture.recall_fraction) < 0.02
        for name, share in (("web", 0.7), ("books", 0.2), ("code", 0.1)):
            assert abs(counted[name] / (total - counted["recall"]) - share) < 0.02
    recorded = corpus.source["sources"]
    assert [(source["source"], source["share"]) for source in recorded] == [
        ("huggingface", pytest.approx(0.7)),
        ("parquet", pytest.approx(0.2)),
        ("jsonl", pytest.approx(0.1)),
    ]
    assert [source["train_tokens"] for source in recorded] == [counted["web"], counted["books"], counted["code"]]
    assert json.loads((corpus.path / "corpus.json").read_text())["ended_by"] == "end of source 0"
    other = replace(mixture, mixture=[replace(mixture.mixture[0], weight=0.5), *mixture.mixture[1:]])
    assert prepare(other, root=tmp_path, synthetic=recall) != corpus.path


def test_shards_hold_whole_documents(mixture: DataConfig, tmp_path: Path, recall: Recall) -> None:
    many = open_corpus(prepare(mixture, root=tmp_path, synthetic=recall))
    one = open_corpus(prepare(replace(mixture, shard_tokens=10**9), root=tmp_path, synthetic=recall))
    assert len(many.names) > 5
    assert len(one.names) == 1
    assert texts_of(many) == texts_of(one)
    assert many.heldout_texts == one.heldout_texts
    assert [many.heldout[i].tolist() for i in range(len(many.heldout))] == [
        one.heldout[i].tolist() for i in range(len(one.heldout))
    ]
    batches = [
        Batches(c.train, length=64, batch_size=8, seed=1, separator=c.tokenizer.eos, window=50) for c in (many, one)
    ]
    for step in (0, 3, 50):
        assert batches[0].batch(step).inputs.equal(batches[1].batch(step).inputs)


def test_processes_make_no_difference(files: DataConfig, tmp_path: Path, recall: Recall) -> None:
    alone = prepare(files, root=tmp_path / "a", synthetic=recall)
    several = prepare(replace(files, processes=3, serial_megabytes=0.01), root=tmp_path / "b", synthetic=recall)
    assert several.name == alone.name
    assert bytes_in(several) == bytes_in(alone)


def test_a_preparation_that_broke_goes_on_anywhere(
    mixture: DataConfig, tmp_path: Path, recall: Recall, monkeypatch: Any
) -> None:
    whole = content_of(prepare(mixture, root=tmp_path / "whole", synthetic=recall))
    names = sorted(name for name in whole if name.startswith("shard"))
    write = Shard.write
    written: list[str] = []

    def failing(self: Shard, folder: Path, identity: Any, *rest: Any) -> None:
        if identity.number and identity.name not in written:  # each shard breaks once, then is written once
            written.append(identity.name)
            raise OSError("the disk is full")
        write(self, folder, identity, *rest)

    monkeypatch.setattr(Shard, "write", failing)
    for _ in names[1:]:
        with pytest.raises(StoreError, match="disk is full"):
            prepare(mixture, root=tmp_path / "broken", synthetic=recall)
    told: list[Progress] = []
    folder = prepare(mixture, root=tmp_path / "broken", synthetic=recall, on_progress=told.append)
    assert content_of(folder) == whole
    assert 5000 * (len(names) - 1) <= told[0].tokens  # nothing finished was made again


def test_killed_at_random_instants(files: DataConfig, tmp_path: Path, recall: Recall) -> None:
    code = (
        "import sys, json; from pathlib import Path; from asiarch_hpc.config import DataConfig, MixtureConfig\n"
        "from asiarch_hpc.training.corpus import prepare; from tests.training.conftest import recall_texts\n"
        "settings = json.loads(sys.argv[1]); mixture = [MixtureConfig(**m) for m in settings.pop('mixture')]\n"
        "if __name__ == '__main__':\n"
        "    prepare(DataConfig(mixture=mixture, **settings), root=Path(sys.argv[2]), synthetic=recall_texts)\n"
    )
    parallel = replace(files, processes=2, serial_megabytes=0.01)
    settings = json.dumps({**vars(parallel), "mixture": [vars(source) for source in parallel.mixture]})
    root, rng = tmp_path / "killed", random.Random(0)
    kills = 0
    while True:
        before = len(list(root.glob("*/shard*")))
        command = [sys.executable, "-c", code, settings, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as worker:
            while worker.poll() is None and (kills == 4 or len(list(root.glob("*/shard*"))) <= before):
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.05))
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGKILL)  # this process alone: those of its pool must end by themselves
                kills += 1
            assert worker.stdout is not None
            worker.stdout.read()  # ends when none of them holds it any more
        if worker.returncode != -signal.SIGKILL:
            break
    assert worker.returncode == 0
    assert kills == 4
    whole = prepare(files, root=tmp_path / "whole", synthetic=recall)
    assert bytes_in(root / whole.name) == bytes_in(whole)


def test_a_process_that_dies_is_named(files: DataConfig, tmp_path: Path, recall: Recall, monkeypatch: Any) -> None:
    victims: list[int] = []

    def kill_one(progress: Progress) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        if workers and not victims:
            victims.append(int(workers[0]))
            os.kill(victims[0], signal.SIGKILL)
            time.sleep(0.5)

    parallel = replace(files, processes=2, serial_megabytes=0.01)
    with pytest.raises(CorpusError, match=r"one of 2 processes that tokenise died.*data\.processes"):
        prepare(parallel, root=tmp_path, synthetic=recall, on_progress=kill_one)
    assert victims


def test_sizes_are_bounded(mixture: DataConfig, tmp_path: Path, recall: Recall) -> None:
    config = replace(mixture, max_tokens=12_000, max_heldout_tokens=500)
    corpus = open_corpus(prepare(config, root=tmp_path, synthetic=recall))
    assert 12_000 <= corpus.train.tokens < 12_500
    assert 0 < corpus.heldout.tokens <= 500
    unbounded = open_corpus(prepare(mixture, root=tmp_path, synthetic=recall))
    assert unbounded.heldout.tokens > 2000
    # held-out documents are the first of those by hash, and no other goes over to the training part
    assert list(corpus.heldout_texts) == list(unbounded.heldout_texts)[: len(corpus.heldout_texts)]
    assert not set(unbounded.heldout_texts) & set(texts_of(corpus))


def test_progress_rises_to_the_end(mixture: DataConfig, files: DataConfig, tmp_path: Path, recall: Recall) -> None:
    for number, config in enumerate((files, replace(mixture, max_tokens=20_000))):
        told: list[Progress] = []
        prepare(config, root=tmp_path / str(number), synthetic=recall, on_progress=told.append)
        shares = [progress.share for progress in told]
        assert all(share is not None and 0 <= share <= 1 for share in shares)
        assert shares == sorted(shares, key=lambda share: share or 0)
        assert (shares[-1] or 0) > 0.85
        assert [p.tokens for p in told] == sorted(p.tokens for p in told)


def test_leftovers_of_killed_preparations_go(data_config: DataConfig, tmp_path: Path, recall: Recall) -> None:
    folder = prepare(data_config, root=tmp_path, synthetic=recall)
    (folder / "corpus.json").unlink()
    (folder / ".shard-00000.h5.123.partial").write_bytes(b"half")
    assert corpora.prepare(data_config, root=tmp_path, synthetic=recall) == folder
    assert sorted(bytes_in(folder)) == ["corpus.json", "shard-00000.h5", "tokenizer.json"]
