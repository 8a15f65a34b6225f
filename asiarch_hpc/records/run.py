"""Records of a run: designs, their gate reports, trials, evaluations and scores, and the pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from asiarch_hpc.records.codec import SCHEMA_VERSION

Role = Literal["baseline", "candidate", "published"]
Form = Literal["program", "tree", "none"]  # none: published without its program
Operator = Literal["seed", "mutation", "crossover", "scratch", "llm", "debug", "published", "kernel_substitution"]
JobKind = Literal["propose", "debug", "train", "assess", "serve", "extract"]
Severity = Literal["reject", "warn", "property"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything fixed about one design in one run (`experiment.json`).

    `id` is the hash of the normalised source, `source_sha256` and `units_sha256` those of the stored bytes of
    `architecture.py` and `units.json`.
    `slot` numbers the search's places; `attempt` counts the designs tried for that place. Both are None for
    baselines.
    """

    id: str
    name: str
    role: Role
    form: Form
    operator: Operator
    proposer: str
    policy: str
    source_sha256: str
    created: str
    units_sha256: str = ""
    slot: int | None = None
    attempt: int | None = None
    generation: int = 0
    parents: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One result of a gate check: what was measured, against which limit, and how to repair it."""

    code: str
    severity: Severity
    message: str
    measured: float | None = None
    limit: float | None = None
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateReport:
    """Outcome of all checks on one design (`gate.json`).

    `dim` and `depth` are the model sizes that match the baseline's parameter count; the trial uses them.
    `parameters` excludes embeddings and head. `flops_per_token` is forward, measured. `launches` counts
    tensor operations of one forward pass, `modelled_seconds_per_token` the roofline time of the counted
    operations (deterministic, unlike a clock). `time_exponent` and `memory_exponent` are the fitted growth of a
    training step's modelled time and peak memory with length, `_error` half the width of the 95 % confidence
    interval. `relative_seconds` and `relative_bytes` are both beside the reference baseline's, 0 without one.
    `device` is where the checks ran. `only_precision` is set for a design that works in one precision alone.

    What is clocked differs from call to call and takes no part in comparisons: `clock_seconds` of a training step
    of `clock_tokens` tokens, `clock_bytes` its peak on a GPU (0 on a CPU).
    """

    passed: bool
    findings: tuple[Finding, ...] = ()
    dim: int = 0
    depth: int = 0
    parameters: int = 0
    parameters_total: int = 0
    flops_per_token: float = 0.0
    launches: int = 0
    modelled_seconds_per_token: float = 0.0
    time_exponent: float = 0.0
    time_exponent_error: float = 0.0
    memory_exponent: float = 0.0
    memory_exponent_error: float = 0.0
    relative_seconds: float = 0.0
    relative_bytes: float = 0.0
    only_precision: str = ""
    device: str = ""
    sandbox: str = ""
    clock_tokens: int = field(default=0, compare=False)
    clock_seconds: float = field(default=0.0, compare=False)
    clock_bytes: int = field(default=0, compare=False)
    clock_exponent: float = field(default=0.0, compare=False)
    clock_exponent_error: float = field(default=0.0, compare=False)
    clock_relative_seconds: float = field(default=0.0, compare=False)
    clock_relative_bytes: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One finished training (`trials/<name>/trial.json`). Losses in nats per token, times in seconds."""

    experiment: str
    name: str
    scale: str
    seed: int
    attempt: str
    dim: int
    depth: int
    parameters: int
    steps: int
    tokens: int
    first_loss: float
    final_loss: float
    train_seconds: float
    tokens_per_second: float
    weights_sha256: str
    corpus_key: str
    device: str
    precision: str
    evaluation_sha256: str
    resumed: int = 0
    sandbox: str = ""  # the rung that held the training
    micro_batch: int = 0  # rows of one pass
    compiled: bool = False  # whether the blocks ran compiled
    not_compiled_because: str = ""  # the error for which they did not although they should have, in a line
    ranks: int = 1  # processes that trained together
    engine: str = "torch"  # or deepspeed
    network: bool = False  # whether the design's code could reach the network while it trained
    documents_given: bool = False  # whether the design asked which documents tokens are of, and was told
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """Accuracy of one task, with its binomial standard error, chance level and number of questions.

    `metric` is the accuracy that counts, `normalised` lm-eval's acc_norm (choices compared by likelihood per byte)
    where the task has it. `z` is the distance from chance in standard errors, and `above_chance` whether it is beyond
    the configured quantile, one-sided. `counted` tells whether the benchmark contains the task.
    """

    accuracy: float
    stderr: float
    chance: float
    questions: int
    metric: str = "acc"
    normalised: float | None = None
    z: float | None = None
    above_chance: bool | None = None
    counted: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of trained weights (`trials/<name>/evaluation.json`).

    `loss` is held-out nats per token, `bits_per_byte` the same text per UTF-8 byte; `untrained_*` are the same
    for the model before its first step. `benchmark` is the mean accuracy of the tasks that are `counted`, `averages`
    are further means with a name.
    """

    experiment: str
    trial: str
    attempt: str
    weights_sha256: str
    loss: float
    bits_per_byte: float
    untrained_loss: float
    untrained_bits_per_byte: float
    uniform_loss: float
    benchmark: float
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    averages: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    harness: str = ""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSpread:
    """Standard deviation of one training run over seeds, pooled over all baselines.

    Losses in nats per token, the benchmark as a share of questions, `freedom` in degrees of freedom.
    """

    loss: float
    benchmark: float
    bits_per_byte: float
    freedom: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineStats:
    """Seeds of one baseline: mean and sample standard deviation (n - 1) of loss and benchmark.

    `known` is a spread that was measured beside the run, at equal conditions and with other seeds.
    """

    experiment: str
    name: str
    seeds: int
    loss_mean: float
    loss_sd: float
    benchmark_mean: float
    benchmark_sd: float
    bits_per_byte_mean: float
    bits_per_byte_sd: float
    flops_per_token: float
    modelled_seconds_per_token: float
    time_exponent: float
    parameters: int = 0
    known: SeedSpread | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Quality on the 1-10 scale; `source` is "rule", "llm", or "anchor" for the baselines that a model is held to.

    A language model answers several times: `samples` are the weighted sums of its sub-scores, each made in code,
    `raw` their median, `spread` the distance of the largest from the smallest, `parts` the medians of the sub-scores.
    """

    raw: float
    source: str
    version: str
    reasons: tuple[str, ...] = ()
    samples: tuple[float, ...] = ()
    spread: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Fitness of one experiment (`score.json`), its three parts, each in [0, 1], and its noise.

    `fitness_sd` propagates the baselines' seed spread. `discarded` names the reason when the design must not
    enter the pool (a loss too far below the baseline's is a leak).
    """

    experiment: str
    fitness: float
    fitness_sd: float
    loss_part: float
    benchmark_part: float
    judge_part: float
    loss: float
    bits_per_byte: float
    benchmark: float
    judgement: Judgement
    formula: str
    discarded: str | None = None
    slot: int | None = None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Reminder:
    """A cognition that an analysis was found to call for: paper, the lesson in one line, and the likeness."""

    paper: str
    title: str
    insight: str
    similarity: float
    number: int = 0  # place of the cognition in its entry


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """The five parts of an analysis (ASI-Arch section 3.4 and B.4), and the shortcomings that retrieval asks with."""

    motivation: str
    results: str
    expectation: str
    explanation: str
    synthesis: str
    shortcomings: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What was said about a design after its evaluation (`assessment.json`). A part that failed is missing."""

    experiment: str
    judge: Judgement | None = None
    analysis: Analysis | None = None
    cognitions: tuple[Reminder, ...] = ()
    tokens: int = 0
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A language-model server of the run (`services/<name>.json`), written by its job alone.

    `server` is its kind in agents.servers. Times are seconds since the epoch; `seen` is when it last answered, `ends`
    its time limit (0: none). Agents use one that is ready and was seen lately.
    """

    name: str
    server: str
    url: str
    model: str
    job: str
    host: str
    state: Literal["starting", "ready", "draining"]
    started: float
    seen: float
    ends: float = 0.0
    embeddings: bool = False
    scheduler_id: str = ""
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolEntry:
    """One ranked place of a generation."""

    rank: int
    id: str
    fitness: float
    fitness_sd: float
    role: Role


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One immutable state of the pool (`pool/000007.json`). `through_slot` is the first slot not folded in.

    `scored` lists all experiments that have a fitness by then, `tried` all designs that exist by then: none of
    those is proposed again.
    """

    number: int
    formula: str
    through_slot: int
    entries: tuple[PoolEntry, ...]
    baselines: tuple[BaselineStats, ...] = ()
    scored: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
