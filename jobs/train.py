"""Job `train`: trains one design at one scale with one seed, then evaluates the weights.

Three processes take part. The candidate's code runs in two children, one that trains and one that turns token ids
into hidden states; both are confined. This process never loads the candidate: it hashes the weights, makes
probabilities of the states, checks the numbers, and writes the records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import DesignError, EvaluationError, StoppedError, StoreError, TrainingError
from asiarch_hpc.gate.sandbox import run_isolated
from asiarch_hpc.records import Evaluation, GateReport, Json, TrialRecord, to_json
from asiarch_hpc.store.curves import write_curves
from asiarch_hpc.store.files import json_bytes, write_json
from asiarch_hpc.store.layout import TrialLayout
from asiarch_hpc.training.loop import TrainOutcome, train
from asiarch_hpc.training.monitor import Peers, TrainingStoppedError
from jobs import compiled
from jobs.devices import uses_gpu
from jobs.entry import Attempt, SupersededError
from jobs.evaluate import evaluate_trial, trial_weights
from jobs.peers import peers
from jobs.sizing import resized
from jobs.workspace import Workspace

_OF_THE_OUTCOME = (
    "parameters", "steps", "tokens", "first_loss", "final_loss", "tokens_per_second", "weights_sha256", "device",
    "precision", "resumed", "sandbox", "micro_batch", "compiled",
)  # fmt: skip
CURVES = ("step", "loss", "learning_rate", "gradient_norm", "step_seconds", "tokens")
METRICS_BYTES = 1 << 30  # more than any training's rows need; the file is read whole
CLAIM_CHECK_SECONDS = 5.0  # how often a training looks whether it was replaced


class FailedTrialError(TrainingError):
    """A trial ended because of its design; `stage` and `cause` are what the failure is counted under."""

    def __init__(self, stage: str, cause: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.cause = cause


def run(attempt: Attempt, arguments: Json) -> Json:
    """Trains and evaluates; returns the payload of the job's message.

    Raises:
        FailedTrialError: the design failed; `failure.json` says how.
        StoppedError: told to stop; the checkpoint is written.
    """
    space = Workspace.of(attempt.layout).at(arguments.get("scale"))
    identifier, name, seed = arguments["experiment"], arguments["trial"], arguments["seed"]
    trial = attempt.layout.experiment(identifier).trial(name)
    trial.root.mkdir(parents=True, exist_ok=True)
    _, source = space.design(identifier)
    gate = space.gate_report(identifier)
    try:
        if arguments.get("scale") is not None:
            gate = _resized(space, source, gate, arguments.get("match"))
        print(f"attempt {attempt.token} at {identifier} {name}: dim {gate.dim}, depth {gate.depth}")
        beside = peers(space, identifier, name, arguments.get("reference"))
        outcome = _train(attempt, space, trial, source, gate, seed, beside, arguments.get("reference"))
        evaluation = _evaluate(attempt, space, trial, source, gate, seed, outcome)
    except FailedTrialError as error:
        attempt.check_current()
        # Later designs are compared with one that was behind, as far as it came.
        if error.cause == "behind" and _left_by_training(trial.metrics, METRICS_BYTES):
            _keep_curves(trial)
        failure = {"stage": error.stage, "cause": error.cause, "message": str(error)[:4000], "attempt": attempt.token}
        write_json(trial.failure, failure)
        shutil.rmtree(trial.live, ignore_errors=True)
        raise
    record = _record(attempt, space, trial, gate, seed, outcome, evaluation)
    print(
        f"trained {record.steps} steps, {record.tokens} tokens in {record.train_seconds:.1f} s on {record.device} "
        f"({record.precision}): loss {record.first_loss:.4f} -> {record.final_loss:.4f}\n"
        f"evaluated in {evaluation.seconds:.1f} s: {evaluation.bits_per_byte:.4f} bits per byte (untrained "
        f"{evaluation.untrained_bits_per_byte:.4f}), benchmark {evaluation.benchmark:.3f}"
    )
    attempt.check_current()
    _finish(trial, record, evaluation, keep_weights=space.config.scale.keep_weights)
    return {"trial": to_json(record), "evaluation": to_json(evaluation)}


def _resized(space: Workspace, source: str, gate: GateReport, reference: str | None) -> GateReport:
    try:
        return resized(space, source, gate, reference)
    except DesignError as error:
        raise FailedTrialError("training", "size", str(error)) from error


def _record(
    attempt: Attempt,
    space: Workspace,
    trial: TrialLayout,
    gate: GateReport,
    seed: int,
    outcome: dict[str, Any],
    evaluation: Evaluation,
) -> TrialRecord:
    return TrialRecord(
        experiment=trial.root.parent.parent.name,
        name=trial.root.name,
        scale=space.config.scale.name,
        seed=seed,
        attempt=attempt.token,
        dim=gate.dim,
        depth=gate.depth,
        train_seconds=outcome["seconds"],
        corpus_key=space.corpus.key,
        evaluation_sha256=hashlib.sha256(json_bytes(to_json(evaluation))).hexdigest(),
        **{name: outcome[name] for name in _OF_THE_OUTCOME},
    )


def _train(
    attempt: Attempt,
    space: Workspace,
    trial: TrialLayout,
    source: str,
    gate: GateReport,
    seed: int,
    beside: Peers | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """Runs the training in a confined child; the outcome crosses as JSON."""
    corpus, config = space.corpus, space.config
    resources = config.executor.train
    gpu = uses_gpu(config.scale.device, config.gate.sandbox)
    identifier = trial.root.parent.parent.name

    trial.live.mkdir(exist_ok=True)
    trial.metrics.touch()

    def child() -> Json:
        os.environ.update(compiled.environment(kernels))
        with trial.metrics.open("a") as metrics:

            def on_metrics(row: Json) -> None:
                metrics.write(json.dumps({**row, "attempt": attempt.token}) + "\n")
                metrics.flush()

            try:
                outcome = train(
                    source,
                    scale=_scale(config.scale, gate),
                    dim=gate.dim,
                    depth=gate.depth,
                    corpus=corpus,
                    seed=seed,
                    checkpoint_path=trial.checkpoint,
                    on_metrics=on_metrics,
                    should_stop=_stop_asker(attempt),
                    clock=time.monotonic,
                    peers=beside,
                )
            except TrainingStoppedError as error:
                return {"failed": {"cause": error.cause, "message": str(error)}}
            except OSError as error:  # the disk's fault, not the design's
                return {"disk": str(error)}
        return _outcome_json(outcome)

    # The child's home: torch and CUDA drivers keep caches there, which are no part of the trial. Of the trial's files
    # it may write its own, and none that says how good it is; it looks at the claims to see whether it was replaced.
    with tempfile.TemporaryDirectory(prefix="asiarch-train-") as scratch:
        kernels = Path(scratch) / "kernels"
        if gpu:
            compiled.unpack(space.compiled, (reference, identifier), kernels)
        answer = run_isolated(
            child,
            timeout_s=resources.timeout_min * 60,
            memory_gb=resources.memory_gb,
            writable=[Path(scratch), trial.live, trial.metrics],
            readable=[attempt.layout.attempts(attempt.work)],
            rung=config.gate.sandbox,
            threads=config.scale.threads,
            gpu=gpu,
        )
        if gpu and answer.ok:
            compiled.pack(kernels, space.compiled, identifier)
    if (answer.cause or "").startswith("killed"):
        # The system's or an administrator's doing more often than the design's, which the gate has seen run.
        raise ChildProcessError(f"the training's process was {answer.cause} ({answer.error})")
    if not answer.ok:
        raise FailedTrialError("training", answer.cause or "unknown", f"{answer.error}\n{answer.traceback}".strip())
    result: dict[str, Any] = answer.result
    if "disk" in result:
        raise StoreError(result["disk"])
    if failed := result.get("failed"):
        raise FailedTrialError("training", failed["cause"], failed["message"])
    if result["status"] == "interrupted":
        attempt.check_current()
        raise StoppedError(f"{trial.root.name}: stopped at step {result['steps']}, with a checkpoint")
    for path, limit in ((trial_weights(trial), None), (trial.metrics, METRICS_BYTES)):
        if not _left_by_training(path, limit):
            raise FailedTrialError("training", "output", f"{path.name}: not the file that a training leaves")
    if answer.rung == "limits":
        print("the design's code was held by limits alone: it could read and change whatever this user can")
    return {**result, "sandbox": answer.rung}


def _left_by_training(path: Path, limit: int | None) -> bool:
    """Whether it is a plain file of at most `limit` bytes: the design's code could have made it something else."""
    return not path.is_symlink() and path.is_file() and (limit is None or path.stat().st_size <= limit)


