"""Prepares a corpus ahead of a run, and says how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from asiarch_hpc.config import DataConfig
from asiarch_hpc.evaluation.tasks import recall_documents
from asiarch_hpc.training.corpus import open_corpus, prepare
from asiarch_hpc.training.mixing import Progress

_SCREEN_S = 0.5  # between two states of a line on a terminal
_LOG_S = 30.0  # between two lines of a log


def prepare_corpus(config: DataConfig, root: Path, out: TextIO, clock: Callable[[], float]) -> str:
    """Prepares the corpus, or goes on with it, and returns one line about it.

    Args:
        config: sources, tokenizer and sizes.
        root: folder of the corpora.
        out: where progress is shown.
        clock: seconds, monotonic.

    Raises:
        CorpusError: source or tokenizer are unusable, or nothing is left to train on or to hold out.
        StoreError: a file cannot be written.
    """
    display = _Display(out, clock)
    folder = prepare(config, root=root, synthetic=recall_documents, on_progress=display.update, on_wait=display.wait)
    display.clear()
    corpus = open_corpus(folder)
    train = corpus.train
    shards = len(corpus.names)
    found = (
        f"corpus {corpus.key}: {train.tokens:,} training tokens in {len(train):,} documents and {shards} "
        f"shard{'s' * (shards > 1)}, {corpus.heldout.tokens:,} held-out tokens; {os.path.relpath(folder)}"
    )
    seconds = clock() - display.begun
    made = train.tokens - display.tokens if display.tokens is not None else 0
    return (
        f"{found}; {made / seconds:,.0f} tokens/s in {seconds:,.1f} s" if made else f"{found}; nothing was left to do"
    )


class _Display:
    """One line that changes, or lines in a log."""

    def __init__(self, out: TextIO, clock: Callable[[], float]) -> None:
        self.begun = clock()
        self.tokens: int | None = None  # that an earlier preparation left
        self._share = 0.0
        self._out = out
        self._clock = clock
        self._live = out.isatty()
        self._shown = self.begun

    def update(self, progress: Progress) -> None:
        now = self._clock()
        if self.tokens is None:
            self.tokens, self._share = progress.tokens, progress.share or 0.0
        if now - self._shown < (_SCREEN_S if self._live else _LOG_S):
            return
        self._shown = now
        rate = (progress.tokens - self.tokens) / (now - self.begun)
        line = f"{progress.tokens / 1e6:,.1f} M tokens, {rate:,.0f} tokens/s{self._left(progress.share, now)}"
        self._out.write(f"\r{line}\x1b[K" if self._live else f"{line}\n")
        self._out.flush()

    def wait(self, holder: str) -> None:
        self._out.write(f"{holder} is preparing this corpus; waiting for it\n")
        self._out.flush()

    def _left(self, share: float | None, now: float) -> str:
        if share is None or share <= self._share:
            return ""
        minutes, seconds = divmod(round((now - self.begun) * (1 - share) / (share - self._share)), 60)
        hours, minutes = divmod(minutes, 60)
        return f", {share:.1%}, {hours}:{minutes:02}:{seconds:02} left"

    def clear(self) -> None:
        if self._live:
            self._out.write("\r\x1b[K")
            self._out.flush()
