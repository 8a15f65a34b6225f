"""The servers' key: from a variable or a private file, never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from asiarch_hpc.agents.key import read_key
from asiarch_hpc.config import AgentsConfig
from asiarch_hpc.errors import ConfigError


def test_the_variable_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    file.chmod(0o600)
    config = AgentsConfig(api_key_env="KEY", api_key_file=str(file))
    assert read_key(config, {"KEY": " from-variable "}) == "from-variable"
    assert read_key(config, {"KEY": ""}) == read_key(config, {}) == "from-file"
    assert read_key(AgentsConfig(api_key_env="", api_key_file=str(file)), {"": "x"}) == "from-file"
    assert read_key(AgentsConfig(), {}) == ""


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "key"
    file.write_text("secret-key")
    file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"its mode is {mode:o}, .* chmod 600") as caught:
        read_key(AgentsConfig(api_key_file=str(file)), {})
    assert "secret-key" not in str(caught.value)


def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(ConfigError, match="No such file"):
        read_key(AgentsConfig(api_key_file=str(file)), {})
    file.touch(0o600)
    with pytest.raises(ConfigError, match="empty"):
        read_key(AgentsConfig(api_key_file=str(file)), {})
    for text in ("two words", "a\nb", "clé"):
        with pytest.raises(ConfigError, match="printable ASCII") as caught:
            read_key(AgentsConfig(), {"ASIARCH_API_KEY": text})
        assert text not in str(caught.value)
