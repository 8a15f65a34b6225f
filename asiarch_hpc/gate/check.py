"""The gate: all checks of one design, and the verdict.

The checks run in the design's own process: code made for it could forge a verdict, though it can harm nothing. The
gate spares honest authors a useless training; that no score can be forged is the evaluation's part, which runs
elsewhere.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.errors import RecordError
from asiarch_hpc.gate import dynamic, static
from asiarch_hpc.gate.dynamic import Subject, finding, reject
from asiarch_hpc.gate.measure import Measurement
from asiarch_hpc.gate.sandbox import Outcome, choose_rung, run_isolated
from asiarch_hpc.records import Finding, GateReport, from_json

_MEASURED: dict[str, type[int] | type[float]] = {
    "dim": int,
    "depth": int,
    "parameters": int,
    "parameters_total": int,
    "launches": int,
    "flops_per_token": float,
    "modelled_seconds_per_token": float,
    "time_exponent": float,
}
_CODES = {
    "timeout": "sandbox.timeout",
    "memory": "sandbox.memory",
    "processes": "sandbox.processes",
    "output": "sandbox.output",
    "ended early": "sandbox.exit",
    "protocol": "sandbox.protocol",
    "exception": "sandbox.exception",
}
_HINTS = {
    "sandbox.timeout": "Look for an endless loop, or a loop over tokens that should run over chunks.",
    "sandbox.memory": "Look for tensors that grow with the square of the length or with every call.",
    "sandbox.processes": "A design starts no processes.",
    "sandbox.exit": "A design must not end the process.",
    "sandbox.killed": "A crash in compiled code, or a signal that the design sent: leave out what reaches so low.",
    "sandbox.protocol": "A design must not write to files or descriptors.",
    "sandbox.output": "A design must not write to files or descriptors.",
    "sandbox.exception": "See the traceback.",
}


def check(
    source: str,
    *,
    config: GateConfig,
    build: Callable[[int, int], nn.Module],
    vocab: int,
    length: int,
    size: Callable[[], tuple[int, int]],
    target_parameters: int,
    reference: Measurement | None,
    text: Tensor,
    seed: int,
    writable: Path,
    reference_size: tuple[int, int] | None = None,
) -> GateReport:
    """Examines a design and reports every independent fault. Nothing of the design runs in this process.

    Args:
        source: the design's text.
        build: (dim, depth) -> model with `forward(ids [batch, length] int64) -> (logits [batch, length, vocab],
            auxiliary loss or None)` and `non_embedding_parameters() -> int`. Called in the sandbox, like `size`.
        size: the (dim, depth) that matches the baseline's parameters; raises DesignError where none does.
        target_parameters: the baseline's non-embedding parameters.
        reference: the baseline's measured cost, None for the baseline itself.
        text: [rows, length + 1] int64 token ids of real text, the batch of every learning step.
        seed: of weights, tokens and perturbations.
        writable: an existing folder; a scratch folder is made in it for the design, and removed.
        reference_size: the size at which a design that matches at none is examined all the same.

    Raises:
        SandboxError: the configured rung does not work here, or the caller has initialised CUDA.
    """
    subject = Subject(
        config=config,
        build=build,
        size=size,
        reference_size=reference_size,
        vocab=vocab,
        length=length,
        target_parameters=target_parameters,
        reference=reference,
        text=text,
        seed=seed,
    )
    return _verdict(source, subject, writable)


def _verdict(source: str, subject: Subject, writable: Path) -> GateReport:
    started = time.monotonic()
    config = subject.config
    rung = choose_rung(config.sandbox)
    findings = _examine_text(source, config)
    measured: dict[str, Any] = {}
    complete = False
    # Code that announces files or processes runs only where it is held; one that cannot be built never does.
    unheld = rung == "limits" and bool(findings)
    if not unheld and not any(item.code in static.UNBUILDABLE for item in findings):
        outcome = _run(subject, rung, writable)
        ran, measured, complete = _read_records(outcome)
        findings += ran
        findings += _examine_outcome(outcome, complete, config)
    if rung == "limits":
        findings.append(_weak_sandbox())
    return GateReport(
        passed=complete and not any(item.severity == "reject" for item in findings),
        findings=tuple(findings),
        sandbox=rung,
        seconds=round(time.monotonic() - started, 3),
        **measured,
    )


def _examine_text(source: str, config: GateConfig) -> list[Finding]:
    size = len(source.encode(errors="replace")) / 1024
    if not size <= config.source_kilobytes:
        return [
            reject(
                "static.syntax",
                f"the text has {size:,.0f} kB, at most {config.source_kilobytes:g} are looked at",
                "Give the design alone.",
                measured=size,
                limit=config.source_kilobytes,
            )
        ]
    return static.examine(source)


def _run(subject: Subject, rung: str, writable: Path) -> Outcome:
    scratch = Path(tempfile.mkdtemp(prefix="gate-", dir=writable))
    try:
        return run_isolated(
            lambda: dynamic.examine(subject),
            timeout_s=subject.config.timeout_s,
            memory_gb=subject.config.memory_gb,
            writable=[scratch],
            rung=rung,
            processes=subject.config.processes,
            file_gb=subject.config.file_megabytes / 1024,
        )
    finally:
        _remove(scratch)


def _remove(folder: Path) -> None:
    """Removes a design's folder, whatever modes it gave to what is in it."""

    def unlock(function: Callable[[str], Any], path: str, error: Any) -> None:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            function(path)

    shutil.rmtree(folder, onerror=unlock)


