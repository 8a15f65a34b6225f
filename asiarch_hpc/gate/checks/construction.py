"""Whether a design can be built, at its size and at another width, its size, and the precisions it works in."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from torch import nn

from asiarch_hpc.gate.checks.subject import (
    Precision,
    Specimen,
    Step,
    Subject,
    attempt,
    finding,
    reject,
)

_PROBE_LENGTH = 33
_SIZE_HINT = "Let the parameter count follow the width given to the constructor."


def construct(subject: Subject, device: str) -> Generator[Step, None, Specimen | None]:
    """Builds the design at its size and at a second width; None where nothing more can be said."""
    found, refusal = attempt(subject.size)
    size = found or subject.reference_size
    if size is None:
        yield reject("size.unmatched", refusal, _SIZE_HINT)
        return None
    specimen = Specimen(subject, *size, device)
    model, failure = attempt(lambda: specimen.build(subject.vocab))
    if model is None:
        case = f"dim {specimen.dim}, depth {specimen.depth}"
        specimen.failures.add("construct.failed", case, failure)
        yield from specimen.failures.findings()
        return None
    if found is None:
        yield reject("size.unmatched", refusal, _SIZE_HINT)
    yield {"dim": specimen.dim, "depth": specimen.depth, "device": device}
    yield from _examine_size(specimen, model)
    yield from _examine_precisions(specimen)
    _examine_second_width(specimen)
    return specimen


def _examine_size(specimen: Specimen, model: nn.Module) -> Iterator[Step]:
    tolerance, target = specimen.config.parameter_tolerance, specimen.subject.target_parameters
    count, failure = attempt(lambda: int(model.non_embedding_parameters()))  # type: ignore[operator]
    if count is None:
        specimen.failures.add("construct.failed", "non_embedding_parameters", failure)
        return
    yield {"parameters": count, "parameters_total": sum(p.numel() for p in model.parameters())}
    if not abs(count / target - 1) <= tolerance:
        yield reject(
            "size.parameters",
            f"{count:,} non-embedding parameters, the baseline has {target:,}; allowed within {tolerance:.0%}",
            _SIZE_HINT,
            measured=count / target,
            limit=1 + tolerance,
        )


def _examine_precisions(specimen: Specimen) -> Iterator[Step]:
    """Which precisions one short pass works in. A design that works in bf16 alone is compared and trained in it; one
    that fails in bf16 is refused where the scale trains in it, since fp32 costs a GPU several times as much."""
    failures: dict[Precision, str] = {}
    ids = specimen.ids(2, _PROBE_LENGTH, specimen.generator())
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        model = specimen.build()
        with specimen.autocast(precision):
            failures[precision] = attempt(lambda model=model: model(ids.to(specimen.device)))[1]  # type: ignore[misc]
    broken = [precision for precision in precisions if failures[precision]]
    if len(broken) != 1:  # both work, or the passes will say why neither does
        yield {"only_precision": ""}
        return
    failed, trained = broken[0], specimen.subject.precision == broken[0]
    works: Precision = "bf16" if failed == "fp32" else "fp32"
    specimen.precision = works
    yield {"only_precision": works}
    consequence = ""
    if trained and failed == "fp32":
        consequence = ", in which this scale trains: its trials train in bf16, and part of a difference from the "
        consequence += "baseline may be one of precision"
    elif trained:
        consequence = ", in which this scale trains"
    yield finding(
        f"precision.{failed}",
        "reject" if trained and failed == "bf16" else "warn",
        f"the forward pass fails in {failed} alone{consequence}: {failures[failed]}",
        "Do not name a dtype: cast to the dtype of the input or of a parameter; cast to float32 and back around "
        "operations that bf16 lacks.",
    )


def _examine_second_width(specimen: Specimen) -> None:
    """Builds and runs at another width: sizes written into the text show there."""
    dim = specimen.dim + specimen.config.dim_step
    case = f"dim {dim}, depth {specimen.depth}"
    model, failure = attempt(lambda: specimen.subject.build(dim, specimen.depth, specimen.vocab).to(specimen.device))
    if model is not None:
        ids = specimen.ids(2, _PROBE_LENGTH, specimen.generator()).to(specimen.device)
        with specimen.autocast():
            _, failure = attempt(lambda: model(ids))
        here, _ = attempt(lambda: specimen.build()(ids))
        failure = failure if here is not None else ""  # it fails everywhere: the passes report that
    if failure:
        specimen.failures.add("construct.width", case, failure)
