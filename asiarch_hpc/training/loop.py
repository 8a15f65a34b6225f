"""Trains one design at one scale with one seed, and can be stopped and continued at any step."""

from __future__ import annotations

import functools
import hashlib
import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import ConfigError, PeerLostError, StoreError
from asiarch_hpc.processes import torch_threads
from asiarch_hpc.records import Json
from asiarch_hpc.training import checkpoint
from asiarch_hpc.training.backbone import LanguageModel, build_model
from asiarch_hpc.training.corpus import Corpus
from asiarch_hpc.training.data import Batch, Batches
from asiarch_hpc.training.deepspeed_engine import DeepSpeedEngine, choose_engine
from asiarch_hpc.training.engine import Engine, StepResult, TorchEngine, choose_device
from asiarch_hpc.training.micro_batch import is_out_of_memory
from asiarch_hpc.training.monitor import Cause, Monitor, Peers, TrainingStoppedError
from asiarch_hpc.training.objective import compiles, load_compiler_aside
from asiarch_hpc.training.prefetch import Prefetcher
from asiarch_hpc.training.progress import Progress, TrainOutcome
from asiarch_hpc.training.saving import Saver
from asiarch_hpc.training.schedule import learning_rate
from asiarch_hpc.training.world import World, is_lost_peer

# What may differ between the parts of an interrupted training.
_NOT_DEFINING = (
    "device", "threads", "seeds", "checkpoint_seconds", "step_seconds_limit", "step_multiple_limit", "leak_stop",
    "loss_limit", "loss_rise_limit", "gradient_limit", "keep_weights", "micro_batch", "prefetch", "compile", "match",
    "memory_share", "memory_margin", "engine", "zero_stage",
)  # fmt: skip


class _Flight(NamedTuple):
    """A launched step: its numbers, which may be known later, its learning rate, and its tokens on all processes."""

    result: StepResult
    rate: float
    tokens: int


def train(
    source: str,
    *,
    scale: ScaleConfig,
    dim: int,
    depth: int,
    corpus: Corpus,
    seed: int,
    checkpoint_path: Path,
    on_metrics: Callable[[Json], None],
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
    peers: Peers | None = None,
    world: World | None = None,
) -> TrainOutcome:
    """Trains a design, continuing from `checkpoint_path` where that holds a checkpoint of this very training, made by
    any number of processes.

    On the CPU with one thread, a training of one process, interrupted and continued, gives bit-identical weights. The
    process's number of threads is set to `scale.threads` meanwhile.

    Args:
        source: text of the design.
        scale: optimiser, batch and limits.
        dim: width of the model.
        depth: blocks of the model.
        corpus: where batches come from.
        seed: of the weights and of the order of the data.
        checkpoint_path: written so that at most `scale.checkpoint_seconds` of work can be lost, at a stop, and at the
            end; the final weights are written beside it as `<name>.weights`. `checkpoint.discard` removes it.
        on_metrics: gets one row a step: step (from 1), loss, learning_rate, gradient_norm, step_seconds, tokens
            (so far). Steps after the last checkpoint come again when a killed training is continued.
        should_stop: asked before each step; True in any process ends the training with a checkpoint.
        clock: seconds, monotonic.
        peers: how the reference baseline trained; see Monitor.
        world: the processes that train together, each of which calls this function. Rank 0 alone writes files and
            watches the numbers.

    Raises:
        TrainingStoppedError: with `cause`; the design cannot be built or run, or its numbers rule it out.
        StoreError: checkpoint or weights cannot be written, or processes found different checkpoints.
        PeerLostError: another process of the training is gone or silent.
    """
    world = world or World()
    engine_name = choose_engine(scale, world)
    device = choose_device(scale.device)
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    if compiles(scale.compile, device):
        load_compiler_aside()
    with (
        torch_threads(scale.threads),
        torch.random.fork_rng(devices=gpus),
        world.connected(device) if engine_name == "deepspeed" else nullcontext(),
    ):
        model = _build(source, corpus=corpus, scale=scale, dim=dim, depth=depth, seed=seed)
        torch.manual_seed(seed)
        engine = _engine(model, scale, engine_name, world, seed)
        run = _Run(
            engine=engine,
            batches=Batches(
                corpus.train,
                length=scale.length,
                batch_size=scale.batch_size,
                seed=seed,
                separator=corpus.tokenizer.eos,
                window=scale.packing_window,
            ),
            scale=scale,
            identity=_identity(source, corpus=corpus, scale=scale, dim=dim, depth=depth, seed=seed),
            checkpoint_path=checkpoint_path,
            clock=clock,
            world=world,
            monitor=Monitor(
                loss_limit=scale.loss_limit,
                step_seconds_limit=scale.step_seconds_limit,
                loss_rise_limit=scale.loss_rise_limit,
                gradient_limit=scale.gradient_limit,
                peers=peers,
                leak_margin=scale.leak_stop,
                slow_multiple=scale.step_multiple_limit,
                device=engine.device,
            ),
        )
        finished = run.go(on_metrics, should_stop)
        weights_path = checkpoint_path.with_name(checkpoint_path.name + ".weights") if finished else None
        digest = checkpoint.save_weights(model, weights_path) if weights_path and world.rank == 0 else ""
    progress = run.progress
    return TrainOutcome(
        status="finished" if finished else "interrupted",
        steps=progress.step,
        tokens=progress.tokens,
        first_loss=progress.first_loss,
        final_loss=progress.final_loss,
        seconds=progress.seconds,
        tokens_per_second=progress.tokens / progress.seconds if progress.seconds > 0 else 0.0,
        weights_path=weights_path,
        weights_sha256=digest,
        parameters=model.non_embedding_parameters(),
        device=run.engine.device,
        precision=run.engine.precision,
        resumed=progress.resumed,
        micro_batch=run.engine.micro_batch,
        compiled=run.engine.compiled,
        not_compiled_because=run.engine.not_compiled_because,
        ranks=world.size,
        engine=engine_name,
        documents_given=run.engine.gives_documents,
    )


