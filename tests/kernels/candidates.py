"""What the kernels of a configuration are, before anything runs: the tuner's candidates are compiled side by side, and
those that would not run, or might fault, are refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kernels.configurations import Configuration, trial
from tests.kernels.absent_gpu import Launch, Pointer, absent_driver, absent_gpu
from tests.kernels.bench_case import Case, Draw, first_line, results

# Operands of Hopper's products in rows narrower than 128 bytes: with Triton 3.6 some launches of such a kernel of the
# delta rule accessed memory that is not theirs (kernels/delta_rule/README.md).
NARROW = re.compile(r"swizzlingByteWidth = (?:16|32|64)\b")
Key = tuple[Any, ...]  # of a kernel as it is launched


class Candidates:
    """Of one operation on some cases.

    Args:
        trusted: a configuration whose kernels may have narrow rows.
        capability: of the device, 90 for Hopper.
        most_shared: bytes of shared memory that a block can have there.
    """

    def __init__(
        self, operation: str, cases: Sequence[Case], trusted: Configuration, *, capability: int, most_shared: int
    ) -> None:
        self.operation, self.cases = operation, cases
        self.capability, self.most_shared = capability, most_shared
        self._known: dict[Key, tuple[str | None, bool]] = {}  # what is wrong, and whether it has narrow rows
        self.prepare([trusted])
        self.trusted = {key[0] for key in self.identity(trusted) if self._known[key][1]}

    def identity(self, configuration: Configuration) -> frozenset[Key]:
        """Equal for configurations that launch the same kernels. Raises what making or launching them raises."""
        return frozenset(_key(launch) for launch in self._launches(configuration))

    def prepare(self, configurations: Iterable[Configuration]) -> None:
        """Compiles them all."""
        wanted: dict[Key, Launch] = {}
        for configuration in configurations:
            try:
                made = {_key(launch): launch for launch in self._launches(configuration)}
            except Exception:
                continue  # to be told when it is asked for
            wanted |= {key: launch for key, launch in made.items() if key not in self._known}
        with absent_driver(self.capability), ThreadPoolExecutor(os.cpu_count()) as pool:
            self._known |= dict(zip(wanted, pool.map(self._look, wanted.values()), strict=True))

    def refusal(self, configuration: Configuration) -> str | None:
        """Why it is not to be tried, or None."""
        self.prepare([configuration])
        try:
            keys = self.identity(configuration)
        except Exception as failure:
            return first_line(failure)
        for key in keys:
            wrong, narrow = self._known[key]
            if wrong:
                return f"{key[0]}: {wrong}"
            if narrow and key[0] not in self.trusted:
                return f"{key[0]}: a product of rows narrower than 128 bytes"
        return None

    def _launches(self, configuration: Configuration) -> list[Launch]:
        with absent_gpu(self.capability) as noted, trial(self.operation, configuration):
            for case in self.cases:
                results(case.ours, case.operands(Draw("meta", None), case.batch))
        return noted

    def _look(self, launch: Launch) -> tuple[str | None, bool]:
        kernel, arguments, options = launch
        try:
            built = kernel.run(*arguments, grid=(1,), warmup=True, **options)
        except Exception as failure:
            return first_line(failure), False
        text = built.asm["ttgir"]
        narrow = "warp_group_dot" in text and NARROW.search(text) is not None
        over = built.metadata.shared - self.most_shared
        return (f"{over} bytes more of shared memory than there are" if over > 0 else None), narrow


def _key(launch: Launch) -> Key:
    kernel, arguments, options = launch
    said = (f"{x.dtype} {x.data_ptr() % 16}" if isinstance(x, Pointer) else repr(x) for x in arguments)
    return kernel.__name__, *said, repr(sorted(options.items()))
