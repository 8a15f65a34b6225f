"""What the kernels of a configuration are, before anything runs: the tuner's candidates are compiled side by side, and
those that would not run, or might fault, are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from kernels.configurations import Configuration, trial
from tests.kernels.absent_gpu import Launch, compiled, key_of, launches
from tests.kernels.bench_case import Case, first_line

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
        self.trusted = {key[:2] for key in self.identity(trusted) if self._known[key][1]}

    def identity(self, configuration: Configuration) -> frozenset[Key]:
        """Equal for configurations that launch the same kernels. Raises what making or launching them raises."""
        return frozenset(key_of(launch) for launch in self._launches(configuration))

    def prepare(self, configurations: Iterable[Configuration]) -> None:
        """Compiles them all."""
        wanted: dict[Key, Launch] = {}
        for configuration in configurations:
            try:
                made = {key_of(launch): launch for launch in self._launches(configuration)}
            except Exception:
                continue  # to be told when it is asked for
            wanted |= {key: launch for key, launch in made.items() if key not in self._known}
        found = compiled(wanted.values(), self.capability)
        self._known |= {key: self._look(built) for key, built in zip(wanted, found, strict=True)}

    def refusal(self, configuration: Configuration) -> str | None:
        """Why it is not to be tried, or None."""
        self.prepare([configuration])
        try:
            keys = self.identity(configuration)
        except Exception as failure:
            return first_line(failure)
        for key in sorted(keys, key=str):  # so that it is the same one each time
            wrong, narrow = self._known[key]
            if wrong:
                return f"{key[1]}: {wrong}"
            if narrow and key[:2] not in self.trusted:
                return f"{key[1]}: a product of rows narrower than 128 bytes"
        return None

    def _launches(self, configuration: Configuration) -> list[Launch]:
        with trial(self.operation, configuration):
            return [launch for case in self.cases for launch in launches(case, self.capability)]

    def _look(self, built: Any) -> tuple[str | None, bool]:
        if isinstance(built, Exception):
            return first_line(built), False
        text, over = built.asm["ttgir"], built.metadata.shared - self.most_shared
        narrow = "warp_group_dot" in text and NARROW.search(text) is not None
        return (f"{over} bytes more of shared memory than there are" if over > 0 else None), narrow
