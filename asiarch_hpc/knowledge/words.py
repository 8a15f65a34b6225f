"""Words reduced to stems, so that `normalised`, `normalization` and `norms` are one to a lexical comparison.

A suffix stripper without a dictionary: endings go where at least three letters stay. It conflates too much now and
then (`general`, `generate`); on the labelled queries that costs less than keeping the forms apart.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_WORD = re.compile(r"[a-z][a-z0-9]+|\d+[a-z]*")
# Longest first where one ends with another.
_SUFFIXES = (
    "isation", "ization", "ational", "ation", "ising", "izing", "ised", "ized", "ise", "ize", "ingly", "edly", "ative",
    "ing", "ed", "ively", "ive", "ally", "ly", "ment", "ence", "ance", "ent", "ant", "ion", "ness", "able", "ible",
    "al", "er", "or",
)  # fmt: skip
_KEPT = 3  # letters
# Words that carry no topic. A list of our own: the usual ones drop `system`, `empty`, `full`, `few` and `last`.
_STOP_WORDS = """
    a about above after again against all almost alone along already also although always am among an and another
    any anything are around as at be became because become becomes been before being below between beyond both but
    by can cannot could did do does doing done down during each either else even ever every for from further get
    give go had has have having he hence her here him his how however i if in indeed instead into is it its itself
    just least less many may me might more moreover most much must my neither never nevertheless no none nor not
    nothing now of off often on once one only onto or other others otherwise our ours out over own per perhaps
    please put rather re same see seem seems several she should since so some something still such than that the
    their them themselves then there therefore these they this those though through throughout thus to together too
    toward towards two under until up upon us very via was we well were what whatever when where whereas whether
    which while who whole whom why will with within without would yet you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def stems(text: str) -> list[str]:
    """The stems of a text's words in their order, without words that say nothing."""
    letters = unicodedata.normalize("NFKD", text).lower()
    plain = "".join(_spelled(letter) for letter in letters if not unicodedata.combining(letter))
    return [stem(word) for word in _WORD.findall(plain) if word not in STOP_WORDS]


def _spelled(letter: str) -> str:
    """Greek letters by name: papers write them both ways."""
    if letter.isascii():
        return letter
    name = unicodedata.name(letter, "")
    return f" {name.rpartition(' ')[2].lower()} " if name.startswith("GREEK SMALL LETTER") else " "


@lru_cache(maxsize=1 << 15)
def stem(word: str) -> str:
    """One word in lower case without its ending."""
    word = _singular(word)
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= _KEPT:
            word = word.removesuffix(suffix)
            break
    if len(word) > _KEPT and (word[-1] in "ey" or (word[-1] == word[-2] and word[-1] not in "lsz")):
        word = word[:-1]
    return word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("sses"):
        return word[:-2]
    plural = word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3
    return word[:-1] if plural else word
