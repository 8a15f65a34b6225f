"""How long a batch takes, and how much of the rows is padding.

`python -m tests.training.batch_figures` on a million documents, 2 GB of memory; with the folder of a prepared corpus,
on its training part.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.training.corpus import open_corpus
from asiarch_hpc.training.data import Batches
from asiarch_hpc.training.documents import Documents

DOCUMENTS, SHARD, ROWS, STEPS = 1_000_000, 100_000, 256, 50


def main() -> None:
    if len(sys.argv) > 1:
        corpus = open_corpus(Path(sys.argv[1]))
        documents, separator = corpus.train, corpus.tokenizer.eos
    else:
        documents, separator = made_up(), 1
    print(f"{documents.tokens / 1e6:,.1f}M tokens in {len(documents):,} documents")
    for length in (2048, 512):
        measure(documents, separator, length)


def made_up() -> Documents:
    rng = np.random.default_rng(0)
    # lengths as web text has them: 665 tokens in the middle, 1,000 in the mean
    lengths = np.maximum(2, rng.lognormal(6.5, 0.9, DOCUMENTS).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.ones(offsets[-1], dtype=np.uint16)
    return Documents([tokens[offsets[i] : offsets[i + SHARD]] for i in range(0, DOCUMENTS, SHARD)], offsets)


def measure(documents: Documents, separator: int, length: int) -> None:
    window = ScaleConfig().packing_window
    begun = time.perf_counter()
    batches = Batches(documents, length=length, batch_size=ROWS, seed=0, separator=separator, window=window)
    batches.batch(0)
    first = time.perf_counter() - begun
    seconds = []
    for step in range(1, STEPS + 1):
        begun = time.perf_counter()
        batches.batch(step)
        seconds.append(time.perf_counter() - begun)
    padding = 1 - batches.predictions / (batches.rows * length)
    print(
        f"rows of {length}: first batch after {first:.2f} s; a batch of {ROWS} rows in "
        f"{statistics.median(seconds) * 1e3:.1f} ms, median of {STEPS}; {padding:.3%} padding"
    )


if __name__ == "__main__":
    main()
