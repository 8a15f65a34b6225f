"""The one schema of the configuration. Every policy number of the system lives here or in `configs/`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asiarch_hpc.config.agents import AgentsConfig


@dataclass
class TextConfig:
    """One source of text."""

    source: str = "python-stdlib"  # python-stdlib | text | jsonl | parquet | huggingface
    paths: list[str] = field(default_factory=list)  # files or folders; .xz and .gz are read directly
    dataset: str = ""  # Hugging Face data set, read as a stream, with `subset`, `split` and `revision`
    subset: str | None = None
    split: str = "train"
    revision: str | None = None  # commit or tag of the data set; without one, its newest
    text_field: str = "text"
    minimum: dict[str, float] = field(default_factory=dict)  # records whose number in a field lies below are skipped
    document_kilobytes: float = 64.0  # longer text files are cut at blank lines into documents; 0 cuts none


@dataclass
class MixtureConfig(TextConfig):
    """A source of a mixture."""

    weight: float = 1.0  # share of the training tokens, in units of the sum of all weights


@dataclass
class DataConfig(TextConfig):
    """Where the text comes from and how it becomes tokens."""

    mixture: list[MixtureConfig] = field(default_factory=list)  # several sources, instead of the one above
    tokenizer: str = "bpe"  # bpe (trained on the corpus) | bytes | a folder, a tokenizer.json, or a name on the hub
    vocab_size: int = 1024
    tokenizer_megabytes: float = 4.0  # text that a BPE tokenizer is trained on
    heldout_fraction: float = 0.05  # of the files or documents, chosen by hash
    max_heldout_tokens: int = 10_000_000  # held-out documents beyond are left out of the corpus
    max_megabytes: float = 8.0  # text used, train and held-out; 0 uses all
    max_tokens: int = 0  # training tokens; 0 uses all
    recall_fraction: float = 0.1  # share of training tokens that are synthetic recall documents
    shard_tokens: int = 100_000_000  # training tokens a file; what a killed preparation may have to do again
    processes: int = 0  # that tokenise; 0: one for each core this process may use
    serial_megabytes: float = 16.0  # text that is tokenised before other processes are started
    chunk_megabytes: float = 1.0  # text that a process tokenises at once
    identity_megabytes: float = 256.0  # of all files; of more text, this much evenly spread stands for the content
    claim_stale_seconds: float = 60.0  # without a sign of life, after which another process prepares the corpus
    cache: str = ""  # folder of prepared corpora; empty: `corpora` beside the run


@dataclass
class ScaleConfig:
    """One training size. `dim` and `depth` are the baseline's; a design is matched to its parameters."""

    name: str = "explore"
    dim: int = 64
    depth: int = 2
    heads: int = 4
    length: int = 128  # tokens a row
    batch_size: int = 4  # rows a step, over all processes
    micro_batch: int = 0  # rows that a device computes at once; 0: all of them, or as many as fit a GPU's memory
    steps: int = 300
    learning_rate: float = 1e-2
    warmup_steps: int = 15
    schedule: str = "wsd"  # of the learning rate: wsd (warm-up, stable, decay) | cosine
    decay_fraction: float = 0.4  # wsd: last share of the steps in which the rate falls linearly
    min_lr_ratio: float = 0.0  # share of the peak rate towards which it falls
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    grad_clip: float = 1.0
    match: str = "width"  # what is changed first to match a design's parameters: width | depth (Genesys B.1.4)
    attention: bool = True  # whether cost may grow with the square of the length
    ffn_multiple: float = 8 / 3  # SwiGLU width of layer programs, in units of dim
    tie_embeddings: bool = False
    packing_window: int = 10_000  # short documents and last pieces among which a row finds those that fill it
    documents_apart: bool = True  # designs that ask are told where a row's documents begin; false: as published
    embedding_std: float = 1.0  # of a new embedding; 0.02, common at large scale, learns slowly in few steps
    memory_share: float = 0.9  # of a GPU's free memory, that a training may take
    memory_margin: float = 0.1  # by which a row may take more memory than measured on passes of one and two rows
    precision: str = "auto"  # auto (bf16 where the device has it) | fp32 | bf16
    device: str = "auto"  # auto | cpu | cuda
    compile: str = "auto"  # auto (on GPUs) | on | off; a design that cannot be compiled runs as it is
    engine: str = "auto"  # auto (deepspeed where several processes train together) | torch | deepspeed
    zero_stage: int = 0  # of DeepSpeed: what processes share out instead of keeping it all; 0 is the fastest
    prefetch: int = 2  # steps whose data are prepared while a GPU trains
    threads: int = 1  # CPU threads of a trial; 1 keeps results identical on every machine load
    seeds: list[int] = field(default_factory=lambda: [0])
    checkpoint_seconds: float = 60.0  # of work that a process which dies may cost; 0: checkpoints after each step
    step_seconds_limit: float = 30.0  # a slower step (median of five, after the first) stops the trial
    step_multiple_limit: float = 3.0  # likewise beside the reference baseline's on this hardware; 0: no such limit
    leak_stop: float = 0.3  # a training loss this share below the baseline's at the same step stops the trial
    loss_limit: float = 20.0  # nats; a larger loss stops the trial as diverged
    loss_rise_limit: float = 3.0  # likewise nats above the lowest loss before, medians of twenty steps; 0: none
    gradient_limit: float = 1e4  # likewise a larger gradient norm (median of five steps, before clipping); 0: none
    keep_weights: bool = False  # else they are deleted once evaluated


