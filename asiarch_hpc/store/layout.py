"""Every path of a run. No other module joins names under `results/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asiarch_hpc.errors import ConfigError

SHARED = ("corpora", "kernels")  # folders beside the runs
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class TrialLayout:
    """Files of one trial, `experiments/<shard>/<id>/trials/<name>/`."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "trial.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        return self.root / "curves.zarr.zip"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def failure(self) -> Path:
        return self.root / "failure.json"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def live(self) -> Path:
        """What the training itself writes: the design's code runs in it, so nothing else of the trial lies there."""
        return self.root / "live"

    @property
    def checkpoint(self) -> Path:
        return self.live / "checkpoint.pt"

    @property
    def weights(self) -> Path:
        return self.root / "weights.pt"


@dataclass(frozen=True, slots=True)
class ExperimentLayout:
    """Files of one experiment, `experiments/<first two digits>/<id>/`."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "experiment.json"

    @property
    def architecture(self) -> Path:
        return self.root / "architecture.py"

    @property
    def units(self) -> Path:
        return self.root / "units.json"

    @property
    def motivation(self) -> Path:
        return self.root / "motivation.md"

    @property
    def proposal(self) -> Path:
        return self.root / "proposal.json"

    @property
    def gate(self) -> Path:
        return self.root / "gate.json"

    @property
    def prints(self) -> Path:
        """Prints of code and behaviour, by which a repetition of this design is recognised."""
        return self.root / "prints.json"

    @property
    def assessment(self) -> Path:
        return self.root / "assessment.json"

    @property
    def score(self) -> Path:
        return self.root / "score.json"

    @property
    def exchanges(self) -> Path:
        """Every exchange with a language model about this design."""
        return self.root / "agents.jsonl"

    @property
    def published(self) -> Path:
        """What others published about an imported design."""
        return self.root / "published.json"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    def trial(self, name: str) -> TrialLayout:
        return TrialLayout(self.trials / name)


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Files of one run, `results/<run>/`."""

    root: Path

    @classmethod
    def of(cls, results: Path, run: str) -> RunLayout:
        """The layout of a run by name.

        Raises:
            ConfigError: a name that is no plain folder name.
        """
        if not RUN_NAME.fullmatch(run) or run in SHARED:
            raise ConfigError(
                f"run name {run!r}: letters, digits, '_', '-' and '.' were expected (at most 64, none of {SHARED})"
            )
        return cls((results / run).absolute())

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def corpus(self) -> Path:
        """Which corpus the run is trained on."""
        return self.root / "corpus.json"

    @property
    def noise(self) -> Path:
        """The spread over seeds that was measured by this run."""
        return self.root / "noise.json"

    @property
    def given_noise(self) -> Path:
        """Spreads over seeds that other runs measured and this one was given, by scale."""
        return self.root / "noise-given.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def inbox(self) -> Path:
        return self.root / "inbox"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def experiments(self) -> Path:
        return self.root / "experiments"

    @property
    def services(self) -> Path:
        """Language-model servers of the run."""
        return self.root / "services"

    def service(self, name: str) -> Path:
        return self.services / f"{name}.json"

    def drain(self, name: str) -> Path:
        """The controller's wish that a server ends; its job looks for it."""
        return self.services / f"{name}.drain"

    @property
    def transcripts(self) -> Path:
        return self.root / "transcripts"

    def transcript(self, work: str) -> Path:
        """Exchanges of agent work, while it is under way, and for good where it made no experiment."""
        return self.transcripts / f"{work}.jsonl"

    def lease(self, epoch: int) -> Path:
        return self.root / f"lease.{epoch:06d}.json"

    def leases(self) -> list[int]:
        """Epochs of the lease files present, ascending."""
        found = (re.fullmatch(r"lease\.(\d{6})\.json", path.name) for path in self.root.glob("lease.*.json"))
        return sorted(int(match.group(1)) for match in found if match)

    def generation(self, number: int) -> Path:
        return self.pool / f"{number:06d}.json"

    def stage(self, name: str) -> Path:
        """Who was promoted to a stage and why, and the results there; made from the rest of the tree."""
        return self.root / "stages" / f"{name}.json"

    def message(self, job: str, restart: int) -> Path:
        return self.inbox / f"{job}.{restart}.json"

    def job_folder(self, tag: str) -> Path:
        """submitit's files of one submission."""
        return self.jobs / tag

    def attempts(self, work: str) -> Path:
        """Claims of the attempts at one piece of work: empty files `<submission>.<restart>`."""
        return self.jobs / "attempts" / work

    def experiment(self, identifier: str) -> ExperimentLayout:
        return ExperimentLayout(self.experiments / identifier[:2] / identifier)

    def all_experiments(self) -> Iterator[ExperimentLayout]:
        """Every experiment folder, in order of id; damaged and temporary names are left out."""
        if not self.experiments.is_dir():
            return
        for shard in sorted(p for p in self.experiments.iterdir() if len(p.name) == 2 and p.is_dir()):
            for folder in sorted(shard.iterdir()):
                if "." not in folder.name:
                    yield ExperimentLayout(folder)
