"""Tokens per second of one GPU that one training has to itself, and of several that share it.

    python -m tests.training.bench_at_once [--sizes h200 20m] [--counts 1 2 4 8] [--seconds 20]
                                           [--device cpu --sizes tiny]

A row is so many processes, each with the trainer's whole loop on random tokens of its own; what they do together is
counted from when the last of them has made its first steps. `h200` is the scale of configs/h200.yaml, `20m` that of
configs/paper.yaml. The host's cores are shared too, and limit small ones first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_UP = 3  # steps
PATIENCE_S = 240.0  # until the first steps are done
SIZES: dict[str, dict[str, Any]] = {
    "h200": {"dim": 256, "depth": 4, "heads": 4, "length": 512, "batch_size": 64, "micro_batch": 64, "compile": "off"},
    "20m": {"dim": 256, "depth": 8, "heads": 8, "length": 2048, "batch_size": 256, "micro_batch": 64},
    "tiny": {"dim": 32, "depth": 2, "heads": 2, "length": 64, "batch_size": 8, "micro_batch": 8, "compile": "off"},
}
VOCAB = {"h200": 4096, "20m": 50_257, "tiny": 300}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=["h200", "20m"])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--design", default="delta_net")
    parser.add_argument("--seed", type=int, default=-1)
    arguments = parser.parse_args()
    if arguments.seed >= 0:
        train_on(arguments)
        return
    print(f"{'':<8}{'at once':>8}{'tokens/s':>14}{'of each':>14}{'times one':>11}", flush=True)
    with tempfile.TemporaryDirectory(prefix="asiarch-at-once-") as folder:
        for size in arguments.sizes:
            alone = 0.0
            for count in arguments.counts:
                speed = together(size, count, arguments.seconds, Path(folder))
                alone = alone or speed / count
                print(f"{size:<8}{count:>8}{speed:>14,.0f}{speed / count:>14,.0f}{speed / alone:>11.2f}", flush=True)


def together(size: str, count: int, seconds: float, folder: Path) -> float:
    """Tokens per second of `count` processes in all."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "tests.training.bench_at_once", *sys.argv[1:], "--sizes", size, "--seed"]
    logs = [folder / f"{size}-{count}-{seed}" for seed in range(count)]
    processes = []
    try:
        for seed, log in enumerate(logs):
            with log.open("w") as file:
                processes.append(subprocess.Popen([*words, str(seed)], env=environment, stdout=file))
        end = time.monotonic() + PATIENCE_S
        while any(len(_steps(log)) < WARM_UP for log in logs):
            if time.monotonic() > end or any(process.poll() is not None for process in processes):
                raise SystemExit(f"{size}, {count} at once: not all have made {WARM_UP} steps in {PATIENCE_S:g} s")
            time.sleep(0.2)
        begun = time.time()
        time.sleep(seconds)
        return tokens_per_second([_steps(log) for log in logs], begun, time.time())
    finally:
        for process in processes:
            process.kill()
            process.wait()


def tokens_per_second(steps: list[list[tuple[float, int]]], begun: float, end: float) -> float:
    """Of all trainings, from the steps (when it was done, its tokens) of each: between its first and its last step
    within an interval, lest its length in steps should round the rate."""
    total = 0.0
    for done in steps:
        within = [(at, tokens) for at, tokens in done if begun <= at <= end]
        if len(within) > 1:
            total += sum(tokens for _, tokens in within[1:]) / (within[-1][0] - within[0][0])
    return total


def _steps(log: Path) -> list[tuple[float, int]]:
    lines = log.read_text().splitlines(keepends=True)
    return [tuple(json.loads(line)) for line in lines if line.startswith("[") and line.endswith("]\n")]


def train_on(arguments: argparse.Namespace) -> None:
    """Trains without end, and prints when each step was done and its tokens."""
    from asiarch_hpc.config import ScaleConfig
    from asiarch_hpc.designs.compose import compose
    from asiarch_hpc.designs.seeds import seed_tree
    from asiarch_hpc.training.loop import train

    [size] = arguments.sizes
    scale = ScaleConfig(
        **SIZES[size], steps=10**6, device=arguments.device, learning_rate=1e-4, embedding_std=0.02, threads=1,
        checkpoint_seconds=3600.0,
    )  # fmt: skip
    before = 0

    def on_metrics(row: dict[str, Any]) -> None:
        nonlocal before
        print(json.dumps([time.time(), row["tokens"] - before]), flush=True)
        before = row["tokens"]

    with tempfile.TemporaryDirectory() as folder:
        train(
            compose(seed_tree(arguments.design)),
            scale=scale,
            dim=scale.dim,
            depth=scale.depth,
            corpus=random_corpus(VOCAB[size], arguments.seed),
            seed=arguments.seed,
            checkpoint_path=Path(folder) / "checkpoint",
            on_metrics=on_metrics,
            should_stop=lambda: False,
            clock=time.monotonic,
        )


def random_corpus(vocab: int, seed: int) -> Any:
    """Documents of 1,024 random tokens."""
    from types import SimpleNamespace

    import numpy as np

    from asiarch_hpc.training.corpus import Corpus
    from asiarch_hpc.training.documents import Documents

    tokens = np.random.default_rng(seed).integers(0, vocab - 1, 2**22).astype(np.uint16)
    offsets = np.arange(0, len(tokens) + 1, 1024)
    tokens[offsets[:-1]] = vocab - 1
    parts: Any = {"tokenizer": SimpleNamespace(eos=vocab - 1), "train": Documents([tokens], offsets)}
    return Corpus(path=Path(), key="bench", vocab=vocab, source={}, **parts)


if __name__ == "__main__":
    main()
