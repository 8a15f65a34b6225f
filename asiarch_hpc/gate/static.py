"""What can be said about a design from its text alone, before anything of it runs.

These findings are clear early messages for an author, not the protection: that is the sandbox's part. They name
what a layer program or a unit tree has no use for.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from asiarch_hpc.designs.contract import PROGRAM_KEYWORDS, form_of
from asiarch_hpc.errors import DesignError
from asiarch_hpc.records import Finding

# Modules a design may import, with what it needs them for. A name allows its submodules too, unless FORBIDDEN
# names one. Everything else is refused: a design's file is self-contained.
ALLOWED_IMPORTS = {
    "__future__": "postponed annotations",
    "abc": "abstract units",
    "bisect": "search in tables",
    "cmath": "complex scalars",
    "collections": "ordered and default dictionaries of modules",
    "contextlib": "context managers",
    "copy": "copies of configuration",
    "dataclasses": "configuration of units",
    "einops": "tensor rearrangement",
    "enum": "named choices",
    "fla": "the published layer programs' own imports",
    "fractions": "exact ratios",
    "functools": "partial application and caching",
    "hashlib": "fixed hashes of names",
    "heapq": "priority queues of constants",
    "itertools": "loops over layers",
    "kernels": "the project's operations",
    "logging": "messages to an author",
    "math": "scalar mathematics",
    "numbers": "number types",
    "numpy": "constant tables",
    "operator": "functional forms of operators",
    "random": "seeded choices at construction",
    "statistics": "constants of tables",
    "string": "names of parts",
    "time": "published units that clock themselves",
    "torch": "tensors and modules",
    "transformers": "type annotations of the published layer programs",
    "triton": "GPU kernels",
    "typing": "annotations",
    "typing_extensions": "annotations",
    "warnings": "messages to an author",
}

# Dotted names that reach out of the model: files, processes, network, foreign code, other modules' state.
FORBIDDEN = {
    "torch.load": "reads files",
    "torch.save": "writes files",
    "torch.from_file": "maps files",
    "torch.hub": "downloads code",
    "torch.package": "loads code",
    "torch.serialization": "reads and writes files",
    "torch.jit.load": "reads files",
    "torch.jit.save": "writes files",
    "torch.export": "reads and writes files",
    "torch.classes": "loads foreign code",
    "torch.ops.load_library": "loads foreign code",
    "torch.utils.cpp_extension": "compiles and loads foreign code",
    "torch.utils.model_zoo": "downloads files",
    "torch.utils.tensorboard": "writes files",
    "torch.multiprocessing": "starts processes",
    "torch.distributed": "talks to other processes",
    "torch.cuda.memory._record_memory_history": "writes files",
    "numpy.load": "reads files",
    "numpy.save": "writes files",
    "numpy.savez": "writes files",
    "numpy.fromfile": "reads files",
    "numpy.memmap": "maps files",
    "numpy.ctypeslib": "loads foreign code",
    "numpy.loadtxt": "reads files",
    "numpy.genfromtxt": "reads files",
}

# Modules that other modules hold as attributes by accident of their own imports (`torch.os`).
OUTSIDE_MODULES = frozenset({
    "os", "sys", "subprocess", "socket", "ctypes", "shutil", "pathlib", "importlib", "builtins", "io",
    "tempfile", "pickle", "threading", "multiprocessing", "inspect", "gc",
})  # fmt: skip

# Builtin functions that reach files, other code, or the caller's variables.
FORBIDDEN_BUILTINS = frozenset({
    "open", "exec", "eval", "compile", "__import__", "input", "breakpoint", "exit", "quit", "globals", "locals",
    "vars", "memoryview",
})  # fmt: skip

# Attributes by which code climbs from an object to the interpreter that runs it.
ESCAPE_ATTRIBUTES = frozenset({
    "__globals__", "__builtins__", "__subclasses__", "__code__", "__closure__", "__loader__", "__spec__",
    "__mro__", "__bases__", "f_globals", "f_locals", "f_back", "f_builtins", "gi_frame", "cr_frame", "tb_frame",
})  # fmt: skip

# Swallowed by **kwargs instead of named, these would leave every model at the design's own default size.
SIZE_KEYWORDS = ("hidden_size", "num_heads", "layer_idx")

# Names under which a text keeps the size of its pieces along the sequence.
_CHUNK_WORDS = ("chunk", "block", "window", "segment", "span", "stride", "kernel", "conv", "scale", "len")
_LARGEST_CHUNK = 1024

# A design with one of these cannot be built at all.
UNBUILDABLE = frozenset({"static.syntax", "static.contract"})

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def examine(source: str) -> list[Finding]:
    """Findings about a design's text: syntax, contract, imports, calls, changes to other modules.

    Codes: static.syntax, static.contract, static.import, static.call, static.escape, static.patch; all reject.
    """
    try:
        tree = _parse(source)
    except SyntaxError as error:
        text = f"line {error.lineno}: {error.msg}"
        return [_reject("static.syntax", text, "Give one complete Python file, without Markdown around it.")]
    except (ValueError, RecursionError, MemoryError) as error:
        text = f"the parser gave up: {type(error).__name__}: {error}"
        return [_reject("static.syntax", text, "Give one Python text file without zero bytes or endless nesting.")]
    aliases = _aliases(tree)
    findings = [
        *_contract(source, tree),
        *_imports(tree),
        *_calls(tree),
        *_reaches(tree, aliases),
        *_patches(tree, aliases),
    ]
    return list(dict.fromkeys(findings))


def chunk_sizes(source: str) -> tuple[int, ...]:
    """Whole numbers between 2 and 1024 that stand under a name like chunk_size in the text, or in a comparison or a
    remainder: where pieces along the sequence may begin and end. For texts in which `examine` finds no syntax error."""
    numbers: set[int] = set()
    for node in ast.walk(_parse(source)):
        numbers |= {n for name, value in _named_values(node) if _is_chunk_name(name) for n in _numbers(value)}
        if isinstance(node, ast.Compare):
            numbers |= {n for value in (node.left, *node.comparators) for n in _numbers(value)}
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.FloorDiv):
            numbers |= set(_numbers(node.right))
    return tuple(sorted(n for n in numbers if 2 <= n <= _LARGEST_CHUNK))


def claims(source: str) -> frozenset[str]:
    """The abilities that the main class claims in `CLAIMS`. For texts in which `examine` finds no syntax error."""
    main = [
        node for node in _parse(source).body if isinstance(node, ast.ClassDef) and node.name in ("DeltaNet", "Block")
    ]
    values = [value for node in main for child in node.body for name, value in _named_values(child) if name == "CLAIMS"]
    words = [
        item.value
        for value in values
        if isinstance(value, ast.Tuple | ast.List | ast.Set)
        for item in value.elts
        if isinstance(item, ast.Constant)
    ]
    return frozenset(word for word in words if isinstance(word, str))


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a doubtful escape sequence is not the gate's business
        return ast.parse(source)


def _named_values(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(name, value) of assignments, keyword arguments and defaults that a node itself holds."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name | ast.Attribute):
                yield (target.id if isinstance(target, ast.Name) else target.attr), node.value
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value
    elif isinstance(node, ast.keyword) and node.arg is not None:
        yield node.arg, node.value
    elif isinstance(node, ast.arguments):
        positional = [*node.posonlyargs, *node.args]
        with_default = positional[len(positional) - len(node.defaults) :]
        yield from ((a.arg, value) for a, value in zip(with_default, node.defaults, strict=True))
        keyword = zip(node.kwonlyargs, node.kw_defaults, strict=True)
        yield from ((a.arg, value) for a, value in keyword if value is not None)


def _is_chunk_name(name: str) -> bool:
    return any(word in name.lower() for word in _CHUNK_WORDS)


def _numbers(node: ast.expr) -> list[int]:
    """Whole numbers of a literal or of a tuple or list of them."""
    items = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
    return [item.value for item in items if isinstance(item, ast.Constant) and type(item.value) is int]


def _reject(code: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="reject", message=message, hint=hint)


def _contract(source: str, tree: ast.Module) -> Iterator[Finding]:
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    try:
        form = form_of(source)
    except DesignError as error:
        yield _reject("static.contract", str(error), "Name the main class DeltaNet and derive it from torch.nn.Module.")
        return
    yield from _program_contract(classes["DeltaNet"]) if form == "program" else _block_contract(classes["Block"])


def _program_contract(node: ast.ClassDef) -> Iterator[Finding]:
    forward = _method(node, "forward")
    if forward is None:
        yield _reject("static.contract", "class DeltaNet has no forward", "Define forward(self, hidden_states, ...).")
    elif [a.arg for a in _positional(forward)][1:2] != ["hidden_states"]:
        yield _reject(
            "static.contract",
            f"line {forward.lineno}: DeltaNet.forward takes {_signature(forward)}",
            "Define forward(self, hidden_states, attention_mask=None, past_key_values=None, use_cache=False, "
            "output_attentions=False, **kwargs) and return (output, None or auxiliary loss, past_key_values).",
        )
    init = _method(node, "__init__")
    if init is None:
        yield _reject("static.contract", "class DeltaNet has no __init__", "Take the 16 published keywords.")
        return
    named = {a.arg for a in [*_positional(init), *init.args.kwonlyargs]}
    faults = [f"no keyword {name}" for name in SIZE_KEYWORDS if name not in named]
    faults += [f"no default for {name}" for name in _required(init) if name != "self"]
    faults += [] if init.args.kwarg else ["no **kwargs"]
    if faults:
        yield _reject(
            "static.contract",
            f"line {init.lineno}: DeltaNet.__init__ has {', '.join(faults)}",
            f"Take the keywords {', '.join(PROGRAM_KEYWORDS)}, each with a default, and **kwargs.",
        )


def _block_contract(node: ast.ClassDef) -> Iterator[Finding]:
    init, forward = _method(node, "__init__"), _method(node, "forward")
    if init is None or [a.arg for a in _positional(init)][1:3] != ["dim", "heads"]:
        found = "no __init__" if init is None else _signature(init)
        yield _reject(
            "static.contract",
            f"class Block has {found}",
            "Define __init__(self, dim, heads, layer_idx=0, device=None, dtype=None).",
        )
    elif extra := [name for name in _required(init) if name not in ("self", "dim", "heads")]:
        yield _reject("static.contract", f"line {init.lineno}: Block.__init__ requires {extra}", "Give them defaults.")
    if forward is None or len(_positional(forward)) < 2 or forward.args.kwarg is None:
        found = "no forward" if forward is None else f"forward{_signature(forward)}"
        yield _reject("static.contract", f"class Block has {found}", "Define forward(self, X, **Z) and return (X, Z).")


def _imports(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield _reject(
                    "static.import",
                    f"line {node.lineno}: relative import",
                    "Put everything that the design needs into its one file.",
                )
                continue
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            reason = _forbidden(name)
            if name.split(".")[0] not in ALLOWED_IMPORTS:
                top = name if isinstance(node, ast.Import) else name.rpartition(".")[0]
                yield _reject(
                    "static.import",
                    f"line {node.lineno}: import of {top}",
                    f"A design may import {', '.join(sorted(ALLOWED_IMPORTS))}.",
                )
            elif reason:
                yield _reject("static.import", f"line {node.lineno}: import of {name}", f"Leave it out: it {reason}.")


def _calls(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_BUILTINS:
            yield _reject(
                "static.call",
                f"line {node.lineno}: call of {node.func.id}()",
                "A design computes tensors from tensors; it needs no files, generated code or foreign variables.",
            )


def _reaches(tree: ast.Module, aliases: dict[str, str]) -> Iterator[Finding]:
    """Attribute chains from an imported module to something forbidden, and climbs into the interpreter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ("__builtins__", "__loader__", "__spec__"):
            yield _reject("static.escape", f"line {node.lineno}: use of {node.id}", "Leave it out.")
        if not isinstance(node, ast.Attribute):
            continue
        if node.attr in ESCAPE_ATTRIBUTES:
            yield _reject("static.escape", f"line {node.lineno}: use of .{node.attr}", "Leave it out.")
        dotted = _dotted(node, aliases)
        if dotted is None:
            continue
        reason = _forbidden(dotted)
        if reason:
            yield _reject("static.call", f"line {node.lineno}: use of {dotted}", f"Leave it out: it {reason}.")
        elif node.attr in OUTSIDE_MODULES and dotted.split(".")[0] != "kernels":
            yield _reject("static.import", f"line {node.lineno}: {dotted} reaches module {node.attr}", "Leave it out.")


