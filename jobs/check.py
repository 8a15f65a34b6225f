"""One design file through the gate, beside the reference baseline, outside any run."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asiarch_hpc.config import Config
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.template import TemplateTree, is_template, single_unit, template_from_json
from asiarch_hpc.designs.template_compose import compose_template, compose_tests
from asiarch_hpc.designs.template_repair import repair_tree
from asiarch_hpc.designs.template_rules import examine_tree, finding
from asiarch_hpc.designs.tree import tree_from_json
from asiarch_hpc.errors import DesignError, RecordError
from asiarch_hpc.gate.report import to_text
from asiarch_hpc.gate.unit_tests import examine_unit_tests
from asiarch_hpc.importers.genesys_units import is_artefact, template_of
from asiarch_hpc.records import Finding, GateReport
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.training.backbone import count_parameters
from jobs.examine import Reference, examine_beside
from jobs.workspace import Workspace

FORMS = (
    "a layer program or composed block (.py), a unit tree (units.json of the library or of units as code), a unit "
    "as code (.py), a Genesys implementation artefact, or a record with a program (FILE#index or FILE#name in a list)"
)


@dataclass(frozen=True)
class Design:
    """What a file gives: the program, what the rules of units say of it, and its units' tests.

    `source` is None where the units do not make a program; the findings then say why.
    """

    source: str | None
    findings: tuple[Finding, ...] = ()
    tests: str = ""


def check_file(path: Path, config: Config, layout: RunLayout) -> tuple[bool, str]:
    """Verdict and report text. `layout` only says where corpora are kept; nothing else is written there.

    Raises:
        DesignError: the file cannot be read, or holds none of `FORMS`.
        RecordError: it is an artefact or record that lacks what it must have.
    """
    design = read_design(path)
    if design.source is None:
        report = GateReport(passed=False, sandbox="not used")
    else:
        report = _gate(design.source, design.tests, config, layout)
    return _told(report, design, path.name)


def _told(report: GateReport, design: Design, name: str) -> tuple[bool, str]:
    passed = report.passed and not any(item.severity == "reject" for item in design.findings)
    report = dataclasses.replace(report, passed=passed, findings=(*design.findings, *report.findings))
    return passed, to_text(report, name=name)


def _gate(source: str, tests: str, config: Config, layout: RunLayout) -> GateReport:
    space = Workspace(layout, config)
    scale = config.scale
    reference = compose(seed_tree(config.baselines.reference))
    parameters = count_parameters(
        reference, dim=scale.dim, depth=scale.depth, heads=scale.heads, ffn_multiple=scale.ffn_multiple
    )
    with tempfile.TemporaryDirectory() as scratch:
        beside = Reference(reference, parameters)
        report = examine_beside(space, source, beside, Path(scratch))
        if not tests or any(item.code.startswith("static.") for item in report.findings):
            return report
        failed = examine_unit_tests(source, tests, config=config.gate, writable=Path(scratch))
    return dataclasses.replace(report, findings=(*report.findings, *failed))


def read_design(path: Path) -> Design:
    """Reads a design in any of `FORMS`; of a list, the record that the part behind `#` names.

    Raises:
        DesignError: the file cannot be read, or holds none of them.
        RecordError: it is an artefact that lacks what it must have.
    """
    file, wanted = _split(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DesignError(f"{file}: cannot be read ({error}); expected {FORMS}") from error
    if file.suffix != ".json":
        unit = single_unit(text, name=file.stem)
        return Design(text) if unit is None else _of_units(unit)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DesignError(f"{file}: not valid JSON ({error}); expected {FORMS}") from error
    return _of_json(_record(data, wanted, file), file)


def _split(path: Path) -> tuple[Path, str]:
    """A file and what stands behind the `#` of its name, where there is no file with the whole name."""
    name, mark, wanted = path.name.rpartition("#")
    return (path.with_name(name), wanted) if mark and name and not path.exists() else (path, "")


def _record(data: Any, wanted: str, file: Path) -> Any:
    if not isinstance(data, list):
        if wanted:
            raise DesignError(f"{file}: holds no list of records; give it without #{wanted}")
        return data
    records = [record for record in data if isinstance(record, dict)]
    found = [record for record in records if wanted in (str(record.get("index")), record.get("name"))]
    if not wanted or len(found) != 1:
        some = ", ".join(str(record.get("index", record.get("name"))) for record in records[:8])
        raise DesignError(
            f"{file}: holds {len(data)} records, {len(found)} of them named {wanted!r}; say which one with "
            f"{file.name}#INDEX or {file.name}#NAME (its first indices: {some or 'none'})"
        )
    return found[0]


def _of_json(data: Any, file: Path) -> Design:
    if is_artefact(data):
        tree = template_of(data, where=str(file), name=file.stem)
        if tree is None:
            raise RecordError(f"{file}: this artefact has no units yet; expected one that has been implemented")
        return _of_units(tree)
    if isinstance(data, dict) and "program" in data:
        if not isinstance(data["program"], str):
            raise RecordError(f"{file}: field 'program': found {type(data['program']).__name__}, expected a text")
        return Design(data["program"])
    try:
        return _of_units(template_from_json(data)) if is_template(data) else Design(compose(tree_from_json(data)))
    except DesignError as error:
        raise DesignError(f"{file}: {error}") from error


def _of_units(tree: TemplateTree) -> Design:
    """The program of units as code, repaired where that is safe, with all that the rules find."""
    tree, repaired = repair_tree(tree)
    findings = [*repaired, *examine_tree(tree)]
    try:
        return Design(compose_template(tree), tuple(findings), compose_tests(tree))
    except DesignError as error:
        if not any(item.severity == "reject" for item in findings):
            findings.append(finding("unit.compose", str(error)))
        return Design(None, tuple(findings))
