"""How long a batch takes: `python -m tests.training.batch_figures`, 2 GB of memory."""

from __future__ import annotations

import statistics
import time

import numpy as np

from asiarch_hpc.training.data import Batches
from asiarch_hpc.training.documents import Documents

DOCUMENTS, SHARD, ROWS, LENGTH, STEPS = 1_000_000, 100_000, 256, 2048, 50


def main() -> None:
    rng = np.random.default_rng(0)
    # lengths as web text has them: 665 tokens in the middle, 1,000 in the mean
    lengths = np.maximum(2, rng.lognormal(6.5, 0.9, DOCUMENTS).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.ones(offsets[-1], dtype=np.uint16)
    shards = [tokens[offsets[i] : offsets[i + SHARD]] for i in range(0, DOCUMENTS, SHARD)]
    begun = time.perf_counter()
    batches = Batches(Documents(shards, offsets), length=LENGTH, batch_size=ROWS, seed=0, padding=0)
    batches.batch(0)
    print(f"{offsets[-1] / 1e9:.2f}B tokens; first batch after {time.perf_counter() - begun:.2f} s")
    seconds = []
    for step in range(1, STEPS + 1):
        begun = time.perf_counter()
        batches.batch(step)
        seconds.append(time.perf_counter() - begun)
    print(f"a batch of {ROWS} x {LENGTH}: {statistics.median(seconds) * 1e3:.1f} ms, median of {STEPS}")


if __name__ == "__main__":
    main()
