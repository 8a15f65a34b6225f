"""Job `train`: trains one design at one scale with one seed, then evaluates the weights.

Three processes take part. The candidate's code runs in two children, one that trains (or several together) and one that
turns token ids into hidden states; all are confined. This process never loads the candidate: it hashes the weights,
makes probabilities of the states, checks the numbers, and writes the records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asiarch_hpc.errors import (
    ConfigError,
    DesignError,
    EvaluationError,
    PeerLostError,
    RecordError,
    StoppedError,
    StoreError,
    TrainingError,
)
from asiarch_hpc.records import Evaluation, GateReport, Json, TrialRecord, from_json, to_json
from asiarch_hpc.store.curves import write_curves
from asiarch_hpc.store.files import json_bytes, read_json, write_json
from asiarch_hpc.store.layout import TrialLayout
from jobs.entry import Attempt
from jobs.evaluate import evaluate_trial, trial_weights
from jobs.peers import peers
from jobs.ranks import LOST
from jobs.sizing import resized
from jobs.training import Training
from jobs.workspace import Workspace

_OF_THE_OUTCOME = (
    "parameters", "steps", "tokens", "first_loss", "final_loss", "tokens_per_second", "weights_sha256", "device",
    "precision", "resumed", "sandbox", "micro_batch", "compiled", "not_compiled_because", "ranks",
    "engine", "network", "documents_given",
)  # fmt: skip
CURVES = ("step", "loss", "learning_rate", "gradient_norm", "step_seconds", "tokens")
METRICS_BYTES = 1 << 30  # more than any training's rows need; the file is read whole


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
    reference = arguments.get("reference")
    trial = attempt.layout.experiment(identifier).trial(name)
    if (payload := _finished(trial, keep_weights=space.config.scale.keep_weights)) is not None:
        return payload
    trial.root.mkdir(parents=True, exist_ok=True)
    design, source = space.design(identifier)
    gate = space.gate_report(identifier)
    try:
        if arguments.get("scale") is not None:
            gate = _resized(space, source, gate, arguments.get("match"))
        if attempt.rank == 0:
            print(f"attempt {attempt.token} at {identifier} {name}: dim {gate.dim}, depth {gate.depth}")
        training = Training(
            attempt=attempt,
            space=space,
            trial=trial,
            source=source,
            gate=gate,
            seed=seed,
            beside=peers(space, identifier, name, reference),
            baseline=design.role == "baseline",
        )
        if attempt.rank > 0:  # rank 0 judges the training and evaluates it
            training.run()
            return {}
        outcome = _train(training)
        evaluation = _evaluate(training, outcome)
    except FailedTrialError as error:
        if attempt.rank > 0:
            raise
        attempt.check_current()
        # Later designs are compared with one that was behind, as far as it came.
        if error.cause == "behind" and _left_by_training(trial.metrics, METRICS_BYTES):
            _keep_curves(trial)
        failure = {"stage": error.stage, "cause": error.cause, "message": str(error)[:4000], "attempt": attempt.token}
        write_json(trial.failure, failure)
        shutil.rmtree(trial.live, ignore_errors=True)
        raise
    record = _record(attempt, space, trial, gate, seed, outcome, evaluation)
    together = f", {record.ranks} processes" if record.ranks > 1 else ""
    print(
        f"trained {record.steps} steps, {record.tokens} tokens in {record.train_seconds:.1f} s on {record.device} "
        f"({record.precision}{together}): loss {record.first_loss:.4f} -> {record.final_loss:.4f}\n"
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


def _train(training: Training) -> dict[str, Any]:
    """Runs the training and judges its end."""
    trial, answer = training.trial, training.run()
    if (answer.cause or "").startswith("killed") or answer.cause == LOST:
        # The system's or an administrator's doing more often than the design's, which the gate has seen run.
        raise ChildProcessError(f"the training's process was {answer.cause} ({answer.error})")
    if not answer.ok:
        raise FailedTrialError("training", answer.cause or "unknown", f"{answer.error}\n{answer.traceback}".strip())
    result: dict[str, Any] = answer.result
    if "disk" in result:
        raise StoreError(result["disk"])
    if "settings" in result:
        raise ConfigError(result["settings"])
    if "peer" in result:
        raise PeerLostError(f"{trial.root.name}: {result['peer']}; no process said why it ended")
    if failed := result.get("failed"):
        raise FailedTrialError("training", failed["cause"], failed["message"])
    if result["status"] == "interrupted":
        training.attempt.check_current()
        raise StoppedError(f"{trial.root.name}: stopped at step {result['steps']}, with a checkpoint")
    for path, limit in ((trial_weights(trial), None), (trial.metrics, METRICS_BYTES)):
        if not _left_by_training(path, limit):
            raise FailedTrialError("training", "output", f"{path.name}: not the file that a training leaves")
    counted, tolerance = training.gate.parameters, training.space.config.gate.parameter_tolerance
    if counted and not abs(result["parameters"] / counted - 1) <= tolerance:
        raise FailedTrialError(
            "training",
            "size",
            f"{result['parameters']} parameters were trained, {counted} were counted at dim {training.gate.dim} and "
            f"depth {training.gate.depth} when its size was matched; build the same parameters wherever it is built",
        )
    if answer.rung == "limits":
        print("the design's code was held by limits alone: it could read and change whatever this user can")
    return {**result, "sandbox": answer.rung, "network": training.opens_network(result["ranks"])}


def _left_by_training(path: Path, limit: int | None) -> bool:
    """Whether it is a plain file of at most `limit` bytes: the design's code could have made it something else."""
    return not path.is_symlink() and path.is_file() and (limit is None or path.stat().st_size <= limit)


