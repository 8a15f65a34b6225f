"""The command line's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from asiarch_hpc import cli
from asiarch_hpc.config import Config
from asiarch_hpc.errors import ConfigError


@pytest.fixture
def _configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(name: str, overrides: list[str]) -> Config:
        raise ConfigError(f"{name} with {overrides}")

    monkeypatch.setattr(cli, "load_config", tell)


@pytest.mark.usefixtures("_configuration")
@pytest.mark.parametrize(
    "command",
    [
        "check design.py --config smoke a=1 b=2",
        "check design.py a=1 --config smoke b=2",
        "extract paper.pdf --config smoke a=1 --into folder b=2",
        "explore a=1 --config smoke b=2",
        "noise --config smoke --seeds 3 a=1 b=2",
    ],
)
def test_overrides_may_stand_anywhere_behind_the_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command.split()) == 1
    assert "smoke with ['a=1', 'b=2']" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status --run x a=1", "check design.py --config smoke --nope=1", "tick x"])
def test_what_a_command_does_not_know_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(command.split())
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["corpora", "kernels"])
def test_folders_beside_the_runs_are_no_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explore", "--config", "smoke", "--run", name, "--results", str(tmp_path)]) == 1
    assert "run name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
