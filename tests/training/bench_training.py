"""Tokens per second and time to the first step of a training on this GPU, beside flash-linear-attention's model.

python -m tests.training.bench_training [--tokens FILE.npy] [--only 20m|340m] [--no-fla]

Each row of the table is a process of its own. `first step` counts from the start of that process until the first
optimiser step is done; `cold` begins with empty caches of compiled kernels, `warm` with those that the run before left.
`rate` is 6 x (parameters without the embedding) x tokens/s beside a measured bf16 matrix product of 8192.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BEGUN = "ASIARCH_BENCH_BEGUN"
VOCAB, LENGTH, HEADS = 50_257, 2048, 8


@dataclass(frozen=True)
class Size:
    dim: int
    depth: int
    rows: int  # a step
    micro_batch: int
    steps: int


SIZES = {"20m": Size(256, 8, 256, 32, 12), "340m": Size(1024, 24, 64, 16, 6)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--only", choices=sorted(SIZES))
    parser.add_argument("--no-fla", action="store_true")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--case", nargs=2)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*arguments.case, arguments)))
        return
    print(f"{'':<22}{'tokens/s':>12}{'rate':>8}{'first step':>12}{'memory':>10}{'loss':>8}")
    with tempfile.TemporaryDirectory(prefix="asiarch-bench-") as caches:
        for size in [arguments.only] if arguments.only else SIZES:
            runs = [] if arguments.no_fla else [("fla", "")]
            for kind, cache in [*runs, ("ours", "cold"), ("ours", "warm")]:
                row = in_process(kind, size, Path(caches) / kind / size)
                print(
                    f"{f'{kind} {size} {cache}':<22}{row['tokens_per_second']:>12,.0f}{row['rate']:>8.1%}"
                    f"{row['first_step_s']:>10.1f} s{row['gigabytes']:>7.1f} GB{row['loss']:>8.3f}  {row['note']}",
                    flush=True,
                )


def in_process(kind: str, size: str, caches: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        BEGUN: str(time.time()),
    }
    rest = [a for a in sys.argv[1:] if a != "--no-fla"]
    command = [sys.executable, "-m", "tests.training.bench_training", *rest, "--case", kind, size]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        nothing = float("nan")
        names = ("tokens_per_second", "rate", "first_step_s", "gigabytes", "loss")
        return {**dict.fromkeys(names, nothing), "note": f"failed with exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(kind: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    size = SIZES[name]
    if arguments.micro_batch:
        size = replace(size, micro_batch=arguments.micro_batch)
    step, parameters = (fla_step if kind == "fla" else our_step)(size, arguments)
    batches = rows_of(arguments.tokens, size)
    loss = step(*next(batches))
    first = time.time() - float(os.environ.get(BEGUN, "nan"))
    for _ in range(2):
        step(*next(batches))
    seconds = []
    for _ in range(size.steps):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        loss = step(*next(batches))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    speed = size.rows * LENGTH / statistics.median(seconds)
    return {
        "tokens_per_second": speed,
        "rate": 6 * parameters * speed / matrix_rate(),
        "first_step_s": first,
        "gigabytes": torch.cuda.max_memory_allocated() / 2**30,
        "loss": loss,
        "note": torch.cuda.get_device_name(),
    }


def our_step(size: Size, arguments: argparse.Namespace) -> Any:
    from asiarch_hpc.config import ScaleConfig
    from asiarch_hpc.designs.seeds import seed_program
    from asiarch_hpc.training.backbone import build_model
    from asiarch_hpc.training.data import Batch
    from asiarch_hpc.training.engine import TorchEngine

    scale = ScaleConfig(heads=HEADS, length=LENGTH, batch_size=size.rows, learning_rate=3e-4, device="cuda",
                        micro_batch=size.micro_batch, compile=arguments.compile, embedding_std=0.02)  # fmt: skip
    model = build_model(seed_program("delta_net"), vocab=VOCAB, scale=scale, dim=size.dim, depth=size.depth, seed=0)
    engine = TorchEngine(model, scale)
    parameters = sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()

    def step(inputs: Any, targets: Any) -> float:
        return engine.step(Batch(inputs, targets, targets.numel()), 3e-4).loss

    return step, parameters


def fla_step(size: Size, arguments: argparse.Namespace) -> Any:
    import torch
    from fla.models import DeltaNetConfig, DeltaNetForCausalLM

    torch.manual_seed(0)
    config = DeltaNetConfig(
        hidden_size=size.dim, num_hidden_layers=size.depth, num_heads=HEADS, vocab_size=VOCAB,
        max_position_embeddings=LENGTH, fuse_cross_entropy=True,
    )  # fmt: skip
    model = DeltaNetForCausalLM(config).to("cuda").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    parameters = sum(p.numel() for p in model.parameters()) - model.model.embeddings.weight.numel()

    def step(inputs: Any, targets: Any) -> float:
        inputs, targets = inputs.cuda(non_blocking=True), targets.cuda(non_blocking=True)
        total = torch.zeros((), device="cuda")
        parts = len(inputs) // size.micro_batch
        for begin in range(0, len(inputs), size.micro_batch):
            part = slice(begin, begin + size.micro_batch)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(inputs[part], labels=inputs[part]).loss / parts
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    return step, parameters


def rows_of(path: Path | None, size: Size) -> Any:
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    tokens = np.load(path, mmap_mode="r") if path else rng.integers(0, VOCAB, 2**22).astype(np.uint16)
    while True:
        begins = rng.integers(0, len(tokens) - LENGTH - 1, size.rows)
        rows = torch.from_numpy(np.stack([tokens[b : b + LENGTH + 1] for b in begins]).astype(np.int64))
        yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def matrix_rate() -> float:
    """Measured operations per second of a bf16 product of 8192 x 8192 matrices of random numbers."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return 2 * 8192**3 / statistics.median(seconds)


if __name__ == "__main__":
    main()