@dataclass
class EvaluationConfig:
    """What is measured after training.

    Tasks are this project's own (text_choice, line_completion, recall, selective_copy), or any of lm-eval's.
    """

    suite: str = ""  # asi_arch | genesys | local: configs/suites/<name>.yaml gives the defaults of what follows
    tasks: list[str] = field(default_factory=lambda: ["text_choice", "recall", "selective_copy"])
    metrics: dict[str, str] = field(default_factory=dict)  # the accuracy that counts where it is not lm-eval's acc
    averages: dict[str, list[str]] = field(default_factory=dict)  # further means; none where a task of it is absent
    benchmark: str = ""  # the average that is the benchmark; empty: the mean of all tasks
    data: str = ""  # folder of files for lm-eval's tasks; empty: the Hugging Face hub or its cache
    limit: int = 500  # documents of each of lm-eval's tasks, the first ones; 0: all
    begin_with_eos: bool = True  # false: only text without a context, as lm-eval's class for Hugging Face models does
    above_chance_z: float = 1.645  # standard errors above chance that count as above it: one-sided, 5 %
    questions: int = 100  # of each of the own tasks
    seed: int = 0  # of the questions; one value for everything that is to be compared
    heldout_tokens: int = 40_000
    untrained_tokens: int = 4_000  # part of the held-out text on which fresh weights are measured
    batch_size: int = 16
    min_margin: float = 0.1  # held-out loss must lie this share below uniform and below the untrained model's
    causality_tolerance: float = 0.05  # nats by which a prediction may move when only later tokens change
    timeout_s: float = 600.0
    devices: int = 0  # processes that compute; 0: one for each GPU of the training that this node's first process sees
    gpu_pad_multiple: int = 64  # lengths on a GPU are multiples of this; kernels compile or tune for each length
    logit_megabytes: float = 256.0  # of fp32 logits at once, however many places a batch is scored at


@dataclass
class BaselineConfig:
    """Seed designs trained before anything is compared with them."""

    reference: str = "delta_net"
    upper: str = "gated_delta_net"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    noise_seed: int = 1000  # first seed of `asiarch noise`: apart from those of runs, as both are pooled


