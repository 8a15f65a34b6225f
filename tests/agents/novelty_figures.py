"""How well text, code and behaviour find repeated designs, on the labelled collection: `python -m` this file.

The collection (novelty/<idea>/) holds for each idea a base; the same function with other names and with other
operations; the same idea told and coded anew with a changed detail; and a related idea. The first three repeat the
base, the last does not, and neither do bases of different ideas. Limits were chosen on the ideas at even positions
of the sorted list, so figures are given for the others, and for all.
"""

from __future__ import annotations

import ast
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from asiarch_hpc.config import EmbeddingConfig, GateConfig, NoveltyConfig
from asiarch_hpc.knowledge.embedding import embedder_of
from asiarch_hpc.search.code_print import code_print, likeness
from asiarch_hpc.search.novelty import (
    BehaviourPrint,
    PairFinding,
    behaviour_distance,
    closest,
    combine,
)

ROOT = Path(__file__).parent / "novelty"
IDEAS = sorted(path.name for path in ROOT.iterdir() if (path / "base.py").is_file())
HELD_BACK = IDEAS[1::2]
REPEATS = ("renamed", "rewritten", "reworded")
KINDS = (*REPEATS, "related")
Print = Callable[[str], BehaviourPrint | None]


@dataclass(frozen=True)
class Pair:
    """A base, a variant and what the signals say of them. `kind` is "other" where they are of two ideas."""

    kind: str
    first: str
    second: str
    variant: str
    finding: PairFinding

    @property
    def repeats(self) -> bool:
        return self.kind in REPEATS


def source(idea: str, kind: str) -> str:
    return (ROOT / idea / f"{kind}.py").read_text(encoding="utf-8")


def prints_of(make: Print, threads: int = 1) -> dict[tuple[str, str], BehaviourPrint | None]:
    """Prints of behaviour of the whole collection; several threads where `make` starts processes."""
    keys = list(itertools.product(IDEAS, ("base", *KINDS)))
    sources = [source(*key) for key in keys]
    if threads == 1:
        return dict(zip(keys, map(make, sources), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(keys, pool.map(make, sources), strict=True))


def pairs_of(prints: dict[tuple[str, str], BehaviourPrint | None], limits: NoveltyConfig) -> list[Pair]:
    """Each variant beside the bases of all ideas, and the bases beside each other; text likeness as in a run."""
    keys = [("base", idea) for idea in IDEAS] + [(kind, idea) for kind in KINDS for idea in IDEAS]
    texts = {(kind, idea): ast.get_docstring(ast.parse(source(idea, kind))) or "" for kind, idea in keys}
    codes = {(kind, idea): code_print(source(idea, kind)) for kind, idea in keys}
    bases = [texts["base", idea] for idea in IDEAS]
    rows = embedder_of(EmbeddingConfig(), url=None, key="").likeness([texts[key] for key in keys], bases)
    found = []
    for (kind, idea), row in zip(keys, rows, strict=True):
        for base, text in zip(IDEAS, row, strict=True):
            if kind == "base" and idea <= base:
                continue
            a, b = prints[idea, kind], prints[base, "base"]
            finding = combine(
                text=text,
                code=likeness(codes[kind, idea], codes["base", base]),
                distance=None if a is None or b is None else behaviour_distance(a, b),
                limits=limits,
            )
            found.append(Pair(kind if idea == base else "other", base, idea, kind, finding))
    return found


def signals(limits: NoveltyConfig) -> dict[str, Callable[[PairFinding], bool]]:
    """What each signal calls a repetition."""
    return {
        "text": lambda finding: finding.text >= limits.text_doubt,
        "code": lambda finding: finding.code >= limits.code_limit,
        "code, doubt": lambda finding: finding.code >= limits.code_doubt,
        "behaviour": lambda finding: finding.distance is not None and finding.distance <= limits.behaviour_tolerance,
        "behaviour, doubt": lambda finding: finding.distance is not None and finding.distance <= limits.behaviour_doubt,
        "combined: duplicate": lambda finding: finding.novelty == "duplicate",
        "combined: duplicate or suspicious": lambda finding: finding.novelty != "new",
    }


def precision_recall(pairs: Iterable[Pair], says: Callable[[PairFinding], bool]) -> tuple[int, int, int]:
    """Repetitions found, all pairs that are called one, and all repetitions."""
    pairs = list(pairs)
    called = [pair for pair in pairs if says(pair.finding)]
    return sum(pair.repeats for pair in called), len(called), sum(pair.repeats for pair in pairs)


def first_places(pairs: Sequence[Pair], kind: str, count: int, ideas: Sequence[str]) -> int:
    """For how many ideas the variant finds its base among the first of `closest`, of the bases of all ideas."""
    found = 0
    for idea in ideas:
        row = [pair for pair in pairs if (pair.second, pair.variant) == (idea, kind)]
        found += any(row[place].kind == kind for place in closest([pair.finding for pair in row], count))
    return found


def table(pairs: Sequence[Pair], ideas: Sequence[str], limits: NoveltyConfig) -> str:
    """Lines of figures for the pairs among some ideas."""
    chosen = [pair for pair in pairs if pair.first in ideas and pair.second in ideas]
    groups = {kind: [pair for pair in chosen if pair.kind == kind] for kind in (*KINDS, "other")}
    head = " ".join(f"{kind:>12}" for kind in groups)
    lines = [f"{'called a repetition':34} {head}    precision  recall"]
    for name, says in signals(limits).items():
        cells = [f"{sum(says(pair.finding) for pair in group)}/{len(group)}" for group in groups.values()]
        hits, called, real = precision_recall(chosen, says)
        rates = f"{hits / called if called else 1:9.2f} {hits / real:7.2f}"
        lines.append(f"{name:34} {' '.join(f'{cell:>12}' for cell in cells)}    {rates}")
    return "\n".join(lines)


def main() -> None:
    """Prints the figures; behaviour is computed in the sandbox, as in a run."""
    from asiarch_hpc.gate.behaviour import behaviour_print

    limits = NoveltyConfig()
    config = GateConfig()
    seconds: list[float] = []

    def timed(text: str, scratch: Path) -> BehaviourPrint | None:
        began = time.perf_counter()
        made = behaviour_print(text, config=config, scratch=scratch)
        seconds.append(time.perf_counter() - began)
        return made

    with tempfile.TemporaryDirectory() as scratch:
        prints = prints_of(partial(timed, scratch=Path(scratch)))
    unknown = [key for key, made in prints.items() if made is None]
    print(f"{len(prints)} designs, without a print: {unknown or 'none'}")
    pairs = pairs_of(prints, limits)
    for title, ideas in (("held back", HELD_BACK), ("all", IDEAS)):
        print(f"\n{len(ideas)} ideas, {title}\n{table(pairs, ideas, limits)}")
        for kind in REPEATS:
            places = {count: first_places(pairs, kind, count, ideas) for count in (1, 3, 5)}
            print(f"{kind}: base among the first of {len(IDEAS)} by `closest`: {places}")
    ordered = sorted(seconds)
    print(f"\nprint of behaviour: median {ordered[len(ordered) // 2]:.2f} s, longest {ordered[-1]:.2f} s")
    began = time.perf_counter()
    codes = [code_print(source(idea, kind)) for idea in IDEAS for kind in KINDS]
    made = time.perf_counter()
    count = sum(1 for a, b in itertools.combinations(codes, 2) if likeness(a, b) >= 0)
    print(f"print of code: {(made - began) / len(codes) * 1e3:.1f} ms; ", end="")
    print(f"comparison: {(time.perf_counter() - made) / count * 1e6:.0f} µs")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
