"""How far the losses of two processes lie from the plain engine's, over a whole training.

python -m tests.training.same_losses [--config laptop] [--design delta_net]

The plain engine runs with micro-batches of one process's rows, which sums in the same order, and once more with whole
batches: that differs by rounding alone, and shows how rounding grows in the course of a training.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from asiarch_hpc.config import ScaleConfig, load_config
from asiarch_hpc.designs.seeds import seed_program
from asiarch_hpc.evaluation.tasks import recall_documents
from asiarch_hpc.training.corpus import open_corpus, prepare
from asiarch_hpc.training.loop import train
from asiarch_hpc.training.world import World
from tests.training.ranks import run_ranks


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="laptop")
    parser.add_argument("--design", default="delta_net")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    scale = replace(config.scale, device="cpu")
    with tempfile.TemporaryDirectory(prefix="asiarch-same-") as name:
        folder = Path(name)
        corpus = open_corpus(prepare(config.data, root=folder / "corpora", synthetic=recall_documents))

        def part(scale: ScaleConfig, name: str) -> Callable[[World], list[float]]:
            def go(world: World) -> list[float]:
                losses: list[float] = []
                train(
                    seed_program(arguments.design),
                    scale=scale,
                    dim=scale.dim,
                    depth=scale.depth,
                    corpus=corpus,
                    seed=0,
                    checkpoint_path=folder / name,
                    on_metrics=lambda row: losses.append(row["loss"]),
                    should_stop=lambda: False,
                    clock=time.monotonic,
                    world=world,
                )
                return losses

            return go

        halves = part(replace(scale, micro_batch=scale.batch_size // 2), "halves")(World())
        show("plain, whole batches", part(scale, "whole")(World()), halves)
        for stage in (0, 1, 2):
            losses = run_ranks(2, part(replace(scale, zero_stage=stage), f"stage-{stage}"), folder, timeout_s=600.0)[0]
            show(f"two processes, ZeRO-{stage}", losses, halves)


def show(what: str, losses: Sequence[float], beside: Sequence[float]) -> None:
    apart = [abs(a - b) for a, b in zip(losses, beside, strict=True)]
    marks = [n for n in (50, 100, 200) if n < len(apart)] + [len(apart)]
    print(f"{what:<24}" + "".join(f"  {max(apart[:n]):.2g} in {n} steps" for n in marks), flush=True)


if __name__ == "__main__":
    main()
