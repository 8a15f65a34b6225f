"""Compiles the Triton kernels for a GPU that need not be there, in the sizes that the table has for it, and prints what
they use.

    python -m tests.kernels.compile_kernels [OPERATION|all] [WIDTHS ...] [--type bfloat16] [--capability 90]

Bytes of shared memory, registers and bytes of spilled ones a thread, of each kernel of the shapes that bench.py checks
and times, or of other widths (of heads, or channels). The exit code is 1 where one does not compile or fit.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]

from tests.kernels import bench_channels, bench_mixers
from tests.kernels.absent_gpu import Launch, compiled, launches
from tests.kernels.bench import all_cases
from tests.kernels.bench_case import Case, first_line

# Shared memory that a block may have, by compute capability.
MOST_SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}


@dataclass(frozen=True)
class Use:
    """What a kernel takes: bytes of shared memory of a block, and beyond what there is; registers and bytes of spilled
    ones of a thread."""

    kernel: str
    warps: int
    shared: int
    over: int
    registers: int
    spilled: int

    def __str__(self) -> str:
        over = f", {self.over} MORE THAN THERE IS" if self.over else ""
        return (
            f"{self.kernel:19} {self.warps} warps, shared {self.shared:6}, registers {self.registers:>3}, "
            f"spilled {self.spilled:>4}{over}"
        )


def use(launch: Launch, capability: int) -> Use:
    """Compiles a kernel. What cannot be compiled raises what Triton raises."""
    [built] = compiled([launch], capability)
    if isinstance(built, Exception):
        raise built
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        words = [str(tool), "-res-usage", file.name]
        usage = subprocess.run(words, capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    assert found is not None
    shared = built.metadata.shared
    over = max(0, shared - MOST_SHARED[capability])
    return Use(launch[0].__name__, built.metadata.num_warps, shared, over, int(found[1]), int(found[2]))


def cases(operation: str, widths: Sequence[int]) -> list[Case]:
    """Of an operation of the table, or all: those of the benchmark, or small ones of other widths."""
    if not widths:
        return [case for case in all_cases() if operation in ("all", case.sizes) and case.sizes is not None]
    heads = (2, 2048, 4)
    made = [case for width in widths for case in (
        bench_mixers.delta(*heads, width),
        *(bench_mixers.delta(*heads, width, gated=gated, documents=not gated) for gated in (True, False)),
        *(
            bench_mixers.attention(f"{decay}{bonus}", *heads, width)
            for decay in ("none", "scalar", "diagonal") for bonus in ("", "-bonus")
        ),
        *(bench_mixers.attention(decay, 32, *heads[1:], width) for decay in ("none", "scalar")),  # many: walked through
        *(bench_channels.head(1, 300, width, likelihood=likelihood) for likelihood in (False, True)),
        *(bench_channels.convolution(2, 2048, width, taps) for taps in (4, 30)),
        *(bench_channels.scan(2, 2048, width, constant=constant) for constant in (False, True)),
        *(bench_channels.norm(2048, width, gated=gated) for gated in (False, True)),
        bench_channels.gates(2048, width),
    )]  # fmt: skip
    return [case for case in made if operation in ("all", case.sizes)]


def main(words: Sequence[str] | None = None) -> int:
    operations = list(dict.fromkeys(case.sizes for case in all_cases() if case.sizes is not None))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operation", nargs="?", default="all", choices=["all", *operations])
    parser.add_argument("widths", nargs="*", type=int)
    parser.add_argument("--type", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--capability", type=int, default=90, choices=list(MOST_SHARED))
    options = parser.parse_args(words)
    seen, bad = set[Any](), 0
    print(f"Triton {triton.__version__}, compute capability {options.capability}, {options.type}", flush=True)
    for case in cases(options.operation, options.widths):
        for launch in launches(case, options.capability, getattr(torch, options.type)):
            try:
                found: Use | str = use(launch, options.capability)
                bad += isinstance(found, Use) and found.over > 0
            except Exception as failure:
                found, bad = f"{launch[0].__name__:19} {first_line(failure)}", bad + 1
            if (line := (case.operation, found)) not in seen:
                print(f"{case.name:55} {found}", flush=True)
            seen.add(line)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
