"""Reads and checks a configuration; the only module that reads `configs/`.

A run's configuration is the schema's defaults, then the named file of `configs/` (or any path), then dotted
overrides such as `search.batch=8`. A suite of evaluation tasks that one of them names stands just below it.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asiarch_hpc.config.agents import ServerConfig
from asiarch_hpc.config.processes import process_problems
from asiarch_hpc.config.schema import Config, ScaleConfig
from asiarch_hpc.config.stages import at_stage, resolve_stages, stage_problems
from asiarch_hpc.config.suites import evaluation_problems, with_suites
from asiarch_hpc.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SUITES = CONFIGS / "suites"

# What says how a run is carried out, not what it finds: it may change when a run is resumed. Patterns of keys.
CARRIED_OUT_BY = (
    "executor", "limits", "agents.endpoints", "agents.servers", "agents.api_key_env", "agents.api_key_file",
    "agents.stream", "agents.retries", "agents.backoff_s", "agents.backoff_limit_s", "agents.wait_s",
    "agents.tokens", "agents.gpu_seconds", "agents.health_s", "stages.*.train",
    "data.processes", "data.serial_megabytes", "data.chunk_megabytes", "data.claim_stale_seconds",
)  # fmt: skip
PROPOSERS = ("recombine", "llm")


def load_config(name_or_path: str = "laptop", overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration file, applies dotted overrides, and checks the result.

    Args:
        name_or_path: a file's stem in `configs/`, or a path to a YAML file.
        overrides: `group.key=value` strings, values in YAML syntax.

    Raises:
        ConfigError: no such file, unknown key (the message lists the valid ones), wrong type, bad value.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
        raise ConfigError(f"no configuration {name_or_path!r}: expected a YAML file or one of {known}")
    try:
        layers: list[tuple[Any, str]] = [(OmegaConf.load(path), str(path))]
    except Exception as error:  # the YAML parser has no common base class with OmegaConf's errors
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    layers += [(_layer(override), f"override {override!r}") for override in overrides]
    merged, stages = OmegaConf.structured(Config), OmegaConf.create()
    for layer, source in layers:
        merged = _merge(merged, with_suites(layer, SUITES), source)
        stages = cast(DictConfig, OmegaConf.merge(stages, layer.get("stages", {})))
        if "stages" in layer and not layer.stages:  # stages={}: exploration alone
            merged.stages, stages = {}, OmegaConf.create()
    resolve_stages(merged, stages)
    config = cast(Config, OmegaConf.to_object(merged))
    check(config)
    return config


def _layer(override: str) -> Any:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override {override!r}: expected group.key=value, for example search.batch=8")
    if value in ("on", "off", "yes", "no"):  # YAML's truth values, but words where the setting is a word
        override = f"{key}='{value}'"
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:
        raise ConfigError(f"override {override!r}: {error}") from error


def from_dict(data: dict[str, Any], *, source: str) -> Config:
    """Rebuilds a configuration from its JSON form (`run.json`)."""
    merged = _merge(OmegaConf.structured(Config), OmegaConf.create(data), source)
    return cast(Config, OmegaConf.to_object(merged))


def to_dict(config: Config) -> dict[str, Any]:
    """The JSON form of a configuration."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config), resolve=True))


def carried_out_by(key: str) -> bool:
    """Whether a dotted key says how a run is carried out, so that it may change when the run is resumed."""
    return any(fnmatchcase(key, end) for pattern in CARRIED_OUT_BY for end in (pattern, f"{pattern}.*"))


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for every value that differs, in key order."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines


