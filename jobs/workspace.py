"""What every job of a run works with: its configuration, its corpus, its designs."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import kernels
from asiarch_hpc.config import Config, at_stage, from_dict
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.errors import CorpusError, RecordError
from asiarch_hpc.evaluation.tasks import recall_documents
from asiarch_hpc.records import Experiment, GateReport, from_json
from asiarch_hpc.store.experiments import read_experiment
from asiarch_hpc.store.files import create_json, read_json
from asiarch_hpc.store.layout import RunLayout
from asiarch_hpc.training.corpus import Corpus, open_corpus, prepare


@dataclass(frozen=True)
class Workspace:
    """A run as its jobs see it."""

    layout: RunLayout
    config: Config

    @classmethod
    def of(cls, layout: RunLayout) -> Workspace:
        return cls(layout, from_dict(read_json(layout.record)["config"], source=str(layout.record)))

    def at(self, stage: str | None) -> Workspace:
        """The run as trainings of a stage see it; None: exploration."""
        return replace(self, config=at_stage(self.config, stage))

    @property
    def corpora(self) -> Path:
        """Folder of prepared corpora, shared by all runs beside this one unless configured otherwise."""
        return Path(self.config.data.cache) if self.config.data.cache else self.layout.root.parent / "corpora"

    @property
    def compiled(self) -> Path:
        """Folder of compiled kernels, likewise; each has those of one set of shapes."""
        folder, scale = self.config.executor.kernel_cache, self.config.scale
        shapes = (scale.dim, scale.depth, scale.heads, scale.length, scale.batch_size, scale.micro_batch)
        settings = (*shapes, scale.precision, scale.compile, self.corpus.vocab, torch.__version__, _print_of_kernels())
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
        return (Path(folder) if folder else self.layout.root.parent / "kernels") / f"{scale.name}-{key}"

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus, prepared by whichever job needs it first.

        Raises:
            CorpusError: the text has changed since the run began; its scores could not be compared any more.
        """
        corpus = open_corpus(prepare(self.config.data, root=self.corpora, synthetic=recall_documents))
        pin = self.layout.corpus
        if pin.parent.is_dir() and not create_json(pin, {"key": corpus.key, "source": corpus.source}):
            pinned = read_json(pin)
            if not isinstance(pinned, dict) or pinned.get("key") != corpus.key:
                raise CorpusError(
                    f"{pin}: this run began on another corpus than {corpus.key}: the text, the tokenizer's settings "
                    "or Python's version changed since; restore them, or start a new run"
                )
        return corpus

    def design(self, identifier: str) -> tuple[Experiment, str]:
        """Record and source of an experiment, both checked.

        Raises:
            RecordError: the folder's files do not match their hashes.
        """
        folder = self.layout.experiment(identifier)
        record = read_experiment(folder)
        source = folder.architecture.read_text()
        if design_id(source, where=str(folder.architecture)) != identifier:
            raise RecordError(f"{folder.architecture}: its normalised source does not hash to {identifier}")
        return record, source

    def gate_report(self, identifier: str) -> GateReport:
        path = self.layout.experiment(identifier).gate
        return from_json(GateReport, read_json(path), source=str(path))


@functools.cache
def _print_of_kernels() -> str:
    """A hash of this version's operations and sizes: what another version compiled is of no use, and graphs that expect
    results of other shapes fail."""
    folder = Path(kernels.__file__).parent
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".json")):
        found.update(path.read_bytes())
    return found.hexdigest()
