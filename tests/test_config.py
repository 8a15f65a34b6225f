"""The configuration: defaults, files, overrides, and errors that say what would have been right."""

from __future__ import annotations

from pathlib import Path

import pytest

from asiarch_hpc.config import (
    CONFIGS,
    at_stage,
    carried_out_by,
    differences,
    from_dict,
    load_config,
    proposers,
    ranks,
    ranks_per_node,
    stage_of,
    to_dict,
    uses_agents,
)
from asiarch_hpc.errors import ConfigError


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_survives_json(path: Path) -> None:
    config = load_config(path.stem)
    assert from_dict(to_dict(config), source="test") == config


def test_overrides_are_typed() -> None:
    config = load_config(overrides=["search.batch=8", "scale.seeds=[1,2]", "executor.train.slurm.qos=long"])
    assert config.search.batch == 8
    assert load_config(overrides=["scale.compile=off", "scale.keep_weights=on"]).scale.compile == "off"
    assert load_config(overrides=["scale.keep_weights=on"]).scale.keep_weights is True
    assert load_config(overrides=["scale.keep_weights=no"]).scale.keep_weights is False
    assert config.scale.seeds == [1, 2]
    assert config.executor.train.slurm == {"qos": "long"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "search.bath=3",
            r"unknown key search\.bath \(did you mean search\.batch\?\); valid keys here: .*search\.seed",
        ),
        ("serch.batch=3", r"did you mean search\?"),
        ("search.operators.mutant=1", r"valid keys here: search\.operators\.mutation"),
        ("search.batch=many", r"search\.batch has a wrong value or type.*expected a value like 6"),
        ("search.batch", r"expected group\.key=value"),
        ("search.policy=best", r"asi_arch or random"),
        ("baselines.seeds=[0]", r"at least three seeds"),
        ("scale.dim=30", r"multiple of scale\.heads"),
        ("search=3", r"search"),
        ("proposer=gpt", r"recombine or llm was expected, or shares such as proposer\.llm=0\.8"),
        ("proposer.llm=-1", r"recombine or llm was expected"),
        ("proposer=llm", r"need a language model: agents\.endpoints="),
        ("fitness.judge=llm", r"need a language model"),
        ("fitness.judge_weights.results=0.9", r"with the sum 1"),
        ("fitness.noise_level=0", r"a chance from 1e-6 to 0.5"),
        ("agents.servers=[{nme: a}]", r"did you mean agents\.servers\[0\]\.name\?"),
        ("agents.servers=[{name: a}]", r"a model for each"),
        ("agents.servers=[{name: A b, model: m}]", r"a-z, 0-9 and dashes"),
        ("agents.embedding.kind=served", r"agents\.embedding\.model: a model"),
        ("agents.reply=xml", r"schema or blocks"),
        ("scale.schedule=linear", r"wsd or cosine"),
        ("scale.precision=fp8", r"auto, fp32 or bf16"),
        ("scale.device=tpu", r"auto, cpu or cuda"),
        ("scale.compile=yes", r"auto, on or off"),
        ("scale.micro_batch=-1", r"micro_batch=-1"),
        ("scale.gradient_limit=-1", r"gradient_limit=-1\.0 of 0 \(none\) or more"),
        ("stages.verify.scale.loss_rise_limit=-2", r"stages\.verify\.scale: loss_rise_limit=-2"),
        ("evaluation.devices=-1", r"evaluation\.devices=-1"),
        ("scale.prefetch=0", r"scale\.prefetch=0: a positive number"),
        ("scale.packing_window=0", r"scale\.packing_window=0: a positive number"),
        ("stages.verify.promote.topp=2", r"did you mean stages\.verify\.promote\.top\?"),
        ("stages.verify.scale.dim=33", r"stages\.verify\.scale\.dim=33: a multiple of scale\.heads"),
        ("stages.verify.scale.steps=0", r"stages\.verify\.scale\.steps=0: a positive number"),
        ("stages.verify.scale.name=x", r"the stage's name was expected"),
        ("stages.verify.train.gpus=many", r"stages\.verify\.train\.gpus has a wrong value or type"),
        ("stages.explore.scale.steps=9", r"another name than that of the run's own scale"),
        ("stages.a-b.scale.steps=9", r"letters, digits and '_'"),
        ("stages.verify.promote.by=luck", r"fitness or loss"),
        ("stages.verify.baseline_seeds=[0,1]", r"at least three seeds"),
        ("stages.verify.baselines=[delta_net]", r"the reference not among them"),
        ("stages=3", r"stages"),
    ],
)
def test_errors_say_what_is_valid(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config(overrides=[override])


def test_a_missing_file_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="laptop"):
        load_config("laptob")


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("search: [1,")
    with pytest.raises(ConfigError, match=r"mine\.yaml: not valid YAML"):
        load_config(str(path))


