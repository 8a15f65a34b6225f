"""Tokens per second and time to the first step of a training on this GPU, beside flash-linear-attention's model.

    python -m tests.training.bench_training [--tokens FILE.npy] [--only 20m|340m] [--no-fla] [--no-across]
                                            [--seconds N] [--micro-batch ROWS] [--fla-caches DIR]
    python -m tests.training.bench_training --make FILE.npy --text FILES_OR_FOLDERS [--format jsonl] --tokenizer FOLDER

Each row of the table is a process of its own. `first step` counts from the start of that process until the first
optimiser step is done; `cold` begins with empty caches of compiled kernels, `warm` with those that the run before left.
`across` is ours with states that cross documents, as flash-linear-attention's do here.
`first step` has neither the start of a job nor its sandbox, and rows a pass are given, not measured.
`rate` is 6 x (parameters without the embedding) x tokens/s beside a measured bf16 matrix product of 8192.

flash-linear-attention comes last, with what is left of `--seconds` in all; what it has done by then counts. Its kernels
are tuned within its first step, with their candidates compiled side by side on all cores; `--fla-caches` keeps what was
chosen for another call. `--micro-batch` is for ours; its own rows a pass are 32 (20m) and 16 (340m), as before.

`--make` writes the file of token ids that `--tokens` reads, of text as `data.source` reads it, by GPT-2's tokenizer.
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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BEGUN = "ASIARCH_BENCH_BEGUN"
VOCAB, EOS, LENGTH, HEADS = 50_257, 50_256, 2048, 8
WARM_UP = 3
FIGURES = ("tokens_per_second", "rate", "first_step_s", "gigabytes", "loss")


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
    parser.add_argument("--no-across", action="store_true")
    parser.add_argument("--design", default="delta_net")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--micro-batch", type=int, default=0, help="rows a pass of ours")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of all rows together")
    parser.add_argument("--fla-caches", type=Path)
    parser.add_argument("--device", default="cuda", help="of ours")
    parser.add_argument("--case", nargs=2)
    parser.add_argument("--make", type=Path, metavar="FILE.npy")
    parser.add_argument("--text", nargs="+", default=[], help="files or folders")
    parser.add_argument("--format", choices=["text", "jsonl", "parquet"], default="jsonl")
    parser.add_argument("--tokenizer", default="gpt2", help="as data.tokenizer")
    arguments = parser.parse_args()
    if arguments.make:
        make_tokens(arguments.make, arguments.text, arguments.format, arguments.tokenizer)
        return
    if arguments.case:
        for row in measure(*arguments.case, arguments):
            print(json.dumps(row), flush=True)
        return
    end = time.monotonic() + arguments.seconds
    print(f"{'':<22}{'tokens/s':>12}{'rate':>8}{'first step':>12}{'memory':>10}{'loss':>8}", flush=True)
    with tempfile.TemporaryDirectory(prefix="asiarch-bench-") as caches:
        for size in [arguments.only] if arguments.only else SIZES:
            left_out = {kind for kind in ("fla", "across") if getattr(arguments, f"no_{kind}")}
            for kind, cache in [("ours", "cold"), ("ours", "warm"), ("across", ""), ("fla", "")]:
                if kind in left_out:
                    continue
                kept = arguments.fla_caches if kind == "fla" else None
                own = Path(caches) / ("fla" if kind == "fla" else "ours") / size
                row = in_process(kind, size, kept or own, end - time.monotonic())
                print(
                    f"{f'{kind} {size} {cache}':<22}{row['tokens_per_second']:>12,.0f}{row['rate']:>8.1%}"
                    f"{row['first_step_s']:>10.1f} s{row['gigabytes']:>7.1f} GB{row['loss']:>8.3f}  {row['note']}",
                    flush=True,
                )


def in_process(kind: str, size: str, caches: Path, seconds: float) -> dict[str, Any]:
    """The last row that a process of its own prints within these seconds."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        BEGUN: str(time.time()),
    }
    command = [sys.executable, "-m", "tests.training.bench_training", *sys.argv[1:], "--case", kind, size]
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed)
        try:
            code = process.wait(None if seconds == float("inf") else max(seconds, 0.0))
            ending = f"failed with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            ending = f"ended after {seconds:.0f} s"
        finally:
            process.kill()
            process.wait()
        printed.seek(0)
        lines = [line for line in printed if line.startswith("{") and line.endswith("}\n")]
    row: dict[str, Any] = json.loads(lines[-1]) if lines else {**dict.fromkeys(FIGURES, float("nan")), "note": ""}
    tuned = len(list(caches.rglob("*.autotune.json")))
    notes = (row["note"], f"{tuned} choices of tuned kernels" if tuned else "", ending)
    return {**row, "note": ", ".join(note for note in notes if note)}


