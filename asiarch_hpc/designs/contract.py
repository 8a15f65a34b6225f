"""The design contract: from a design's source text to a block of the backbone.

A layer program is the published form (ASI-Arch, arXiv 2507.18074): one file with `class DeltaNet(nn.Module)`, a
token mixer with sixteen keywords. A composed unit tree (Genesys, arXiv 2506.20249) is one file with `class Block`,
a whole block. `build_block` gives both the same face: `forward(x, documents) -> (y, auxiliary loss or None)`.

This module runs the design's code. Untrusted designs are built inside the gate's sandbox, never in a process
that must survive.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import linecache
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asiarch_hpc.designs.compatibility import RMSNorm, design_builtins
from asiarch_hpc.designs.hashing import design_id, parse, source_sha256
from asiarch_hpc.errors import DesignError
from asiarch_hpc.records import Form

PROGRAM_CLASS = "DeltaNet"
TREE_CLASS = "Block"
PROGRAM_KEYWORDS = (
    "mode", "d_model", "hidden_size", "expand_k", "expand_v", "num_heads", "use_beta", "use_gate", "use_short_conv",
    "conv_size", "conv_bias", "allow_neg_eigval", "layer_idx", "qk_activation", "qk_norm", "norm_eps",
)  # fmt: skip
PROGRAM_INPUTS = ("hidden_states", "attention_mask", "past_key_values", "use_cache", "output_attentions")
TREE_KEYWORDS = ("dim", "heads", "layer_idx")
AUXILIARY_LOSS = "auxiliary_loss"
# What a design may ask for beside the hidden states: [batch, length] int32, which of its row's documents a token is of.
# They are counted from 0, -1 is padding at the end. Without them a row is one document.
DOCUMENTS = "documents"

_compile_lock = threading.RLock()


def form_of(source: str) -> Form:
    """Which of the two forms a design has, from its classes alone; nothing is executed.

    Raises:
        DesignError: not valid Python, or neither form.
    """
    return _identify(source)[0]


@lru_cache(maxsize=64)
def _identify(source: str) -> tuple[Form, str]:
    """Form and id of a design; a model asks once for each of its layers."""
    identity = design_id(source)
    classes = {node.name: node for node in parse(source).body if isinstance(node, ast.ClassDef)}
    found = [name for name in (PROGRAM_CLASS, TREE_CLASS) if name in classes]
    if not found:
        raise DesignError(
            f"design {identity}: found the classes {sorted(classes) or 'none'}, expected at the top level "
            f"`class {PROGRAM_CLASS}(nn.Module)` (a layer program) or "
            f"`class {TREE_CLASS}(nn.Module)` (a composed unit tree)"
        )
    is_tree = TREE_CLASS in found and (PROGRAM_CLASS not in found or _is_tree_block(classes[TREE_CLASS]))
    return ("tree" if is_tree else "program"), identity


def load_class(source: str, *, device: str = "cpu", compiled: bool = False) -> type[nn.Module]:
    """Executes a design once and returns its class; the same text gives the same class in one process.

    The module is registered in `sys.modules` and `linecache` under the design's id, so that tracebacks show its
    lines and `inspect`, `pickle` and `torch.compile` find it.

    Args:
        device: "cuda" lets the design use an installed flash-linear-attention; "cpu" works on every device.
        compiled: keep the design's `torch.compile`; else it has no effect, since compiling takes minutes on a CPU.

    Raises:
        DesignError: not valid Python, no class, an error while it runs, or a signature outside the contract.
    """
    form, identity = _identify(source)
    label = f"design {identity}"
    name = f"asiarch_design_{identity}{'_cuda' * (device == 'cuda')}{'_compiled' * compiled}"
    stamp = source_sha256(source.encode())
    module = sys.modules.get(name)
    if module is None or getattr(module, "__source_sha256__", None) != stamp:
        module = _execute(source, name, label, device=device, compiled=compiled)
        vars(module)["__source_sha256__"] = stamp
    found = getattr(module, PROGRAM_CLASS if form == "program" else TREE_CLASS, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise DesignError(f"{label}: its class {found!r} is no subclass of torch.nn.Module")
    if form == "program":
        _check_program(found, label)
    else:
        _check_tree(found, label)
    return found


def build_block(
    source: str,
    *,
    dim: int,
    heads: int,
    layer_idx: int,
    ffn_multiple: float,
    device: str = "cpu",
    compiled: bool = False,
) -> nn.Module:
    """One block of the backbone: `forward(x [batch, length, dim]) -> (y of the same shape, loss or None)`.

    Its second argument, which documents the tokens are of (see DOCUMENTS), reaches designs that ask for it, which
    `asks` of the block says: a layer program by a parameter of that name of its forward (**kwargs ask for nothing), a
    unit tree by the key of that name in Z.
    A layer program gets norm and residual around it, and behind it a SwiGLU feed-forward of width
    `ffn_multiple * dim`, rounded to a multiple of 8. A unit tree is a whole block, `ffn_multiple` does not touch
    it. Parameters are drawn from torch's global generator on torch's default device. `device` and `compiled` are
    those of `load_class`.

    Raises:
        DesignError: as `load_class`; or the constructor raises. The block's forward raises it when the design
            returns something else than the contract says.
    """
    cls = load_class(source, device=device, compiled=compiled)
    form, identity = _identify(source)
    label = f"design {identity}"
    if form == "tree":
        block = _construct(cls, label, compiled, dim=dim, heads=heads, layer_idx=layer_idx)
        return _TreeBlock(block, label, asks=_reads_documents(source))
    mixer = _construct(cls, label, compiled, hidden_size=dim, num_heads=heads, layer_idx=layer_idx)
    return _ProgramBlock(mixer, label, dim=dim, ffn_width=max(8, round(ffn_multiple * dim / 8) * 8))


class _ProgramBlock(nn.Module):
    """x + mixer(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, mixer: nn.Module, label: str, *, dim: int, ffn_width: int) -> None:
        super().__init__()
        self.label = label
        self.asks = DOCUMENTS in inspect.signature(mixer.forward).parameters
        self.mixer_norm = RMSNorm(dim)
        self.mixer = mixer
        self.ffn_norm = RMSNorm(dim)
        self.ffn = _SwiGLU(dim, ffn_width)

    def forward(self, x: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        beside = {DOCUMENTS: documents} if self.asks and documents is not None else {}
        result = self.mixer(
            hidden_states=self.mixer_norm(x),
            attention_mask=None,
            past_key_values=None,
            use_cache=False,
            output_attentions=False,
            **beside,
        )
        if not (isinstance(result, tuple) and len(result) == 3):
            raise DesignError(
                f"{self.label}: forward returned {_describe(result)}, expected a tuple (output, None or an auxiliary "
                "loss, past_key_values)"
            )
        x = x + _same_shape(result[0], x, self.label)
        return x + self.ffn(self.ffn_norm(x)), _auxiliary(result[1], x, self.label)


class _TreeBlock(nn.Module):
    """A composed unit tree, with its intermediate values Z reduced to the auxiliary loss."""

    def __init__(self, block: nn.Module, label: str, *, asks: bool) -> None:
        super().__init__()
        self.label = label
        self.asks = asks
        self.block = block

    def forward(self, x: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        beside = {DOCUMENTS: documents} if self.asks and documents is not None else {}
        result = self.block(x, **beside)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise DesignError(f"{self.label}: forward returned {_describe(result)}, expected a tuple (X, Z)")
        y = _same_shape(result[0], x, self.label)
        return y, _auxiliary(result[1].get(AUXILIARY_LOSS), x, self.label)


class _SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases (arXiv 2002.05202)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.silu(self.gate(x)) * self.up(x)))


