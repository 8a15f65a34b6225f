"""The prepared corpus: a folder of HDF5 shards with token ids, made once, memory-mapped when read.

`tokenizer.json`, `shard-00000.h5` … (see shards.py), and at last `corpus.json`: the corpus is complete where that is.
Every document begins with the end-of-text token.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asiarch_hpc.config import DataConfig
from asiarch_hpc.errors import CorpusError, StoreError
from asiarch_hpc.records import Json
from asiarch_hpc.training import shards, text_sources
from asiarch_hpc.training import tokenizer as tokenizers
from asiarch_hpc.training.claim import claimed
from asiarch_hpc.training.documents import Documents
from asiarch_hpc.training.encoding import Encoder, is_heldout, token_type
from asiarch_hpc.training.mixing import Mixer, Progress, State, Synthetic
from asiarch_hpc.training.shards import LAYOUT, ShardId
from asiarch_hpc.training.tokenizer import Tokenizer

_MEGABYTE = 1 << 20
_DEFINING = (
    "vocab_size", "tokenizer_megabytes", "heldout_fraction", "max_heldout_tokens", "max_megabytes", "max_tokens",
    "recall_fraction", "shard_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """An opened corpus; `path` is its folder. The held-out part is read when it is first asked for: a process that
    is to start a design's code must not have it in memory by then."""

    path: Path
    key: str
    vocab: int
    tokenizer: Tokenizer
    train: Documents
    source: Json
    names: tuple[str, ...] = ()  # of the shards

    @functools.cached_property
    def heldout(self) -> Documents:
        return _documents(self.path, self.names, "heldout")

    @functools.cached_property
    def heldout_texts(self) -> Sequence[str]:
        found: list[str] = []
        for name in self.names:
            with shards.opened(self.path / name) as file:
                found += shards.texts(file)
        return found

    @functools.cached_property
    def heldout_bytes(self) -> Sequence[int]:
        """UTF-8 bytes of each held-out text."""
        return [len(text.encode()) for text in self.heldout_texts]