def measure(kind: str, name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Figures of a run, again whenever there is more to tell."""
    import torch

    size, rate = SIZES[name], 0.0
    if arguments.micro_batch and kind != "fla":
        size = replace(size, micro_batch=arguments.micro_batch)
    runs = fla(size, arguments) if kind == "fla" else ours(size, arguments, apart=kind == "ours")
    for run in runs:
        taken = run["seconds"][WARM_UP:] or run["seconds"][1:]
        speed = size.rows * LENGTH / statistics.median(taken) if taken else float("nan")
        rate = rate or matrix_rate()
        steps = "" if len(taken) == size.steps else f", {len(taken)} of {size.steps} steps"
        yield {
            "tokens_per_second": speed,
            "rate": 6 * run["parameters"] * speed / rate,
            "first_step_s": run["first"] - float(os.environ.get(BEGUN, "nan")),
            "gigabytes": torch.cuda.max_memory_allocated() / 2**30,
            "loss": run["loss"],
            "note": f"{torch.cuda.get_device_name()} {run['note']}{steps}",
        }


def ours(size: Size, arguments: argparse.Namespace, *, apart: bool) -> Iterator[dict[str, Any]]:
    """The trainer as a job runs it: data, loop, monitor, checkpoint at the end."""
    from asiarch_hpc.config import ScaleConfig
    from asiarch_hpc.designs.compose import compose
    from asiarch_hpc.designs.seeds import seed_tree
    from asiarch_hpc.training.backbone import build_model
    from asiarch_hpc.training.loop import train

    steps = WARM_UP + size.steps
    scale = ScaleConfig(
        dim=size.dim, depth=size.depth, heads=HEADS, length=LENGTH, batch_size=size.rows, steps=steps,
        device=arguments.device, learning_rate=3e-4, micro_batch=size.micro_batch, compile=arguments.compile,
        embedding_std=0.02, threads=4, documents_apart=apart,
    )  # fmt: skip
    source, rows, first = compose(seed_tree(arguments.design)), [], []

    def on_metrics(row: dict[str, Any]) -> None:
        first.append(time.time())
        rows.append(row)

    with tempfile.TemporaryDirectory() as folder:
        outcome = train(
            source,
            scale=scale,
            dim=size.dim,
            depth=size.depth,
            corpus=corpus(arguments.tokens),
            seed=0,
            checkpoint_path=Path(folder) / "checkpoint",
            on_metrics=on_metrics,
            should_stop=lambda: False,
            clock=time.monotonic,
        )
    model = build_model(source, vocab=VOCAB, scale=scale, dim=size.dim, depth=size.depth, seed=0)
    yield {
        "seconds": [row["step_seconds"] for row in rows],
        "parameters": sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel(),
        "first": first[0],
        "loss": rows[-1]["loss"],
        "note": f"{outcome.micro_batch} rows a pass{', compiled' if outcome.compiled else ''}",
    }


def fla(size: Size, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """flash-linear-attention's model of the same size in a plain loop, on the same data; after each step."""
    import torch
    from fla.models import DeltaNetConfig, DeltaNetForCausalLM

    from asiarch_hpc.config import ScaleConfig
    from asiarch_hpc.training.data import Batches
    from tests.kernels.side_by_side import compiled_side_by_side

    torch.manual_seed(0)
    config = DeltaNetConfig(
        hidden_size=size.dim, num_hidden_layers=size.depth, num_heads=HEADS, vocab_size=VOCAB,
        max_position_embeddings=LENGTH, fuse_cross_entropy=True,
    )  # fmt: skip
    model = DeltaNetForCausalLM(config).to("cuda").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    window = ScaleConfig().packing_window
    documents = corpus(arguments.tokens).train
    batches = Batches(documents, length=LENGTH, batch_size=size.rows, seed=0, separator=EOS, window=window)
    steps = WARM_UP + size.steps
    prepared = [batches.batch(step).inputs.pin_memory() for step in range(steps)]
    seconds, first = [], 0.0
    parts = size.rows // size.micro_batch
    with compiled_side_by_side():
        for step in range(steps):
            begun = time.perf_counter()
            inputs = prepared[step].cuda(non_blocking=True)
            total = torch.zeros((), device="cuda")
            for part in inputs.split(size.micro_batch):
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = model(part, labels=part).loss / parts
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
            first = first or time.time()
            yield {
                "seconds": seconds,
                "parameters": sum(p.numel() for p in model.parameters()) - model.model.embeddings.weight.numel(),
                "first": first,
                "loss": float(total),
                "note": f"{size.micro_batch} rows a pass, tuned on {os.cpu_count()} cores",
            }


def corpus(path: Path | None) -> Any:
    """Documents from a file of token ids that the end-of-text token begins, or random ids."""
    import numpy as np

    from asiarch_hpc.training.corpus import Corpus
    from asiarch_hpc.training.documents import Documents

    random = np.random.default_rng(0).integers(0, EOS, 2**22).astype(np.uint16)
    tokens = random if path is None else np.load(path, mmap_mode="r")
    random[:: 2**14] = EOS
    begins = np.flatnonzero(tokens == EOS)
    documents = Documents([tokens[begins[0] :]], np.append(begins - begins[0], len(tokens) - begins[0]))
    tokenizer = SimpleNamespace(eos=EOS)
    return Corpus(path=path or Path(), key="bench", vocab=VOCAB, tokenizer=tokenizer, train=documents, source={})  # type: ignore[arg-type]


def make_tokens(file: Path, text: list[str], form: str, tokenizer: str) -> None:
    """Writes the documents of some text as one array of token ids, an end-of-text token before each."""
    import numpy as np

    from asiarch_hpc.config import TextConfig
    from asiarch_hpc.training.text_files import documents_of, files_of
    from asiarch_hpc.training.tokenizer import load, locate

    codec, source = load(locate(tokenizer)), TextConfig(source=form, paths=text)
    if (codec.vocab, codec.eos) != (VOCAB, EOS):
        raise SystemExit(f"{tokenizer}: {codec.vocab} tokens, end of text {codec.eos}; GPT-2's was expected")
    found: list[Any] = []
    for path, _ in files_of(source):
        with path.open("rb") as raw:
            found += [
                np.array([EOS, *codec.encode(document)], np.uint16) for document in documents_of(raw, path, source)
            ]
    np.save(file, np.concatenate(found))
    print(f"{file}: {len(found):,} documents, {sum(map(len, found)):,} tokens")


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
