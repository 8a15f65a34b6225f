"""What every unit of the library must do, whatever its children: the contract, unit by unit, and in random trees."""

import random
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from asiarch_hpc.designs import units as units_package
from asiarch_hpc.designs.compose import compose
from asiarch_hpc.designs.library import UNITS, library
from asiarch_hpc.designs.tree import UnitNode, UnitTree, random_tree, replace_at, tree_from_json, walk
from asiarch_hpc.designs.units.base import Recipe, Unit

HEADS = 4
# The child that stands in a slot while its parent is tested, by the first kind that the slot accepts.
USUAL = {
    "block": "ParallelBlock",
    "stack": "EmbeddingSkipBlock",
    "mixer": "MultiQueryAttention",
    "combinator": "MixerSum",
    "ffn": "SwiGLU",
    "memory": "DeltaMemory",
    "norm": "RMSNorm",
    "gate": "SigmoidGate",
    "convolution": "ShortConvolution",
    "position": "Rotary",
    "feature_map": "ELUFeatures",
}
QUADRATIC = {"SoftmaxAttention", "MultiQueryAttention", "DifferentialAttention", "ForgettingAttention"}
NAMES = list(library())


def usual(name: str) -> UnitNode:
    """The unit with default arguments and usual children."""
    children = {slot: usual(USUAL[kinds[0]]) for slot, kinds in library()[name].children.items()}
    return UnitNode(name, children=children)


def recipe(node: UnitNode) -> Recipe:
    spec = library()[node.unit]
    classes = (
        getattr(import_module(f"{units_package.__name__}.{p.stem}"), node.unit, None) for p in UNITS.glob("*.py")
    )
    cls = next(cls for cls in classes if cls is not None)
    args = {name: arg.resolve(node.args.get(name)) for name, arg in spec.args.items()}
    return cls.of(**args, **{slot: recipe(child) for slot, child in node.children.items()})


def build(
    node: UnitNode, dim: int = 32, *, heads: int = HEADS, dtype: torch.dtype = torch.float32, **options
) -> nn.Module:
    torch.manual_seed(0)
    return recipe(node)(dim, heads, 1, options.get("device"), dtype)