def prepare(
    config: DataConfig,
    *,
    root: Path,
    synthetic: Synthetic,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_wait: Callable[[str], None] = lambda holder: None,
) -> Path:
    """Writes the corpus of a configuration to the folder `root/<key>` unless it is there; returns the folder.

    The key hashes everything that defines the content, which the number of processes does not. A preparation that
    was killed goes on after the last finished shard. Any number of processes may ask for the same corpus at once:
    one makes it while the others wait, and were two to make it, the contents would be equal.

    Args:
        config: sources, tokenizer and sizes.
        root: folder of the corpora.
        synthetic: texts of recall documents for a seed; mixed into the training part until they make up
            `config.recall_fraction` of its tokens. Seeds 0, 1, 2 … are drawn as far as needed.
        on_progress: called for each chunk of text.
        on_wait: told the host and process that is making the corpus already.

    Raises:
        CorpusError: source or tokenizer are unusable, or nothing is left to train on or to hold out.
        StoreError: a file cannot be written.
    """
    _check_numbers(config)
    parts = text_sources.sources_of(config)
    described = [text_sources.describe(part, identity_megabytes=config.identity_megabytes) for part, _ in parts]
    weighted = [found | {"share": share} for found, (_, share) in zip(described, parts, strict=True)]
    key = _key(config, weighted, synthetic)
    folder = root / key
    index = folder / "corpus.json"
    if index.exists():
        try:
            open_corpus(folder)
            return folder
        except CorpusError:
            _set_aside(index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(
            folder / ".claim",
            stale_seconds=config.claim_stale_seconds,
            finished=index.exists,
            on_wait=on_wait,
        ) as beat:

            def alive(progress: Progress) -> None:
                beat()
                on_progress(progress)

            if not index.exists():
                _build(config, folder, weighted, synthetic, alive)
    except OSError as error:
        if index.exists():  # another process finished it, and tidied up
            return folder
        raise StoreError(f"{folder}: the corpus cannot be written: {error}; free space or change data.cache") from error
    finally:
        with suppress(OSError):
            folder.rmdir()  # where nothing was made
    return folder


def open_corpus(path: Path) -> Corpus:
    """Opens a prepared corpus; ids are memory-mapped.

    Raises:
        CorpusError: missing, damaged, or written in another layout.
    """
    index = path / "corpus.json"
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        if found["layout"] != LAYOUT:
            raise CorpusError(f"{path}: corpus layout {found['layout']}, expected {LAYOUT}; delete it and start again")
        text = (path / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = tokenizers.from_json(text)
        names = [ShardId(found["key"], _digest(text), number).name for number in range(found["shards"])]
        for number in range(found["shards"]):
            shards.read_state(path, ShardId(found["key"], _digest(text), number))
        return Corpus(
            path=path,
            key=found["key"],
            vocab=tokenizer.vocab,
            tokenizer=tokenizer,
            train=_documents(path, names, "train"),
            source=found["source"],
            names=tuple(names),
        )
    except CorpusError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CorpusError(
            f"{index}: not a readable corpus ({type(error).__name__}: {error}); delete it, it is prepared again at the "
            "next start"
        ) from error


def _documents(path: Path, names: Sequence[str], part: str) -> Documents:
    tokens, offsets, total = [], [np.zeros(1, dtype=np.int64)], 0
    for name in names:
        with shards.opened(path / name) as file:
            tokens.append(shards.mapped(path / name, file[f"{part}_tokens"]))
            offsets.append(file[f"{part}_offsets"][1:] + total)
            total += len(tokens[-1])
    return Documents(tokens, np.concatenate(offsets))


def _check_numbers(config: DataConfig) -> None:
    for name, value, least, below in (
        ("heldout_fraction", config.heldout_fraction, 0.0, 1.0),
        ("recall_fraction", config.recall_fraction, 0.0, 1.0),
    ):
        if not least <= value < below:
            raise CorpusError(f"data.{name}={value}: a share from {least} to below {below} was expected")
    for name in ("shard_tokens", "max_heldout_tokens", "chunk_megabytes", "identity_megabytes"):
        if not getattr(config, name) > 0:
            raise CorpusError(f"data.{name}={getattr(config, name)}: a positive number was expected")


def _key(config: DataConfig, sources: list[Json], synthetic: Synthetic) -> str:
    # A sample stands for the generator of recall documents, whose code is not known here.
    sample = list(itertools.islice(synthetic(0), 8)) if config.recall_fraction > 0 else []
    defining = {
        "layout": LAYOUT,
        "sources": sources,
        "tokenizer": tokenizers.identity(config.tokenizer),
        "settings": {name: getattr(config, name) for name in _DEFINING},
        "recall": sample,
    }
    return hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _set_aside(path: Path) -> None:
    with suppress(FileNotFoundError):  # another process did
        os.replace(path, path.with_name(f"{path.name}.damaged"))


def _tokenizer(config: DataConfig, folder: Path) -> Tokenizer:
    """The tokenizer of the shards that exist, else the configured one."""
    path = folder / "tokenizer.json"
    if path.exists():
        try:
            return tokenizers.from_json(path.read_text(encoding="utf-8"))
        except Exception:  # the tokenizers library raises plain Exception
            _set_aside(path)
    if config.tokenizer == "bytes":
        return tokenizers.ByteTokenizer()
    if config.tokenizer != "bpe":
        return tokenizers.load(tokenizers.locate(config.tokenizer))
    return tokenizers.train_bpe(_sample(config), config.vocab_size)


def _keep_tokenizer(text: str, folder: Path) -> None:
    if not (folder / "tokenizer.json").exists():
        shards.write_text(text, folder / "tokenizer.json")


def _sample(config: DataConfig) -> Iterator[str]:
    """Training text of every source in proportion, for a tokenizer."""
    size = config.tokenizer_megabytes
    if config.max_megabytes > 0:
        size = min(size, config.max_megabytes)
    for part, share in text_sources.sources_of(config):
        left = size * share * _MEGABYTE
        for text in text_sources.documents(part):
            if left <= 0:
                break
            raw = text.encode()
            if not is_heldout(raw, config.heldout_fraction):
                left -= len(raw)
                yield text


def _build(
    config: DataConfig,
    folder: Path,
    sources: list[Json],
    synthetic: Synthetic,
    on_progress: Callable[[Progress], None],
) -> None:
    """Makes the shards that are missing, and then the index."""
    tokenizer = _tokenizer(config, folder)
    text = tokenizer.to_json()
    key, digest = folder.name, _digest(text)
    with Encoder(tokenizer, config) as encoder:
        while (found := _finished(folder, key, digest)).next_number == 0 or not found.state["ended"]:
            with closing(Mixer(config, encoder, synthetic, found.state or None, on_progress)) as mixer:
                for number, shard in enumerate(mixer.shards(), found.next_number):
                    if mixer.state.ended:
                        _check_parts(config, mixer.state)
                    _keep_tokenizer(text, folder)
                    identity = ShardId(key, digest, number)
                    shard.write(folder, identity, token_type(tokenizer), vars(mixer.state))
                    if (folder / identity._replace(number=number + 1).name).exists():
                        break  # another process, or an earlier one, was further
    _keep_tokenizer(text, folder)
    _write_index(folder, found.next_number, sources, State(**found.state))
    shards.remove_partial(folder)


@dataclass(frozen=True)
class _Finished:
    next_number: int
    state: Json


def _finished(folder: Path, key: str, digest: str) -> _Finished:
    """The shards that exist without a gap, and the state after them; a damaged one is set aside."""
    state: Json = {}
    for number in itertools.count():
        identity = ShardId(key, digest, number)
        if not (folder / identity.name).exists():
            return _Finished(number, state)
        try:
            state = shards.read_state(folder, identity)
        except CorpusError:
            _set_aside(folder / identity.name)
            return _Finished(number, state)
    raise AssertionError


def _check_parts(config: DataConfig, state: State) -> None:
    what = ", ".join(text_sources.name_of(part) for part, _ in text_sources.sources_of(config))
    if not state.documents:
        raise CorpusError(f"{what}: no text to train on was found; expected at least one document")
    if not state.heldout_documents:
        raise CorpusError(
            f"{what}: none of {state.documents} documents fell into the held-out part "
            f"(data.heldout_fraction={config.heldout_fraction}, data.max_heldout_tokens={config.max_heldout_tokens}); "
            "give more or smaller documents (data.document_kilobytes for text files), or raise the fraction"
        )


def _write_index(folder: Path, count: int, sources: list[Json], state: State) -> None:
    listed = [found | {"train_tokens": tokens} for found, tokens in zip(sources, state.tokens, strict=True)]
    index: dict[str, Any] = {
        "layout": LAYOUT,
        "key": folder.name,
        "shards": count,
        "source": listed[0] if len(listed) == 1 else {"source": "mixture", "sources": listed},
        "train": {"tokens": state.total, "documents": state.documents, "recall_tokens": state.recalled},
        "heldout": {"tokens": state.heldout, "documents": state.heldout_documents},
        "text_bytes": state.size,
        "ended_by": state.ended,
    }
    shards.write_text(json.dumps(index, indent=1, sort_keys=True), folder / "corpus.json")
