"""Checks and times of every operation on one GPU, as tables for kernels/README.md.

    make bench-kernels [ARGS="--tests --only OPERATION ... --shape WORDS ... --rivals WORDS ... --no-rivals
                              --rival-seconds N --seconds N"]

An operation is checked first: results and gradients against float64, of operands that are drawn anew at each run;
what a kernel does not write is nan, and the second of two runs must give the same. Where a check is red, no time of
that operation is printed. Times are the device's, medians of rounds in which three sets of operands take turns, without
the host's time for launches: the forward pass without gradients / forward and backward. Floors are the times in which
the bytes that must move, and the operations, could be done at what a copy and a matrix product reach here.
flash-linear-attention and torch.compile run in a process of their own, which is ended after `--rival-seconds`, and must
agree with our results; where they refuse, the cell says so. `--list` names all cases.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import torch

from tests.kernels import bench_channels, bench_mixers
from tests.kernels.bench_case import Case, Draw, Peaks, Target, Times, check, first_line, free, measure, peaks
from tests.kernels.bench_rivals import Rivals

Found = Times | str  # times, or why there are none
LEAST_SECONDS = 10.0  # that a rival is worth being asked for


def all_cases() -> list[Case]:
    return [*bench_mixers.cases(), *bench_channels.cases()]


@dataclass(frozen=True)
class Device:
    """What a run needs of the GPU: the worst error and what is wrong, times, times of a rival, and peaks."""

    check: Callable[[Case], tuple[float, str | None]]
    measure: Callable[[Case, str | None], Times]  # of ours, or of another operation of ours
    ask: Callable[[Case, str, float], Found]
    peaks: Peaks


def rival_names(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(name for case in cases for name in (*case.own, *case.rivals)))


def header(cases: Sequence[Case]) -> str:
    names = rival_names(cases)
    columns = ["shape", "ours, ms", "floor: bytes", "floor: operations", "TB/s", "TFLOP/s", "GiB", *names]
    columns += ["ours is faster by", "target", "worst error"]
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def row(case: Case, names: Sequence[str], ours: Found, others: dict[str, Found], peak: Peaks, error: float) -> str:
    """A line of the operation's table."""
    if isinstance(ours, str):
        cells = [ours, *[""] * 5, *(cell(others.get(name, "")) for name in names), "", ""]
        return f"| {case.shape} | {' | '.join(cells)} | {error:.1e} |"
    flops = case.flops * (1 if ours.both is None else 3)
    rate = peak.vector if case.vector else peak.tensor
    seconds = ours.whole / 1e3
    cells = [
        cell(ours), figure(ours.least_bytes / peak.bytes * 1e3), figure(flops / rate * 1e3),
        f"{ours.least_bytes / seconds / 1e12:.2f}", f"{flops / seconds / 1e12:.1f}", f"{ours.gib:.2f}",
        *(cell(others.get(name, "")) for name in names), *verdict(case, ours, others),
    ]  # fmt: skip
    return f"| {case.shape} | {' | '.join(cells)} | {error:.1e} |"


def verdict(case: Case, ours: Times, others: dict[str, Found]) -> tuple[str, str]:
    """How many times as fast as the best rival ours is, and whether the target is met."""
    target = case.target
    ran = {name: found for name, found in others.items() if isinstance(found, Times)}
    rivals = {name: found for name, found in ran.items() if name in case.rivals}
    best = min(rivals, key=lambda name: rivals[name].whole, default=None)
    faster = "" if best is None else f"{rivals[best].whole / ours.whole:.2f} x ({best})"
    of = best if target.of == "best" else target.of
    if of is None or of not in ran:
        missing = "no rival has run" if target.of == "best" else f"{target.of} has not run"
        return faster, f"{wording(target)}: open, {missing}"
    met = "met" if ran[of].whole >= target.factor * ours.whole else "not met"
    absent = [name for name in case.rivals if name not in rivals] if target.of == "best" else []
    note = f" ({', '.join(absent)} has not run)" if absent else ""
    return faster, f"{wording(target)}: {met}{note}"


