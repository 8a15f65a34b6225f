"""Embedders: words without a model, vectors from a server that misbehaves, and clear errors for what is missing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.config import EmbeddingConfig
from asiarch_hpc.errors import ConfigError, ServiceError
from asiarch_hpc.knowledge.embedding import TRIES, SentenceTransformers, Served, Tfidf, embedder_of
from asiarch_hpc.knowledge.words import STOP_WORDS, stem, stems

WORDS = st.sampled_from(["state", "decay", "gate", "key", "recall", "the", "of", "β", "norm", "64", "memories", "??"])
TEXTS = st.lists(st.lists(WORDS, max_size=8).map(" ".join), max_size=6)


@settings(deadline=None, max_examples=60)
@given(TEXTS, TEXTS, TEXTS)
def test_likeness_by_words_is_a_bounded_table(queries: list[str], texts: list[str], background: list[str]) -> None:
    embedder = Tfidf(background)
    table = embedder.likeness(queries, texts)
    assert [len(row) for row in table] == [len(texts)] * len(queries)
    assert all(0 <= value <= 1 for row in table for value in row)
    for query, row in zip(queries, table, strict=True):
        assert embedder.likeness([query], texts) == [pytest.approx(row)]  # no query changes the row of another
        for text, value in zip(texts, row, strict=True):
            if sorted(stems(query)) == sorted(stems(text)):
                assert value == pytest.approx(1 if stems(text) else 0)
            if not set(stems(query)) & set(stems(text)):
                assert value == 0


def test_rare_words_count_more_and_unknown_ones_count_against() -> None:
    embedder = Tfidf(["the memory of the model", "a memory", "memory and recall", "a model"])
    (row,) = embedder.likeness(["memory Householder"], ["a Householder product", "a memory product"])
    assert row[0] > row[1] > 0
    (short, long) = embedder.likeness(["memory", "memory zebra giraffe okapi"], ["memory"])
    assert short == pytest.approx([1])
    assert long[0] < 0.6


def test_forms_of_a_word_are_one() -> None:
    for one, other in [
        ("normalisation", "normalized"), ("gates", "gated"), ("chunk-wise memories", "chunk wise memory"),
        ("associations", "associative"), ("step size β", "step size beta"), ("naïve", "naive"),
    ]:  # fmt: skip
        assert stems(one) == stems(other), (one, other)
    assert stems("it is the only one of them") == []
    assert all(stem(word) for word in STOP_WORDS)


def test_sklearn_is_loaded_when_it_is_needed() -> None:
    code = (
        "import sys; from asiarch_hpc.knowledge import embedding, retrieval; "
        "from asiarch_hpc.config import EmbeddingConfig; "
        "embedding.embedder_of(EmbeddingConfig(), url=None, key=''); "
        "sys.exit(sorted({'sklearn', 'numpy', 'torch'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Embeddings(HTTPServer):
    """Answers with vectors of letter counts, unless `answers` says something else for the next requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Callable[[Any], tuple[int, Any]]] = []
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []
        self.limit = math.inf  # characters
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, body: Any) -> tuple[int, Any]:
        if self.answers:
            return self.answers.pop(0)(body)
        if any(len(text) > self.limit for text in body["input"]):
            return 400, {"error": {"message": "too many tokens"}}
        return 200, rows([[text.lower().count(chr(97 + i)) + 0.0 for i in range(26)] for text in body["input"]])


class _Handler(BaseHTTPRequestHandler):
    server: Embeddings

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        assert self.path == "/v1/embeddings"
        status, answer = self.server.answer(body)
        if status == 0:
            self.connection.close()
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def rows(vectors: list[Any]) -> Any:
    """An answer, its rows in another order than the texts: the numbers count."""
    return {"data": [{"index": i, "embedding": v} for i, v in reversed(list(enumerate(vectors)))]}


@pytest.fixture
def server() -> Iterator[Embeddings]:
    with Embeddings() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def served(server: Embeddings, **values: Any) -> Served:
    return Served(lambda: server.url, "letters", sleep=lambda seconds: None, **values)


