"""The gate's report as text: for a person at a terminal, and for the prompt of whoever repairs the design."""

from __future__ import annotations

from asiarch_hpc.records import Finding, GateReport

_ORDER = ("reject", "warn", "property")


def to_text(report: GateReport, *, name: str = "design") -> str:
    """All findings with their numbers, worst first, and what was measured; several lines without a last newline."""
    verdict = "passed" if report.passed else "REJECTED"
    lines = [f"gate: {name} {verdict} in {report.seconds:.1f} s (sandbox: {report.sandbox})"]
    if report.dim:
        lines.append(f"  size: dim {report.dim}, depth {report.depth}, {report.parameters:,} parameters")
    if report.launches:
        lines.append(
            f"  cost: {report.flops_per_token:,.0f} FLOPs a token, {report.launches:,} operations, "
            f"{report.modelled_seconds_per_token * 1e6:.1f} modelled us a token, "
            f"growing as length^{report.time_exponent:.2f}"
        )
    for item in _sorted(report):
        lines.append(f"  {item.severity:8} {item.code:20} {item.message}{_numbers(item)}")
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


def _sorted(report: GateReport) -> list[Finding]:
    return sorted(report.findings, key=lambda item: _ORDER.index(item.severity))


def _numbers(item: Finding) -> str:
    if item.measured is None or item.limit is None:
        return ""
    return f" (measured {item.measured:.4g}, limit {item.limit:.4g})"
