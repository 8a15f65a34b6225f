"""Extends the table of the kernels' sizes, kernels/configurations.json, by what is fastest on this GPU.

    make tune [ARGS="OPERATION ... --cases WORDS ... --seconds N --output FILE"]

The cases are those of bench.py (`make bench-kernels ARGS=--list`), in the order of the words. From the table's
configuration on, each entry of an operation's SPACE (beside its launches) takes each of its values in turn, and what is
faster forward and backward stays. Candidates are compiled side by side first; one that does not fit or might fault is
never run, and one that is wrong, compared with float64, is never timed. Cases for which the kernels ask for the same
sizes are tuned together. What is faster is written at once, with the device, the versions and the date.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kernels.configurations import TABLE, Shape, device_class, find, read_table, trial
from tests.kernels.bench import all_cases
from tests.kernels.bench_case import Case, Draw, check, first_line, free, measure, results
from tests.kernels.candidates import Candidates

# The modules that have each operation's SPACE, most of them those that launch its kernels.
LAUNCHED_BY = {
    "delta_rule": "kernels.delta_rule.plan",
    "linear_attention": "kernels.linear_attention.plan",
    "linear_cross_entropy": "kernels.linear_cross_entropy.triton",
    "linear_log_likelihood": "kernels.linear_cross_entropy.triton",
    "linear_scan": "kernels.linear_scan.triton",
    "rms_norm": "kernels.rms_norm.triton",
    "short_convolution": "kernels.short_convolution.triton",
    "short_convolution_wide": "kernels.short_convolution.wide",
    "swiglu": "kernels.swiglu.triton",
}
WORTH = 0.98  # of the time so far: less is noise
Configuration = dict[str, Any]
Space = Mapping[str, Sequence[Any]]
Cost = Callable[[Configuration], float | None]  # None: wrong, or does not run


@dataclass(frozen=True)
class Task:
    """Cases for which an operation's kernels ask for the same sizes, by these shapes."""

    operation: str
    shapes: tuple[tuple[tuple[str, int], ...], ...]
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        return f"{self.operation} {[dict(shape) for shape in self.shapes]}"

    @property
    def space(self) -> Space:
        space: Space = import_module(LAUNCHED_BY[self.operation]).SPACE
        return space


def changed(configuration: Mapping[str, Any], entry: str, value: Any) -> Configuration:
    """With another value of one entry; "states.warps" is the entry `warps` of the entry `states`."""
    first, _, rest = entry.partition(".")
    return {**configuration, first: changed(configuration[first], rest, value) if rest else value}


def value_of(configuration: Mapping[str, Any], entry: str) -> Any:
    """None where an entry that has a default is not there."""
    first, _, rest = entry.partition(".")
    found = configuration.get(first)
    return value_of(found, rest) if rest and found is not None else found


def difference(configuration: Mapping[str, Any], other: Mapping[str, Any], space: Space) -> str:
    """The entries of a space that another configuration has otherwise, with its values."""
    here, there = ({entry: value_of(one, entry) for entry in space} for one in (configuration, other))
    return ", ".join(f"{entry} {there[entry]}" for entry in space if there[entry] != here[entry])


def as_text(configuration: Mapping[str, Any]) -> str:
    return json.dumps(configuration, sort_keys=True)


def search(
    start: Mapping[str, Any], space: Space, cost: Cost, out_of_time: Callable[[], bool], *,
    prepare: Callable[[list[Configuration]], None] = lambda candidates: None,
    identity: Callable[[Configuration], Hashable] = as_text,
    better: Callable[[Configuration, float], None] = lambda configuration, cost: None,
) -> Configuration:  # fmt: skip
    """The configuration that no change of one entry makes faster by more than noise, or the best so far.

    Args:
        prepare: is given all candidates of a round before the first one's cost is asked for.
        identity: equal for configurations that cost the same.
        better: is told of each one that is faster than those before, with its share of the start's cost.

    Raises:
        ValueError: the configuration to start with is wrong or does not run.
    """
    best, known = dict(start), {identity(dict(start))}
    first = least = cost(best)
    if first is None or least is None:
        raise ValueError("the table's own configuration is wrong here or does not run; it has to be repaired first")
    improved = True
    while improved:
        improved = False
        changes = [(entry, value) for entry, values in space.items() for value in values]
        prepare([changed(best, *change) for change in changes])
        for entry, value in changes:
            candidate = changed(best, entry, value)
            if value_of(best, entry) == value or identity(candidate) in known:
                continue
            if out_of_time():
                return best
            known.add(identity(candidate))
            found = cost(candidate)
            if found is not None and found < WORTH * least:
                best, least, improved = candidate, found, True
                better(best, least / first)
    return best


