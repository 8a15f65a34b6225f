"""The gate's figures: verdicts on the planted collection, on transplants, and its time on real designs.

Run by `make bench ARGS=gate`; everything is written into a temporary folder.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from asiarch_hpc.config import load_config
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.seeds import SEEDS, seed_tree
from asiarch_hpc.designs.tree import random_tree
from asiarch_hpc.records import GateReport
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.training.backbone import count_parameters
from jobs.examine import Reference, examine_beside
from jobs.workspace import Workspace
from tests.gate.planted_defects import DEFECTS
from tests.gate.planted_leaks import LEAKS
from tests.gate.planted_sound import SOUND
from tests.gate.planted_text import STATIC
from tests.gate.toys import Plant, check_plant, codes, run_check
from tests.gate.transplant import accepted_codes, check_tree, places, transplant, tree_source

_TREES = 12  # random ones among the real designs


def gate(transplants: int) -> None:
    """Prints the whole table; each plant is moved into `transplants` random trees."""
    with tempfile.TemporaryDirectory() as folder:
        writable = Path(folder)
        print("| planted | designs | refused | with the right code |\n|---|---|---|---|")
        _texts(writable)
        _defects(writable)
        print("| sound | designs | passed | without a warning |\n|---|---|---|---|")
        reports = [(name, check_plant(plant, writable)) for name, plant in SOUND.items()]
        _sound("at the toy size", reports)
        _moved(transplants, writable)
        _sound("real designs at the laptop's scale", list(_real(writable)))


def _texts(writable: Path) -> None:
    found: dict[str, list[tuple[str, GateReport, bool]]] = {}
    for name, (source, code) in STATIC.items():
        report = run_check(source, writable)
        found.setdefault(code, []).append((name, report, code in codes(report)))
    for code, items in sorted(found.items()):
        _caught(code, items)


def _defects(writable: Path) -> None:
    found: dict[str, list[tuple[str, GateReport, bool]]] = {}
    for name, plant in (LEAKS | DEFECTS).items():
        report = check_plant(plant, writable)
        found.setdefault(plant.codes[0], []).append((name, report, bool(codes(report) & set(plant.codes))))
    for code, items in sorted(found.items()):
        _caught(code, items)


def _moved(count: int, writable: Path) -> None:
    caught, kept = [], []
    for name, plant in (LEAKS | DEFECTS | SOUND).items():
        for number in range(0 if plant.whole else count):
            rng = random.Random(f"{name}/{number}")
            tree = rng.randrange(10_000)
            source = tree_source(tree)
            place = rng.randrange(places(source))
            report = check_tree(transplant(source, plant, place), plant, writable)
            where = f"{name} (tree {tree}, place {place})"
            if plant.codes:
                caught.append((where, report, bool(codes(report) & accepted_codes(plant))))
            else:
                own = report.passed or codes(report) == codes(check_tree(source, Plant("y = x"), writable))
                kept.append((where, report, own))
            print(f"{len(caught) + len(kept)} transplants", end="\r", file=sys.stderr, flush=True)
    _caught("defects in random unit trees", caught)
    good = sum(item[2] for item in kept)
    print(f"| in random unit trees, with the tree's own verdict | {len(kept)} | {good} | |", flush=True)
    for name, report, same in kept:
        if not same:
            print(f"  refused: {name}: {sorted(codes(report))}")


def _real(writable: Path) -> Iterator[tuple[str, GateReport]]:
    """The seed designs and random trees, examined as a run examines them."""
    config = load_config("laptop")
    space, scale = Workspace(RunLayout(writable / "run"), config), config.scale
    text = compose(seed_tree(config.baselines.reference))
    parameters = count_parameters(
        text, dim=scale.dim, depth=scale.depth, heads=scale.heads, ffn_multiple=scale.ffn_multiple
    )
    reference = Reference(text, parameters)
    rng = random.Random(0)
    height = config.search.operators.max_height
    trees = [seed_tree(name) for name in SEEDS]
    trees += [random_tree(rng, library(), name=f"random_{n}", max_height=height) for n in range(_TREES)]
    for tree in trees:
        yield tree.name, examine_beside(space, compose(tree), reference, writable)


def _caught(code: str, items: list[tuple[str, GateReport, bool]]) -> None:
    refused, right = sum(not item[1].passed for item in items), sum(item[2] for item in items)
    print(f"| {code} | {len(items)} | {refused} | {right} |", flush=True)
    for name, report, good in items:
        if not good:
            print(f"  missed: {name}: {sorted(codes(report))}")


def _sound(kind: str, reports: list[tuple[str, GateReport]]) -> None:
    passed = [report for _, report in reports if report.passed]
    calm = sum(not codes(report, "warn") for report in passed)
    print(f"| {kind} | {len(reports)} | {len(passed)} | {calm} |", flush=True)
    for name, report in reports:
        if not report.passed:
            print(f"  refused: {name}: {sorted(codes(report))}")
    seconds = [report.seconds for _, report in reports]
    print(f"  seconds a design: {statistics.median(seconds):.1f} median, {max(seconds):.1f} at most", flush=True)
