"""From source text to a block: both forms, and one clear error for each way to break the contract."""

import inspect
import linecache
import pickle
import sys
import traceback

import pytest
import torch
from torch import nn

from asiarch_hpc.designs.contract import build_block, form_of, load_class
from asiarch_hpc.designs.hashing import design_id
from asiarch_hpc.errors import DesignError

REAL_COMPILE = torch.compile

PROGRAM = """
import torch
from torch import nn
from fla.modules import RMSNorm


class DeltaNet(nn.Module):
    def __init__(self, mode="x", d_model=None, hidden_size=1024, expand_k=1.0, expand_v=1.0, num_heads=4,
                 use_beta=True, use_gate=False, use_short_conv=True, conv_size=4, conv_bias=False,
                 allow_neg_eigval=False, layer_idx=None, qk_activation="silu", qk_norm="l2", norm_eps=1e-5, **kwargs):
        super().__init__()
        self.norm = RMSNorm(hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False,
                output_attentions=False, **kwargs):
        return self.proj(self.norm(hidden_states)), None, past_key_values
"""
TREE = """
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads, layer_idx=0, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, X, **Z):
        return self.proj(X), Z
"""


def build(source: str, dim: int = 16) -> nn.Module:
    return build_block(source, dim=dim, heads=2, layer_idx=1, ffn_multiple=2.0)


def test_forms_are_told_apart_without_running_them() -> None:
    assert form_of(PROGRAM) == "program"
    assert form_of(TREE) == "tree"
    assert form_of(PROGRAM + "\nclass Block(nn.Module):\n    def forward(self, x):\n        return x\n") == "program"
    assert form_of(TREE + "\nclass DeltaNet(nn.Module):\n    pass\n") == "tree"
    assert form_of("raise SystemExit\n" + TREE) == "tree"
    with pytest.raises(DesignError, match=r"found the classes \['Net'\], expected .*class DeltaNet.*class Block"):
        form_of("class Net: pass")
    with pytest.raises(DesignError, match="line 1"):
        form_of("class DeltaNet(:")


def test_a_program_becomes_a_block_with_norms_and_feed_forward() -> None:
    block = build(PROGRAM)
    x = torch.randn(2, 5, 16)
    y, loss = block(x)
    assert y.shape == x.shape
    assert loss is None
    shapes = {name: tuple(p.shape) for name, p in block.named_parameters()}
    assert shapes["ffn.gate.weight"] == (32, 16)
    assert {name.partition(".")[0] for name in shapes} == {"mixer_norm", "mixer", "ffn_norm", "ffn"}
    nn.init.zeros_(block.mixer.proj.weight)
    nn.init.zeros_(block.mixer.proj.bias)
    nn.init.zeros_(block.ffn.down.weight)
    assert torch.equal(block(x)[0], x)  # both parts are residual
    assert {p.device.type for p in _on_meta(PROGRAM).parameters()} == {"meta"}


def _on_meta(source: str) -> nn.Module:
    with torch.device("meta"):
        return build(source)


def test_a_tree_is_the_whole_block() -> None:
    block = build(TREE)
    x = torch.randn(2, 5, 16)
    y, loss = block(x)
    torch.testing.assert_close(y, block.block.proj(x))
    assert loss is None


@pytest.mark.parametrize("value", ["hidden_states.square().mean()", "hidden_states.new_ones(1)", "0.25"])
def test_an_auxiliary_loss_of_a_program_is_passed_on(value: str) -> None:
    block = build(PROGRAM.replace("None, past_key_values\n", f"{value}, past_key_values\n"))
    _, loss = block(torch.randn(2, 5, 16))
    assert loss.shape == ()
    assert loss.is_floating_point()


def test_an_auxiliary_loss_of_a_tree_is_passed_on() -> None:
    _, loss = build(TREE.replace("Z\n", "{**Z, 'auxiliary_loss': X.mean() * 3}\n"))(torch.ones(1, 2, 16))
    assert loss.item() == 3


def test_a_design_runs_once_and_its_lines_are_known() -> None:
    source = PROGRAM.replace(
        "return self.proj", "assert hidden_states.shape[1] < 9, 'too long'\n        return self.proj"
    )
    cls = load_class(source)
    assert load_class(source) is cls
    assert design_id(source) in cls.__module__
    assert sys.modules[cls.__module__].DeltaNet is cls
    assert "def forward" in inspect.getsource(cls)
    linecache.checkcache()
    with pytest.raises(AssertionError) as caught:
        build(source)(torch.randn(1, 9, 16))
    assert "assert hidden_states.shape[1] < 9" in "".join(traceback.format_exception(caught.value))
    block = build(source)
    copy = pickle.loads(pickle.dumps(block))
    x = torch.randn(1, 3, 16)
    assert torch.equal(copy(x)[0], block(x)[0])


def test_the_same_design_in_other_words_shows_its_own_lines() -> None:
    other = "# rewritten\n" + PROGRAM
    one, two = load_class(PROGRAM), load_class(other)
    assert one.__module__ == two.__module__
    assert one is not two
    assert sys.modules[two.__module__].DeltaNet is two


COMPILING = (
    "calls = []\n@torch.compile\ndef f(x):\n    return x\n@torch.compile(dynamic=True)\ndef g(x):\n    return x\n"
    "class DeltaNet(nn.Module):"
)


def compiling(extra: str) -> str:
    source = PROGRAM.replace("class DeltaNet(nn.Module):", COMPILING)
    return source.replace("self.norm =", f"self.f = torch.compile(self._f)\n        self.{extra} =") + (
        "\n    def _f(self, x):\n        return x\n"
    )


def test_compile_does_nothing_on_a_cpu() -> None:
    source = compiling("norm")
    module = sys.modules[load_class(source).__module__]
    block = build(source)
    assert torch.compile is REAL_COMPILE
    assert inspect.isfunction(module.f)
    assert inspect.isfunction(module.g)
    assert inspect.ismethod(block.mixer.f)


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        (TREE, False),
        (TREE.replace("return", "documents = Z.get('documents'); return"), True),
        (TREE.replace("return", 'documents = Z["documents"]; return'), True),
        (TREE.replace("X, **Z", "X, documents=None, **Z"), True),
        (TREE.replace("return", "documents = X; return"), False),
        (PROGRAM, False),  # **kwargs ask for nothing
        (PROGRAM.replace("return", "documents = kwargs.get('documents'); return"), False),
        (PROGRAM.replace("use_cache=False", "documents=None, use_cache=False"), True),
    ],
)
def test_who_is_told_of_documents(source: str, asks: bool) -> None:
    source = source.replace("return self", "self.told = locals().get('docu' + 'ments'); return self")
    block = build(source)
    documents = torch.zeros(1, 3, dtype=torch.int32)
    block(torch.randn(1, 3, 16), documents)
    assert block.asks == asks
    design = block.mixer if "DeltaNet" in source else block.block
    assert (block.asks, design.told is documents) == (asks, asks)


def test_compile_is_kept_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def record(function: object = None, **options: object) -> object:
        compiled.append(function)
        return function if function is not None else record

    monkeypatch.setattr(torch, "compile", record)
    build_block(compiling("norm"), dim=16, heads=2, layer_idx=0, ffn_multiple=2.0, compiled=True)
    assert len(compiled) == 4  # f, g twice (with options first), and the method


def test_compile_comes_back_after_an_error() -> None:
    with pytest.raises(DesignError):
        load_class(PROGRAM + "\nraise RuntimeError('boom')\n")
    assert torch.compile is REAL_COMPILE


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("import torch\n", "import torch\nboom\n", r"running its file failed: NameError.*\(line 3: boom\)"),
        ("import torch\n", "import torch\nraise SystemExit(3)\n", "running its file failed: SystemExit: 3"),
        ("import torch\n", "import fla.ops\n", "no fla.ops here"),
        ("DeltaNet(nn.Module)", "DeltaNet", "no subclass of torch.nn.Module"),
        ("hidden_size=1024, ", "", "no keyword hidden_size; expected the keywords mode, d_model"),
        (", **kwargs):\n        super", "):\n        super", r"no \*\*kwargs"),
        ('mode="x", ', "mode, ", "no default for mode"),
        ("hidden_states, attention_mask=None", "x, attention_mask=None", "does not take hidden_states and requires"),
        ("**kwargs):\n        return", "*, extra):\n        return", "requires .*extra"),
        ("use_cache=False,", "", None),
        ("conv_bias=False,", "", None),
        ("super().__init__()", "super().__init__(); 1 / 0", r"DeltaNet\(hidden_size=16.*ZeroDivisionError.*line \d+"),
        ("self.norm =", "raise SystemExit\n        self.norm =", "failed: SystemExit"),
    ],
)
def test_broken_programs_say_what_is_wrong(old: str, new: str, words: str | None) -> None:
    source = PROGRAM.replace(old, new, 1)
    assert source != PROGRAM
    if words is None:
        build(source)(torch.randn(1, 2, 16))
        return
    with pytest.raises(DesignError, match=words) as caught:
        build(source)
    assert design_id(source) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "old", "new", "words"),
    [
        (PROGRAM, "return self.proj", "return hidden_states\n        return self.proj", "a tensor .* expected a tuple"),
        (PROGRAM, ", None, past", ", past", "a tuple of 2: .* expected a tuple"),
        (PROGRAM, "return self.proj", "return None, None, None\n        return self.proj", "the output is None"),
        (PROGRAM, ", None, past", "[:, 1:], None, past", r"the shape \[1, 3, 16\], expected the input's \[1, 4, 16\]"),
        (PROGRAM, ", None, past", ", hidden_states, past", "the auxiliary loss is a tensor .* one number"),
        (PROGRAM, ", None, past", ", True, past", "the auxiliary loss is a bool"),
        (TREE, ", Z", "", "a tensor .* expected a tuple \\(X, Z\\)"),
        (TREE, "self.proj(X), Z", "self.proj(X)[0], Z", "the shape"),
        (TREE, ", Z\n", ", {'auxiliary_loss': X}\n", "the auxiliary loss is a tensor"),
    ],
)
def test_broken_results_say_what_was_expected(source: str, old: str, new: str, words: str) -> None:
    block = build(source.replace(old, new))
    with pytest.raises(DesignError, match=words):
        block(torch.randn(1, 4, 16))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dim, heads, ", "dim, ", "does not take heads"),
        ("dim, heads, ", "dim, heads, width, ", "requires .*width"),
        ("self, X,", "self, x,", "does not take X"),
    ],
)
def test_broken_trees_say_what_is_wrong(old: str, new: str, words: str) -> None:
    with pytest.raises(DesignError, match=words):
        build(TREE.replace(old, new))


def test_a_design_that_fails_leaves_nothing_behind() -> None:
    source = PROGRAM + "\nraise ValueError('late')\n"
    with pytest.raises(DesignError, match="late"):
        load_class(source)
    assert not [name for name in sys.modules if design_id(source) in name]
