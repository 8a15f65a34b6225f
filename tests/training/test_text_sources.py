import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from asiarch_hpc.config import DataConfig
from asiarch_hpc.errors import CorpusError
from asiarch_hpc.training import text_sources

TEXTS = ["first document", "  \n", "zweites Dokument: äöü", "third"]
KEPT = [TEXTS[0], TEXTS[2], TEXTS[3]]


def read(source: str, *paths: Path, **settings: object) -> list[str]:
    config = DataConfig(source=source, paths=[str(p) for p in paths])
    for name, value in settings.items():
        setattr(config, name, value)
    return list(text_sources.documents(config))


def write_jsonl(path: Path) -> Path:
    content = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS)).encode()
    pack = {".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / name)
    assert read("jsonl", path) == KEPT
    assert read("jsonl", tmp_path) == KEPT


def test_json_lines_name_the_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": \n')
    with pytest.raises(CorpusError, match=rf"{path}, line 2: not JSON"):
        read("jsonl", path)
    path.write_text('\n{"body": "good"}\n')
    with pytest.raises(CorpusError, match=rf"{path}, line 2: found \['body'\], expected .*'text'"):
        read("jsonl", path)
    assert read("jsonl", path, text_field="body") == ["good"]


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n')
    assert read("jsonl", path) == ["a?b"]


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl.xz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=f"{path}: cannot be read"):
        read("jsonl", path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3, 4]}), path)
    assert read("parquet", tmp_path) == KEPT
    with pytest.raises(CorpusError, match=rf"{path}: found columns \['text', 'n'\], expected 'body'"):
        read("parquet", path, text_field="body")
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(CorpusError, match=f"{path}: not a parquet file"):
        read("parquet", path)


def test_text_files_one_document_each(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    assert read("text", tmp_path) == ["one", "two", "three"]


def test_long_text_files_are_cut_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = "".join(f"paragraph {i}\nhas two lines\n\n" for i in range(500))
    path.write_text(text)
    pieces = read("text", path, document_kilobytes=1.0)
    assert "".join(pieces) == text
    assert 5 < len(pieces) < 20
    assert all(piece.startswith("\nparagraph") for piece in pieces[1:])
    assert read("text", path, document_kilobytes=0.0) == [text]
    path.write_text(text.replace("\n\n", "\n"))  # without blank lines a piece still ends
    assert max(map(len, read("text", path, document_kilobytes=1.0))) < 2100


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Übung".encode("latin-1"))
    with pytest.raises(CorpusError, match=f"{path}: not UTF-8"):
        read("text", path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "csv"}, "data.source='csv': one of python-stdlib, text"),
        ({"source": "text"}, "needs data.paths"),
        ({"source": "text", "paths": ["/no/such/folder"]}, "/no/such/folder: no such file or folder"),
        ({"source": "huggingface"}, "needs data.dataset"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        list(text_sources.documents(DataConfig(**settings)))  # type: ignore[arg-type]


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"{tmp_path}: no file ends in .txt"):
        read("text", tmp_path)


def test_hub_data_set_without_network_says_what_to_do() -> None:
    code = (
        "from asiarch_hpc.config import DataConfig\n"
        "from asiarch_hpc.training.text_sources import documents\n"
        "list(documents(DataConfig(source='huggingface', dataset='nobody/no-such-data')))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "CorpusError: data set nobody/no-such-data, split 'train': cannot be loaded" in done.stderr
    assert "data.source=jsonl or parquet" in last


def test_standard_library_gives_megabytes_of_code_and_prose() -> None:
    texts = read("python-stdlib")
    assert sum(map(len, texts)) > 5_000_000
    assert any("import" in text and "def " in text for text in texts)
    prose = [t for t in texts if t.startswith('The "assert" statement')]
    assert len(prose) == 1  # from the language reference's chapters
    assert texts == read("python-stdlib")
    described = text_sources.describe(DataConfig(source="python-stdlib"))
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))
    assert described["files"] > 300


def test_identity_follows_content_not_place_or_time(tmp_path: Path) -> None:
    first, second = tmp_path / "x", tmp_path / "y"
    for folder in (first, second):
        folder.mkdir()
        write_jsonl(folder / "a.jsonl")
    os.utime(second / "a.jsonl", (1, 1))

    def identity(folder: Path) -> object:
        return text_sources.describe(DataConfig(source="jsonl", paths=[str(folder)]))

    assert identity(first) == identity(second)
    (second / "a.jsonl").write_text('{"text": "else"}')
    assert identity(first) != identity(second)
