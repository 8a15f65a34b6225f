import json
import shutil
import zipfile
from pathlib import Path

import pytest

from asiarch_hpc.records import Role
from jobs import compiled, training, workspace
from tests import trials


def kernel(folder: Path, key: str) -> Path:
    """What Triton leaves of one compiled kernel."""
    at = folder / "triton" / key
    at.mkdir(parents=True)
    (at / "add.cubin").write_text(key)
    (at / "__grp__add.json").write_text(json.dumps({"child_paths": {"add.cubin": str(at / "add.cubin")}}))
    return at


def test_a_job_gets_what_the_baselines_compiled(tmp_path: Path) -> None:
    for baseline in ("reference", "other"):
        kernel(tmp_path / baseline, baseline)
        (tmp_path / baseline / "link").symlink_to("/etc/passwd")
        compiled.pack(tmp_path / baseline, tmp_path / "archives", baseline)
    compiled.unpack(tmp_path / "archives", tmp_path / "back")
    files = {str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*") if path.is_file()}
    names = ("add.cubin", "__grp__add.json")
    assert files == {f"triton/{key}/{name}" for key in ("reference", "other") for name in names}


def test_triton_finds_kernels_where_they_were_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps absolute paths; a folder elsewhere was passed over, and everything was compiled again."""
    cache = pytest.importorskip("triton.runtime.cache")
    (tmp_path / "made" / "triton").mkdir(parents=True)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "made" / "triton"))
    made = cache.FileCacheManager("0a")
    made.put_group("add.json", {"add.json": made.put("{}", "add.json", binary=False)})
    compiled.pack(tmp_path / "made", tmp_path / "archives", "a")
    shutil.rmtree(tmp_path / "made")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "back" / "triton"))
    compiled.unpack(tmp_path / "archives", tmp_path / "back")
    found = cache.FileCacheManager("0a").get_group("add.json")
    assert found == {"add.json": str(tmp_path / "back" / "triton" / "0a" / "add.json")}


def test_later_jobs_add_what_is_new_and_the_first_stays(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    compiled.pack(empty, tmp_path / "archives", "a")
    assert not (tmp_path / "archives").exists()
    for text in ("first", "second"):
        (full / "kernel").write_text(text)
        (full / text).write_text(text)
        compiled.pack(full, tmp_path / "archives", "a")
    compiled.unpack(tmp_path / "archives", tmp_path / "back")
    contents = {path.name: path.read_text() for path in (tmp_path / "back").iterdir()}
    assert contents == {"kernel": "first", "first": "first", "second": "second"}


def test_a_missing_or_damaged_archive_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "a.zip").write_bytes(b"no archive")
    for archives in ("archives", "missing"):
        compiled.unpack(tmp_path / archives, tmp_path / "back")
        assert list((tmp_path / "back").iterdir()) == []


def test_a_damaged_file_of_an_archive_is_left_out_and_packed_again(tmp_path: Path) -> None:
    made, archives = tmp_path / "made", tmp_path / "archives"
    for name in ("first", "second", "third"):
        kernel(made, name)
    compiled.pack(made, archives, "a")
    content = (archives / "a.zip").read_bytes()
    name = "triton/second/add.cubin"
    with zipfile.ZipFile(archives / "a.zip") as archive:
        place = content.index(b"second", archive.getinfo(name).header_offset + 30 + len(name))  # behind its header
    (archives / "a.zip").write_bytes(content[:place] + b"S" + content[place + 1 :])
    compiled.unpack(archives, tmp_path / "back")
    names = {path.parent.name for path in (tmp_path / "back").rglob("add.cubin")}
    assert names == {"first", "third"}
    compiled.pack(made, archives, "a")
    compiled.unpack(archives, tmp_path / "whole")
    assert {path.read_text() for path in (tmp_path / "whole").rglob("add.cubin")} == {"first", "second", "third"}


@pytest.mark.parametrize("role", ["baseline", "candidate"])
def test_what_a_candidates_code_wrote_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Role) -> None:
    """Else a design would carry what it learned into its next training, and into its evaluation."""
    monkeypatch.setattr(training, "uses_gpu", lambda device, sandbox: True)
    folder = "os.environ['TRITON_CACHE_DIR']"
    write = f"os.makedirs({folder}, exist_ok=True); open({folder} + '/state', 'w').write('learned')"
    text = trials.SOURCE.replace("import torch\n", "import os, torch\n", 1)
    text = text.replace("        h = self.norm(X)", f"        {write}\n        h = self.norm(X)")
    layout, identifier = trials.one_design(tmp_path, "scale.steps=2", "scale.warmup_steps=1", source=text, role=role)
    message = trials.message_of(trials.training(layout, identifier))
    assert message["status"] == "ok", message
    kept = (tmp_path / "kernels").glob("smoke-*/*.zip")
    assert [path.stem for path in kept] == ([identifier] if role == "baseline" else [])


def test_kernels_of_other_sizes_have_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled graph knows the shapes of what the operations return, which depend on the table of sizes."""
    monkeypatch.setattr(workspace.kernels, "__file__", str(tmp_path / "__init__.py"))
    prints = []
    for name, text in (("triton.py", "1"), ("triton.py", "2"), ("configurations.json", "{}"), ("README.md", "words")):
        (tmp_path / name).write_text(text)
        prints.append(workspace._print_of_kernels.__wrapped__())
    assert len(set(prints)) == 3
    assert prints[2] == prints[3]