def test_a_server_gives_the_vectors_in_batches_once(server: Embeddings) -> None:
    embedder = served(server, batch=2, key="sk-1")
    table = embedder.likeness(["abba"], ["ab", "cd", "abcd", " ", "ab"])
    assert table == [pytest.approx([1, 0, math.sqrt(0.5), 0, 1])]
    assert [body["input"] for body in server.bodies] == [["abba", "ab"], ["cd", "abcd"]]
    assert {body["model"] for body in server.bodies} == {"letters"}
    assert set(server.keys) == {"Bearer sk-1"}
    assert embedder.likeness(["cd"], ["abba"]) == [[0]]
    assert len(server.bodies) == 2
    assert embedder.likeness([], ["ab"]) == []
    assert embedder.likeness(["ab", "x"], []) == [[], []]
    assert embedder.name == "served:letters"
    assert "sk-1" not in repr(embedder)


@pytest.mark.parametrize(
    "bad",
    [
        lambda body: (503, {}),
        lambda body: (429, {}),
        lambda body: (0, b""),
        lambda body: (200, b"<html>"),
        lambda body: (200, {"data": []}),
        lambda body: (200, rows([[]] * len(body["input"]))),
        lambda body: (200, rows([[1.0, "x"]] * len(body["input"]))),
        lambda body: (200, b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'),
        lambda body: (200, b'{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}'),
        lambda body: (200, b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}'),
    ],
)
def test_a_failing_server_is_asked_again_a_few_times(server: Embeddings, bad: Callable[[Any], tuple[int, Any]]) -> None:
    server.answers = [bad] * (TRIES - 1)
    sleeps: list[float] = []
    embedder = Served(lambda: server.url, "letters", sleep=sleeps.append)
    assert embedder.likeness(["ab"], ["ba"]) == [pytest.approx([1])]
    assert sleeps == [1, 2, 4]
    server.answers = [bad] * TRIES
    with pytest.raises(ServiceError, match="no embeddings after 4 tries"):
        embedder.likeness(["new"], ["newer"])


def test_a_refusal_is_told_at_once_and_without_the_key(server: Embeddings) -> None:
    server.answers = [lambda body: (404, {"error": "no model letters for sk-secret"})]
    with pytest.raises(ServiceError, match=r"404.*no model letters for \[key\]"):
        served(server, key="sk-secret").likeness(["ab"], ["ba"])
    assert len(server.bodies) == 1


def test_texts_too_long_for_the_model_are_cut(server: Embeddings) -> None:
    server.limit = 1500
    assert served(server).likeness(["a" * 5000], ["b", "a"]) == [pytest.approx([0, 1])]
    server.limit = 10
    with pytest.raises(ServiceError, match="too many tokens"):
        served(server).likeness(["a" * 5000 + "b"], ["b"])


def test_another_model_behind_the_address_is_noticed(server: Embeddings) -> None:
    embedder = served(server)
    embedder.likeness(["ab"], ["ba"])
    server.answers = [lambda body: (200, rows([[1.0]] * len(body["input"])))]
    with pytest.raises(ServiceError, match="changed its model"):
        embedder.likeness(["ab"], ["xy"])
    assert embedder.likeness(["ab"], ["xy"]) == [[0]]


def test_the_address_is_looked_up_for_each_try(server: Embeddings) -> None:
    found = iter(["http://127.0.0.1:9/v1", server.url + "/"])
    embedder = Served(lambda: next(found), "letters", sleep=lambda seconds: None)
    assert embedder.likeness(["ab"], ["ab"]) == [pytest.approx([1])]


def test_configurations_name_their_embedder(tmp_path: Path) -> None:
    assert isinstance(embedder_of(EmbeddingConfig(), url=None, key=""), Tfidf)
    served_one = embedder_of(EmbeddingConfig(kind="served", model="m", batch=3), url=lambda: "http://x/v1", key="k")
    assert isinstance(served_one, Served)
    assert (served_one.model, served_one.batch, served_one.key) == ("m", 3, "k")
    for config, complaint in [
        (EmbeddingConfig(kind="bert"), "expected tfidf"),
        (EmbeddingConfig(kind="served"), "model is empty"),
        (EmbeddingConfig(kind="served", model="m"), "no server"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            embedder_of(config, url=None, key="")
    folder = embedder_of(EmbeddingConfig(kind="sentence-transformers", model=str(tmp_path / "x")), url=None, key="")
    with pytest.raises(ConfigError, match="no such folder"):
        folder.likeness(["a"], ["b"])


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match="pip install sentence-transformers"):
        SentenceTransformers(tmp_path).likeness(["a"], ["b"])