def check(config: Config) -> None:
    """Raises ConfigError for values that no run could honour."""
    search, noise = config.search, config.fitness.noise
    _check_agents(config)
    _check_early_stopping(config)
    problems = [
        *stage_problems(config),
        *evaluation_problems(config.evaluation, "evaluation"),
        *(
            problem
            for name, stage in config.stages.items()
            for problem in evaluation_problems(stage.evaluation, f"stages.{name}.evaluation")
        ),
        (search.policy in ("asi_arch", "random"), f"search.policy={search.policy!r}: asi_arch or random"),
        (config.fitness.judge in ("rule", "llm"), f"fitness.judge={config.fitness.judge!r}: rule or llm"),
        (
            all(isinstance(path, str) for path in noise) if isinstance(noise, list) else isinstance(noise, str),
            f"fitness.noise={noise!r}: a file, or a list of files,",
        ),
        (
            1e-6 <= config.fitness.noise_level <= 0.5,
            f"fitness.noise_level={config.fitness.noise_level}: a chance from 1e-6 to 0.5, such as 0.05",
        ),
        (
            config.executor.kind in ("auto", "local", "slurm"),
            f"executor.kind={config.executor.kind!r}: auto, local or slurm",
        ),
        (
            config.gate.sandbox in ("auto", "bubblewrap", "namespaces", "landlock", "limits"),
            f"gate.sandbox={config.gate.sandbox!r}: auto, bubblewrap, namespaces, landlock or limits",
        ),
        (len(config.baselines.seeds) >= 3, f"baselines.seeds={config.baselines.seeds}: at least three seeds"),
        (len(set(config.baselines.seeds)) == len(config.baselines.seeds), "baselines.seeds: each seed once"),
        (search.batch >= 1 and search.cold_start >= 0, "search.batch >= 1 and search.cold_start >= 0"),
        (search.designs >= 0 and search.attempts >= 1, "search.designs >= 0 and search.attempts >= 1"),
        (
            0 < config.data.heldout_fraction < 1,
            f"data.heldout_fraction={config.data.heldout_fraction}: between 0 and 1",
        ),
        (
            min(search.operators.mutation, search.operators.crossover, search.operators.scratch) >= 0
            and search.operators.mutation + search.operators.crossover + search.operators.scratch > 0,
            "search.operators: weights that are not negative and not all zero",
        ),
    ]
    for where, staged in [("", config), *((f"stages.{name}.", at_stage(config, name)) for name in config.stages)]:
        problems += [*_scale_problems(where, staged.scale), *process_problems(where, staged)]
        _check_sizes(where, staged)
    for holds, message in problems:
        if not holds:
            raise ConfigError(f"{message} was expected")


def _scale_problems(where: str, scale: ScaleConfig) -> list[tuple[bool, str]]:
    """What must hold for a scale, each with the message for when it does not."""
    return [
        (scale.schedule in ("wsd", "cosine"), f"{where}scale.schedule={scale.schedule!r}: wsd or cosine"),
        (0 <= scale.min_lr_ratio <= 1, f"{where}scale.min_lr_ratio={scale.min_lr_ratio}: a share from 0 to 1"),
        (scale.match in ("width", "depth"), f"{where}scale.match={scale.match!r}: width or depth"),
        (
            scale.precision in ("auto", "fp32", "bf16"),
            f"{where}scale.precision={scale.precision!r}: auto, fp32 or bf16",
        ),
        (scale.device in ("auto", "cpu", "cuda"), f"{where}scale.device={scale.device!r}: auto, cpu or cuda"),
        (scale.compile in ("auto", "on", "off"), f"{where}scale.compile={scale.compile!r}: auto, on or off"),
        (
            min(scale.micro_batch, scale.warmup_steps) >= 0,
            f"{where}scale: micro_batch={scale.micro_batch} and warmup_steps={scale.warmup_steps} of 0 or more",
        ),
        (
            min(scale.loss_rise_limit, scale.gradient_limit) >= 0,
            f"{where}scale: loss_rise_limit={scale.loss_rise_limit} and gradient_limit={scale.gradient_limit} "
            "of 0 (none) or more",
        ),
        (
            0 < scale.memory_share <= 1,
            f"{where}scale.memory_share={scale.memory_share}: a share above 0, at most 1,",
        ),
        (scale.dim % scale.heads == 0, f"{where}scale.dim={scale.dim}: a multiple of scale.heads={scale.heads}"),
        (len(scale.seeds) >= 1, f"{where}scale.seeds: at least one seed"),
        (len(set(scale.seeds)) == len(scale.seeds), f"{where}scale.seeds={scale.seeds}: each seed once"),
    ]


