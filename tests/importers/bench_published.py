"""Published layers on this GPU, as released and with their recurrence replaced by a kernel.

    python -m tests.importers.bench_published 106.json [NAME …] [--dim 1024 --heads 8 --batch 8 --length 2048]

106.json is the published gallery of ASI-Arch (arXiv 2507.18074); without names the first three programs are taken whose
recurrence a kernel replaces. Layers have the same random weights and run forward and backward under bf16 autocast:
`first` is the seconds until the first gradients are there, compiling included; `ms` the median of ten more. `as
released` keeps the program's own torch.compile; `kernel` drops it. Nothing is timed where their results differ.
Published code runs unconfined here: it is a benchmark for programs that you trust.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.contract import load_class
from asiarch_hpc.importers import asi_arch
from jobs.substitute import _rewritten

RUNS = 10
TOLERANCE = 2e-2  # relative, by norm, of bfloat16 results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gallery", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("| program | operation | difference | as released: first, ms | kernel: first, ms | times faster |")
    print("|---|---|---|---|---|---|")
    for name, source, rewritten, operation in pairs(arguments.gallery, arguments.names):
        print(f"| {name} | {operation} | {compare(source, rewritten, arguments, device)} |", flush=True)


def pairs(gallery: Path, names: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Name, released text, text with a kernel, and the operation."""
    found = 0
    for design in asi_arch.read(gallery).designs:
        if (names and design.name not in names) or not design.source or (not names and found == 3):
            continue
        rewritten, made, reason = _rewritten(design.source, GateConfig(), seed=0)
        if made:
            found += 1
            yield design.name, design.source, rewritten, ", ".join(one.operation for one in made)
        elif names:
            print(f"{design.name}: {reason}")


def compare(source: str, rewritten: str, arguments: argparse.Namespace, device: str) -> str:
    x = torch.randn(arguments.batch, arguments.length, arguments.dim, device=device)
    try:
        released = layer(source, arguments, device, compiled=True)
        kernel = layer(rewritten, arguments, device, compiled=False)
        kernel.load_state_dict(released.state_dict())
        plain = layer(source, arguments, device, compiled=False)
        plain.load_state_dict(released.state_dict())
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
            expected, got = (module.eval()(x[:1, :256])[0] for module in (plain, kernel))
        difference = float((got - expected).float().norm() / expected.float().norm())
        if not difference < TOLERANCE:
            return f"{difference:.1e}: they differ | | |"
        first, before = seconds(released.train(), x)
        first_kernel, after = seconds(kernel.train(), x)
    except Exception as error:
        return f"failed: {str(error).splitlines()[0][:80]} | | |"
    return f"{difference:.1e} | {first:.1f} s, {before:.1f} | {first_kernel:.1f} s, {after:.1f} | {before / after:.1f}"


def layer(source: str, arguments: argparse.Namespace, device: str, *, compiled: bool) -> nn.Module:
    torch.manual_seed(0)
    cls = load_class(source, device=device, compiled=compiled)
    return cls(hidden_size=arguments.dim, num_heads=arguments.heads, layer_idx=0).to(device)


def seconds(module: nn.Module, x: Tensor) -> tuple[float, float]:
    """Seconds of the first forward and backward pass, and the median milliseconds of later ones."""
    x = x.clone().requires_grad_()
    taken = []
    for _ in range(1 + RUNS):
        synchronise(x)
        begun = time.perf_counter()
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            out, *_ = module(x)
        (out.float().square().mean()).backward()
        synchronise(x)
        taken.append(time.perf_counter() - begun)
        module.zero_grad(set_to_none=True)
        x.grad = None
    return taken[0], 1e3 * statistics.median(taken[1:])


def synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
