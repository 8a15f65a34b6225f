"""The benchmark of trainings without a GPU: a small training of ours, and rows of processes that are ended."""

from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asiarch_hpc.training import tokenizer
from tests.training import bench_training
from tests.training.bench_training import EOS, SIZES, corpus, in_process, make_tokens, measure


@pytest.mark.parametrize("kind", ["ours", "across"])
def test_a_row_of_ours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_training, "LENGTH", 32)
    monkeypatch.setattr(bench_training, "matrix_rate", lambda: 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    monkeypatch.setitem(SIZES, "20m", replace(SIZES["20m"], dim=16, depth=1, rows=4, micro_batch=4, steps=3))
    monkeypatch.setenv(bench_training.BEGUN, str(time.time()))
    options = Namespace(tokens=None, design="delta_net", compile="off", micro_batch=2, device="cpu")
    [row] = measure(kind, "20m", options)
    assert row["note"] == "a GPU 2 rows a pass"
    assert row["tokens_per_second"] > 0
    assert 0 < row["first_step_s"] < 60
    assert abs(row["loss"] - math.log(50_257)) < 1
    # The head, 16 x 50,304, is most of what is counted.
    assert row["rate"] == pytest.approx(6 * row["tokens_per_second"] * 16 * 50_304 / 1e9, rel=0.02)


def gpt2() -> Path:
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizer" / "gpt2"
    if not folder.is_dir():
        pytest.skip("no ../shared/data/tokenizer/gpt2")
    return folder


def test_a_file_of_tokens_is_made_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Hello world", "One document.\n\nStill the same.", "Hello world"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["bench", "--make", "made.npy", "--text", "a.jsonl", "--tokenizer", str(gpt2())]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_training.sys, "argv", words)
    bench_training.main()
    made = np.load("made.npy")
    assert made.dtype == np.uint16
    assert made[:4].tolist() == [EOS, 15496, 995, EOS]
    train = corpus(Path("made.npy")).train
    codec = tokenizer.load(gpt2())
    assert [codec.decode(train[index][1:].tolist()) for index in range(len(train))] == texts


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Hello"}')
    made = tokenizer.train_bpe(["Hello world"], 300)
    assert isinstance(made, tokenizer.SubwordTokenizer)
    made._inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SystemExit, match="GPT-2's was expected"):
        make_tokens(tmp_path / "made.npy", [str(tmp_path / "a.jsonl")], "jsonl", str(tmp_path / "tokenizer.json"))


class TestProcess:
    ROWS = """#!/bin/sh
echo '{"tokens_per_second": NaN, "note": "one"}'
mkdir -p "$TRITON_CACHE_DIR/a"; echo '{}' > "$TRITON_CACHE_DIR/a/kernel.autotune.json"
echo '{"tokens_per_second": 5, "note": "two"}'
printf '{"tokens_per_second": 6, "no'
"""

    @pytest.mark.parametrize(
        ("ending", "seconds", "note"),
        [
            ("sleep 100", 1.0, "two, 1 choices of tuned kernels, ended after 1 s"),
            ("exit 3", math.inf, "two, 1 choices of tuned kernels, failed with exit code 3"),
        ],
    )
    def test_the_last_whole_row_counts(
        self, ending: str, seconds: float, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "program"
        program.write_text(f"{self.ROWS}exec {ending}\n" if "sleep" in ending else f"{self.ROWS}{ending}\n")
        program.chmod(0o755)
        monkeypatch.setattr(bench_training.sys, "executable", str(program))
        row = in_process("fla", "20m", tmp_path / "caches", seconds)
        assert row == {"tokens_per_second": 5, "note": note}

    def test_nothing_printed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench_training.sys, "executable", "/bin/false")
        row = in_process("fla", "20m", tmp_path, 9.0)
        assert math.isnan(row["tokens_per_second"])
        assert row["note"] == "failed with exit code 1"