def wording(target: Target) -> str:
    of = "the best rival" if target.of == "best" else target.of
    if target.factor < 1:
        return f"at most {1 / target.factor:.2f} x the time of {of}"
    return f"{target.factor:g} x as fast as {of}"


def cell(found: Found) -> str:
    if isinstance(found, str):
        return found
    return figure(found.forward) + ("" if found.both is None else f" / {figure(found.both)}")


def figure(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.3f}"


def run(
    cases: Sequence[Case], device: Device, *, rivals: Callable[[str], bool], rival_seconds: float, end: float,
    clock: Callable[[], float], write: Callable[[str], None],
) -> int:  # fmt: skip
    """Checks and times operation after operation; the exit code is 1 where something of ours is wrong or fails.

    Of the rivals, those are asked whose name passes `rivals`. No check and no case begins after `end` on the clock;
    those left are named.
    """
    left, red, failed = [], set[str](), False
    for operation in dict.fromkeys(case.operation for case in cases):
        members = [case for case in cases if case.operation == operation]
        timed = [case for case in members if case.timed]
        if clock() >= end:
            left += [case.name for case in timed]
            continue
        write(f"\n### {operation}\n")
        errors, wrong = _checked(members, device, write, lambda: clock() >= end)
        if wrong:
            red.add(operation)
            write(f"**{operation}: the check is red, so there are no times.**")
            continue
        if len(errors) < len(members):
            left += [case.name for case in timed]
            write(f"checks: {len(errors)} of {len(members)}, so there are no times\n")
            continue
        write(f"checks: {len(errors)}, worst error {max(errors.values()):.1e}\n")
        if not timed:
            continue
        write(header(timed))
        names = rival_names(timed)
        for case in timed:
            if clock() >= end:
                left.append(case.name)
                continue
            ours, others = _found(case, device, red, rivals=rivals, seconds=rival_seconds, end=end, clock=clock)
            failed = failed or isinstance(ours, str)
            write(row(case, names, ours, others, device.peaks, errors[case.name]))
    if left:
        write(f"\nNot begun for want of time: {'; '.join(left)}.")
    return int(failed or bool(red))


def _checked(
    cases: Sequence[Case], device: Device, write: Callable[[str], None], out_of_time: Callable[[], bool]
) -> tuple[dict[str, float], list[str]]:
    """Worst errors of the cases that there was time for, and which are wrong."""
    errors, red = {}, []
    for case in cases:
        if out_of_time():
            break
        try:
            errors[case.name], wrong = device.check(case)
        except Exception as failure:
            wrong = first_line(failure)
        if wrong:
            red.append(case.name)
            write(f"- {case.name}: {wrong}")
    return errors, red


def _found(
    case: Case, device: Device, red: Collection[str], *, rivals: Callable[[str], bool], seconds: float, end: float,
    clock: Callable[[], float],
) -> tuple[Found, dict[str, Found]]:  # fmt: skip
    def ours(name: str | None) -> Found:
        try:
            return device.measure(case, name)
        except Exception as failure:
            return first_line(failure)

    others: dict[str, Found] = {name: "its check is red" if name in red else ours(name) for name in case.own}
    mine = ours(None)
    for name in filter(rivals, case.rivals):
        left = min(seconds, end - clock())
        others[name] = device.ask(case, name, left) if left >= LEAST_SECONDS else "not asked for want of time"
    return mine, others


def on_this_gpu(seed: int, rivals: Rivals) -> Device:
    draw = Draw.from_seed(seed, "cuda")

    def checked(case: Case) -> tuple[float, str | None]:
        try:
            return check(case, draw)
        finally:
            free()

    def measured(case: Case, own: str | None) -> Times:
        try:
            return measure(case, case.ours if own is None else case.own[own], draw)
        finally:
            free()

    def ask(case: Case, rival: str, seconds: float) -> Found:
        return rivals.ask(case.name, rival, seed=seed, seconds=seconds)

    return Device(checked, measured, ask, peaks())