def _scale(scale: ScaleConfig, gate: GateReport) -> ScaleConfig:
    """The run's scale; a design that works in one precision alone trains in that one."""
    return replace(scale, precision=gate.only_precision) if gate.only_precision else scale


def _evaluate(
    attempt: Attempt,
    space: Workspace,
    trial: TrialLayout,
    source: str,
    gate: GateReport,
    seed: int,
    outcome: dict[str, Any],
) -> Evaluation:
    try:
        return evaluate_trial(attempt, space, trial, source, gate, seed, outcome["weights_sha256"])
    except EvaluationError as error:
        raise FailedTrialError("evaluation", "refused", str(error)) from error


def _finish(trial: TrialLayout, record: TrialRecord, evaluation: Evaluation, *, keep_weights: bool) -> None:
    """Records last: until `evaluation.json` is there, another attempt does the rest again from the checkpoint."""
    _keep_curves(trial)
    write_json(trial.record, to_json(record))
    write_json(trial.evaluation, to_json(evaluation))
    trial.metrics.unlink(missing_ok=True)
    if keep_weights:
        trial_weights(trial).rename(trial.weights)
    shutil.rmtree(trial.live, ignore_errors=True)


def _keep_curves(trial: TrialLayout) -> None:
    if trial.metrics.exists():
        rows = {row["step"]: row for row in _metrics(trial.metrics)}
        write_curves([{name: row[name] for name in CURVES} for _, row in sorted(rows.items())], trial.curves)


def _metrics(path: Path) -> Iterator[Json]:
    """Rows of a live metrics file; a line torn by a kill is left out, its step was done again."""
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


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


def _outcome_json(outcome: TrainOutcome) -> Json:
    return {**asdict(outcome), "weights_path": str(outcome.weights_path)}