def proposers(config: Config) -> dict[str, float]:
    """The share of each proposer, as configured.

    Raises:
        ConfigError: neither a proposer's name nor shares of such.
    """
    wanted = {config.proposer: 1.0} if isinstance(config.proposer, str) else config.proposer
    good = isinstance(wanted, dict) and set(wanted) <= set(PROPOSERS) and all(
        isinstance(share, int | float) and share >= 0 for share in wanted.values()
    )  # fmt: skip
    if not good or not sum(wanted.values()) > 0:
        raise ConfigError(
            f"proposer={config.proposer!r}: {' or '.join(PROPOSERS)} was expected, or shares such as "
            "proposer.llm=0.8 proposer.recombine=0.2"
        )
    return {name: float(share) for name, share in wanted.items() if share > 0}


def uses_agents(config: Config) -> bool:
    """Whether any job of the run talks to a language model."""
    return "llm" in proposers(config) or config.fitness.judge == "llm"


def _check_agents(config: Config) -> None:
    agents = config.agents
    used = uses_agents(config)
    total = sum(config.fitness.judge_weights.values())
    names = [server.name for server in agents.servers]
    problems = [
        (
            not used or bool(agents.endpoints or agents.servers),
            "proposer=llm and fitness.judge=llm need a language model: agents.endpoints=[http://host:port/v1], or "
            "agents.servers, which the controller starts,",
        ),
        (agents.design in ("program", "edit"), f"agents.design={agents.design!r}: program or edit"),
        (agents.reply in ("schema", "blocks"), f"agents.reply={agents.reply!r}: schema or blocks"),
        (
            agents.embedding.kind in ("tfidf", "served", "sentence-transformers"),
            f"agents.embedding.kind={agents.embedding.kind!r}: tfidf, served or sentence-transformers",
        ),
        (agents.embedding.kind == "tfidf" or bool(agents.embedding.model), "agents.embedding.model: a model"),
        (
            set(config.fitness.judge_weights) == {"novelty", "complexity", "efficiency", "results"}
            and min(config.fitness.judge_weights.values()) >= 0
            and abs(total - 1) < 1e-6,
            f"fitness.judge_weights={config.fitness.judge_weights}: shares of novelty, complexity, efficiency and "
            "results with the sum 1",
        ),
        (
            len(set(names)) == len(names) and all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names),
            f"agents.servers: names {names}: different ones of a-z, 0-9 and dashes",
        ),
        (all(server.model for server in agents.servers), "agents.servers: a model for each"),
        *(
            (_minutes(server, config) * 60 >= server.handover_s + 60, _handover(server, config))
            for server in agents.servers
        ),
        *((server.handover_s >= server.drain_s + 30, _handover(server, config)) for server in agents.servers),
        *(
            (
                not _secrets(server),
                f"agents.servers: {server.name}: {_secrets(server)} would be stored with the run; "
                "$ASIARCH_API_KEY, and other variables of the shell that the jobs inherit,",
            )
            for server in agents.servers
        ),
        (not any("@" in url for url in agents.endpoints), "agents.endpoints: addresses without a password"),
    ]
    for holds, message in problems:
        if not holds:
            raise ConfigError(f"{message} was expected")


def _minutes(server: ServerConfig, config: Config) -> float:
    return server.timeout_min or config.executor.serve.timeout_min


def _handover(server: ServerConfig, config: Config) -> str:
    return (
        f"agents.servers: {server.name}: handover_s={server.handover_s:g}, timeout_min={_minutes(server, config):g}, "
        f"drain_s={server.drain_s:g}: a minute or more from start to hand-over, and handover_s of at least drain_s + 30"
    )


def _secrets(server: ServerConfig) -> list[str]:
    """Names of settings that look like secrets; a run's record is no place for them."""
    words = [word for word in server.flags if word.startswith("--api-key")]
    return words + [name for name in server.environment if re.search("KEY|TOKEN|SECRET|PASSWORD", name.upper())]


