from pathlib import Path

import pytest

from jobs import compiled, training
from tests import trials


def test_a_training_gets_what_the_baseline_compiled_and_nothing_else(tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    for baseline in ("reference", "other"):
        made = tmp_path / baseline
        (made / "triton").mkdir(parents=True)
        (made / "triton" / baseline).write_text(baseline)
        (made / "link").symlink_to("/etc/passwd")
        compiled.pack(made, archives, baseline)
    compiled.unpack(archives, "reference", tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").rglob("*") if not path.is_dir()} == {"reference"}


def test_nothing_is_kept_of_nothing_and_the_first_stays(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    compiled.pack(empty, tmp_path / "archives", "a")
    assert not (tmp_path / "archives").exists()
    for text in ("first", "second"):
        (full / "kernel").write_text(text)
        compiled.pack(full, tmp_path / "archives", "a")
    compiled.unpack(tmp_path / "archives", "a", tmp_path / "back")
    assert (tmp_path / "back" / "kernel").read_text() == "first"


def test_a_missing_or_damaged_archive_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no archive")
    for baseline in ("a", "missing"):
        compiled.unpack(tmp_path, baseline, tmp_path / "back")
        assert list((tmp_path / "back").iterdir()) == []


@pytest.mark.parametrize("reference", [None, "0123abcd"], ids=["baseline", "candidate"])
def test_what_a_candidates_code_wrote_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str | None
) -> None:
    """Else a design would carry what it learned into its next training, and into its evaluation."""
    monkeypatch.setattr(training, "uses_gpu", lambda device, sandbox: True)
    folder = "os.environ['TRITON_CACHE_DIR']"
    write = f"os.makedirs({folder}, exist_ok=True); open({folder} + '/state', 'w').write('learned')"
    text = trials.SOURCE.replace("import torch\n", "import os, torch\n", 1)
    text = text.replace("        h = self.norm(X)", f"        {write}\n        h = self.norm(X)")
    layout, identifier = trials.one_design(tmp_path, "scale.steps=2", "scale.warmup_steps=1", source=text)
    entry = trials.training(layout, identifier)
    entry.arguments["reference"] = reference
    message = trials.message_of(entry)
    assert message["status"] == "ok", message
    kept = tmp_path / "kernels" / "smoke"
    assert [path.stem for path in kept.glob("*.zip")] == ([identifier] if reference is None else [])