def around(shape: Mapping[str, int]) -> dict[str, list[int]]:
    """The range between two powers of two in which each size of a shape lies; flags as they are."""
    return {axis: [n if n < 2 else (1 << (n - 1).bit_length() - 1) + 1, 1 << (n - 1).bit_length() if n else 0]
            for axis, n in shape.items()}  # fmt: skip


def with_rule(table: dict[str, Any], device: str, operation: str, rule: dict[str, Any]) -> dict[str, Any]:
    """The table with a rule before the others of its kind, in place of one for the same range."""
    rules = table.get(device, {}).get(operation, [])
    others = [other for other in rules if other["shapes"] != rule["shapes"]]
    return {**table, device: {**table.get(device, {}), operation: [rule, *others]}}


def text_of(table: Mapping[str, Any]) -> str:
    """One rule a line, the default last."""

    def block(opening: str, parts: Sequence[str], closing: str, indent: int) -> str:
        return f"{opening}\n" + ",\n".join(" " * indent + part for part in parts) + f"\n{' ' * (indent - 1)}{closing}"

    devices = []
    for device in sorted(table, key=lambda name: (name == "default", name)):
        operations = [
            f"{json.dumps(name)}: {block('[', [json.dumps(rule) for rule in table[device][name]], ']', 3)}"
            for name in sorted(table[device])
        ]
        devices.append(f"{json.dumps(device)}: {block('{', operations, '}', 2)}")
    return block("{", devices, "}", 1) + "\n"


def write(table: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text_of(table))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def tasks(cases: Sequence[Case], asked: Callable[[Case], list[Shape]]) -> list[Task]:
    """Cases by the shapes that their operation asks the table for."""
    alike: dict[tuple[str, tuple[tuple[tuple[str, int], ...], ...]], list[Case]] = {}
    for case in cases:
        assert case.sizes is not None
        shapes = dict.fromkeys(tuple(shape.items()) for shape in asked(case))
        alike.setdefault((case.sizes, tuple(shapes)), []).append(case)
    return [Task(operation, shapes, tuple(members)) for (operation, shapes), members in alike.items() if shapes]


def asked_shapes(case: Case, draw: Draw) -> list[Shape]:
    """What the kernels of a case ask the table for."""
    assert case.sizes is not None
    with trial(case.sizes, None) as asked:
        results(case.ours, case.operands(draw, case.checked))
    return asked.shapes


def cost_on_this_gpu(
    task: Task, start: Configuration, draw: Draw, say: Callable[[str], None],
    refusal: Callable[[Configuration], str | None],
) -> Cost:  # fmt: skip
    """Mean of the cases' times, each in units of its first one; says what each configuration has otherwise than `start`
    has it."""
    first: dict[str, float] = {}

    def cost(configuration: Configuration) -> float | None:
        shares = []
        say(f"  {difference(start, configuration, task.space) or 'as in the table'}")
        if wrong := refusal(configuration):
            say(f"    refused: {wrong}")
            return None
        for case in task.cases:
            try:
                with trial(task.operation, configuration):
                    _, wrong = check(case, draw)
                    taken = math.nan if wrong else measure(case, case.ours, draw).whole
            except Exception as failure:
                wrong = first_line(failure)
            if wrong:
                say(f"    passed over: {wrong}")
                torch.cuda.synchronize()  # raises where the device is lost: nothing after that could be believed
                free()
                return None
            free()
            shares.append(taken / first.setdefault(case.name, taken))
        say(f"    {sum(shares) / len(shares):.3f} of the first one's time")
        return sum(shares) / len(shares)

    return cost