def _check_early_stopping(config: Config) -> None:
    early = config.search.early_stopping
    problems = [
        (0 < early.keep <= 1, f"keep={early.keep}: a share above 0, at most 1,"),
        (early.margin >= 0, f"margin={early.margin}: a number that is not negative"),
        (0 < early.window < 1, f"window={early.window}: a share between 0 and 1"),
        (early.curves >= 1, f"curves={early.curves}: a positive number"),
        (
            all(early.window <= rung < 1 for rung in early.rungs),
            f"rungs={early.rungs}: shares of the steps from window={early.window} up to below 1",
        ),
    ]
    for holds, message in problems:
        if not holds:
            raise ConfigError(f"search.early_stopping.{message} was expected")


def _check_sizes(where: str, config: Config) -> None:
    """Counts and durations must be positive, and what lists alternatives must not be empty.

    `where` is the key of the stage that the configuration is seen from, with a dot, or empty.
    """
    positive = {
        "scale": (
            "dim",
            "depth",
            "heads",
            "length",
            "batch_size",
            "steps",
            "threads",
            "learning_rate",
            "prefetch",
            "packing_window",
        ),
        "evaluation": (
            "questions",
            "heldout_tokens",
            "untrained_tokens",
            "batch_size",
            "timeout_s",
            "gpu_pad_multiple",
        ),
        "search": ("batch", "attempts", "pool_size"),
        "gate": (
            *("timeout_s", "memory_gb", "dim_step", "learn_steps", "learn_tokens"),
            *("slow_multiple", "memory_multiple"),
            *("count_launches", "growth_limit", "clock_tokens", "clock_repeats"),
        ),
        "limits": ("submissions", "refusals", "tick_seconds", "lease_stale_seconds"),
        "agents": ("context", "judge_samples", "tokens_per_job", "wait_s", "health_s"),
    }
    filled = {
        "evaluation": ("tasks",),
        "gate": ("lengths", "batch_sizes", "exponent_lengths"),
        "search": ("seed_designs",),
    }
    for group, names in positive.items():
        for name in names:
            if not (value := getattr(getattr(config, group), name)) > 0:
                raise ConfigError(f"{where}{group}.{name}={value}: a positive number was expected")
    for group, names in filled.items():
        for name in names:
            if not getattr(getattr(config, group), name):
                raise ConfigError(f"{where}{group}.{name} is empty: at least one entry was expected")
    for kind in ("propose", "train", "debug", "assess", "serve"):
        if not (minutes := getattr(config.executor, kind).timeout_min) > 0:
            raise ConfigError(f"{where}executor.{kind}.timeout_min={minutes}: a positive number was expected")
    for name in ("parent_ranks", "reference_ranks"):
        ranks = getattr(config.search, name)
        if len(ranks) != 2 or not 1 <= ranks[0] <= ranks[1]:
            raise ConfigError(f"search.{name}={ranks}: two ranks, first and last, were expected, such as [1, 10]")


def _merge(base: Any, layer: Any, source: str) -> DictConfig:
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{source}: expected a mapping of groups {[f.name for f in fields(Config)]}")
    _check_keys(Config, OmegaConf.to_container(layer), "", source)
    try:
        return cast(DictConfig, OmegaConf.merge(base, layer))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", "") or "?"
        expected = OmegaConf.select(base, key, default=None)
        raise ConfigError(
            f"{source}: {key} has a wrong value or type: {str(error).splitlines()[0]}; "
            f"expected a value like {expected!r}"
        ) from error


def _check_keys(schema: Any, data: Any, prefix: str, source: str) -> None:
    """Refuses keys that the schema does not know, in lists of groups too."""
    if typing.get_origin(schema) is list and isinstance(data, list):
        for index, item in enumerate(data):
            _check_keys(typing.get_args(schema)[0], item, f"{prefix.removesuffix('.')}[{index}].", source)
    if typing.get_origin(schema) is dict and isinstance(data, dict):
        for key, item in data.items():
            _check_keys(typing.get_args(schema)[1], item, f"{prefix}{key}.", source)
    if not is_dataclass(schema) or not isinstance(data, dict):
        return
    known = typing.get_type_hints(schema)
    for key, value in data.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {prefix}{close[0]}?)" if close else ""
            raise ConfigError(
                f"{source}: unknown key {prefix}{key}{hint}; valid keys here: "
                + ", ".join(f"{prefix}{name}" for name in known)
            )
        _check_keys(known[key], value, f"{prefix}{key}.", source)