def selected(cases: Sequence[Case], only: Sequence[str], words: Sequence[str]) -> list[Case]:
    """Of the operations named, all checks and the timed cases whose shape has one of the words; and checks of the
    operations of ours that they are compared with.

    Raises:
        ValueError: an operation that there is not.
    """
    known = list(dict.fromkeys(case.operation for case in cases))
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"no operation {', '.join(unknown)}, expected some of: {'; '.join(known)}")
    chosen = [case for case in cases if not only or case.operation in only]
    found = [case for case in chosen if not case.timed or not words or any(word in case.shape for word in words)]
    timed = {case.operation for case in found if case.timed}
    found = [case for case in found if case.operation in timed]
    beside = {name for case in found if case.timed for name in case.own} - timed
    return [*(replace(case, timed=False) for case in cases if case.operation in beside), *found]


def environment(peak: Peaks, seed: int) -> str:
    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    names = ("torch", "triton", "flash-linear-attention")
    return (
        f"{torch.cuda.get_device_name()}, {', '.join(f'{name} {of(name)}' for name in names)}, "
        f"{time.strftime('%Y-%m-%d')}, seed {seed}. A copy moves {peak.bytes / 1e12:.2f} TB/s; matrix products reach "
        f"{peak.tensor / 1e12:.0f} TFLOP/s in bfloat16 and {peak.vector / 1e12:.0f} in float32. Forward / both, ms."
    )


def compile_kernels(cases: Sequence[Case]) -> str:
    """All kernels of the cases, side by side; one after the other they take minutes."""
    # Here, because it loads Triton, which a list of the cases needs not.
    from tests.kernels.absent_gpu import compiled, key_of, launches

    begun, wanted = time.monotonic(), {}
    capability = int("".join(str(n) for n in torch.cuda.get_device_capability()))
    for case in cases:
        with suppress(Exception):  # the check will tell
            wanted |= {key_of(launch): launch for launch in launches(case, capability)}
    compiled(wanted.values(), capability)
    return f"{len(wanted)} kernels compiled in {time.monotonic() - begun:.0f} s."


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="OPERATION")
    parser.add_argument("--shape", nargs="+", default=[], metavar="WORDS", help="only shapes with one of these words")
    parser.add_argument("--rivals", nargs="+", default=[""], metavar="WORDS", help="only those with one of these words")
    parser.add_argument("--no-rivals", dest="rivals", action="store_const", const=[])
    parser.add_argument("--rival-seconds", type=float, default=120.0, help="for each rival and shape")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case begins after so many")
    parser.add_argument("--tests", action="store_true", help="run the operations' GPU tests first")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    begun = time.monotonic()
    try:
        cases = selected(all_cases(), options.only, options.shape)
    except ValueError as unknown:
        print(unknown, file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.name for case in cases if case.timed))
        return 0
    if not torch.cuda.is_available():
        print("bench-kernels needs a CUDA device, and PyTorch finds none here", file=sys.stderr)
        return 2
    if options.tests:
        workers = str(min(14, os.cpu_count() or 1))  # compiling takes most of the time; more would not find memory
        shared = ["-n", workers, "--dist", "worksteal"]
        tests = [sys.executable, "-m", "pytest", "-q", *shared, "-m", "gpu", "tests/kernels"]
        if code := subprocess.run(tests, check=False).returncode:
            return code
    seed = int(time.time()) if options.seed is None else options.seed
    rivals = Rivals()
    # A `timeout` ends the process of the rivals too, which would go on with the GPU.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        device = on_this_gpu(seed, rivals)
        print(environment(device.peaks, seed), flush=True)
        try:
            print(compile_kernels(cases), flush=True)
        except Exception as failure:  # of parts of PyTorch and Triton that promise nothing to others
            print(f"kernels are compiled one after the other: {first_line(failure)}", flush=True)
        return run(
            cases, device, rivals=lambda name: any(word in name for word in options.rivals),
            rival_seconds=options.rival_seconds, end=begun + options.seconds, clock=time.monotonic,
            write=lambda text: print(text, flush=True),
        )  # fmt: skip
    finally:
        rivals.stop()


if __name__ == "__main__":
    sys.exit(main())
