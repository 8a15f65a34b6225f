"""How alike texts are: one interface for the novelty of motivations and for the retrieval of cognitions.

TF-IDF needs no weights, no server and no network, so it is the default; models of sentences are for whoever has one.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from asiarch_hpc.config import EmbeddingConfig
from asiarch_hpc.errors import ConfigError, ServiceError
from asiarch_hpc.knowledge.cognition import cognition_base
from asiarch_hpc.knowledge.words import stems

Vector = Sequence[float]
TRIES = 4  # of one request
SHORTEST = 500  # characters; a text this short is not cut further for a server that finds it too long


class Embedder(Protocol):
    """Measures the likeness of texts."""

    @property
    def name(self) -> str:
        """What was measured with, for the records."""

    def likeness(self, queries: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        """A row for each query, a column for each text: 0 for nothing in common, 1 for the same.

        Raises:
            ConfigError: what it needs is not installed.
            ServiceError: no server answers.
        """


def embedder_of(config: EmbeddingConfig, *, url: Callable[[], str] | None, key: str) -> Embedder:
    """The embedder that a configuration names. `url` finds a server of embeddings, up to and including /v1.

    Raises:
        ConfigError: an unknown kind, or one that lacks its model or its server.
    """
    if config.kind == "tfidf":
        return Tfidf(_triggers())
    if config.kind not in ("served", "sentence-transformers"):
        raise ConfigError(f"agents.embedding.kind={config.kind}: expected tfidf, served or sentence-transformers")
    if not config.model:
        raise ConfigError(f"agents.embedding.model is empty; kind {config.kind} needs one")
    if config.kind == "sentence-transformers":
        return SentenceTransformers(Path(config.model), config.batch)
    if url is None:
        raise ConfigError("agents.embedding.kind=served: no server; add one with embeddings: true to agents.servers")
    return Served(url, config.model, key, config.batch)


def _triggers() -> tuple[str, ...]:
    return tuple(text for entry in cognition_base() for c in entry.cognitions for text in c.triggers)


@dataclass(frozen=True)
class Tfidf:
    """Likeness by shared words, rare ones counting more.

    How rare a word is follows from the texts and from the background: among a dozen motivations alone, `memory` would
    be as telling as `Householder`. Words of a query that nothing else holds count against it.
    """

    background: Sequence[str] = ()
    name: str = "tfidf"

    def likeness(self, queries: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        if not queries or not texts:
            return [[] for _ in queries]
        if not any(stems(text) for text in (*texts, *self.background)):
            return [[0.0] * len(texts) for _ in queries]
        import numpy as np

        model, held = _fitted(tuple(texts), tuple(self.background))
        asked = model.transform(queries)
        rarest = float(max(model.idf_))
        known = np.asarray(asked.multiply(asked).sum(axis=1)).ravel()
        unknown = np.array([_squares(stems(text), model.vocabulary_, rarest) for text in queries])
        lengths = np.sqrt(known + unknown)
        found = (asked @ held.T).toarray() / np.where(lengths > 0, lengths, 1.0)[:, None]
        return [[_bounded(value) for value in row] for row in found.tolist()]


@lru_cache(maxsize=2)  # a job asks the cognition base, and perhaps the run's motivations, time and again
def _fitted(texts: tuple[str, ...], background: tuple[str, ...]) -> tuple[Any, Any]:
    """A fitted model, and its vectors of the texts, of length 1."""
    from sklearn.feature_extraction.text import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        TfidfVectorizer,
    )
    from sklearn.preprocessing import normalize  # type: ignore[import-untyped,import-not-found,unused-ignore]

    model = TfidfVectorizer(analyzer=stems, sublinear_tf=True, norm=None).fit([*texts, *background])
    return model, normalize(model.transform(texts))


def _squares(words: Sequence[str], vocabulary: dict[str, int], weight: float) -> float:
    """What the words that are not in the vocabulary add to the square of a query's length."""
    unknown = [word for word in words if word not in vocabulary]
    return sum(((1 + math.log(unknown.count(word))) * weight) ** 2 for word in set(unknown))


class _Cached:
    """Likeness by vectors, each of them made once."""

    _vectors: dict[str, Vector]

    def likeness(self, queries: Sequence[str], texts: Sequence[str]) -> list[list[float]]:
        missing = [t for t in dict.fromkeys((*queries, *texts)) if t.strip() and t not in self._vectors]
        self._vectors.update(zip(missing, map(_unit, self._encode(missing)), strict=True))
        widths = {len(vector) for vector in self._vectors.values()}
        if len(widths) > 1:
            self._vectors.clear()
            raise ServiceError(f"embeddings of {sorted(widths)} numbers; the server changed its model meanwhile")
        if not queries or not texts:
            return [[] for _ in queries]
        import numpy as np

        products = np.array(self._rows(queries)) @ np.array(self._rows(texts)).T
        return [[_bounded(value) for value in row] for row in products.tolist()]

    def _rows(self, texts: Sequence[str]) -> list[Vector]:
        width = len(next(iter(self._vectors.values()), (0.0,)))
        return [self._vectors.get(text, (0.0,) * width) for text in texts]  # an empty text is like nothing

    def _encode(self, texts: Sequence[str]) -> Iterable[Vector]:
        raise NotImplementedError


