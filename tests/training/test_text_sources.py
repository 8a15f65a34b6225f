import gzip
import json
import lzma
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from asiarch_hpc.config import DataConfig, MixtureConfig, TextConfig
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
    described = text_sources.describe(DataConfig(source="python-stdlib"), identity_megabytes=256)
    assert described["python"] == ".".join(map(str, sys.version_info[:3]))
    assert described["files"] > 300


def test_identity_follows_content_not_place_or_time(tmp_path: Path) -> None:
    first, second = tmp_path / "x", tmp_path / "y"
    for folder in (first, second):
        folder.mkdir()
        write_jsonl(folder / "a.jsonl")
    os.utime(second / "a.jsonl", (1, 1))

    def identity(folder: Path) -> object:
        return text_sources.describe(DataConfig(source="jsonl", paths=[str(folder)]), identity_megabytes=256)

    assert identity(first) == identity(second)
    (second / "a.jsonl").write_text('{"text": "else"}')
    assert identity(first) != identity(second)


def test_much_text_is_identified_by_sizes_and_blocks(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "a.txt"

    def identity() -> object:
        config = TextConfig(source="text", paths=[str(path)])
        return text_sources.describe(config, identity_megabytes=1 / 64)["sha256"]  # 16 KiB: blocks of 1 KiB

    content = bytearray(rng.randbytes(100_000).hex().encode())
    seen = []
    for place in (None, 0, len(content) - 1):
        if place is not None:
            content[place : place + 1000] = b"x" * len(content[place : place + 1000])
        path.write_bytes(content)
        seen.append(identity())
    path.write_bytes(content + b"longer")
    seen.append(identity())
    path.write_bytes(content)
    seen.append(identity())
    assert len(set(seen)) == 4
    assert seen[4] == seen[2]


def make_parquet(folder: Path) -> list[str]:
    """Three files of several row groups; returns their texts in order."""
    folder.mkdir()
    rng = random.Random(0)
    everything = []
    for number in range(3):
        texts = [f"text {number} {i} {'word ' * rng.randrange(9)}" for i in range(70)]
        texts[5] = "  "
        columns = {"id": list(range(70)), "text": texts, "score": [rng.uniform(1, 5) for _ in texts]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"train-{number}.parquet", row_group_size=16)
        everything += [text for text in texts if text.strip()]
    return everything


@pytest.mark.parametrize("kind", ["huggingface", "parquet", "jsonl", "text", "python-stdlib"])
def test_reading_goes_on_at_any_document(tmp_path: Path, kind: str) -> None:
    texts = make_parquet(tmp_path / "set")
    config = TextConfig(source=kind, paths=[str(tmp_path / "set")])
    if kind == "huggingface":
        config = TextConfig(source=kind, dataset=str(tmp_path / "set"))
    elif kind == "jsonl":
        for number in range(3):
            lines = [json.dumps({"text": text}) for text in texts[number::3]]
            (tmp_path / "set" / f"{number}.jsonl").write_text("\n".join(lines))
    elif kind == "text":
        config.document_kilobytes = 0.1
        for number in range(3):
            (tmp_path / "set" / f"{number}.txt").write_text("\n\n".join(texts[number::3]))
    whole = list(islice(text_sources.open_reader(config), 200))
    for count in (0, 1, 16, 69, 70, 138, len(whole)):
        reader = text_sources.open_reader(config)
        before = iter(reader)
        first = list(islice(before, count))
        position = json.loads(json.dumps(reader.position()))
        before.close()
        again = text_sources.open_reader(config, position)
        assert again.position() == position
        assert first + list(islice(again, 200 - count)) == whole


def test_a_data_set_is_read_as_a_stream(tmp_path: Path) -> None:
    texts = make_parquet(tmp_path / "set")
    config = TextConfig(source="huggingface", dataset=str(tmp_path / "set"))
    assert list(text_sources.documents(config)) == texts
    config.text_field = "body"
    with pytest.raises(CorpusError, match=r"found fields \['id', 'score', 'text'\], expected 'body'"):
        list(text_sources.documents(config))


@pytest.mark.parametrize("kind", ["huggingface", "parquet", "jsonl"])
def test_records_below_a_minimum_are_skipped(tmp_path: Path, kind: str) -> None:
    make_parquet(tmp_path / "set")
    records = [
        record
        for number in range(3)
        for record in pyarrow.parquet.read_table(tmp_path / "set" / f"train-{number}.parquet").to_pylist()
    ]
    (tmp_path / "set" / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = TextConfig(
        source=kind, paths=[str(tmp_path / "set")], dataset=str(tmp_path / "set"), minimum={"score": 4.0}
    )
    if kind == "huggingface":
        (tmp_path / "set" / "a.jsonl").unlink()
    good = [record["text"] for record in records if record["score"] >= 4 and record["text"].strip()]
    assert 10 < len(good) < 100
    assert list(text_sources.documents(config)) == good
    config.minimum = {"id": 0, "text": 1.0}
    with pytest.raises(CorpusError, match=r"found 'text 0 0.*' in 'text', expected a number"):
        list(text_sources.documents(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": [MixtureConfig(weight=0.0)]}, "positive weight"),
        ({"mixture": [MixtureConfig(), MixtureConfig(weight=-0.5)]}, "positive weight"),
        ({"mixture": [MixtureConfig()], "paths": ["/data"]}, "data.mixture beside data.paths"),
        ({"mixture": [MixtureConfig(source="csv")]}, "data.source='csv'"),
    ],
)
def test_bad_mixtures(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        text_sources.sources_of(DataConfig(**settings))  # type: ignore[arg-type]
