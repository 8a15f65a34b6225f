"""The gate: all checks of one design, and the verdict.

The checks run in the design's own process: code made for it could forge a verdict, though it can harm nothing. The
gate spares honest authors a useless training; that no score can be forged is the evaluation's part, which runs
elsewhere.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.errors import RecordError
from asiarch_hpc.gate import dynamic, static
from asiarch_hpc.gate.checks.subject import Precision, Subject, finding, reject
from asiarch_hpc.gate.sandbox import Outcome, choose_rung, run_isolated
from asiarch_hpc.gate.sandbox.confine import gpu_paths
from asiarch_hpc.records import Finding, GateReport, from_json

_MEASURED: dict[str, type[int] | type[float] | type[str]] = {
    **dict.fromkeys(("device", "only_precision"), str),
    **dict.fromkeys(("dim", "depth", "parameters", "parameters_total", "launches", "clock_tokens", "clock_bytes"), int),
    **dict.fromkeys(
        (
            *("flops_per_token", "modelled_seconds_per_token", "relative_seconds", "relative_bytes"),
            *("time_exponent", "time_exponent_error", "memory_exponent", "memory_exponent_error"),
            *("clock_seconds", "clock_exponent", "clock_exponent_error"),
            *("clock_relative_seconds", "clock_relative_bytes"),
        ),
        float,
    ),
}
_GPU = re.compile(r"nvidia\d+|kfd")  # not /dev/nvidiactl, which is there without a GPU as well
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
    build: Callable[[int, int, int], nn.Module],
    vocab: int,
    length: int,
    size: Callable[[], tuple[int, int]],
    target_parameters: int,
    text: Tensor,
    seed: int,
    writable: Path,
    build_reference: Callable[[int], nn.Module] | None = None,
    reference_size: tuple[int, int] | None = None,
    precision: Precision = "fp32",
    attention: bool = True,
) -> GateReport:
    """Examines a design and reports every independent fault. Nothing of the design runs in this process.

    Args:
        source: the design's text.
        build: (dim, depth, vocab) -> model with `forward(ids [batch, length] int64) -> (logits [batch, length,
            vocab], auxiliary loss or None)` and `non_embedding_parameters() -> int`. Called in the sandbox, like
            `size`.
        size: the (dim, depth) that matches the baseline's parameters; raises DesignError where none does.
        target_parameters: the baseline's non-embedding parameters.
        text: [rows, length + 1] int64 token ids of real text, the batch of every learning step.
        seed: of weights, tokens and perturbations.
        writable: an existing folder; a scratch folder is made in it for the design, and removed.
        build_reference: (vocab) -> the baseline's model, whose cost is counted and clocked beside the design's; None
            for the baseline itself.
        reference_size: the size at which a design that matches at none is examined all the same.
        precision: the one that the scale trains in.
        attention: whether cost may grow with the square of the length.

    Raises:
        SandboxError: the configured rung does not work here, or the caller has initialised CUDA.
    """
    started = time.monotonic()
    findings = _examine_text(source, config)
    parsed = not any(item.code == "static.syntax" for item in findings)
    subject = Subject(
        config=config,
        build=build,
        build_reference=build_reference,
        size=size,
        reference_size=reference_size,
        vocab=vocab,
        length=length,
        target_parameters=target_parameters,
        text=text,
        seed=seed,
        precision=precision,
        attention=attention,
        chunks=static.chunk_sizes(source) if parsed else (),
        claims=static.claims(source) if parsed else frozenset(),
    )
    return _verdict(subject, findings, writable, started)


def _verdict(subject: Subject, findings: list[Finding], writable: Path, started: float) -> GateReport:
    config = subject.config
    rung = choose_rung(config.sandbox)
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
    asked = subject.config.device
    device = find_device(asked)
    try:
        return run_isolated(
            lambda: dynamic.examine(subject, _working_device(asked, device)),
            timeout_s=subject.config.timeout_s,
            memory_gb=subject.config.memory_gb,
            writable=[scratch],
            rung=rung,
            gpu=device == "cuda",
            processes=subject.config.processes,
            file_gb=subject.config.file_megabytes / 1024,
        )
    finally:
        _remove(scratch)


def find_device(name: str) -> str:
    """ "cuda" or "cpu" for a `device` setting. Only device files are looked at: to ask CUDA would spoil it for
    children. Whether it works shows in the child."""
    if name != "auto":
        return name
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1", "NoDevFiles")
    built = torch.version.cuda is not None or torch.version.hip is not None
    return "cuda" if built and not hidden and any(_GPU.fullmatch(path.name) for path in gpu_paths()) else "cpu"


def _working_device(name: str, found: str) -> str:
    """Called in the child: "auto" means the CPU where a GPU's files are there but CUDA cannot use it."""
    return "cpu" if name == "auto" and found == "cuda" and not torch.cuda.is_available() else found


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
                if kind is None or type(value) is not kind or (not isinstance(value, str) and not math.isfinite(value)):
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
    if outcome.attempts:
        text = f"the design reached for {'; '.join(outcome.attempts[:8])}"
        findings.append(reject("sandbox.attempt", text, "A design opens no files, processes or sockets."))
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
        "gate.sandbox=limits was set: the design's code was held by time and memory limits alone and could write "
        "wherever its user can",
        "Set gate.sandbox=auto where bubblewrap, user namespaces or Landlock (Linux 5.13) are to be had.",
    )