@lru_cache(maxsize=64)
def _reads_documents(source: str) -> bool:
    """Whether a unit tree looks for documents in Z: by their key, or by a parameter of a forward that takes Z apart."""
    return any(
        (isinstance(node, ast.Constant) and node.value == DOCUMENTS)
        or (
            isinstance(node, ast.FunctionDef)
            and node.name in ("forward", "_forward")
            and DOCUMENTS in [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        )
        for node in ast.walk(parse(source))
    )


def _is_tree_block(node: ast.ClassDef) -> bool:
    """Whether a class Block has the forward of a composed tree; a layer program may have a Block of its own."""
    forwards = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "forward"]
    return any([a.arg for a in f.args.args] == ["self", "X"] and f.args.kwarg is not None for f in forwards)


def _execute(source: str, name: str, label: str, *, device: str, compiled: bool) -> ModuleType:
    filename = f"<{name}>"
    module = ModuleType(name)
    module.__file__ = filename
    vars(module)["__builtins__"] = design_builtins(device)
    # No modification time: linecache then keeps the entry, since there is no file to check.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with _compiling(compiled):
            exec(compile(source, filename, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise DesignError(f"{label}: running its file failed: {_cause(error, filename)}") from error
    return module


def _construct(cls: type[nn.Module], label: str, compiled: bool, **arguments: int) -> nn.Module:
    try:
        with _compiling(compiled):
            return cls(**arguments)
    except (Exception, SystemExit) as error:
        call = ", ".join(f"{name}={value}" for name, value in arguments.items())
        filename = f"<{cls.__module__}>"
        raise DesignError(f"{label}: {cls.__name__}({call}) failed: {_cause(error, filename)}") from error


@contextlib.contextmanager
def _compiling(compiled: bool) -> Iterator[None]:
    """Makes `torch.compile` return its argument, as a call and as a decorator, unless `compiled`."""
    if compiled:
        yield
        return
    with _compile_lock:
        original = torch.compile
        torch.compile = _uncompiled
        try:
            yield
        finally:
            torch.compile = original


def _uncompiled(model: Any = None, **options: Any) -> Any:
    return _identity if model is None else model


def _identity(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _check_program(cls: type[nn.Module], label: str) -> None:
    parameters = dict(inspect.signature(cls).parameters)
    catches_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    missing = [name for name in PROGRAM_KEYWORDS if name not in parameters]
    # These carry the model's sizes: swallowed by **kwargs, every model would get the design's own default size.
    sizes = [name for name in ("hidden_size", "num_heads", "layer_idx") if name in missing]
    required = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if sizes or not catches_all or required:
        faults = [
            f"no keyword {', '.join(sizes)}" if sizes else "",
            "no **kwargs" if not catches_all else "",
            f"no default for {', '.join(required)}" if required else "",
        ]
        raise DesignError(
            f"{label}: {PROGRAM_CLASS}.__init__ has {'; '.join(f for f in faults if f)}; expected the keywords "
            f"{', '.join(PROGRAM_KEYWORDS)}, each with a default, and **kwargs"
        )
    _check_accepts(cls.forward, PROGRAM_INPUTS, ("hidden_states",), f"{label}: {PROGRAM_CLASS}.forward")


def _check_tree(cls: type[nn.Module], label: str) -> None:
    _check_accepts(cls, TREE_KEYWORDS, TREE_KEYWORDS[:2], f"{label}: {TREE_CLASS}.__init__")
    _check_accepts(cls.forward, ("X",), ("X",), f"{label}: {TREE_CLASS}.forward")


def _check_accepts(function: Callable[..., Any], given: tuple[str, ...], by_name: tuple[str, ...], where: str) -> None:
    """The names in `given` can be passed as keywords, those in `by_name` as parameters of their own."""
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n != "self"}
    catches_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    missing = [name for name in given if name not in parameters and (name in by_name or not catches_all)]
    named = (p for n, p in parameters.items() if n not in given)
    unfilled = [p.name for p in named if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if missing or unfilled:
        raise DesignError(
            f"{where}{inspect.signature(function)} does not take {', '.join(missing) or 'only what is given'}"
            f"{f' and requires {unfilled}' if unfilled else ''}; expected a call with {', '.join(given)}"
        )


def _same_shape(output: object, x: Tensor, label: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise DesignError(f"{label}: the output is {_describe(output)}, expected a tensor {list(x.shape)}")
    if output.shape != x.shape:
        raise DesignError(
            f"{label}: the output has the shape {list(output.shape)}, expected the input's {list(x.shape)} "
            "[batch, length, dim]"
        )
    return output


def _auxiliary(loss: object, x: Tensor, label: str) -> Tensor | None:
    if loss is None:
        return None
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        return x.new_tensor(float(loss))
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        return loss.reshape(())
    raise DesignError(f"{label}: the auxiliary loss is {_describe(loss)}, expected None or one number")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: ({', '.join(_describe(v) for v in value)})"
    return "None" if value is None else f"a {type(value).__name__}"


def _cause(error: BaseException, filename: str) -> str:
    """The exception and the last line of the design that led to it."""
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == filename]
    where = f" (line {places[-1].lineno}: {places[-1].line})" if places else ""
    return f"{type(error).__name__}: {error}{where}"
