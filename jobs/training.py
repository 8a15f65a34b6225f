"""One training: the design's code in a sandbox, or in one for each process that trains it."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from asiarch_hpc.config import ranks_per_node
from asiarch_hpc.errors import ConfigError, CorpusError, PeerLostError
from asiarch_hpc.gate.sandbox import Outcome, run_isolated
from asiarch_hpc.records import GateReport, Json
from asiarch_hpc.store.layout import TrialLayout
from asiarch_hpc.training.corpus import Corpus
from asiarch_hpc.training.loop import train
from asiarch_hpc.training.monitor import Peers, TrainingStoppedError
from asiarch_hpc.training.world import World
from jobs import compiled
from jobs.devices import uses_gpu
from jobs.entry import Attempt, SupersededError
from jobs.ranks import train_together
from jobs.workspace import Workspace

CLAIM_CHECK_SECONDS = 5.0  # how often a training looks whether it was replaced


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and for which attempt. `beside` are the curves that it is compared with, `baseline`
    whether it is one of ours, whose compiled kernels are kept for others."""

    attempt: Attempt
    space: Workspace
    trial: TrialLayout
    source: str
    gate: GateReport
    seed: int
    beside: Peers | None
    baseline: bool

    def run(self) -> Outcome:
        """Trains; the result is the outcome of `train` as JSON, or one of `failed` (by the design: `cause` and
        `message`), `disk`, `settings` and `peer` (what an error of the disk's, of the run's settings, or of another
        process says).

        Raises:
            SandboxError: no sandbox works here.
            PeerLostError: in a task of another rank than 0: rank 0 has ended.
        """
        token = self.attempt.token
        if self.attempt.rank == 0:
            self.trial.live.mkdir(exist_ok=True)
            self.trial.metrics.touch()
        config, corpus = self.space.config, self.space.corpus  # read here: the sandbox shows none of its files
        gpu = uses_gpu(config.scale.device, config.gate.sandbox)
        return train_together(
            functools.partial(self._confined, corpus, gpu),
            attempt=self.attempt,
            config=config.executor,
            board=self.trial.root / f"ranks-{token}",
            meeting=self.trial.live / f"meeting-{token}.json",
        )

    def opens_network(self, ranks: int) -> bool:
        """Whether the design's code can reach the network: processes that train together do."""
        return ranks > 1 or self.space.config.scale.engine == "deepspeed"

    def _confined(self, corpus: Corpus, gpu: bool, world: World) -> Outcome:
        """One process, in its sandbox."""
        config, trial = self.space.config, self.trial
        identifier = trial.root.parent.parent.name
        # The child's home: torch and CUDA drivers keep caches there, which are no part of the trial. Of the trial's
        # files it may write its own, and none that says how good it is; it looks at the claims to see whether it was
        # replaced.
        with tempfile.TemporaryDirectory(prefix="asiarch-train-") as scratch:
            kernels = Path(scratch) / "kernels"
            if gpu:
                compiled.unpack(self.space.compiled, kernels)
            own, claims = [trial.live, trial.metrics], [self.attempt.layout.attempts(self.attempt.work)]
            answer = run_isolated(
                functools.partial(self._child, corpus, world, kernels),
                timeout_s=config.executor.train.timeout_min * 60,
                memory_gb=config.executor.train.memory_gb / ranks_per_node(config.executor.train),
                writable=[Path(scratch), *(own if world.rank == 0 else [])],
                readable=[*claims, *(own if world.rank > 0 else [])],
                rung=config.gate.sandbox,
                threads=config.scale.threads,
                gpu=gpu,
                network=self.opens_network(world.size),
            )
            if gpu and answer.ok and world.rank == 0 and self.baseline:
                compiled.pack(kernels, self.space.compiled, identifier)
        return answer

    def _child(self, corpus: Corpus, world: World, kernels: Path) -> Json:
        """What the sandbox holds; its outcome crosses as JSON."""
        os.environ.update(compiled.environment(kernels))
        scale, gate = self.space.config.scale, self.gate
        with ExitStack() as files:
            on_metrics = self._metrics_writer(files) if world.rank == 0 else lambda row: None
            try:
                outcome = train(
                    self.source,
                    # A design that works in one precision alone trains in that one.
                    scale=replace(scale, precision=gate.only_precision) if gate.only_precision else scale,
                    dim=gate.dim,
                    depth=gate.depth,
                    corpus=corpus,
                    seed=self.seed,
                    checkpoint_path=self.trial.checkpoint,
                    on_metrics=on_metrics,
                    should_stop=_stop_asker(self.attempt),
                    clock=time.monotonic,
                    peers=self.beside,
                    world=world,
                )
            except TrainingStoppedError as error:
                return {"failed": {"cause": error.cause, "message": str(error)}}
            except PeerLostError as error:
                return {"peer": str(error)}
            except OSError as error:  # the disk's fault, not the design's
                return {"disk": str(error)}
            except (ConfigError, CorpusError) as error:  # what this machine or this text cannot do for any design
                return {"settings": str(error)}
        return {**asdict(outcome), "weights_path": str(outcome.weights_path)}

    def _metrics_writer(self, files: ExitStack) -> Callable[[Json], None]:
        metrics = files.enter_context(self.trial.metrics.open("a"))

        def write(row: Json) -> None:
            metrics.write(json.dumps({**row, "attempt": self.attempt.token}) + "\n")
            metrics.flush()

        return write


def _stop_asker(attempt: Attempt) -> Callable[[], bool]:
    """Stops a training that was told to, and one that a newer attempt has replaced."""
    checked = time.monotonic()

    def should_stop() -> bool:
        nonlocal checked
        if time.monotonic() - checked >= CLAIM_CHECK_SECONDS:
            checked = time.monotonic()
            try:
                attempt.check_current()
            except SupersededError:
                return True
        return attempt.should_stop()

    return should_stop