@dataclass
class SentenceTransformers(_Cached):
    """A model of the sentence-transformers package in a local folder, on the CPU: GPUs are for trainings."""

    folder: Path
    batch: int = 64
    _model: Any = field(default=None, repr=False)
    _vectors: dict[str, Vector] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return f"sentence-transformers:{self.folder.name}"

    def _encode(self, texts: Sequence[str]) -> Iterable[Vector]:
        if not texts:
            return []
        if self._model is None:
            self._model = self._load()
        found: list[Vector] = self._model.encode(
            list(texts), batch_size=self.batch, show_progress_bar=False, convert_to_numpy=True
        ).tolist()
        return found

    def _load(self) -> Any:
        if not self.folder.is_dir():
            raise ConfigError(f"agents.embedding.model={self.folder}: no such folder; expected a saved model's")
        try:
            from sentence_transformers import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
                SentenceTransformer,
            )
        except ImportError as error:
            raise ConfigError(
                "agents.embedding.kind=sentence-transformers: the package is missing; "
                "pip install sentence-transformers, or use kind tfidf"
            ) from error
        try:
            return SentenceTransformer(str(self.folder), device="cpu", local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"agents.embedding.model={self.folder}: cannot be loaded: {error}") from error


@dataclass(frozen=True)
class _RefusedError(Exception):
    """A status that another try of the same request will not change."""

    status: int
    text: str


@dataclass
class Served(_Cached):
    """A model behind an OpenAI-compatible server. The address is looked up for each try: servers move."""

    url: Callable[[], str]
    model: str
    key: str = field(default="", repr=False)
    batch: int = 64
    timeout_s: float = 60.0
    pause_s: float = 1.0  # before the second try, doubled each time
    sleep: Callable[[float], None] = time.sleep
    _vectors: dict[str, Vector] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return f"served:{self.model}"

    def _encode(self, texts: Sequence[str]) -> Iterable[Vector]:
        found: list[Vector] = []
        for start in range(0, len(texts), max(1, self.batch)):
            found += self._request(texts[start : start + max(1, self.batch)])
        return found

    def _request(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors of one batch; texts are cut where the server finds them too long, for it cannot be asked how
        long they may be."""
        longest = max(map(len, texts))
        while True:
            try:
                return self._tried([text[:longest] for text in texts])
            except _RefusedError as error:
                if error.status not in (400, 413, 422) or longest <= SHORTEST:
                    raise ServiceError(f"{self.name}: status {error.status}: {error.text}") from error
                longest = max(SHORTEST, longest // 2)

    def _tried(self, texts: Sequence[str]) -> list[Vector]:
        problem: Exception | None = None
        for number in range(TRIES):
            if number:
                self.sleep(self.pause_s * 2 ** (number - 1))
            try:
                return _vectors(self._post(self.url().rstrip("/"), texts), len(texts))
            except urllib.error.HTTPError as error:
                text = self._clean(error)
                if error.code < 500 and error.code not in (408, 409, 425, 429):
                    raise _RefusedError(error.code, text) from None
                problem = ConnectionError(f"status {error.code}: {text}")
            except ServiceError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = error
        raise ServiceError(f"{self.name}: no embeddings after {TRIES} tries: {problem}") from problem

    def _post(self, url: str, texts: Sequence[str]) -> Any:
        body = json.dumps({"model": self.model, "input": list(texts), "encoding_format": "float"}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{url}/embeddings", body, headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
            return json.loads(answer.read())

    def _clean(self, error: urllib.error.HTTPError) -> str:
        """What the server says, without the key in case it repeats it."""
        try:
            text = error.read(2000).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
        return (text.replace(self.key, "[key]") if self.key else text) or str(error.reason)


def _vectors(answer: Any, count: int) -> list[Vector]:
    """The vectors of a server's answer, in the order of the texts.

    Raises:
        ValueError: not what was asked for.
    """
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError(f"the answer holds no list of {count} embeddings")
    found: dict[int, Vector] = {}
    for place, row in enumerate(rows):
        vector = row.get("embedding") if isinstance(row, dict) else None
        if not isinstance(vector, list) or not vector or not all(_is_number(value) for value in vector):
            raise ValueError(f"embedding {place} is not a list of finite numbers")
        found[row.get("index", place)] = vector
    if set(found) != set(range(count)) or len({len(vector) for vector in found.values()}) != 1:
        raise ValueError("the embeddings differ in length or are numbered wrongly")
    return [found[place] for place in range(count)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(sum(value * value for value in vector))
    return tuple(value / length for value in vector) if length > 0 else tuple(vector)


def _bounded(value: float) -> float:
    """Between 0 and 1: less than nothing in common is nothing in common."""
    return min(1.0, max(0.0, value))
