"""Whether a proposed design repeats an earlier one, from its text, its code and its behaviour.

Two programs with other operations (`code_print`) may compute the same; that is for behaviour to say
(`gate/behaviour.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from asiarch_hpc.config import NoveltyConfig

BehaviourPrint = Sequence[Sequence[float]]
Novelty = Literal["duplicate", "suspicious", "new"]

_EQUAL = 1 - 1e-9  # likeness of equal prints, but for rounding


def behaviour_distance(a: BehaviourPrint, b: BehaviourPrint) -> float:
    """Relative difference of what two designs compute; infinite where their prints cannot be compared.

    A print has several readings, such as with and without the constants that parameters start from. The nearest
    reading counts: where one agrees, some assignment of parameters makes the two one function.
    """
    if len(a) != len(b):
        return math.inf
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x and len(x) == len(y)]
    return min((math.dist(x, y) for x, y in pairs), default=math.inf)


def same_behaviour(a: BehaviourPrint, b: BehaviourPrint, tolerance: float) -> bool:
    """Whether two designs compute the same, for some assignment between their parameters."""
    return behaviour_distance(a, b) <= tolerance


@dataclass(frozen=True, kw_only=True)
class PairFinding:
    """What the signals say of a pair, and why. `distance` is None where one of the designs has no print."""

    novelty: Novelty
    reason: str
    text: float
    code: float
    distance: float | None


def combine(*, text: float, code: float, distance: float | None, limits: NoveltyConfig) -> PairFinding:
    """Judges a pair by three signals.

    Equal behaviour is proof, whatever text and code say. Code that differs by names, order and constants alone is a
    duplicate even where the constants show in what it computes. The limit below that, which a change of one line of a
    long design may pass, decides only where behaviour is unknown. All else that is near is a reason to ask, not to
    refuse: a good proposal changes little of its parent.

    Args:
        text: likeness of the motivations, 0 to 1.
        code: `likeness` of the sources.
        distance: `behaviour_distance`; None where one of the designs has no print.
    """
    novelty: Novelty = "new"
    reason = "it computes something else, and neither its code nor its text is much like the other's"
    enough = limits.code_limit if distance is None else _EQUAL
    if distance is not None and distance <= limits.behaviour_tolerance:
        novelty, reason = "duplicate", f"it computes the same, to a relative difference of {distance:.1e}"
    elif code >= enough:
        novelty, reason = "duplicate", f"its code differs by names, order and constants at most (likeness {code:.3f})"
    elif code >= limits.code_doubt:
        novelty, reason = "suspicious", f"its code is much like the other's (likeness {code:.2f})"
    elif distance is not None and distance <= limits.behaviour_doubt:
        novelty, reason = "suspicious", f"what it computes is near the other's (relative difference {distance:.2f})"
    elif text >= limits.text_doubt:
        novelty, reason = "suspicious", f"its text is much like the other's (likeness {text:.2f})"
    return PairFinding(novelty=novelty, reason=reason, text=text, code=code, distance=distance)


def closest(findings: Sequence[PairFinding], count: int) -> list[int]:
    """Positions of the pairs worth a look: duplicates, then in turn two by behaviour, one by code, one by text.

    No signal finds all. A copy in other words and with other operations is near by behaviour, even with a detail
    changed; a change of mechanism by code; and where a design has no print, text is left.
    """
    places = range(len(findings))
    known = (place for place in places if findings[place].distance is not None)
    by_behaviour = iter(sorted(known, key=lambda place: findings[place].distance or 0.0))
    by_code = sorted(places, key=lambda place: -findings[place].code)
    by_text = sorted(places, key=lambda place: -findings[place].text)
    duplicates = (place for place in places if findings[place].novelty == "duplicate")
    chosen = dict.fromkeys(duplicates)
    for code, text in zip(by_code, by_text, strict=True):
        chosen.update(dict.fromkeys([*itertools.islice(by_behaviour, 2), code, text]))
    return list(chosen)[:count]