def tune(
    task: Task, path: Path, device: str, cost: Cost, *, measured: Mapping[str, Any], out_of_time: Callable[[], bool],
    say: Callable[[str], None], candidates: Candidates | None = None,
) -> None:  # fmt: skip
    """Searches, and writes rules for the task's shapes to the table whenever something faster is found.

    Args:
        device: class of devices that the rules are for.
        measured: where and when, for the rules.
        candidates: of the task, from the table's configuration on.
    """
    before = read_table(path)
    start = find(before, task.operation, device, dict(task.shapes[0]))

    def keep(configuration: Configuration, share: float) -> None:
        noted = {**measured, "cases": [case.name for case in task.cases], "share_of_time": round(share, 3)}
        table = before
        for shape in task.shapes:
            rule = {"shapes": around(dict(shape)), "configuration": configuration, "measured": noted}
            table = with_rule(table, device, task.operation, rule)
        write(table, path)

    looking: dict[str, Any] = {"better": keep}
    if candidates is not None:
        looking |= {"prepare": candidates.prepare, "identity": partial(_identity, candidates)}
    say(f"{task.name}, from {json.dumps(start)}, by {', '.join(case.name for case in task.cases)}")
    cut_short = False

    def over() -> bool:
        nonlocal cut_short
        cut_short = out_of_time()
        return cut_short

    best = search(start, task.space, cost, over, **looking)
    found = f"{task.name}: nothing faster than what the table has"
    share = cost(best) if best != start else None
    if share is not None and share < WORTH:
        found = f"{task.name}: {share:.3f} of the time with {difference(start, best, task.space)}"
        keep(best, share)
    else:
        write(before, path)
    say(found + (", of what was tried before time was up" if cut_short else ""))


def _identity(candidates: Candidates, configuration: Configuration) -> Hashable:
    try:
        return candidates.identity(configuration)
    except Exception:
        return as_text(configuration)  # it will be refused


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="OPERATION", help=f"of {', '.join(LAUNCHED_BY)}")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="WORDS", help="those with one of these words first")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no candidate is tried after so many")
    parser.add_argument("--output", type=Path, default=TABLE, help="the table; it has to exist")
    options = parser.parse_args(words)
    if unknown := [name for name in options.operations if name not in LAUNCHED_BY]:
        print(f"no table of {', '.join(unknown)}, expected some of: {', '.join(LAUNCHED_BY)}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("tune needs a CUDA device, and PyTorch finds none here", file=sys.stderr)
        return 2
    end = time.monotonic() + options.seconds
    draw = Draw.from_seed(int(time.time()), "cuda")
    known = [case for case in all_cases() if case.timed and case.sizes in (options.operations or LAUNCHED_BY)]
    chosen = list({case.name: case for word in options.cases for case in known if word in case.name}.values())
    device = device_class(torch.device("cuda", torch.cuda.current_device()))
    most_shared = torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_block_optin
    measured = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": version("triton")}
    measured["date"] = time.strftime("%Y-%m-%d")
    say = partial(print, flush=True)
    for task in tasks(chosen, lambda case: asked_shapes(case, draw)):
        if time.monotonic() >= end:
            say(f"not tuned for want of time: {task.name}")
            continue
        start = find(read_table(options.output), task.operation, device, dict(task.shapes[0]))
        candidates = Candidates(
            task.operation, task.cases, start, capability=int(device.removeprefix("sm_")), most_shared=most_shared
        )
        cost = cost_on_this_gpu(task, start, draw, say, candidates.refusal)
        tune(
            task, options.output, device, cost, measured=measured, out_of_time=lambda: time.monotonic() >= end, say=say,
            candidates=candidates,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