@dataclass
class OperatorConfig:
    """Probabilities of the recombine proposer (Genesys section 4.3)."""

    mutation: float = 0.75
    crossover: float = 0.20
    scratch: float = 0.05
    max_units: int = 24  # of a new tree, unless its parent is larger
    max_height: int = 8  # levels of a new tree, likewise
    draws: int = 64  # tries for a design that is new, before giving up
    patience: int = 8  # tries in vain after which one more change is made at a time


@dataclass
class EarlyStoppingConfig:
    """Ends trainings that are clearly behind. Off: `make bench ARGS=early` shows what each setting would have lost."""

    rungs: list[float] = field(default_factory=list)  # shares of the steps after which designs are compared; []: off
    keep: float = 0.5  # share of the designs at a rung that a design must not be behind of
    margin: float = 3.0  # by which it must be behind them and the reference, in deviations over baselines' seeds
    window: float = 0.05  # share of the steps whose mean loss is compared
    curves: int = 12  # least number of earlier designs at a rung


@dataclass
class SearchConfig:
    """What to try next, and whom to breed from (ASI-Arch sections 3.2 and 4.1)."""

    policy: str = "asi_arch"  # asi_arch | random
    seed: int = 0
    designs: int = 24  # scored candidates wanted; 0: the baselines alone
    batch: int = 6  # candidates between two pool updates
    cold_start: int = 6  # candidates before the first update
    overlap: int = 0  # batches that may be proposed before the previous one is complete
    pool_size: int = 50
    parent_ranks: list[int] = field(default_factory=lambda: [1, 10])
    reference_ranks: list[int] = field(default_factory=lambda: [11, 50])
    references: int = 4
    attempts: int = 5  # designs tried for one slot before it is given up
    slot_limit: float = 2.0  # slots in all, as a multiple of designs, when some slots stay without a score
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    operators: OperatorConfig = field(default_factory=OperatorConfig)
    seed_designs: list[str] = field(
        default_factory=lambda: [
            "delta_net",
            "gated_delta_net",
            "gla",
            "mamba2",
            "retnet",
            "rwkv6",
            "ttt_linear",
            "gpt",
        ]
    )


@dataclass
class FitnessConfig:
    """The composite fitness (ASI-Arch sections 3.1 and 4.1)."""

    sigmoid_scale: float = 6.0  # reproduces every published score
    band: float = 0.1  # differences are clipped at this share of the baseline
    leak_margin: float = 0.1  # a loss this share below the best baseline's is a leak
    judge: str = "rule"  # rule | llm
    judge_upper: float = 10.0  # a language model's anchor: the upper baseline's grade
    judge_weights: dict[str, float] = field(
        default_factory=lambda: {"novelty": 0.25, "complexity": 0.25, "efficiency": 0.20, "results": 0.30}
    )  # of the sub-scores of a language model; their sum is made in code
    judge_reference: float = 5.0  # the rule's grade of the reference baseline, on the scale 1 to 10
    judge_speed: float = 2.0  # points for each halving of the modelled time per token, lost for each doubling
    judge_growth: float = 5.0  # points lost per unit of time exponent above the limit
    judge_growth_limit: float = 1.3  # growth of time with length that costs nothing (1: linear, 2: quadratic)
    judge_parameters: float = 1.0  # points lost for each doubling of the parameters at equal size
    # noise.json of `asiarch noise`, or a list of such files, each for the scale (exploration or a stage) of the same
    # conditions: its spread over seeds is pooled with that of the scale's baselines.
    noise: Any = ""
    noise_level: float = 0.05  # chance at which noise alone passes for a difference in one comparison (Student's t)