class _Run:
    """The steps of one training in one process."""

    def __init__(
        self,
        *,
        engine: Engine,
        batches: Batches,
        scale: ScaleConfig,
        identity: str,
        checkpoint_path: Path,
        clock: Callable[[], float],
        world: World,
        monitor: Monitor,
    ) -> None:
        self.engine = engine
        self.progress = Progress()
        self._batches = batches
        self._scale = scale
        self._identity = identity
        self._path = checkpoint_path
        self._clock = clock
        self._world = world
        self._monitor = monitor
        self._landed_at = self._step_seconds = 0.0  # of the last step whose numbers are known

    def go(self, on_metrics: Callable[[Json], None], should_stop: Callable[[], bool]) -> bool:
        """Runs to the last step (True) or until asked to stop (False); either way a checkpoint is left."""
        self._resume()
        with self._source() as batches, self._saver() as saver:
            finished = self._steps(batches, saver, on_metrics, should_stop)
            self._save(saver)
            saver.finish()
        return finished

    def _saver(self) -> Saver:
        return Saver(self._path, seconds=self._scale.checkpoint_seconds, clock=self._clock)

    def _source(self) -> AbstractContextManager[Callable[[int], Batch]]:
        """Where batches come from: a GPU works on while the next ones are prepared."""
        rank, world = self._world.rank, self._world.size
        if self.engine.device == "cpu":
            return nullcontext(functools.partial(self._batches.batch, rank=rank, world=world))
        prefetcher = Prefetcher(
            self._batches, first=self.progress.step, stop=self._scale.steps, depth=self._scale.prefetch, rank=rank,
            world=world, pin=True,
        )  # fmt: skip
        return _prefetching(prefetcher)

    def _steps(
        self,
        batch_of: Callable[[int], Batch],
        saver: Saver,
        on_metrics: Callable[[Json], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        scale = self._scale
        self._landed_at = self._clock()
        flight: _Flight | None = None  # a step whose numbers are read once the next one is launched
        for step in range(self.progress.step, scale.steps):
            # On a GPU one step is under way, and would be followed by the next.
            due = self._world.rank == 0 and saver.due(2 * self._step_seconds)
            stop, due = self._world.any(should_stop(), due)
            if stop or due:
                if flight is not None:
                    self._land(flight, on_metrics)
                    flight = None
                if stop:
                    return False
                self._save(saver)
                self._landed_at = self._clock()
            launched = self._launch(batch_of(step), step)
            if flight is not None:
                self._land(flight, on_metrics)
            flight = launched
            if flight.result.known:
                self._land(flight, on_metrics)
                flight = None
        if flight is not None:
            self._land(flight, on_metrics)
        return True

    def _launch(self, batch: Batch, step: int) -> _Flight:
        scale = self._scale
        rate = learning_rate(
            step,
            steps=scale.steps,
            peak=scale.learning_rate,
            warmup_steps=scale.warmup_steps,
            decay_fraction=scale.decay_fraction,
            schedule=scale.schedule,
            min_ratio=scale.min_lr_ratio,
        )
        with self._faults(step):
            return _Flight(self.engine.step(batch, rate), rate, batch.global_tokens)

    def _land(self, flight: _Flight, on_metrics: Callable[[Json], None]) -> None:
        """Reads a step's numbers, counts, reports and judges them."""
        progress = self.progress
        with self._faults(progress.step):
            loss, gradient_norm = flight.result.loss, flight.result.gradient_norm
        now = self._clock()
        seconds, self._landed_at = now - self._landed_at, now
        self._step_seconds = seconds
        progress.count(loss, flight.tokens, seconds)
        if self._world.rank > 0:
            return
        on_metrics(
            {
                "step": progress.step,
                "loss": loss,
                "learning_rate": flight.rate,
                "gradient_norm": gradient_norm,
                "step_seconds": seconds,
                "tokens": progress.tokens,
            }
        )
        self._monitor.check(progress.step, loss=loss, gradient_norm=gradient_norm, seconds=seconds)

    @contextmanager
    def _faults(self, step: int) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:  # the design's code may do anything
            if self._world.size > 1 and is_lost_peer(error):
                raise PeerLostError(f"step {step + 1}: {error}") from error
            raise _stopped(f"step {step + 1}", error) from error

    def _save(self, saver: Saver) -> None:
        self.progress.lowest_loss = self._monitor.lowest_loss
        state = {"identity": self._identity, "progress": asdict(self.progress), "engine": self.engine.state()}
        if self._world.rank > 0:
            return
        saver.begin(state, done_at=self._landed_at)
        if self.engine.device == "cpu":  # a thread beside it would only take its time
            saver.finish()

    def _resume(self) -> None:
        state = checkpoint.load(self._path, identity=self._identity)
        step = state["progress"]["step"] if state is not None else -1
        if (found := self._world.least(step, -step)) != (step, -step):
            raise StoreError(
                f"{self._path}: this process found the checkpoint of step {step}, others those of steps {found[0]:g} "
                f"to {-found[1]:g} (-1: none); one file for all was expected: is this file system shared by all nodes?"
            )
        if state is None:
            return
        self.engine.restore(state["engine"])
        self.progress = Progress(**state["progress"])
        self.progress.resumed += 1
        self._monitor.lowest_loss = self.progress.lowest_loss


def _build(source: str, *, corpus: Corpus, scale: ScaleConfig, dim: int, depth: int, seed: int) -> LanguageModel:
    try:
        return build_model(source, vocab=corpus.vocab, scale=scale, dim=dim, depth=depth, seed=seed)
    except (Exception, SystemExit) as error:  # the design's code may do anything
        raise _stopped(f"building at dim={dim}, depth={depth}", error) from error


def _engine(model: LanguageModel, scale: ScaleConfig, name: str, world: World, seed: int) -> Engine:
    try:
        return DeepSpeedEngine(model, scale, world, seed=seed) if name == "deepspeed" else TorchEngine(model, scale)
    except (ConfigError, TrainingStoppedError, PeerLostError):
        raise
    except (Exception, SystemExit) as error:  # it runs the design to measure its memory
        raise _stopped("the first pass", error) from error


def _stopped(when: str, error: BaseException) -> TrainingStoppedError:
    cause: Cause = "out_of_memory" if is_out_of_memory(error) else "design_error"
    return TrainingStoppedError(cause, f"{when}: {type(error).__name__}: {error}{_own_frames(error)}")


def _own_frames(error: BaseException) -> str:
    """Where in the design an error arose, for whoever repairs it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith("<asiarch_design_")]
    return "".join(f'\n  File "{f.filename}", line {f.lineno}, in {f.name}\n    {f.line}' for f in frames)


def _identity(source: str, *, corpus: Corpus, scale: ScaleConfig, dim: int, depth: int, seed: int) -> str:
    """Hash of everything that the weights after n steps depend on, but the machine."""
    settings = {name: value for name, value in asdict(scale).items() if name not in _NOT_DEFINING}
    defining = [source, corpus.key, settings, dim, depth, seed]
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _prefetching(prefetcher: Prefetcher) -> Iterator[Callable[[int], Batch]]:
    with prefetcher:
        yield prefetcher.batch