def _patches(tree: ast.Module, aliases: dict[str, str]) -> Iterator[Finding]:
    """Assignments to attributes of imported modules and classes: they would change the checks and the trainer."""
    hint = "Subclass or wrap instead of changing it; a design must not alter what others use."
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            targets = [ast.Attribute(value=node.args[0], attr="?")] if node.args else []
        else:
            continue
        for target in [leaf for whole in targets for leaf in _leaves(whole)]:
            dotted = _dotted(target, aliases) if isinstance(target, ast.Attribute) else None
            if dotted is not None:
                yield _reject("static.patch", f"line {node.lineno}: change of {dotted.removesuffix('.?')}", hint)


def _leaves(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _leaves(element)
    elif isinstance(target, ast.Starred | ast.Subscript):
        yield from _leaves(target.value)
    else:
        yield target


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> dotted name for everything imported anywhere in the file."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return aliases


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """`F.relu` -> "torch.nn.functional.relu" when the chain starts at an imported name, else None."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in aliases:
        return None
    return ".".join([aliases[node.id], *reversed(parts)])


def _forbidden(dotted: str) -> str | None:
    parts = dotted.split(".")
    for end in range(1, len(parts) + 1):
        if reason := FORBIDDEN.get(".".join(parts[:end])):
            return reason
    return None


def _method(node: ast.ClassDef, name: str) -> _Function | None:
    return next((n for n in node.body if isinstance(n, _Function) and n.name == name), None)


def _positional(function: _Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args]


def _required(function: _Function) -> list[str]:
    positional = _positional(function)
    required = [a.arg for a in positional[: len(positional) - len(function.args.defaults)]]
    keyword = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return required + [a.arg for a, default in keyword if default is None]


def _signature(function: _Function) -> str:
    return f"({ast.unparse(function.args)})"