@dataclass
class GateConfig:
    """Limits of the checks that precede a GPU."""

    timeout_s: float = 120.0
    memory_gb: float = 4.0
    device: str = "auto"  # of the checks: auto (a GPU where the job has one) | cpu | cuda
    lengths: list[int] = field(default_factory=lambda: [1, 2, 63, 64, 65, 100, 257])
    batch_sizes: list[int] = field(default_factory=lambda: [1, 2, 5])
    causality_length: int = 130  # every position is probed at this length
    far_length: int = 515  # least length of the probes beyond it: three chunks of 256 and more
    longest: int = 1026  # bound on the length beyond a design's own chunks
    border_positions: int = 24  # probed at that length
    probe_rows: int = 33  # positions probed in one forward pass
    probe_vocab: int = 512  # of the models that are only compared with themselves
    confirmations: int = 8  # of what looks like a leak
    gradient_tolerance: float = 2e-5  # of later tokens' gradient beside the largest; see gate/checks/gradients.py
    document_length: float = 16.0  # mean tokens of a document in probes of designs that ask for documents
    document_rows: int = 6  # positions probed with documents in the row, in each mode
    prefix_lengths: list[int] = field(default_factory=lambda: [1, 17, 33, 64, 65, 100, 129])
    drift_calls: int = 16  # in eval mode, after which a model must answer as a fresh one does
    drift_tolerance: float = 1e-5  # of the output's scale; passes of one shape round alike
    decode_steps: int = 8  # single tokens, after a prefill and from the start
    tolerance: float = 1e-3  # of the output's scale, in fp32
    tolerance_bf16: float = 5e-2  # for designs that work in bf16 alone
    parameter_tolerance: float = 0.2  # around the baseline's non-embedding count (Genesys B.1.4)
    flops_tolerance: float = 2.0  # factor beyond which measured FLOPs are flagged
    dim_step: int = 8
    learn_steps: int = 10
    learn_tokens: int = 16_384  # of each of these steps, at most
    learn_rate: float = 1e-2
    learn_drop: float = 0.01  # least share of the first loss by which these steps must lower it
    grad_clip: float = 1.0  # in these steps; the norm before clipping must stay below the next limit
    grad_norm_limit: float = 1e4
    parameter_noise: float = 0.02  # parameters are moved by this much, plus a tenth of their size, before checks
    # Lengths over which counted time and memory are fitted, halved until counting takes so many operations at most.
    exponent_lengths: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048, 4096])
    count_launches: int = 40_000
    growth_limit: float = 1.35  # steepest growth where attention is not allowed; n log n stays below 1.2
    growth_length: int = 65_536  # at which that is looked for, where counting stays as short
    slow_multiple: float = 3.0  # of the baseline's training step, in counted time
    memory_multiple: float = 3.0  # likewise in peak memory
    clock_decides: bool = True  # whether a step slower by the clock is refused too; then a busy machine has a say
    clock_tokens: int = 4096  # of the longest step that is clocked
    clock_repeats: int = 3
    clock_seconds: float = 1.0  # after which repeating stops
    # The nominal machine of modelled times: about one CPU core; set an accelerator's at larger scales.
    roofline_flops: float = 5e10  # per second
    roofline_bytes: float = 1e10  # per second
    roofline_launch_s: float = 5e-6  # per tensor operation
    processes: int = 16  # that a design may have running at once
    print_kilobytes: float = 256.0  # that a design may print without a warning
    source_kilobytes: float = 512.0  # longest source text that is looked at
    file_megabytes: float = 64.0  # largest file that a design may write, in its scratch folder
    sandbox: str = "auto"  # auto takes a rung that holds all | bubblewrap | namespaces | landlock | limits (weak)
    unit_tests_s: float = 10.0  # for all unit tests of a design that is written as units
    substitution_tolerance: float = 1e-4  # relative, between a program's own recurrence and the kernel that replaces it


@dataclass
class ResourceConfig:
    """What one kind of job asks for; `slurm` holds further sbatch options (account, qos, constraint …).

    A training runs one process a GPU, on each of `nodes` nodes; without GPUs, `ranks` processes a node.
    """

    timeout_min: float = 30.0
    cpus: int = 1  # of each process
    gpus: int = 0  # of each node
    memory_gb: float = 4.0  # of each node
    nodes: int = 1
    ranks: int = 0  # processes of a node without GPUs; 0: one
    max_jobs: int = 0  # of this kind at once; 0: as many as executor.max_jobs lets
    slurm: dict[str, Any] = field(default_factory=dict)


