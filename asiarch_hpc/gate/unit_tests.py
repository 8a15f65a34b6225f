"""The unit tests that units written as code bring along, run beside the gate's own checks.

They are the author's word on the units, not the gate's: one that fails is a warning, since it may be the test that is
wrong. They run in the sandbox like everything else of a design.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

from asiarch_hpc.config import GateConfig
from asiarch_hpc.designs.contract import load_class
from asiarch_hpc.designs.genesys_base import UnitDecl, gau_test
from asiarch_hpc.designs.template import unit_tests
from asiarch_hpc.gate.sandbox import run_isolated
from asiarch_hpc.records import Finding

FAILED = "unit.test_failed"
_HINT = "Repair the unit, or the test where it asks for what the unit does not promise."


class _OutOfTimeError(Exception):
    """The time of the tests is over."""


def examine_unit_tests(source: str, tests: str, *, config: GateConfig, writable: Path) -> list[Finding]:
    """Runs a design's unit tests in the sandbox: a warning for each that fails, and where they could not be run.

    Args:
        source: text of the composed design.
        tests: as for `run_unit_tests`.
        writable: an existing folder, the tests' scratch folder.

    Raises:
        SandboxError: the configured rung does not work here.
    """
    if not unit_tests(tests):
        return []

    def findings() -> Iterator[str]:
        module = sys.modules[load_class(source).__module__]
        yield from run_unit_tests(module, tests, seconds=config.unit_tests_s)

    outcome = run_isolated(
        findings,
        timeout_s=config.timeout_s,
        memory_gb=config.memory_gb,
        writable=[writable],
        rung=config.sandbox,
        processes=config.processes,
        file_gb=config.file_megabytes / 1024,
    )
    found = [_failed(record) for record in outcome.records if isinstance(record, str)]
    return found if outcome.ok else [*found, _failed(f"the tests did not end: {outcome.error}")]


def run_unit_tests(module: ModuleType, tests: str, *, seconds: float, seed: int = 0) -> Iterator[str]:
    """Runs a design's unit tests here, in the sandbox's child, and yields what each that fails has to say.

    Each test starts from the same random state and leaves the process's as it was; what it prints is lost.

    Args:
        module: of the composed design, as `designs.contract.load_class` makes it.
        tests: the text that `designs.template_compose.compose_tests` gives for the same tree.
        seconds: for all tests together, kept in the main thread only. Tests that they do not suffice for are named.
    """
    names = unit_tests(tests)
    if not names:
        return
    filename = f"<unit tests of {module.__name__}>"
    scope: dict[str, Any] = {**vars(module), "__name__": module.__name__, "gau_test": gau_test, "UnitDecl": UnitDecl}
    try:
        exec(compile(tests, filename, "exec", dont_inherit=True), scope)
    except (Exception, SystemExit) as error:
        yield f"the tests cannot be loaded: {_cause(error, filename)}"
        return
    deadline = time.monotonic() + seconds
    for position, name in enumerate(names):
        left = deadline - time.monotonic()
        if not left > 0:
            yield f"no time was left for {', '.join(names[position:])} after {seconds:g} s"
            return
        raised = _run(scope[name], left, seed)
        if isinstance(raised, _OutOfTimeError):
            yield f"{name} was not done when the {seconds:g} s for all tests were over"
        elif raised is not None:
            yield f"{name}: {_cause(raised, filename)}"


def _run(test: Callable[[], Any], seconds: float, seed: int) -> BaseException | None:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.random.fork_rng(devices=[]),
        _limited(seconds),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        try:
            test()
        except (Exception, SystemExit) as error:
            return error
    return None


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises _OutOfTimeError in what runs longer; without effect outside the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _OutOfTimeError

    try:
        before = signal.signal(signal.SIGALRM, stop)
    except ValueError:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _failed(message: str) -> Finding:
    return Finding(code=FAILED, severity="warn", message=message, hint=_HINT)


def _cause(error: BaseException, filename: str) -> str:
    """The exception, and the last line of the tests that led to it."""
    places = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    text = " ".join(str(error).split())[:300]
    where = f" (line {places[-1]} of the tests)" if places else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"
