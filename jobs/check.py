"""One design file through the gate, beside the reference baseline, outside any run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from asiarch_hpc.config import Config
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.tree import tree_from_json
from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate.measure import measure
from asiarch_hpc.gate.report import to_text
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.training.backbone import build_model
from jobs.propose import examine_beside
from jobs.workspace import Workspace


def check_file(path: Path, config: Config, layout: RunLayout) -> tuple[bool, str]:
    """Verdict and report text. `layout` only says where corpora are kept; nothing else is written there.

    Raises:
        DesignError: the file cannot be read, or is no unit tree where its name says so.
    """
    space = Workspace(layout, config)
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DesignError(f"{path}: cannot be read ({error}); a Python file or a units.json was expected") from error
    if path.suffix == ".json":
        try:
            source = compose(tree_from_json(json.loads(source)))
        except ValueError as error:  # not JSON, or not a tree
            raise DesignError(f"{path}: no unit tree: {error}") from error
    scale = config.scale
    reference = build_model(
        compose(seed_tree(config.baselines.reference)),
        vocab=space.corpus.vocab,
        scale=scale,
        dim=scale.dim,
        depth=scale.depth,
        seed=config.search.seed,
    )
    measured = measure(reference, space.corpus.vocab, scale.length, config=config.gate)
    with tempfile.TemporaryDirectory() as scratch:
        report = examine_beside(space, source, measured, reference.non_embedding_parameters(), Path(scratch))
    return report.passed, to_text(report, name=path.name)
