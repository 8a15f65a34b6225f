"""Job `propose`: makes a design, passes it through the gate, and writes the experiment, admitted or not."""

from __future__ import annotations

import functools
import itertools
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from asiarch_hpc.agents.recombine import Proposal, proposals
from asiarch_hpc.config import Config
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.hashing import design_id, source_sha256
from asiarch_hpc.designs.seeds import seed_tree
from asiarch_hpc.designs.tree import UnitTree, tree_from_json
from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate.check import check, find_device
from asiarch_hpc.gate.checks.subject import Precision
from asiarch_hpc.records import Experiment, GateReport, Generation, Json, from_json, to_json
from asiarch_hpc.search import population
from asiarch_hpc.search.policies import Choice, Selection, policy
from asiarch_hpc.store.experiments import read_experiment, write_experiment
from asiarch_hpc.store.files import read_json
from asiarch_hpc.training.backbone import LanguageModel, build_model, count_parameters
from asiarch_hpc.training.tuner import match_size
from jobs.entry import Attempt
from jobs.workspace import Workspace


def baseline(attempt: Attempt, arguments: Json) -> Json:
    """Writes a seed design as baseline. The reference sets the size that all others are matched to."""
    space = Workspace.of(attempt.layout)
    name = arguments["design"]
    tree = seed_tree(name)
    source = compose(tree)
    report = examine(space, source, reference=arguments["reference"], scratch=attempt.layout.jobs)
    record = Experiment(
        id=design_id(source),
        name=name,
        role="baseline",
        form="tree",
        operator="seed",
        proposer="seed",
        policy=space.config.search.policy,
        source_sha256=source_sha256(source.encode()),
        created=_now(),
    )
    motivation = f"# {name}\n\nA seed design, trained as a baseline: every other design is compared with it.\n"
    return _store(attempt, record, source, motivation, report, tree)


def candidate(attempt: Attempt, arguments: Json) -> Json:
    """Draws the design of a slot's attempt from the batch's stream of proposals."""
    space = Workspace.of(attempt.layout)
    slot, number = arguments["slot"], arguments["attempt"]
    breeding = Breeding(space, arguments["generation"], slot)
    proposal, selection = breeding.element(population.element(slot, number, space.config.search))
    report = examine(space, proposal.source, reference=arguments["reference"], scratch=attempt.layout.jobs)
    used = [(selection.parent, *selection.references)[position] for position in proposal.parents]
    record = Experiment(
        id=proposal.id,
        name=proposal.name,
        role="candidate",
        form="tree",
        operator=proposal.operator,
        proposer=space.config.search.proposer,
        policy=space.config.search.policy,
        source_sha256=source_sha256(proposal.source.encode()),
        created=_now(),
        slot=slot,
        attempt=number,
        generation=arguments["generation"],
        parents=tuple(breeding.identifier(choice) for choice in used),
        references=tuple(breeding.identifier(choice) for choice in selection.references),
    )
    return _store(attempt, record, proposal.source, proposal.motivation, report, proposal.tree)


class Breeding:
    """The stream of proposals of one batch, the same in every job: seed, batch and pool generation determine it."""

    def __init__(self, space: Workspace, generation: int, slot: int) -> None:
        path = space.layout.generation(generation)
        self._space = space
        self._search = space.config.search
        self._generation = from_json(Generation, read_json(path), source=str(path))
        self._batch = population.batch_of(slot, self._search)
        self._policy = policy(self._search.policy, self._search)
        self._tree = functools.cache(self._read_tree)

    def element(self, index: int) -> tuple[Proposal, Selection]:
        """The stream's element of that index, with the designs that it was drawn from."""
        stream = proposals(self._rng, self._draw, self._search.operators, frozenset(self._generation.tried))
        return next(itertools.islice(stream, index, None)), self._select(self._rng(index))

    def identifier(self, choice: Choice) -> str:
        """The id of a design to breed from; that of a seed design is its source's, whether it was trained or not."""
        return choice.id if choice.kind == "experiment" else design_id(compose(seed_tree(choice.id)))

    def _rng(self, index: int) -> random.Random:
        return random.Random(f"asiarch/{self._search.seed}/{self._batch}/{index}")

    def _draw(self, rng: random.Random) -> tuple[UnitTree, list[UnitTree]]:
        selection = self._select(rng)
        return self._tree(selection.parent), [self._tree(choice) for choice in selection.references]

    def _select(self, rng: random.Random) -> Selection:
        return self._policy.select(self._generation, self._search.seed_designs, rng)

    def _read_tree(self, choice: Choice) -> UnitTree:
        if choice.kind == "seed":
            return seed_tree(choice.id)
        folder = self._space.layout.experiment(choice.id)
        read_experiment(folder)
        tree = tree_from_json(read_json(folder.units))
        if design_id(compose(tree)) != choice.id:
            raise DesignError(f"{folder.units}: this tree does not compose to design {choice.id}; it was edited")
        return tree


