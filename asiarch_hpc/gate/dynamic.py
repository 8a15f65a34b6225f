"""What a design shows when it runs: the order of the checks. Everything here happens inside the sandbox's child.

Every check goes on where another one failed, so that one report names every independent fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import warnings
from collections.abc import Callable, Iterator

from asiarch_hpc.gate.checks.causality import examine_causality
from asiarch_hpc.gate.checks.complexity import examine_complexity
from asiarch_hpc.gate.checks.construction import construct
from asiarch_hpc.gate.checks.decoding import examine_decoding
from asiarch_hpc.gate.checks.determinism import examine_determinism
from asiarch_hpc.gate.checks.documents import examine_documents
from asiarch_hpc.gate.checks.gradients import examine_gradients
from asiarch_hpc.gate.checks.integrity import Integrity
from asiarch_hpc.gate.checks.isolation import examine_isolation
from asiarch_hpc.gate.checks.learning import examine_learning
from asiarch_hpc.gate.checks.passes import examine_passes
from asiarch_hpc.gate.checks.prefix import examine_prefixes
from asiarch_hpc.gate.checks.subject import Specimen, Step, Subject, describe, reject
from asiarch_hpc.gate.sandbox.family import is_out_of_memory
from asiarch_hpc.records import Finding, Json, to_json

Check = Callable[[Specimen], Iterator[Step]]

# Real passes come before measuring: on the meta device an endless allocation would look like an endless loop.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("determinism", examine_determinism),  # first: state that all models share moves least after many calls
    ("forward and backward", examine_passes),
    ("complexity", examine_complexity),
    ("causality", examine_causality),
    ("gradients", examine_gradients),
    ("prefixes", examine_prefixes),
    ("isolation", examine_isolation),
    ("documents", examine_documents),
    ("decoding", examine_decoding),
    ("learning", examine_learning),
)

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)
_OWN_PAGES, _KEPT = 32 << 20, 128 << 20  # bytes: the most that the C library allows; a few times that


def examine(subject: Subject, device: str) -> Iterator[Json]:
    """Runs all checks; yields {"stage": name}, {"finding": record} and {"measured": fields} as they come."""
    warnings.simplefilter("ignore")  # this is the design's own process: a filter of the caller's could raise
    _keep_pages()
    for step in _steps(subject, device):
        if isinstance(step, str):
            yield {"stage": step}
        elif isinstance(step, Finding):
            yield {"finding": to_json(step)}
        else:
            yield {"measured": step}


def _keep_pages() -> None:
    """Lets the C library keep what tensors free for the next ones: passes on a CPU repeat the same sizes, and to have
    pages from the kernel again for each takes a tenth of their time."""
    with contextlib.suppress(AttributeError):  # not every C library knows it
        for name, size in ((_MMAP_THRESHOLD, _OWN_PAGES), (_TRIM_THRESHOLD, _KEPT)):
            ctypes.CDLL(None).mallopt(name, size)


def _steps(subject: Subject, device: str) -> Iterator[Step]:
    yield "construction"
    find_changes = Integrity().changed  # bound now: the design may replace the method
    limits = dataclasses.asdict(subject.config)
    specimen = yield from construct(subject, device)
    if specimen is None:
        return
    for name, check in CHECKS:
        yield name
        try:
            yield from check(specimen)
        except BaseException as error:  # what a design raises where a check does not expect it
            if is_out_of_memory(error) or isinstance(error, GeneratorExit):
                raise
            specimen.failures.add("forward.failed", name, describe(error))
    yield from specimen.failures.findings()
    changed = find_changes()
    changed += [f"gate.{name}" for name, value in dataclasses.asdict(subject.config).items() if value != limits[name]]
    if changed:
        yield reject(
            "sandbox.tampered",
            f"running the design replaced {', '.join(changed[:8])}",
            "Subclass or wrap instead of replacing; a design must not alter what others use.",
            measured=len(changed),
            limit=0,
        )
