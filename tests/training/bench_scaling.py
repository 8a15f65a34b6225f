"""Tokens per second of one GPU and of several on this host, by the plain engine and by DeepSpeed's stages.

python -m tests.training.bench_scaling [--gpus 2] [--sizes 20m 340m] [--stages 0 1 2] [--device cpu --sizes tiny]

All numbers of a size come from the same processes, one a GPU, on the same batches of random tokens: first the plain
engine in rank 0 alone, then each stage of ZeRO in all. The batch of a step is the same however many share it, so the
losses must agree. `speed-up` is to be read beside the plain engine's row.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB, HEADS = 50_257, 8


@dataclass(frozen=True)
class Size:
    dim: int
    depth: int
    length: int
    rows: int  # a step, over all GPUs
    warm_up: int
    steps: int


SIZES = {
    "20m": Size(256, 8, 2048, 256, 4, 16),
    "340m": Size(1024, 24, 2048, 64, 3, 8),
    "tiny": Size(32, 2, 64, 8, 1, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=["20m", "340m"])
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--design", default="delta_net")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--rank", type=int, default=-1)
    parser.add_argument("--meeting", type=Path)
    arguments = parser.parse_args()
    if arguments.rank >= 0:
        measure(arguments)
        return
    heads = ("tokens/s", "ms/step", "speed-up", "memory", "loss")
    print(f"{'':<24}" + "".join(f"{head:>12}" for head in heads), flush=True)
    with tempfile.TemporaryDirectory(prefix="asiarch-scaling-") as folder:
        for size in arguments.sizes:
            ranks = [start(rank, size, Path(folder), arguments) for rank in range(arguments.gpus)]
            codes = [process.wait() for process in ranks]
            if any(codes):
                print(f"{size}: the processes ended with {codes}", flush=True)


def start(rank: int, size: str, folder: Path, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(arguments.gpus)))).split(",")
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": visible[rank] if arguments.device == "cuda" else "",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    words = [sys.executable, "-m", "tests.training.bench_scaling", *sys.argv[1:], "--sizes", size]
    words += ["--rank", str(rank), "--meeting", str(folder / f"meeting-{size}")]
    return subprocess.Popen(words, env=environment)


def measure(arguments: argparse.Namespace) -> None:
    import torch

    from asiarch_hpc.config import ScaleConfig
    from asiarch_hpc.designs.compose import compose
    from asiarch_hpc.designs.seeds import seed_tree
    from asiarch_hpc.training.backbone import build_model
    from asiarch_hpc.training.deepspeed_engine import DeepSpeedEngine
    from asiarch_hpc.training.engine import TorchEngine
    from asiarch_hpc.training.world import World

    [name] = arguments.sizes
    size = SIZES[name]
    world = World(rank=arguments.rank, size=arguments.gpus, meeting=arguments.meeting, timeout_s=600.0)

    def scale(stage: int) -> ScaleConfig:
        return ScaleConfig(
            dim=size.dim, depth=size.depth, heads=HEADS, length=size.length, batch_size=size.rows, zero_stage=stage,
            device=arguments.device, learning_rate=3e-4, embedding_std=0.02, micro_batch=arguments.micro_batch,
        )  # fmt: skip

    source = compose(seed_tree(arguments.design))

    def model() -> Any:
        return build_model(source, vocab=VOCAB, scale=scale(0), dim=size.dim, depth=size.depth, seed=0)

    with world.connected(torch.device(arguments.device)):
        base = 0.0
        if world.rank == 0:
            base = report(name, "one, plain", lambda: TorchEngine(model(), scale(0)), World(), size, 0.0)
        world.any(False)  # the others wait for rank 0's own measurement
        for stage in arguments.stages:
            report(
                name,
                f"{world.size}, ZeRO-{stage}",
                lambda stage=stage: DeepSpeedEngine(model(), scale(stage), world, seed=0),  # type: ignore[misc]
                world,
                size,
                base,
            )


def report(name: str, what: str, make: Callable[[], Any], world: Any, size: Size, base: float) -> float:
    """Prints a row, in rank 0; returns the tokens per second."""
    import torch

    cuda = torch.cuda.is_available()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine = make()
    batches = [random_batch(step, size, world) for step in range(size.warm_up + size.steps)]
    for batch in batches[: size.warm_up]:
        loss = engine.step(batch, 3e-4).loss
    begun = time.perf_counter()
    flight = None  # as the loop does: a step is read once the next one is launched
    for batch in batches[size.warm_up :]:
        launched = engine.step(batch, 3e-4)
        loss = flight.loss if flight else loss
        flight = launched
    loss = flight.loss
    middle = (time.perf_counter() - begun) / size.steps
    speed = size.rows * size.length / middle
    if world.rank == 0:
        memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
        note = f"{torch.cuda.get_device_name() if cuda else 'cpu'}, {engine.micro_batch} rows a pass"
        note += ", compiled" if engine.compiled else ""
        print(
            f"{f'{name} {what}':<24}{speed:>12,.0f}{middle * 1e3:>12.1f}{speed / base if base else 1.0:>12.3f}"
            f"{memory:>9.1f} GB{loss:>12.4f}  {note}",
            flush=True,
        )
    return speed


def random_batch(step: int, size: Size, world: Any) -> Any:
    """This rank's share of a batch of random tokens, in page-locked memory where there is a GPU."""
    import torch

    from asiarch_hpc.training.data import Batch

    shape = (size.rows, size.length + 1)
    ids = torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(step))
    share = size.rows // world.size
    ids = ids[world.rank * share : (world.rank + 1) * share]
    count = share * size.length
    documents = torch.zeros(share, size.length, dtype=torch.int32)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), count, documents, size.rows * size.length)
    return batch.pinned() if torch.cuda.is_available() else batch


if __name__ == "__main__":
    main()
