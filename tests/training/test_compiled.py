from pathlib import Path

from jobs import compiled


def test_a_design_gets_back_what_it_and_the_reference_compiled_and_nothing_else(tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    for design in ("reference", "own", "other"):
        made = tmp_path / design
        (made / "triton").mkdir(parents=True)
        (made / "triton" / design).write_text(design)
        (made / "link").symlink_to("/etc/passwd")
        compiled.pack(made, archives, design)
    compiled.unpack(archives, ("reference", "own", None), tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").rglob("*") if not path.is_dir()} == {"reference", "own"}


def test_nothing_is_kept_of_nothing_and_the_first_stays(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    compiled.pack(empty, tmp_path / "archives", "a")
    assert not (tmp_path / "archives").exists()
    for text in ("first", "second"):
        (full / "kernel").write_text(text)
        compiled.pack(full, tmp_path / "archives", "a")
    compiled.unpack(tmp_path / "archives", ("a", "missing"), tmp_path / "back")
    assert (tmp_path / "back" / "kernel").read_text() == "first"


def test_a_damaged_archive_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no archive")
    compiled.unpack(tmp_path, ("a",), tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []
