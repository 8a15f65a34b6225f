"""The stand-ins compute what flash-linear-attention computes, and nobody but the design sees them."""

import builtins
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asiarch_hpc.designs import compatibility
from asiarch_hpc.designs.compatibility import (
    Cache,
    FusedRMSNormGated,
    L2Norm,
    RMSNorm,
    ShortConvolution,
    design_builtins,
    get_unpad_data,
    index_first_axis,
    l2norm,
    pad_input,
)

needs_no_fla = pytest.mark.skipif(
    importlib.util.find_spec("fla") is not None, reason="flash-linear-attention is installed here"
)


def run(code: str, device: str = "cpu") -> dict[str, object]:
    scope: dict[str, object] = {"__builtins__": design_builtins(device), "__name__": "a_design"}
    exec(code, scope)
    return scope


def test_every_published_import_works() -> None:
    scope = run(
        "from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution\n"
        "from fla.modules.l2norm import l2norm, l2_norm\n"
        "from fla.layers.utils import get_unpad_data, index_first_axis, pad_input\n"
        "from fla.models.utils import Cache as C\n"
        "import fla.modules as m, fla\n"
        "import fla.modules.l2norm\n"
        "same = fla.modules.l2norm.l2norm is l2norm is l2_norm and m is fla.modules\n"
    )
    assert scope["same"] is True
    assert scope["C"] is Cache
    assert scope["ShortConvolution"] is ShortConvolution