def _an_hour() -> ResourceConfig:
    return ResourceConfig(timeout_min=60.0)


def _serve_resources() -> ResourceConfig:
    return ResourceConfig(timeout_min=1440.0, cpus=8, gpus=1, memory_gb=64.0)


@dataclass
class ExecutorConfig:
    """Where jobs run. `auto` takes Slurm where `sinfo` answers, else the local machine."""

    kind: str = "auto"  # auto | local | slurm
    max_jobs: int = 0  # jobs at once; 0: all cores on the local machine, 200 on Slurm
    query_seconds: float = 60.0  # least time between two scheduler queries on Slurm
    array_limit: int = 1000  # tasks of one array; the cluster's MaxArraySize bounds it further
    signal_seconds: int = 90  # warning before a time limit
    peer_seconds: float = 900.0  # that processes of one training wait for each other: compilation takes minutes
    lost_grace_seconds: float = 15.0  # wait for a result file after a job left the queue
    command_seconds: float = 30.0  # longest wait for one answer of Slurm
    kernel_cache: str = ""  # folder of the baselines' compiled GPU kernels; empty: `kernels` beside the run
    propose: ResourceConfig = field(default_factory=_an_hour)
    train: ResourceConfig = field(default_factory=_an_hour)
    debug: ResourceConfig = field(default_factory=_an_hour)
    assess: ResourceConfig = field(default_factory=ResourceConfig)
    serve: ResourceConfig = field(default_factory=_serve_resources)


@dataclass
class LimitsConfig:
    """When the controller gives up, waits, or ends."""

    submissions: int = 4  # of one job, when its process dies without a result
    refusals: int = 10  # submissions refused in a row before the controller stops
    hours: float = 0.0  # of the whole run; 0: none
    tick_seconds: float = 0.5  # between two turns of the controller's loop
    lease_stale_seconds: float = 90.0  # without a sign of life, after which another controller takes a run over
    min_free_megabytes: float = 50.0  # of disk, below which nothing is submitted


@dataclass
class PromotionConfig:
    """Which designs go on to a stage, judged on the scale before (ASI-Arch sections 3.5 and 4.2)."""

    top: int = 0  # the best of those that qualify; 0: all of them
    by: str = "fitness"  # what ranks them: fitness | loss
    beat_baseline: bool = True  # whether loss and benchmark must both be better than the reference baseline's means
    min_noise_multiples: float = 0.0  # standard deviations of the difference by which the loss must be lower
    benchmark_slack: float = 0.0  # standard deviations of the difference by which the benchmark may be lower
    max_parameters_ratio: float = 1.25  # non-embedding parameters beside the reference's
    max_cost_ratio: float = 2.0  # modelled time per token beside the reference's


@dataclass
class StageConfig:
    """A larger scale that the best designs of the scale before are trained at, once exploration has ended.

    Of `scale`, `evaluation` and `train`, what a stage does not set is as in the run's own `scale`, `evaluation` and
    `executor.train`. The scale's name is the stage's.
    """

    promote: PromotionConfig = field(default_factory=PromotionConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: ResourceConfig = field(default_factory=ResourceConfig)
    baselines: list[str] = field(default_factory=lambda: ["gated_delta_net", "mamba2"])  # beside the reference
    baseline_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass
class Config:
    """Everything that defines a run.

    `proposer` is recombine, llm, or a share of each, as in {llm: 0.8, recombine: 0.2}.
    """

    proposer: Any = "recombine"
    data: DataConfig = field(default_factory=DataConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    baselines: BaselineConfig = field(default_factory=BaselineConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    fitness: FitnessConfig = field(default_factory=FitnessConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)  # by name, in order; {}: exploration alone
