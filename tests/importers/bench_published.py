"""Published layers on this GPU, as released and with their recurrence replaced by a kernel.

    python -m tests.importers.bench_published 106.json [NAME …] [--dim 1024 --heads 8 --batch 8 --length 2048]

106.json is the published gallery of ASI-Arch (arXiv 2507.18074); without names the first three programs are taken whose
recurrence a kernel replaces. Layers have the same random weights and run forward and backward under bf16 autocast:
`first` is the seconds until the first gradients are there, compiling included; `ms` the median of ten more. `as
released` keeps the program's own torch.compile, and imports flash-linear-attention where that is installed; `kernel` is
built as a training here does it, with the stand-ins for both; `compiled` is that compiled whole, as a training on a GPU
does by default. `difference`: of outputs and input gradients in that
very step; where it is large, no times are shown. Begin with an empty TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR.
Published code runs unconfined here: it is a benchmark for programs that you trust.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.contract import load_class
from asiarch_hpc.importers import asi_arch
from asiarch_hpc.importers.published import PublishedDesign
from jobs.substitute import _rewritten

RUNS = 10
TOLERANCE = 5e-2  # relative, by norm, of bfloat16 results and gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    arguments = parser.parse_args()
    designs = asi_arch.read(arguments.gallery).designs
    if unknown := sorted(set(arguments.names) - {design.name for design in designs}):
        parser.error(f"{arguments.gallery} has no program of the name {', '.join(unknown)}")
    # Before CUDA is used here: the sandbox that compares the two texts has a process of its own.
    programs = list(pairs(designs, arguments.names))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("| program | operation | difference | as released: first, ms | kernel: first, ms | compiled: first, ms |")
    print("|---|---|---|---|---|---|")
    for name, source, rewritten, operation in programs:
        print(f"| {name} | {operation} | {compare(source, rewritten, arguments, device)} |", flush=True)


def pairs(designs: Iterable[PublishedDesign], names: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, released text, text with a kernel, and the operation."""
    found = 0
    for design in designs:
        if (names and design.name not in names) or not design.source or (not names and found == 3):
            continue
        rewritten, made, reason = _rewritten(design.source, GateConfig(), seed=0)
        if made:
            found += 1
            yield design.name, design.source, rewritten, ", ".join(one.operation for one in made)
        elif names:
            print(f"{design.name}: {reason}")


def compare(source: str, rewritten: str, arguments: argparse.Namespace, device: str) -> str:
    torch.manual_seed(1)
    x = torch.randn(arguments.batch, arguments.length, arguments.dim, device=device)
    try:
        released = layer(source, arguments, device, released=True)
        kernel = layer(rewritten, arguments, device, released=False)
        kernel.load_state_dict(released.state_dict())
        ours = timed(kernel, x)
        say(f"kernel: first {ours.first_s:.1f} s, {ours.later_ms:.1f} ms")
        kernel.compile(dynamic=False)
        compiled = timed(kernel, x)
        say(f"compiled: first {compiled.first_s:.1f} s, {compiled.later_ms:.1f} ms; now as released, for minutes")
        theirs = timed(released, x)
    except Exception as error:
        return f"failed: {(str(error) or repr(error)).splitlines()[0][:80]} | | |"
    pairs = [(getattr(one, what), getattr(theirs, what)) for one in (ours, compiled) for what in ("out", "grad")]
    difference = float(torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max())  # nan where one is
    if not difference < TOLERANCE:
        return f"{difference:.1e}: they differ | | |"
    faster = (f"{cell(one)}, {theirs.later_ms / one.later_ms:.1f} x" for one in (ours, compiled))
    return f"{difference:.1e} | {cell(theirs)} | {' | '.join(faster)}"


def cell(one: Timed) -> str:
    return f"{one.first_s:.1f} s, {one.later_ms:.1f}"


def say(what: str) -> None:
    """Beside the table: a run that is cut off has shown something."""
    print(what, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Timed:
    """Seconds of the first step, median milliseconds of later ones, and what the last one gave (float32)."""

    first_s: float
    later_ms: float
    out: Tensor
    grad: Tensor


def layer(source: str, arguments: argparse.Namespace, device: str, *, released: bool) -> nn.Module:
    """With what it imports from flash-linear-attention, where that is installed, or as a training here builds it."""
    torch.manual_seed(0)
    cls = load_class(source, device=device if released else "cpu", compiled=released)
    return cls(hidden_size=arguments.dim, num_heads=arguments.heads, layer_idx=0).to(device)


def timed(module: nn.Module, x: Tensor) -> Timed:
    x = x.clone().requires_grad_()
    taken = []
    for _ in range(1 + RUNS):
        module.zero_grad(set_to_none=True)
        x.grad = None
        synchronise(x)
        begun = time.perf_counter()
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            out, *_ = module(x)
        out.float().square().mean().backward()
        synchronise(x)
        taken.append(time.perf_counter() - begun)
    assert x.grad is not None
    return Timed(taken[0], 1e3 * statistics.median(taken[1:]), out.detach().float(), x.grad.float())


def synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