@needs_no_fla
def test_the_names_stay_inside_the_design() -> None:
    imported = builtins.__import__
    scope = run("def later():\n    from fla.modules import RMSNorm\n    return RMSNorm\n")
    assert builtins.__import__ is imported
    assert not [name for name in sys.modules if name.partition(".")[0] == "fla"]
    with pytest.raises(ImportError):
        importlib.import_module("fla")
    assert scope["later"]() is RMSNorm  # type: ignore[operator]  # an import inside a function, after the exec


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Puts modules of a made-up flash-linear-attention on the path: dotted name -> text."""

    def forget() -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == "fla"]:
            del sys.modules[name]
        compatibility._installed.cache_clear()

    def write(modules: dict[str, str]) -> None:
        forget()
        for name, text in modules.items():
            folder = tmp_path.joinpath(*name.split("."))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text(text)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    forget()


NAMES = (
    "from fla.modules import RMSNorm, ShortConvolution\n"
    "from fla.modules.l2norm import l2norm\n"
    "from fla.layers.utils import get_unpad_data, index_first_axis\n"
    "import fla.modules.l2norm as place, fla\n"
    "again = fla.modules.l2norm.l2norm, place.l2norm\n"
)


@needs_no_fla
def test_an_installed_fla_serves_designs_on_cuda_only(install: Callable[[dict[str, str]], None]) -> None:
    install({
        "fla": "",
        "fla.modules": "RMSNorm = ShortConvolution = 'installed'\n",
        "fla.modules.l2norm": "l2norm = 'installed'\n",
        "fla.layers": "",
        "fla.layers.utils": "get_unpad_data = index_first_axis = 'installed'\n",
        "fla.ops": "chunk_delta_rule = 'installed'\n",
    })  # fmt: skip
    scope = run(NAMES + "from fla.ops import *\nfrom fla import ops", "cuda")
    names = ("RMSNorm", "ShortConvolution", "l2norm", "get_unpad_data", "index_first_axis", "chunk_delta_rule")
    assert [scope[name] for name in names] == ["installed"] * 6
    assert scope["again"] == ("installed", "installed")
    assert scope["ops"] is sys.modules["fla.ops"]
    on_cpu = run(NAMES)
    assert [on_cpu[name] for name in names[:3]] == [RMSNorm, ShortConvolution, l2norm]
    assert on_cpu["again"] == (l2norm, l2norm)


@needs_no_fla
def test_names_are_found_where_they_have_moved_to_and_else_replaced(install: Callable[[dict[str, str]], None]) -> None:
    install({
        "fla": "",
        "fla.modules": "RMSNorm = 'installed'\n",
        "fla.modules.norm": "",
        "fla.modules.norm.l2norm": "l2norm = 'moved'\n",
        "fla.modules.causal_conv1d": "ShortConvolution = 'moved'\n",
        "fla.layers": "import a_package_that_is_not_installed\n",
    })  # fmt: skip
    scope = run(NAMES + "from fla import layers\n", "cuda")
    assert scope["RMSNorm"] == "installed"
    assert scope["ShortConvolution"] == "moved"
    assert scope["l2norm"] == "moved"
    assert scope["again"] == ("moved", "moved")
    assert scope["get_unpad_data"] is get_unpad_data
    assert scope["index_first_axis"] is index_first_axis
    assert scope["layers"].utils.pad_input is pad_input  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match=r"no chunk in fla\.modules here"):
        run("from fla.modules import chunk", "cuda")


@needs_no_fla
@pytest.mark.parametrize("modules", [{}, {"fla": "raise RuntimeError('0 active drivers')\n"}])
def test_designs_on_cuda_run_without_an_fla_that_works(
    modules: dict[str, str], install: Callable[[dict[str, str]], None]
) -> None:
    install(modules)
    scope = run(NAMES, "cuda")
    assert (scope["RMSNorm"], scope["l2norm"], scope["again"]) == (RMSNorm, l2norm, (l2norm, l2norm))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import fla.ops", "no fla.ops here: .*fla.modules"),
        ("from fla.modules import GatedMLP", "no GatedMLP in fla.modules here: .*ShortConvolution"),
    ],
)
def test_an_unknown_name_says_what_there_is(code: str, words: str) -> None:
    with pytest.raises(ImportError, match=words):
        run(code)


def test_other_imports_are_untouched() -> None:
    assert run("import math as m, torch.nn as nn\nfrom os import path\n")["m"] is sys.modules["math"]
    with pytest.raises(ImportError):
        run("import no_such_module_anywhere")


def test_norms_follow_their_definitions() -> None:
    torch.manual_seed(0)
    x, g, other = torch.randn(3, 2, 5, 8, dtype=torch.float64).unbind()
    mean_square = x.square().mean(-1, keepdim=True)
    norm = RMSNorm(8, eps=1e-3).double()
    torch.nn.init.normal_(norm.weight)
    expected = x / (mean_square + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    total, kept = norm(x, residual=other, prenorm=True)
    torch.testing.assert_close(kept, x + other)
    torch.testing.assert_close(total, norm(x + other))
    gated = FusedRMSNormGated(8, eps=1e-3).double()
    gated.load_state_dict(norm.state_dict())
    torch.testing.assert_close(gated(x, g), expected * g * g.sigmoid())
    torch.testing.assert_close(FusedRMSNormGated(8, activation="sigmoid").double()(x, g), RMSNorm(8)(x) * g.sigmoid())
    torch.testing.assert_close(l2norm(x), x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt())
    torch.testing.assert_close(L2Norm()(x), l2norm(x))
    assert RMSNorm(8, elementwise_affine=False).weight is None
    assert RMSNorm(8, bias=True).bias is not None
    with pytest.raises(ValueError, match="activation='tanh'"):
        FusedRMSNormGated(8, activation="tanh")


def test_low_precision_norms_are_computed_wide() -> None:
    x = torch.full((1, 1024), 200.0, dtype=torch.float16)  # the sum of squares overflows float16
    assert l2norm(x).dtype == torch.float16
    torch.testing.assert_close(RMSNorm(1024)(x), torch.ones_like(x))


def convolve_slowly(layer: ShortConvolution, x: Tensor) -> Tensor:
    width, y = layer.weight.shape[-1], torch.zeros_like(x)
    for t in range(x.shape[1]):
        for tap in range(width):
            if t - tap >= 0:
                y[:, t] += layer.weight[:, 0, width - 1 - tap] * x[:, t - tap]
    y = y if layer.bias is None else y + layer.bias
    return F.silu(y) if layer.activation else y


@pytest.mark.parametrize(("bias", "activation"), [(False, None), (True, "silu"), (False, "swish")])
def test_short_convolution_is_the_causal_sum(bias: bool, activation: str | None) -> None:
    torch.manual_seed(0)
    layer = ShortConvolution(6, 4, bias=bias, activation=activation).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    y, state = layer(x)
    assert state is None
    assert layer.weight.shape == (6, 1, 4)
    torch.testing.assert_close(y, convolve_slowly(layer, x))
    torch.testing.assert_close(layer(x, residual=x)[0], y + x)
    mask = torch.ones(2, 7)
    mask[0, :3] = 0
    torch.testing.assert_close(layer(x, mask=mask)[0], convolve_slowly(layer, x * mask[..., None]))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_short_convolution_continues_from_its_state(pieces: list[int]) -> None:
    torch.manual_seed(1)
    layer = ShortConvolution(4, 3).double()
    x = torch.randn(2, sum(pieces), 4, dtype=torch.float64)
    whole, last = layer(x, output_final_state=True)
    parts, state = [], None
    for piece in x.split(pieces, dim=1):
        y, state = layer(piece, cache=state, output_final_state=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert state is not None
    torch.testing.assert_close(state, last)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_packed_sequences_do_not_see_each_other(lengths: list[int]) -> None:
    torch.manual_seed(2)
    layer = ShortConvolution(4, 4).double()
    rows = [torch.randn(1, n, 4, dtype=torch.float64) for n in lengths]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    packed, states = layer(torch.cat(rows, 1), cu_seqlens=offsets, output_final_state=True)
    torch.testing.assert_close(packed, torch.cat([layer(row)[0] for row in rows], 1))
    torch.testing.assert_close(states, torch.cat([layer(row, output_final_state=True)[1] for row in rows]))
    again, _ = layer(torch.cat(rows, 1), cu_seqlens=offsets, cache=states)
    torch.testing.assert_close(
        again, torch.cat([layer(r, cache=s)[0] for r, s in zip(rows, states.split(1), strict=True)], 1)
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 6), st.randoms(use_true_random=False))
def test_padding_is_the_inverse_of_unpadding(batch: int, length: int, rng: object) -> None:
    mask = torch.tensor([[rng.random() < 0.6 for _ in range(length)] for _ in range(batch)]).long()  # type: ignore[attr-defined]
    x = torch.arange(batch * length * 2).reshape(batch, length, 2)
    indices, offsets, longest = get_unpad_data(mask)
    tokens = index_first_axis(x.flatten(0, 1), indices)
    assert offsets.dtype == torch.int32
    assert offsets.tolist() == [0, *mask.sum(1).cumsum(0).tolist()]
    assert longest == max(mask.sum(1).tolist())
    assert torch.equal(tokens, x[mask.bool()])
    assert torch.equal(pad_input(tokens, indices, batch, length), x * mask[..., None])


def test_cache_keeps_states_by_layer() -> None:
    cache = Cache()
    assert len(cache) == 0
    assert cache.get_seq_length() == 0
    with pytest.raises(KeyError, match="0 layers"):
        cache[0]
    cache.update(recurrent_state="a", layer_idx=0, offset=5)
    cache.update(conv_state="b", layer_idx=1, offset=5)
    cache.update(conv_state="c", layer_idx=0, offset=1)
    assert (cache[0]["recurrent_state"], cache[0]["conv_state"], cache[1]["conv_state"]) == ("a", "c", "b")
    assert (len(cache), cache.get_seq_length(), len(list(cache))) == (2, 6, 2)


def test_cache_appends_attention_within_its_window() -> None:
    cache, x = Cache(), torch.arange(6.0).reshape(1, 6, 1)
    cache.update(attn_state=(x[:, :4], x[:, :4]), layer_idx=0, offset=4, cache_kwargs={"window_size": 5})
    state = cache.update(attn_state=(x[:, 4:], x[:, 4:]), layer_idx=0, offset=2, cache_kwargs={"window_size": 5})
    assert torch.equal(state["attn_state"][0], x[:, 1:])
