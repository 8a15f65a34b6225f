"""Text to token ids and back: byte-level BPE trained on the corpus, plain bytes, or a tokenizer from disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from asiarch_hpc.errors import CorpusError

END_OF_TEXT = "<|endoftext|>"
# What other tokenizers call the token that separates documents; used where no tokenizer_config.json names it.
_END_NAMES = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eot_id|>", "[SEP]")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")  # gpt2, openai-community/gpt2


class Tokenizer(Protocol):
    """Encodes text without adding special tokens; special tokens spelled out in the text stay text."""

    @property
    def vocab(self) -> int:
        """Number of ids; every id lies below it."""
        ...

    @property
    def eos(self) -> int:
        """Id of the end-of-text token, which also begins every document."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """Ids of each text. Several threads live on, and processes that are forked later must use one."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def to_json(self) -> str:
        """The text that `from_json` rebuilds this tokenizer from."""
        ...


class ByteTokenizer:
    """The 256 byte values of UTF-8, and the end-of-text token 256."""

    vocab = 257
    eos = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        raw = b"".join(END_OF_TEXT.encode() if i == self.eos else bytes([i]) for i in ids)
        return raw.decode("utf-8", errors="replace")

    def to_json(self) -> str:
        return json.dumps({"kind": "bytes"})


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library with a known end-of-text token."""

    def __init__(self, inner: Any, eos: int) -> None:
        self._inner = inner
        # Text that spells a special token must not become one; the library does not save this flag.
        self._inner.encode_special_tokens = True
        self.eos = eos
        self.vocab = int(inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        with _threads(threads):
            return [e.ids for e in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode([int(i) for i in ids], skip_special_tokens=False))

    def to_json(self) -> str:
        return json.dumps({"kind": "subword", "eos": self.eos, "tokenizer": self._inner.to_str()})


def from_json(text: str) -> Tokenizer:
    """Rebuilds a tokenizer from its `to_json` text."""
    data = json.loads(text)
    if data["kind"] == "bytes":
        return ByteTokenizer()
    import tokenizers

    return SubwordTokenizer(tokenizers.Tokenizer.from_str(data["tokenizer"]), int(data["eos"]))


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Raises:
        CorpusError: the vocabulary cannot hold the 256 bytes and the end-of-text token.
    """
    if vocab_size < ByteTokenizer.vocab:
        raise CorpusError(
            f"data.vocab_size={vocab_size}: at least {ByteTokenizer.vocab} was expected for a byte-level BPE "
            "tokenizer (256 bytes and the end-of-text token); use data.tokenizer=bytes for the smallest vocabulary"
        )
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with _threads(1):
        inner.train_from_iterator(texts, trainer)
    eos = inner.token_to_id(END_OF_TEXT)
    assert eos is not None
    return SubwordTokenizer(inner, eos)


def load(path: Path) -> Tokenizer:
    """Reads a tokenizer.json, a folder that holds one, or a GPT-2 folder (encoder.json and vocab.bpe).

    Raises:
        CorpusError: nothing usable there, or no end-of-text token is known in it.
    """
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    files = tokenizer_files(path)
    try:
        if files[0].name == "encoder.json":
            inner = Inner(models.BPE.from_file(str(files[0]), str(files[1])))
            inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            inner.decoder = decoders.ByteLevel()
            inner.add_special_tokens([END_OF_TEXT])
        else:
            inner = Inner.from_file(str(files[0]))
        names = list(_END_NAMES)
        if files[-1].name == "tokenizer_config.json":
            named = json.loads(files[-1].read_text("utf-8")).get("eos_token")
            names = [str(named["content"] if isinstance(named, dict) else named), *names]
    except Exception as error:  # the library raises plain Exception
        raise CorpusError(f"{path}: not a tokenizer that the tokenizers library reads: {error}") from error
    for name in names:
        eos = inner.token_to_id(name)
        if eos is not None:
            return SubwordTokenizer(inner, eos)
    raise CorpusError(f"{path}: the tokenizer has none of the end-of-text tokens {names}; one of them was expected")


def tokenizer_files(path: Path) -> list[Path]:
    """The files that define the tokenizer at `path`, the main one first.

    Raises:
        CorpusError: there are none.
    """
    main = path / "tokenizer.json" if path.is_dir() else path
    if main.is_file():
        config = main.parent / "tokenizer_config.json"
        return [main, config] if config.is_file() else [main]
    gpt2 = [path / "encoder.json", path / "vocab.bpe"]
    if all(file.is_file() for file in gpt2):
        return gpt2
    raise CorpusError(
        f"data.tokenizer={str(path)!r}: found no tokenizer there; expected bpe, bytes, a tokenizer.json, a folder "
        "with tokenizer.json, or a folder with GPT-2's encoder.json and vocab.bpe"
    )


def locate(setting: str) -> Path:
    """Where the tokenizer of a setting lies on disk: a path as it is, a name on the hub in the local cache.

    Raises:
        CorpusError: neither there nor on the hub.
    """
    path = Path(setting).expanduser()
    if path.exists() or not _HUB_NAME.fullmatch(setting):
        return path
    try:
        import huggingface_hub

        found = huggingface_hub.hf_hub_download(setting, "tokenizer.json")
        with contextlib.suppress(huggingface_hub.errors.EntryNotFoundError):
            huggingface_hub.hf_hub_download(setting, "tokenizer_config.json")
    except Exception as error:  # the hub's, the network's and the file system's errors
        raise CorpusError(
            f"data.tokenizer={setting!r}: no such file or folder, and as a name on the hub it cannot be loaded: "
            f"{type(error).__name__}: {error}. Without internet: a folder with tokenizer.json, or with GPT-2's "
            "encoder.json and vocab.bpe"
        ) from error
    return Path(found)


def identity(setting: str) -> str:
    """What defines the tokenizer setting for a cache key: its name, or the content hash of its files."""
    if setting in ("bpe", "bytes"):
        return setting
    digest = hashlib.sha256()
    for file in tokenizer_files(locate(setting)):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    # The library's pool has the size of its first use. Processes that are forked later have no threads of it and could
    # wait for them.
    wanted = {"TOKENIZERS_PARALLELISM": "false"}
    if count > 1:
        wanted = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(count)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
