"""The proposer that needs no language model: typed genetic programming on unit trees.

It is the default of a machine without a model, and the baseline that proposals of language models have to beat.
Operators and their probabilities are those of Genesys, section 4.3 (arXiv 2506.20249); what an operator does is
in `variation.py`.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from asiarch_hpc.agents.variation import Change, complete, graft, mutate, scratch, size
from asiarch_hpc.config import OperatorConfig
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.designs.library import UnitSpec, library
from asiarch_hpc.designs.tree import UnitNode, UnitTree, height, validate, walk
from asiarch_hpc.errors import DesignError
from asiarch_hpc.records import Operator

MUTATION: Operator = "mutation"
CROSSOVER: Operator = "crossover"
SCRATCH: Operator = "scratch"

AUTHOR = (
    "Written by recombination, a random typed change of unit trees, not by a language model. The change was drawn "
    "at random; no reason to expect an improvement is claimed."
)


@dataclass(frozen=True)
class Proposal:
    """A new design. `parents` are the positions of the trees it was made from: 0 the parent, 1 the first reference.

    Applying `changes` in order to the parent's complete tree gives `tree`.
    """

    tree: UnitTree
    source: str
    id: str
    operator: Operator
    motivation: str
    parents: tuple[int, ...]
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        """The tree's name, made from its mixers and the design's id."""
        return self.tree.name


def propose(
    rng: random.Random,
    *,
    parent: UnitTree,
    references: Sequence[UnitTree],
    operators: OperatorConfig,
    forbidden: AbstractSet[str],
) -> Proposal:
    """Draws an operator by its weight and applies it until the design is new; the same rng state, the same design.

    After every `operators.patience` tries in vain, one more mutation is added to what is tried. Crossover without
    anything to graft gives way to the other operators.

    Args:
        parent: the tree to change; scratch does not look at it.
        references: trees that crossover takes subtrees from.
        forbidden: ids that are not returned. Neither are the parent and the references themselves.

    Raises:
        DesignError: a tree is not valid, or `operators.draws` tries gave no new design.
    """
    units = library()
    for tree in (parent, *references):
        validate(tree, units)
    stock = [UnitTree(tree.name, complete(tree.root, units)) for tree in (parent, *references)]
    weights = {MUTATION: operators.mutation, CROSSOVER: operators.crossover, SCRATCH: operators.scratch}
    operator = _choose(rng, weights)
    for attempt in range(operators.draws):
        drawn = _vary(rng, operator, stock, units, operators, further=attempt // operators.patience)
        if drawn is None and operator == CROSSOVER:
            operator = _choose(rng, {**weights, CROSSOVER: 0.0})
            continue
        if drawn is None or not _fits(drawn.root, stock[0].root, operator, operators):
            continue
        if any(drawn.root == tree.root for tree in stock):
            continue
        identity = design_id(compose(UnitTree("draft", drawn.root)))
        if identity not in forbidden:
            return _proposal(drawn, identity, operator, stock, units, tries=attempt)
    raise DesignError(
        f"recombination of {parent.name} by {operator}: {operators.draws} tries gave no new design of at most "
        f"{operators.max_units} units and {operators.max_height} levels; raise search.operators.draws or these limits"
    )


def proposals(
    rng_for: Callable[[int], random.Random],
    draw: Callable[[random.Random], tuple[UnitTree, Sequence[UnitTree]]],
    operators: OperatorConfig,
    forbidden: AbstractSet[str],
) -> Iterator[Proposal]:
    """An endless stream of different new designs, none of them in `forbidden`.

    Element i depends on the arguments and on `rng_for(i)` alone, apart from avoiding the elements before it. So
    several jobs can each make the same prefix and take an element of their own, and propose in parallel without
    talking to each other; `draw(rng_for(i))` says again which trees element i was made from.

    Args:
        rng_for: a fresh generator for each element.
        draw: takes parent and references from that generator, before the operator is drawn from it.
    """
    taken = set(forbidden)
    for index in itertools.count():
        rng = rng_for(index)
        parent, references = draw(rng)
        proposal = propose(rng, parent=parent, references=references, operators=operators, forbidden=taken)
        taken.add(proposal.id)
        yield proposal


@dataclass(frozen=True)
class _Draft:
    root: UnitNode
    changes: tuple[Change, ...]
    parents: tuple[int, ...]


def _choose(rng: random.Random, weights: Mapping[Operator, float]) -> Operator:
    if not sum(weights.values()) > 0:
        raise DesignError(
            "recombination: crossover found no subtree to graft and search.operators gives mutation and scratch no "
            "weight; give one of them a weight, or more references"
        )
    return rng.choices(list(weights), list(weights.values()))[0]


def _vary(
    rng: random.Random,
    operator: Operator,
    stock: Sequence[UnitTree],
    units: Mapping[str, UnitSpec],
    operators: OperatorConfig,
    *,
    further: int,
) -> _Draft | None:
    """Applies the operator once, then `further` mutations (none to a tree from scratch, which is drawn anew)."""
    if operator == SCRATCH:
        change = scratch(rng, units, operators.max_height)
        return _Draft(change.after, (change,), ())
    root, changes = stock[0].root, list[Change]()
    parents: tuple[int, ...] = (0,)
    levels = max(operators.max_height, height(root))
    if operator == CROSSOVER:
        grafted = graft(rng, root, stock[1:], units)
        if grafted is None:
            return None
        change, position = grafted
        parents = (0, position + 1)
        root = change.apply(root)
        changes.append(change)
    for _ in range(further if operator == CROSSOVER else further + 1):
        mutated = mutate(rng, root, units, levels)
        if mutated is None:
            return None
        root = mutated.apply(root)
        changes.append(mutated)
    return _Draft(root, tuple(changes), parents)


def _fits(root: UnitNode, parent: UnitNode, operator: Operator, operators: OperatorConfig) -> bool:
    """Within the limits, or at least no larger than the tree that it came from."""
    if operator == SCRATCH:
        return size(root) <= operators.max_units
    return size(root) <= max(operators.max_units, size(parent)) and height(root) <= max(
        operators.max_height, height(parent)
    )


def _proposal(
    drawn: _Draft,
    identity: str,
    operator: Operator,
    stock: Sequence[UnitTree],
    units: Mapping[str, UnitSpec],
    *,
    tries: int,
) -> Proposal:
    tree = UnitTree(tree_name(drawn.root, identity, units), drawn.root)
    return Proposal(
        tree=tree,
        source=compose(tree),
        id=identity,
        operator=operator,
        motivation=_motivation(tree, drawn, operator, [stock[i].name for i in drawn.parents], tries),
        parents=drawn.parents,
        changes=drawn.changes,
    )


def _motivation(tree: UnitTree, drawn: _Draft, operator: Operator, names: Sequence[str], tries: int) -> str:
    opening = {
        MUTATION: "Mutation of {}.",
        CROSSOVER: "Crossover of {} with {}.",
        SCRATCH: "Made from scratch, without a parent.",
    }[operator].format(*names)
    if len(drawn.changes) > 1:
        opening += (
            f" {tries} tries gave no new design within the size limits, so {len(drawn.changes)} changes were made, "
            "one after the other:"
        )
    changes = "\n".join(f"{number}. {change.text}" for number, change in enumerate(drawn.changes, 1))
    rest = f"Everything else is as in {names[0]}. " if names else ""
    return f"# {tree.name}\n\n{opening}\n\n{changes}\n\n{rest}The design has {size(tree.root)} units.\n\n{AUTHOR}\n"


def tree_name(root: UnitNode, identity: str, units: Mapping[str, UnitSpec]) -> str:
    """The first mixers in short, `hybrid` where there are several, and the first digits of the id."""
    mixers = dict.fromkeys(_short(node.unit) for _, node in walk(root) if units[node.unit].kind == "mixer")
    words = list(mixers)[:2] + ["hybrid"] * (len(mixers) > 1)
    return "_".join([*(words or [_short(root.unit)]), identity[:4]])


def _short(unit: str) -> str:
    """`DeltaRule` as `delta`, `SlidingWindowAttention` as `swa`: short forms that are in use."""
    words = [word.lower() for word in re.findall(r"[A-Z]+[0-9]*(?![a-z])|[A-Z][a-z]*[0-9]*", unit)]
    if len(words) > 2 and words[-1] == "attention":
        return "".join(word[0] for word in words)
    while len(words) > 1 and words[-1] in _SAYS_LITTLE:
        words.pop()
    return "_".join(words)


_SAYS_LITTLE = ("attention", "mix", "mixer", "rule", "time")