def randomised(module: nn.Module) -> nn.Module:
    """No parameter keeps a special starting value: what holds now holds after training too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def noise(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def check_causal(module: nn.Module, dim: int, *, length: int = 70, positions: tuple[int, ...] = (1, 17, 66)) -> None:
    """Float64: a change at one position reaches no earlier one, and a prefix gives the prefix of the result."""
    x = noise(2, length, dim, dtype=torch.float64)
    y = module(x)[0]
    size = y.abs().max()
    for position in positions:
        changed = x.clone()
        changed[:, position] += noise(2, dim, seed=position, dtype=torch.float64)
        difference = (module(changed)[0] - y).abs()
        assert difference[:, :position].max() <= 1e-9 * size
        assert difference[:, position:].max() > 1e-9 * size
        assert (module(x[:, :position])[0] - y[:, :position]).abs().max() <= 1e-9 * size


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_shapes_types_and_side_values(name):
    for dim in (32, 48, 64):
        module = build(usual(name), dim)
        for length in (1, 7, 65):
            x, other = noise(2, length, dim), torch.ones(1)
            y, z = module(x, other=other)
            assert y.shape == x.shape
            assert y.dtype == x.dtype
            assert y.isfinite().all()
            assert z.pop("other") is other
            assert set(z) <= {"log_decay"}, "only positions may add a side value"
    assert torch.equal(module(x)[0], y), "two calls must agree"


class Watched(Unit):
    """A child that notes what it was given and leaves a side value of its own."""

    def setup(self, child, source_dim=None):
        options = {} if source_dim is None else {"source_dim": source_dim}
        self.child = self.build(child, self.dim, self.heads, **options)

    def forward(self, X, **Z):
        assert "other" in Z, "the parent keeps side values to itself"
        X, Z = self.child(X, **Z)
        return X, {**Z, "auxiliary_loss": X.mean()}


@pytest.mark.parametrize("name", [name for name in NAMES if library()[name].children])
@torch.no_grad()
def test_side_values_pass_through_every_child(name):
    node = usual(name)
    for watched in library()[name].children:
        made = recipe(node)
        made.options[watched] = Watched.of(child=made.options[watched])
        _, z = made(32, HEADS)(noise(1, 5, 32), other=torch.ones(1))
        assert "auxiliary_loss" in z, f"what {watched} leaves is lost"


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_causal_and_consistent_on_prefixes(name):
    check_causal(randomised(build(usual(name), dtype=torch.float64)), 32)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_sequences_of_a_batch_do_not_meet(name):
    module = randomised(build(usual(name), dtype=torch.float64))
    x = noise(3, 20, 32, dtype=torch.float64)
    together = module(x)[0]
    alone = torch.cat([module(x[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def check_gradients(module: nn.Module, dim: int) -> None:
    x = noise(2, 24, dim).requires_grad_()
    y = module(x)[0]
    (y * noise(*y.shape, seed=3)).sum().backward()
    assert x.grad.isfinite().all()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all(), f"{name} has a non-finite gradient"
        assert parameter.grad.abs().max() > 1e-6, f"{name} has a zero gradient"


@pytest.mark.parametrize("name", [name for name in NAMES if library()[name].kind != "position"])
def test_every_parameter_learns(name):
    check_gradients(build(usual(name), 32), 32)


@pytest.mark.parametrize("user", ["SoftmaxAttention", "SlidingWindowAttention", "MultiQueryAttention",
                                  "DifferentialAttention", "ForgettingAttention", "LinearAttention", "Retention",
                                  "TTTLinear"])  # fmt: skip
@pytest.mark.parametrize("position", [name for name in NAMES if library()[name].kind == "position"])
def test_every_position_works_in_every_mixer(user, position):
    node = replace_at(usual(user), ("position",), UnitNode(position))
    with torch.no_grad():
        check_causal(randomised(build(node, dtype=torch.float64)), 32, length=40, positions=(33,))
    if (user, position) != ("TTTLinear", "DistanceDecay"):
        check_gradients(build(node, 32), 32)


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_every_argument_works(name):
    spec = library()[name]
    for argument, allowed in spec.args.items():
        for value in allowed.choices:
            node = UnitNode(name, {argument: value}, usual(name).children)
            assert build(node)(noise(1, 9, 32))[0].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dim", "heads"), [(8, 4), (20, 2), (6, 1), (24, 3)])
@torch.no_grad()
def test_odd_sizes(name, dim, heads):
    module = randomised(build(usual(name), dim, heads=heads))
    assert module(noise(2, 5, dim))[0].shape == (2, 5, dim)


@pytest.mark.parametrize("name", NAMES)
def test_lower_precision(name):
    x = noise(2, 20, 32).requires_grad_()
    module = build(usual(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)[0]
    y.float().square().mean().backward()
    assert all(leaf.grad.isfinite().all() for leaf in (x, *module.parameters()) if leaf.grad is not None)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as on a GPU, where the backbone's stream is bfloat16
        y = module(x.bfloat16())[0]
    y.float().square().mean().backward()
    assert y.isfinite().all()
    half = build(usual(name), dtype=torch.bfloat16)
    y = half(x.bfloat16())[0]
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_sizes_can_be_counted_without_memory(name):
    real, meta = build(usual(name)), build(usual(name), device="meta")
    assert {n: p.shape for n, p in real.named_parameters()} == {n: p.shape for n, p in meta.named_parameters()}
    assert all(p.is_meta for p in meta.parameters())
    assert not list(real.buffers())


@pytest.mark.parametrize("name", sorted(set(NAMES) - QUADRATIC))
@torch.no_grad()
def test_work_grows_about_linearly_with_length(name):
    node = usual(name)
    for path, child in walk(node):
        if child.unit in QUADRATIC:
            node = replace_at(node, path, usual("HeadShift"))
    module = build(node)
    flops = []
    for length in (256, 1024):
        with FlopCounterMode(display=False) as counter:
            module(noise(1, length, 32))
        flops.append(counter.get_total_flops())
    assert flops[1] <= 5 * flops[0]


def load(tree: UnitTree) -> type[nn.Module]:
    names: dict[str, object] = {"__name__": "composed"}
    exec(compile(compose(tree), tree.name, "exec"), names)
    return names["Block"]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), dim=st.sampled_from([32, 48, 64]))
def test_random_trees_build_run_and_stay_causal(seed, dim):
    tree = random_tree(random.Random(seed), library(), name="random", max_height=5)
    assert tree_from_json(tree.to_json()) == tree
    torch.manual_seed(0)
    block = randomised(load(tree)(dim, HEADS, dtype=torch.float64))
    with torch.no_grad():
        check_causal(block, dim, length=20, positions=(13,))
    out = load(tree)(dim, HEADS)(noise(2, 20, dim))[0]
    out.sum().backward()
    assert out.isfinite().all()


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="RMSNorm: dim=30 is not a multiple of heads=4"):
        build(UnitNode("RMSNorm"), 30)