def test_differences_are_listed_by_key() -> None:
    changed = differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4})
    assert changed == ["a.c: 2 -> 3", "d: None -> 4"]


def test_proposers_are_a_name_or_shares() -> None:
    endpoint = "agents.endpoints=[http://127.0.0.1:1/v1]"
    assert proposers(load_config()) == {"recombine": 1.0}
    assert not uses_agents(load_config())
    shared = load_config("laptop", ["proposer.llm=0.8", "proposer.recombine=0.2", endpoint])
    assert proposers(shared) == {"llm": 0.8, "recombine": 0.2}
    assert from_dict(to_dict(shared), source="test") == shared
    assert proposers(load_config("laptop", ["proposer={llm: 3, recombine: 0}", endpoint])) == {"llm": 3.0}
    assert uses_agents(load_config("laptop", ["fitness.judge=llm", endpoint]))


def test_a_stage_inherits_what_it_does_not_set() -> None:
    config = load_config(
        "smoke",
        [
            "stages.verify.scale.dim=32",
            "stages.verify.promote.top=2",
            "stages.final.evaluation.questions=7",
            "stages.final.train.gpus=4",
            "scale.learning_rate=0.02",
            "stages.verify.scale.steps=40",
        ],
    )
    assert list(config.stages) == ["verify", "final"]
    verify, final = at_stage(config, "verify"), at_stage(config, "final")
    assert (verify.scale.name, verify.scale.dim, verify.scale.steps, verify.scale.learning_rate) == (
        "verify", 32, 40, 0.02,
    )  # fmt: skip
    assert (final.scale.dim, final.scale.steps, final.scale.learning_rate) == (16, 30, 0.02)
    assert (final.evaluation.questions, verify.evaluation.questions, config.evaluation.questions) == (7, 10, 10)
    assert (final.executor.train.gpus, verify.executor.train.gpus) == (4, 0)
    assert at_stage(config, None) is config
    assert from_dict(to_dict(config), source="test") == config
    assert [stage_of(trial, config) for trial in ("final-s12", "smoke-s0", "finals-s0")] == ["final", None, None]
    with pytest.raises(ConfigError, match="one of \\['verify', 'final'\\]"):
        at_stage(config, "last")


def test_what_a_stage_asks_for_may_change_and_what_it_finds_may_not() -> None:
    assert carried_out_by("stages.verify.train.gpus")
    assert carried_out_by("executor.train.slurm")
    assert not carried_out_by("stages.verify.scale.steps")
    assert not carried_out_by("stages.verify.promote.top")


def test_stages_can_be_left_out() -> None:
    assert load_config("smoke", ["stages.verify.scale.dim=32", "stages={}"]).stages == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scale.engine=fsdp"], "scale.engine='fsdp': auto, torch or deepspeed was expected"),
        (["scale.zero_stage=3"], "scale.zero_stage=3: 0, 1 or 2"),
        (["executor.train.gpus=2", "executor.train.ranks=2"], "either gpus or ranks"),
        (["executor.train.gpus=3"], "scale.batch_size=4: a multiple of the 3 processes of executor.train"),
        (["executor.train.nodes=2", "scale.engine=torch"], "trains with one process, executor.train asks for 2"),
        (["executor.train.nodes=2", "executor.kind=local"], "nodes=2: 1 with executor.kind=local"),
        (["stages.final.train.gpus=3"], "stages.final.scale.batch_size=4: a multiple of the 3 processes of stages.fin"),
    ],
)
def test_processes_that_cannot_train_together(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("smoke", overrides)


def test_processes_of_a_training() -> None:
    train = load_config("smoke", ["executor.train.nodes=2", "executor.train.gpus=2"]).executor.train
    assert (ranks_per_node(train), ranks(train)) == (2, 4)
    train = load_config("smoke", ["executor.train.ranks=2"]).executor.train
    assert (ranks_per_node(train), ranks(train)) == (2, 2)


def test_a_mixture_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(
        "data:\n  mixture:\n"
        "    - {source: huggingface, dataset: some/web, weight: 0.7, minimum: {score: 4}}\n"
        "    - {source: jsonl, paths: [/data/code], weight: 0.3}\n"
    )
    config = load_config(str(path))
    assert [(part.source, part.weight, part.minimum) for part in config.data.mixture] == [
        ("huggingface", 0.7, {"score": 4.0}),
        ("jsonl", 0.3, {}),
    ]
    assert from_dict(to_dict(config), source="test") == config
    path.write_text("data: {mixture: [{source: jsonl, wieght: 0.7}]}")
    with pytest.raises(ConfigError, match="wieght"):
        load_config(str(path))
