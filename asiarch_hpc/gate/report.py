"""The gate's report as text: for a person at a terminal, and for the prompt of whoever repairs the design."""

from __future__ import annotations

from asiarch_hpc.records import Finding, GateReport, Severity

_ORDER: tuple[Severity, ...] = ("reject", "warn", "property")
_NAMES: dict[Severity, str] = {"reject": "REJECT", "warn": "warning", "property": "property"}


def to_text(report: GateReport, *, name: str = "design") -> str:
    """The verdict, what was measured in at most three lines, and all findings, worst first, with their numbers and
    their repair; lines without a last newline."""
    verdict = "passed" if report.passed else "REJECTED"
    where = f"on {report.device} " if report.device else ""
    lines = [f"gate: {name} {verdict} in {report.seconds:.1f} s {where}(sandbox: {report.sandbox}){_count(report)}"]
    lines += [f"  {line}" for line in (_size(report), _cost(report), _clock(report)) if line]
    for item in _sorted(report):
        lines.append(f"  {_NAMES[item.severity]:8} {item.code:20} {item.message}{_numbers(item)}")
        if item.hint:
            lines.append(f"  {'':8} {'':20} -> {item.hint}")
    return "\n".join(lines)


def to_prompt(report: GateReport) -> str:
    """Numbered faults with their repair, and nothing that does not help to repair; "" when there are none."""
    faults = [item for item in _sorted(report) if item.severity != "property"]
    return "\n".join(
        f"{number}. [{item.code}] {'' if item.severity == 'reject' else 'Warning: '}{item.message}{_numbers(item)}. "
        f"{item.hint}".rstrip()
        for number, item in enumerate(faults, 1)
    )


def _count(report: GateReport) -> str:
    faults, warnings = (sum(item.severity == severity for item in report.findings) for severity in _ORDER[:2])
    counted = ((faults, "fault"), (warnings, "warning"))
    words = [f"{number} {word}{'s' if number > 1 else ''}" for number, word in counted if number]
    return f": {', '.join(words)}" if words else ""


def _size(report: GateReport) -> str:
    if not report.dim:
        return ""
    return f"size   dim {report.dim}, depth {report.depth}: {report.parameters:,} parameters without the embedding"


def _cost(report: GateReport) -> str:
    """Counted: the same on every machine."""
    if not report.launches:
        return ""
    text = f"count  {report.flops_per_token:,.0f} FLOPs a token, {report.launches:,} operations a pass"
    if report.relative_seconds:
        text += (
            f"; a training step takes {report.relative_seconds:.2f} times the baseline's time and "
            f"{report.relative_bytes:.2f} times its memory"
        )
    return text


def _clock(report: GateReport) -> str:
    """Clocked: differs from call to call."""
    if not report.clock_seconds:
        return ""
    text = f"clock  {report.clock_seconds * 1e3:,.3g} ms a training step of {report.clock_tokens:,} tokens"
    if report.clock_relative_seconds:
        text += f", {report.clock_relative_seconds:.2f} times the baseline's"
    if report.clock_bytes:
        text += f"; {report.clock_bytes / 2**20:,.0f} MB, {report.clock_relative_bytes:.2f} times the baseline's"
    return f"{text}; time grows as length^{report.clock_exponent:.2f}±{report.clock_exponent_error:.2f}"


def _sorted(report: GateReport) -> list[Finding]:
    return sorted(report.findings, key=lambda item: _ORDER.index(item.severity))


def _numbers(item: Finding) -> str:
    if item.measured is None or item.limit is None:
        return ""
    return f" (measured {item.measured:.4g}, limit {item.limit:.4g})"
