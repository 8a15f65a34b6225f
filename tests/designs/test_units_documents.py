"""Documents of a row give what each gives alone, in every unit of the library but those that are named here."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.contract import build_block
from asiarch_hpc.designs.library import library
from asiarch_hpc.designs.seeds import SEEDS, seed_program, seed_tree
from asiarch_hpc.designs.tree import UnitNode, random_tree, replace_at, walk
from kernels.packing import first_tokens
from tests.designs.test_units import HEADS, NAMES, build, load, noise, randomised, usual

# The same list as in asiarch_hpc/designs/units/__init__.py.
CROSSING = {"Hyena", "LongConvolution", "TTTLinear"}
# They turn queries and keys by angles whose differences alone count: tested in the mixers that use them.
RELATIVE = {"LearnedRotary", "PartialRotary", "Rotary"}
POSITIONS = [name for name in NAMES if library()[name].kind == "position"]
USERS = [name for name in NAMES if "position" in library()[name].children and name not in CROSSING]
# A border behind the first token, at the end of a window and of a chunk; documents of one token; one of a whole row.
SIZES = [[1, 1, 30, 33, 5], [64, 6], [70]]


def packed() -> Tensor:
    """[rows, length] int32, with padding at the end of the first row."""
    documents = [[i for i, size in enumerate(sizes) for _ in range(size)] for sizes in SIZES]
    found = torch.tensor(documents, dtype=torch.int32)
    found[0, -5:] = -1
    return found


def one_by_one(module: nn.Module, x: Tensor, documents: Tensor) -> Tensor:
    rows = []
    for row, begins in zip(x, first_tokens(documents), strict=True):
        bounds = [*begins.nonzero().flatten().tolist(), len(row)]
        rows.append(torch.cat([module(row[None, begin:end])[0] for begin, end in pairwise(bounds)], 1))
    return torch.cat(rows)


def difference(module: nn.Module, dim: int = 32) -> float:
    """How far documents in rows and alone are apart, in results and gradients, relative to their size."""
    documents = packed()
    x = noise(*documents.shape, dim, dtype=torch.float64).requires_grad_()
    results = []
    for y in (module(x, documents=documents)[0], one_by_one(module, x, documents)):
        (gradient,) = torch.autograd.grad((y * noise(*y.shape, seed=3, dtype=y.dtype)).sum(), x)
        results.append((y.detach(), gradient))
    together, alone = results
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("name", sorted(set(NAMES) - RELATIVE))
def test_documents_of_a_row_stay_apart(name: str) -> None:
    spec = library()[name]
    choices = [{argument: value} for argument, allowed in spec.args.items() for value in allowed.choices]
    for arguments in choices or [{}]:
        module = randomised(build(UnitNode(name, arguments, usual(name).children), dtype=torch.float64))
        assert (difference(module) > 1e-9) == (name in CROSSING), arguments


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_position_keeps_documents_apart(user: str, position: str) -> None:
    node = replace_at(usual(user), ("position",), UnitNode(position))
    assert difference(randomised(build(node, dtype=torch.float64))) < 1e-9


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_documents_stay_among_the_side_values_and_later_ones_do_not_show(name: str) -> None:
    module = randomised(build(usual(name), dtype=torch.float64))
    documents = packed()
    x = noise(*documents.shape, 32, dtype=torch.float64)
    y, z = module(x, documents=documents)
    assert z["documents"] is documents
    for kept in (31, 32, 65):
        prefix = module(x[:, :kept], documents=documents[:, :kept])[0]
        torch.testing.assert_close(prefix, y[:, :kept], rtol=1e-9, atol=1e-9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = build(usual(name))(x.float(), documents=documents)[0]
    assert low.isfinite().all()


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_random_trees_keep_documents_apart(seed: int) -> None:
    tree = random_tree(random.Random(seed), library(), name="random", max_height=5)
    crossing = any(node.unit in CROSSING for _, node in walk(tree.root))
    torch.manual_seed(0)
    block = randomised(load(tree)(32, HEADS, dtype=torch.float64))
    if not crossing:
        assert difference(block) < 1e-9


DESIGNS = {name: compose(seed_tree(name)) for name in SEEDS} | {
    f"{name} as a program": seed_program(name) for name in ("delta_net", "gated_delta_net")
}


@pytest.mark.parametrize("name", DESIGNS)
def test_seeds_ask_for_documents_and_keep_them_apart(name: str) -> None:
    torch.manual_seed(0)
    block = build_block(DESIGNS[name], dim=32, heads=HEADS, layer_idx=0, ffn_multiple=2.0).double()
    assert block.asks
    documents = packed()
    x = noise(*documents.shape, 32, dtype=torch.float64)
    found = (block(x, documents)[0] - one_by_one(block, x, documents)).abs().max()
    assert bool(found > 1e-6) == (name == "ttt_linear")
