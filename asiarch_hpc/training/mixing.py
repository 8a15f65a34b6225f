"""Makes the shards of a corpus: documents of all sources interleaved to their shares of the training tokens.

What comes next depends on what came before alone, not on who tokenises: a preparation that goes on after any shard
makes the same following shards.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from asiarch_hpc.config import DataConfig
from asiarch_hpc.errors import CorpusError
from asiarch_hpc.records import Json
from asiarch_hpc.training.encoding import Chunk, Encoder
from asiarch_hpc.training.shards import Shard
from asiarch_hpc.training.text_sources import Reader, open_reader, sources_of

_MEGABYTE = 1 << 20
Synthetic = Callable[[int], Iterable[str]]


@dataclass(frozen=True)
class Progress:
    """How far a preparation is: training tokens so far, and of all that will be 0 to 1, None where unknown."""

    tokens: int
    share: float | None


@dataclass
class State:
    """What the rest of a corpus depends on, after any document.

    `tokens` [sources] counts training tokens of each, `total` all of them with recall documents, which are
    `recalled`. `readers` [sources + 1] says where reading goes on, that of recall documents last. `ended` says why
    the corpus is complete.
    """

    tokens: list[int]
    readers: list[Json]
    size: int = 0
    total: int = 0
    recalled: int = 0
    documents: int = 0
    heldout: int = 0
    heldout_documents: int = 0
    heldout_full: bool = False
    ended: str = ""


class Document(NamedTuple):
    """A tokenised document; `size` in UTF-8 bytes."""

    ids: NDArray[Any]
    size: int
    heldout: bool
    text: str


class Mixer:
    """The shards of a corpus from a state on.

    Args:
        config: sources, shares and sizes.
        encoder: tokenises.
        synthetic: texts of recall documents for a seed; seeds 0, 1, 2 … are drawn as far as needed.
        state: of the last shard that exists, None at the beginning.
        on_progress: called now and then.

    Raises:
        CorpusError: a source is unusable.
    """

    def __init__(
        self,
        config: DataConfig,
        encoder: Encoder,
        synthetic: Synthetic,
        state: Json | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._config = config
        self._parts = sources_of(config)
        self._shares = [share for _, share in self._parts]
        count = len(self._parts)
        self.state = State(**state) if state else State([0] * count, [{}] * (count + 1))
        self._on_progress = on_progress
        places = self.state.readers
        readers: list[Reader] = [
            open_reader(part, place.get("position")) for (part, _), place in zip(self._parts, places[:-1], strict=True)
        ]
        readers.append(_RecallReader(synthetic, places[-1].get("position")))
        self._streams = [
            # Chunks in proportion to shares, so that little is tokenised that is not used in the end.
            _Stream(reader, encoder, int(config.chunk_megabytes * _MEGABYTE * share), place.get("skip", 0), self._tell)
            for reader, share, place in zip(readers, [*self._shares, config.recall_fraction], places, strict=True)
        ]

    def shards(self) -> Iterator[Shard]:
        """Yields the following shards; `state` is then that after the shard. The last one sets `ended`."""
        while not self.state.ended:
            shard = Shard()
            while not self.state.ended and shard.train.tokens < self._config.shard_tokens:
                self._add(shard)
            self.state.readers = [stream.place() for stream in self._streams]
            yield shard

    def close(self) -> None:
        """Stops reading, which at the end of the process would be too late for some libraries."""
        for stream in self._streams:
            stream.close()

    def progress(self) -> Progress:
        """How far the corpus is by the limit that ends it first."""
        config, state = self._config, self.state
        known = [stream.reader.share() for stream in self._streams[:-1]]
        shares = [share for share in known if share is not None]
        if config.max_tokens:
            shares.append(state.total / config.max_tokens)
        if config.max_megabytes > 0:
            shares.append(state.size / (config.max_megabytes * _MEGABYTE))
        return Progress(state.total, min(max(shares), 1.0) if shares else None)

    def _tell(self) -> None:
        self._on_progress(self.progress())

    def _add(self, shard: Shard) -> None:
        """Takes the next document, or finds that there is none."""
        config, state = self._config, self.state
        if 0 < config.max_megabytes * _MEGABYTE <= state.size:
            state.ended = "data.max_megabytes"
            return
        source = min(range(len(self._parts)), key=lambda i: (state.tokens[i] / self._shares[i], i))
        document = self._streams[source].take()
        if document is None:
            state.ended = f"end of source {source}"
            return
        state.size += document.size
        if document.heldout:
            self._hold_out(document, shard)
            return
        self._train(document, shard)
        state.tokens[source] += len(document.ids)
        while state.recalled < config.recall_fraction * state.total:
            recall = self._streams[-1].take()
            assert recall is not None  # the generator never ends
            self._train(recall, shard)
            state.recalled += len(recall.ids)
        if 0 < config.max_tokens <= state.total:
            state.ended = "data.max_tokens"

    def _train(self, document: Document, shard: Shard) -> None:
        shard.train.append(document.ids)
        self.state.total += len(document.ids)
        self.state.documents += 1

    def _hold_out(self, document: Document, shard: Shard) -> None:
        state = self.state
        # Once full, it stays so: else short documents would be preferred at the end.
        state.heldout_full |= state.heldout + len(document.ids) > self._config.max_heldout_tokens
        if state.heldout_full:
            return
        shard.heldout.append(document.ids)
        shard.texts.append(document.text.encode())
        state.heldout += len(document.ids)
        state.heldout_documents += 1


class _Stream:
    """The documents of a source, tokenised some chunks ahead."""

    def __init__(self, reader: Reader, encoder: Encoder, characters: int, skip: int, on_chunk: Callable[[], None]):
        self.reader = reader
        self._encoder = encoder
        self._characters = characters
        self._on_chunk = on_chunk
        self._texts = iter(reader)
        self._skip = skip  # of the first chunk: so the chunks are those that they would have been without a break
        self._waiting: deque[tuple[Json, list[str], Callable[[], Chunk]]] = deque()
        self._place: Json = reader.position()
        self._documents: Iterator[Document] = iter(())
        self._used = skip

    def take(self) -> Document | None:
        """The next document, None at the end."""
        while (document := next(self._documents, None)) is None:
            self._fill()
            if not self._waiting:
                return None
            self._place, texts, result = self._waiting.popleft()
            self._documents = itertools.islice(_documents(result(), texts), self._skip, None)
            self._used, self._skip = self._skip, 0
            self._on_chunk()
        self._used += 1
        return document

    def close(self) -> None:
        self._texts.close()

    def place(self) -> Json:
        """Where reading goes on after the document taken last."""
        return {"position": self._place, "skip": self._used}

    def _fill(self) -> None:
        while len(self._waiting) < self._encoder.ahead:
            place = self.reader.position()
            texts: list[str] = []
            size = 0
            for text in self._texts:
                texts.append(text)
                size += len(text)
                if size >= self._characters:
                    break
            if not texts:
                return
            self._waiting.append((place, texts, self._encoder.submit(texts)))


def _documents(chunk: Chunk, texts: list[str]) -> Iterator[Document]:
    begins = [0, *chunk.ends]
    for begin, end, size, heldout, text in zip(begins[:-1], chunk.ends, chunk.sizes, chunk.heldout, texts, strict=True):
        yield Document(chunk.ids[begin:end], size, heldout, text)


class _RecallReader:
    """Recall documents of the seeds 0, 1, 2 …"""

    def __init__(self, synthetic: Synthetic, position: Json | None) -> None:
        self._synthetic = synthetic
        self._seed: int = position["seed"] if position else 0
        self._record: int = position["record"] if position else 0

    def __iter__(self) -> Generator[str]:
        while True:
            empty = True
            for text in itertools.islice(self._synthetic(self._seed), self._record, None):
                empty = False
                self._record += 1
                yield text
            if empty and not self._record:
                raise CorpusError(
                    f"the generator of recall documents gave none for seed {self._seed}; expected at least one"
                )
            self._seed, self._record = self._seed + 1, 0

    def position(self) -> Json:
        return {"seed": self._seed, "record": self._record}

    def share(self) -> float | None:
        return None
