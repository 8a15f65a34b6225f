"""Imported runs as people see them: they hold what others published and no score of ours; no controller drives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from asiarch_hpc.controller.view import printable
from asiarch_hpc.errors import ConfigError
from asiarch_hpc.records import ImportedRun, Mark, from_json
from asiarch_hpc.store.experiments import StoredPublished, scan
from asiarch_hpc.store.files import read_json
from asiarch_hpc.store.layout import RunLayout

FILES_SHOWN = 3  # run.json has the rest
NOTES_SHOWN = 3
# Marks that have no line of their own, in words.
MARKS: Mapping[Mark, str] = {
    "no_parse": "with a program that is not valid Python",
    "same_program": "with the program of another",
    "untrained_evaluation": "with results of untrained weights",
    "incomplete": "unfinished",
}


def imported_run(layout: RunLayout) -> ImportedRun | None:
    """The record of an imported run; None where there is no run, or one of our own.

    Raises:
        RecordError: the record of the import is damaged.
    """
    if not layout.record.exists():
        return None
    record = read_json(layout.record)
    if not isinstance(record, dict) or record.get("kind") != "imported":
        return None
    return from_json(ImportedRun, record, source=str(layout.record))


def refuse_imported(layout: RunLayout) -> None:
    """Raises ConfigError for a run that was imported: there is nothing to search, and no journal to rebuild."""
    if (record := imported_run(layout)) is not None:
        raise ConfigError(
            f"{layout.root}: this run was imported from {record.origin}; it is read as it lies (asiarch status --run "
            f"{layout.name}), and has no controller, journal or pool; give a run of your own another name"
        )


def status_lines(layout: RunLayout, record: ImportedRun) -> list[str]:
    """What the run holds, at most fifteen lines; nothing is changed or moved."""
    found = scan(layout, moved=False)
    designs = [stored for stored in found.published if not stored.published.substitutions]
    files = ", ".join(f"{file.name} {file.sha256[:12]}…" for file in record.files[:FILES_SHOWN])
    files += f" and {len(record.files) - FILES_SHOWN} more" if len(record.files) > FILES_SHOWN else ""
    lines = [
        f"{record.origin} as published, imported {record.created}; none of it is scored here or enters a pool",
        f"files: {files}",
        *_tables(designs),
        *_substitutions(found.published),
        *record.notes[:NOTES_SHOWN],
    ]
    if found.damaged:
        more = f" (and {len(found.damaged) - 1} more)" if len(found.damaged) > 1 else ""
        lines.append(f"damaged: {found.damaged[0]}{more}; import into another run")
    return [printable(f"asiarch {layout.name}"), *(f"  {printable(line)}" for line in lines)]


def _tables(designs: Sequence[StoredPublished]) -> list[str]:
    marks = Counter(mark for stored in designs for mark in stored.published.marks)
    curves = sum(bool(stored.published.trials) for stored in designs)
    results = sum(bool(stored.published.results) for stored in designs)
    names = Counter(stored.record.name for stored in designs)
    lines = [
        f"designs: {len(designs)}, {len(designs) - marks['no_program']} with program, {results} with test results, "
        f"{curves} with training curves ({marks['nan_loss']} of them with NaN)",
        f"names: {len(names)} different, {len(designs) - len(names)} repeat another's",
        *_lineage(designs, marks["orphan"]),
        *_scores(designs),
    ]
    if told := ", ".join(f"{marks[mark]} {words}" for mark, words in MARKS.items() if marks[mark]):
        lines.append(f"marked: {told}")
    return lines


def _lineage(designs: Sequence[StoredPublished], orphans: int) -> list[str]:
    roots = sum(not stored.published.parents for stored in designs)
    parents = {parent for stored in designs for parent in stored.record.parents}
    return [f"lineage: {roots} without parent, {len(parents)} with children, {orphans} orphans (a parent is not here)"]


def _scores(designs: Sequence[StoredPublished]) -> list[str]:
    scores = {s.record.id: s.published.score for s in designs if s.published.score is not None}
    if not scores:
        return []
    best = max((stored for stored in designs if stored.record.id in scores), key=lambda s: scores[s.record.id])
    title = str(best.published.metadata.get("name_new", best.record.name))
    line = f"published scores: median {median(scores.values()):.3f}, best {scores[best.record.id]:.3f}"
    return [f"{line} ({title}, id {best.record.id})", *_beaten(designs, scores)]


def _beaten(designs: Sequence[StoredPublished], scores: Mapping[str, float]) -> list[str]:
    pairs = [
        (scores[stored.record.id], scores[parent])
        for stored in designs
        for parent in stored.record.parents
        if stored.record.id in scores and parent in scores
    ]
    if not pairs:
        return []
    better = sum(child > parent for child, parent in pairs)
    return [f"children that score above their parent: {100 * better / len(pairs):.1f} % of {len(pairs)}"]


def _substitutions(designs: Sequence[StoredPublished]) -> list[str]:
    derived = [stored.published.substitutions for stored in designs if stored.published.substitutions]
    if not derived:
        return []
    made = [one for several in derived for one in several]
    operations = ", ".join(f"{number} {name}" for name, number in sorted(Counter(s.operation for s in made).items()))
    worst = max(one.error for one in made)
    return [f"kernels substituted: in {len(derived)} designs beside these ({operations}), largest error {worst:.1e}"]
