import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asiarch_hpc.cli import main
from asiarch_hpc.config import load_config
from asiarch_hpc.store.layout import RunLayout
from jobs.data import prepare_corpus
from jobs.workspace import Workspace


@pytest.fixture
def settings(tmp_path: Path, make_texts: Callable[[Path], Path]) -> list[str]:
    texts = make_texts(tmp_path / "texts")
    return ["data.source=text", f"data.paths=[{texts}]", "data.tokenizer=bytes", "data.heldout_fraction=0.2"]


def test_the_command_makes_the_corpus_of_a_run(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    command = ["data", "prepare", "--results", str(results), "--config", "smoke", *settings]
    assert main(command) == 0
    space = Workspace(RunLayout.of(results, "later"), load_config("smoke", settings))
    before = sorted(results.rglob("*"))
    corpus = space.corpus
    assert sorted(results.rglob("*")) == before  # nothing was left to prepare
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"corpus {corpus.key}: {corpus.train.tokens:,} training tokens in ")
    assert f" {corpus.heldout.tokens:,} held-out tokens" in line
    assert " tokens/s in " in line
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("; nothing was left to do\n")
    assert main([*command, "data.paths=[/no/such/folder]"]) == 1
    assert "/no/such/folder: no such file" in capsys.readouterr().err


def test_whoever_waits_says_so(settings: list[str], tmp_path: Path) -> None:
    config = load_config("smoke", settings).data
    folder = Path(prepare_corpus(config, tmp_path, io.StringIO(), time.monotonic).split("; ")[1])
    (folder / "corpus.json").unlink()
    (folder / ".claim").write_text("somewhere 17")
    out = io.StringIO()
    config.claim_stale_seconds = 0.1
    assert str(folder) in prepare_corpus(config, tmp_path, out, time.monotonic)
    assert out.getvalue() == "somewhere 17 is preparing this corpus; waiting for it\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_progress_is_shown(settings: list[str], tmp_path: Path, kind: type[io.StringIO]) -> None:
    config = load_config("smoke", [*settings, "data.chunk_megabytes=0.002", "data.recall_fraction=0"]).data
    out = kind()
    seconds = itertools.count(0.0, 60.0)
    line = prepare_corpus(config, tmp_path / "corpora", out, lambda: next(seconds))
    shown = out.getvalue().replace("\x1b[K", "").replace("\r", "\n").split("\n")
    told = [text for text in shown if text]
    assert len(told) > 4
    assert told[-1].endswith("0:01:00 left") or " left" in told[-1]
    assert "M tokens" in told[-1]
    assert "tokens/s" in line
    assert ("\r" in out.getvalue()) == out.isatty()