def _read_records(outcome: Outcome) -> tuple[list[Finding], dict[str, Any], bool]:
    """Findings, measured fields, and whether all checks ran. The child is not trusted to send what it should."""
    findings: list[Finding] = []
    measured: dict[str, Any] = {}
    try:
        for record in outcome.records:
            if "finding" in record:
                findings.append(from_json(Finding, record["finding"], source="the sandbox's answer"))
            for name, value in record.get("measured", {}).items():
                kind = _MEASURED.get(name)
                if kind is None or type(value) is not kind or not math.isfinite(kind(value)):
                    raise RecordError(f"the sandbox's answer: measured {name} = {value!r}")
                measured[name] = value
    except (RecordError, AttributeError, TypeError) as error:
        findings.append(reject("sandbox.protocol", str(error), _HINTS["sandbox.protocol"]))
    complete = outcome.ok and (set(measured) == set(_MEASURED) or any(item.severity == "reject" for item in findings))
    return findings, measured, complete


def _examine_outcome(outcome: Outcome, complete: bool, config: GateConfig) -> list[Finding]:
    findings = []
    stages = [record["stage"] for record in outcome.records if isinstance(record, dict) and "stage" in record]
    if outcome.cause is not None:
        code = _CODES.get(outcome.cause, "sandbox.killed")
        tail = outcome.traceback[-600:] if code == "sandbox.exception" else ""
        text = f"{outcome.error} (during {stages[-1] if stages else 'the start'})"
        findings.append(reject(code, text, f"{_HINTS[code]} {tail}".strip()))
    elif not complete:
        findings.append(reject("sandbox.protocol", "the checks ended without a result", _HINTS["sandbox.protocol"]))
    printed = outcome.output_bytes / 1024
    if not printed <= config.print_kilobytes:
        text = f"the design printed {printed:,.0f} kB"
        findings.append(
            finding(
                "sandbox.printed",
                "warn",
                text,
                "Leave print calls out of forward.",
                measured=printed,
                limit=config.print_kilobytes,
            )
        )
    return findings


def _weak_sandbox() -> Finding:
    return finding(
        "sandbox.limits",
        "warn",
        "this machine has neither user namespaces nor Landlock: the design's code was held by time and memory "
        "limits alone and could write wherever its user can",
        "Use a kernel with Landlock (5.13 or later), or allow user namespaces.",
    )
