"""Kernel substitution in an imported run: a program's own recurrence is replaced by the kernel that it equals.

The original stays as it is. The rewritten program becomes an experiment of its own beside it, with operator
"kernel_substitution", the original as parent, and the measured errors in `published.json`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.hashing import design_id, source_sha256
from asiarch_hpc.errors import DesignError, RecordError
from asiarch_hpc.gate.sandbox import run_isolated
from asiarch_hpc.importers.substitution import (
    NORMS,
    OPERATIONS,
    Agreement,
    Candidate,
    Operation,
    candidates,
    measure,
    rewrite,
)
from asiarch_hpc.records import Experiment, Json, Published, Substitution, from_json, to_json
from asiarch_hpc.store.experiments import StoredPublished, scan, write_published
from asiarch_hpc.store.layout import RunLayout

NO_RECURRENCE = "no function carries a state along the sequence"


@dataclass(frozen=True, slots=True)
class Attempted:
    """What came of one program: the id of the design derived from it, or the reason why there is none."""

    name: str
    derived: str = ""
    reason: str = ""


def substitute(layout: RunLayout, config: GateConfig, *, seed: int, created: str) -> Iterator[Attempted]:
    """Derives a design from each program of an imported run whose recurrence equals a kernel; yields as it goes on.

    Programs that have such a design are passed over, so that the call can be repeated after an interruption. A
    program runs in the sandbox alone, where it could forge the measurement of itself: a derived design is as
    untrusted as its original, and the gate checks it like any other.

    Args:
        config: limits of the sandbox, and the largest relative error that counts as equal.
        seed: of the random operands.
        created: time stamp of the records.

    Raises:
        SandboxError: the configured isolation does not work on this machine.
        StoreError: disk full or unwritable.
    """
    import torch  # noqa: F401  loaded once here, not in each of the children that are forked off

    found = scan(layout, moved=False).published
    done = {parent for stored in found if stored.published.substitutions for parent in stored.record.parents}
    for stored in found:
        bare = not stored.record.source_sha256 or "no_parse" in stored.published.marks
        if bare or stored.published.substitutions or stored.record.id in done:
            continue
        source = layout.experiment(stored.record.id).architecture.read_bytes().decode()
        rewritten, made, reason = _rewritten(source, config, seed)
        if made and not reason:
            identity = design_id(rewritten)
            new = _write(layout, stored, identity, rewritten, made, created)
            yield Attempted(stored.record.name, identity if new else "", "" if new else "its rewriting exists already")
        else:
            yield Attempted(stored.record.name, reason=reason)


def _rewritten(source: str, config: GateConfig, seed: int) -> tuple[str, tuple[Substitution, ...], str]:
    """The text after all replacements, what they were, and the reason where there is none."""
    known = {candidate.name: candidate for candidate in candidates(source)}
    if not known:
        return source, (), NO_RECURRENCE
    agreements, reason = _measured(source, config, seed)
    made: list[Substitution] = []
    for agreement in agreements:
        candidate, operation, error = known.pop(agreement.function, None), agreement.operation, agreement.error
        if candidate is None or error is None or operation is None or not _sound(operation, candidate):
            reason = reason or f"{agreement.function}: {agreement.reason or 'no known operation'}"
            continue
        if not error < config.substitution_tolerance:
            reason = reason or (
                f"{agreement.function}: error {error:.1e} beside {operation.name}, expected below "
                f"{config.substitution_tolerance:.1e}"
            )
            continue
        try:
            source = rewrite(source, candidate, operation)
            design_id(source)
        except DesignError as problem:
            return source, (), f"{agreement.function}: {problem}"
        made.append(_substitution(agreement, operation.name, error, config.substitution_tolerance))
    return source, tuple(made), "" if made else reason


def _measured(source: str, config: GateConfig, seed: int) -> tuple[list[Agreement], str]:
    """What the sandboxed measurement says of each candidate, and why it ended early where it did."""
    with tempfile.TemporaryDirectory(prefix="asiarch-substitute-") as scratch:
        outcome = run_isolated(
            functools.partial(_measurements, source, seed),
            timeout_s=config.timeout_s,
            memory_gb=config.memory_gb,
            writable=[Path(scratch)],
            rung=config.sandbox,
            processes=config.processes,
            file_gb=config.file_megabytes / 1024,
        )
    try:
        agreements = [from_json(Agreement, record, source="measurement") for record in outcome.records]
    except RecordError as error:
        return [], f"the measurement was tampered with ({error})"
    return agreements, "" if outcome.ok else f"{outcome.cause}: {outcome.error}"


def _measurements(source: str, seed: int) -> Iterator[Json]:
    """Runs in the sandbox: what a program's functions agree with, one by one."""
    for candidate in candidates(source):
        yield to_json(measure(source, candidate, seed=seed))


def _sound(operation: Operation, candidate: Candidate) -> bool:
    """Whether an answer from the sandbox is one that `measure` could give: `rewrite` makes program text of it."""
    needed, roles = set(OPERATIONS.get(operation.name, ())), operation.roles
    parameters = {*candidate.tensors, *candidate.optional}
    return (
        bool(needed)
        and needed <= set(roles) <= needed | {"initial_state"}
        and set(roles.values()) <= parameters
        and set(operation.optional) <= parameters
        and set(operation.norms) <= {"q", "k"}
        and set(operation.norms.values()) <= set(NORMS)
    )


def _substitution(agreement: Agreement, operation: str, error: float, tolerance: float) -> Substitution:
    return Substitution(
        function=agreement.function,
        operation=operation,
        error=error,
        tolerance=tolerance,
        errors=agreement.errors,
        as_written=agreement.as_written,
        precision=agreement.precision,
        lengths=agreement.lengths,
        dtypes=agreement.dtypes,
    )


def _write(
    layout: RunLayout,
    original: StoredPublished,
    identity: str,
    source: str,
    made: tuple[Substitution, ...],
    created: str,
) -> bool:
    """Writes the derived design; False if the run has it already."""
    record = Experiment(
        id=identity,
        name=f"{original.record.name}+{'+'.join(one.operation for one in made)}",
        role="published",
        form=original.record.form,
        operator="kernel_substitution",
        proposer="asiarch-hpc",
        policy=original.record.policy,
        source_sha256=source_sha256(source.encode()),
        created=created,
        parents=(original.record.id,),
    )
    published = Published(
        experiment=identity,
        origin=original.published.origin,
        key=f"{original.published.key}+kernel",
        parents=(original.published.key,),
        substitutions=made,
    )
    lines = [f"# {record.name}", "", f"Derived from {original.record.name} ({original.record.id}) by this project.", ""]
    lines += [
        f"- `{one.function}` is replaced by the operation {one.operation}: largest relative difference {one.error:.1e} "
        f"at lengths {', '.join(map(str, one.lengths))} ({', '.join(one.dtypes)}), below {one.tolerance:.1e}"
        for one in made
    ]
    return write_published(layout, record, published, source=source, motivation="\n".join(lines))
