"""The configuration: defaults, files, overrides, and errors that say what would have been right."""

from __future__ import annotations

from pathlib import Path

import pytest

from asiarch_hpc.config import CONFIGS, differences, from_dict, load_config, to_dict
from asiarch_hpc.errors import ConfigError


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_survives_json(path: Path) -> None:
    config = load_config(path.stem)
    assert from_dict(to_dict(config), source="test") == config


def test_overrides_are_typed() -> None:
    config = load_config(overrides=["search.batch=8", "scale.seeds=[1,2]", "executor.train.slurm.qos=long"])
    assert config.search.batch == 8
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