def _evaluate(training: Training, outcome: dict[str, Any]) -> Evaluation:
    try:
        return evaluate_trial(
            training.attempt,
            training.space,
            training.trial,
            training.source,
            training.gate,
            training.seed,
            outcome["weights_sha256"],
            training.baseline,
        )
    except EvaluationError as error:
        if training.attempt.should_stop():  # Slurm's SIGTERM reaches the model's processes as well
            raise StoppedError(f"{training.trial.root.name}: stopped while it was evaluated: {error}") from error
        raise FailedTrialError("evaluation", "refused", str(error)) from error


def _finish(trial: TrialLayout, record: TrialRecord, evaluation: Evaluation, *, keep_weights: bool) -> None:
    """Records last: until `evaluation.json` is there, another attempt does the rest again from the checkpoint."""
    _keep_curves(trial)
    write_json(trial.record, to_json(record))
    write_json(trial.evaluation, to_json(evaluation))
    _tidy(trial, keep_weights=keep_weights)


def _tidy(trial: TrialLayout, *, keep_weights: bool) -> None:
    trial.metrics.unlink(missing_ok=True)
    if keep_weights and trial_weights(trial).exists():
        trial_weights(trial).rename(trial.weights)
    shutil.rmtree(trial.live, ignore_errors=True)


def _finished(trial: TrialLayout, *, keep_weights: bool) -> Json | None:
    """The payload of an attempt that died behind its records and before its message; None: there is work to do."""
    if not (trial.record.exists() and trial.evaluation.exists()):
        return None
    try:
        record = from_json(TrialRecord, read_json(trial.record), source=str(trial.record))
        content = read_json(trial.evaluation)
        evaluation = from_json(Evaluation, content, source=str(trial.evaluation))
    except RecordError:
        return None
    if hashlib.sha256(json_bytes(content)).hexdigest() != record.evaluation_sha256:
        return None
    _tidy(trial, keep_weights=keep_weights)
    return {"trial": to_json(record), "evaluation": to_json(evaluation)}


def _keep_curves(trial: TrialLayout) -> None:
    if trial.metrics.exists():
        rows = {row["step"]: row for row in _metrics(trial.metrics)}
        write_curves([{name: row[name] for name in CURVES} for _, row in sorted(rows.items())], trial.curves)


def _metrics(path: Path) -> Iterator[Json]:
    """Rows of a live metrics file; a line torn by a kill is left out, its step was done again."""
    for line in path.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