@dataclass(frozen=True)
class Reference:
    """The reference baseline, which every other design is held against."""

    source: str
    parameters: int


def examine(space: Workspace, source: str, *, reference: str | None, scratch: Path) -> GateReport:
    """The gate's report on a design, beside the reference baseline's (None: it is the reference itself)."""
    if reference is None:
        return examine_beside(space, source, None, scratch)
    report, (_, text) = space.gate_report(reference), space.design(reference)
    return examine_beside(space, source, Reference(text, report.parameters), scratch)


def examine_beside(space: Workspace, source: str, reference: Reference | None, scratch: Path) -> GateReport:
    """The gate's report on a design of the reference's size; at the run's size where there is no reference."""
    scale, config = space.config.scale, space.config.gate
    parameters = _count(source, space, scale.dim, scale.depth) if reference is None else reference.parameters

    def size() -> tuple[int, int]:
        if reference is None:
            return scale.dim, scale.depth
        return match_size(
            functools.partial(_count, source, space),
            target=parameters,
            reference_dim=scale.dim,
            reference_depth=scale.depth,
            dim_step=config.dim_step,
            tolerance=config.parameter_tolerance,
        )

    def build(text: str, dim: int, depth: int, vocab: int) -> LanguageModel:
        return build_model(text, vocab=vocab, scale=scale, dim=dim, depth=depth, seed=space.config.search.seed)

    return check(
        source,
        config=config,
        build=functools.partial(build, source),
        build_reference=(
            None if reference is None else functools.partial(build, reference.source, scale.dim, scale.depth)
        ),
        vocab=space.corpus.vocab,
        length=scale.length,
        size=size,
        target_parameters=parameters,
        text=_text(space),
        seed=space.config.search.seed,
        writable=scratch,
        reference_size=(scale.dim, scale.depth),
        precision=_training_precision(space.config),
        attention=scale.attention,
    )


def _training_precision(config: Config) -> Precision:
    """The precision that trials are expected to train in, without a look at CUDA, which would spoil it for children;
    a GPU is taken to have bf16."""
    if config.scale.precision != "auto":
        return "bf16" if config.scale.precision == "bf16" else "fp32"
    gpu = config.executor.train.gpus > 0 and config.scale.device == "auto"
    return "bf16" if gpu or find_device(config.scale.device) == "cuda" else "fp32"


def _count(source: str, space: Workspace, dim: int, depth: int) -> int:
    scale = space.config.scale
    return count_parameters(source, dim=dim, depth=depth, heads=scale.heads, ffn_multiple=scale.ffn_multiple)


def _text(space: Workspace) -> Tensor:
    """[rows, length + 1] tokens of training text for the gate's learning steps."""
    scale, tokens = space.config.scale, space.corpus.train.tokens
    needed = scale.batch_size * (scale.length + 1)
    rows = torch.tensor(tokens[: needed if len(tokens) >= needed else 0].astype("int64"))
    if not rows.numel():
        raise DesignError(f"the corpus has {len(tokens)} tokens, fewer than the {needed} of one batch; use more text")
    return rows.view(scale.batch_size, scale.length + 1)


def _store(
    attempt: Attempt, record: Experiment, source: str, motivation: str, report: GateReport, tree: UnitTree
) -> Json:
    """Writes the experiment; one that an earlier attempt at this very work wrote is taken over."""
    attempt.check_current()
    proposal = {"operator": record.operator, "parents": record.parents, "references": record.references}
    written = write_experiment(
        attempt.layout,
        record,
        source=source,
        motivation=motivation,
        gate=report,
        proposal=proposal if record.role == "candidate" else None,
        units=tree.to_json(),
    )
    if not written:
        folder = attempt.layout.experiment(record.id)
        found = read_experiment(folder)
        if (found.slot, found.attempt, found.role) != (record.slot, record.attempt, record.role):
            return {"duplicate": True}
        report = from_json(GateReport, read_json(folder.gate), source=str(folder.gate))
    return {
        "duplicate": False,
        "id": record.id,
        "name": record.name,
        "role": record.role,
        "form": record.form,
        "gate": to_json(report),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
