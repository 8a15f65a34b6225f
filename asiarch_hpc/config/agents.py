"""Language-model agents: which models speak for which role, and within which limits (ASI-Arch sections 3 and A.1)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RoleConfig:
    """How one role speaks. `models` gives a probability to each served model name (Genesys's hybrid of models)."""

    models: dict[str, float] = field(default_factory=dict)  # empty: agents.model
    temperature: float = 0.7
    max_tokens: int = 8192  # of one reply
    timeout_s: float = 600.0  # of one call


def _role(temperature: float, max_tokens: int) -> RoleConfig:
    return RoleConfig(temperature=temperature, max_tokens=max_tokens)


@dataclass
class RolesConfig:
    """All roles."""

    summarizer: RoleConfig = field(default_factory=lambda: _role(0.2, 768))
    researcher: RoleConfig = field(default_factory=lambda: _role(0.8, 12288))
    novelty: RoleConfig = field(default_factory=lambda: _role(0.0, 1024))
    debugger: RoleConfig = field(default_factory=lambda: _role(0.3, 12288))
    analyst: RoleConfig = field(default_factory=lambda: _role(0.4, 4096))
    judge: RoleConfig = field(default_factory=lambda: _role(0.7, 2048))
    tagger: RoleConfig = field(default_factory=lambda: _role(0.0, 1024))
    extractor: RoleConfig = field(default_factory=lambda: _role(0.2, 8192))


@dataclass
class EmbeddingConfig:
    """What texts are compared with: motivations for novelty, shortcomings for retrieval."""

    kind: str = "tfidf"  # tfidf (no weights, offline) | served | sentence-transformers
    model: str = ""  # served: the model's name; sentence-transformers: a folder
    batch: int = 64  # texts of one request
    neighbours: int = 5  # motivations that a new one is held against
    cognitions: int = 3  # entries that an analysis is reminded of
    threshold: float = 0.10  # least similarity of an entry; about 0.35 for sentence embeddings


@dataclass
class NoveltyConfig:
    """When a proposal counts as known. The limits are those of the labelled pairs in tests/agents/novelty."""

    rounds: int = 3  # proposals tried for one place before it is given up as a duplicate
    code_limit: float = 0.985  # likeness of syntax trees that makes a duplicate where behaviour is unknown
    behaviour_tolerance: float = 1e-3  # relative difference of what two designs compute that makes a duplicate
    code_doubt: float = 0.55  # likeness from which a pair is worth a question
    behaviour_doubt: float = 0.95  # difference up to which it is
    text_doubt: float = 0.4  # likeness of motivations from which it is
    verdict: bool = True  # whether a language model is asked about the nearest motivations


@dataclass
class ServerConfig:
    """One kind of vLLM server that the controller keeps running; executor.serve says what a node offers it."""

    name: str = "main"  # letters, digits and dashes
    model: str = ""  # path or hub name of the weights
    served_name: str = ""  # what agents call it; empty: `name`
    count: int = 1
    gpus: int = 1
    tensor_parallel: int = 0  # 0: as many as gpus
    context: int = 32768
    quantization: str = ""
    embeddings: bool = False  # serves embeddings instead of chat
    flags: list[str] = field(default_factory=list)  # further words of the command line
    command: list[str] = field(default_factory=lambda: ["vllm", "serve"])
    environment: dict[str, str] = field(default_factory=dict)
    timeout_min: float = 0.0  # 0: executor.serve.timeout_min
    start_s: float = 1800.0  # longest wait for its health
    handover_s: float = 600.0  # a successor is started this long before the time limit
    drain_s: float = 120.0  # for replies under way when it ends


@dataclass
class AgentsConfig:
    """The agents of a run. Without `endpoints` those of `servers` are used, found in the run's services/."""

    endpoints: list[str] = field(default_factory=list)  # such as http://127.0.0.1:8000/v1
    servers: list[ServerConfig] = field(default_factory=list)
    model: str = ""  # of all roles that name none; empty: the first that the endpoint lists
    roles: RolesConfig = field(default_factory=RolesConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    novelty: NoveltyConfig = field(default_factory=NoveltyConfig)
    api_key_env: str = "ASIARCH_API_KEY"
    api_key_file: str = ""  # a file that only its owner may read
    design: str = "program"  # program: whole source or diff | edit: an edit of the parent's unit tree
    reply: str = "schema"  # schema (the server constrains decoding) | blocks (fenced blocks, any server)
    stream: bool = True  # whether replies are read as they are made, so that an endless one is cut
    context: int = 32768  # tokens of prompt and reply
    tokenizer: str = ""  # tokenizer.json that prompts are measured with; empty: the server's, else an estimate
    retries: int = 6  # of one call after 429, 5xx, time-out, dropped connection or truncated reply
    backoff_s: float = 1.0  # doubled each time, with jitter
    backoff_limit_s: float = 60.0
    repairs: int = 3  # replies sent back with their error, for one answer
    gate_repairs: int = 3  # designs sent back with the gate's report
    debug_attempts: int = 3  # designs sent back after a failed training
    judge_samples: int = 3
    siblings: int = 3  # of the same parent, shown to the analyst
    wait_s: float = 900.0  # while no endpoint is up; then the job ends and is started again
    tokens_per_job: int = 400_000
    tokens: int = 0  # budget of the whole run; 0: none
    gpu_seconds: float = 0.0  # budget of all jobs that hold GPUs; 0: none
    health_s: float = 60.0  # a server that has not been seen for this long is not used
