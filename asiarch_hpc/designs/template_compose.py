"""From units written as code to one self-contained file with `class Block`.

Genesys strings the units' files together (arXiv 2506.20249, algorithm 2): of two things with one name the later one
wins, and one dictionary holds the arguments of all units by name. Here every unit keeps its own arguments and what it
calls by its names; two different things of one name are told apart, or composition fails and says which they are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from asiarch_hpc.designs.edits import Edits
from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.designs.template import (
    BASE_CLASS,
    TEMPLATE_NAMES,
    TemplateTree,
    Unit,
    argument_names,
    declared_children,
    read_unit,
)
from asiarch_hpc.designs.template_children import children_of
from asiarch_hpc.designs.template_text import (
    Import,
    bound_names,
    imported_names,
    kept_statements,
    meanings,
    test_parts,
    with_defaults,
    with_fitting_heads,
    with_other_names,
    without_optional,
)
from asiarch_hpc.errors import DesignError

_FOLDER = Path(__file__).resolve().parent
_RESERVED = frozenset({"Block", "DeltaNet", "SIDE_INPUTS", "fitting_heads", *TEMPLATE_NAMES})

_HEADS = "model_heads"  # the backbone's number of heads in kwarg_all
_BASE_IMPORTS = ("Any", "Callable", "Tensor", "nn", "torch")  # what GAUBase, Block and the stand-ins use

# What published units import -> its stand-in in genesys_names.py.
STAND_INS = {
    "transformers.activations.ACT2FN": "ACTIVATIONS",
    "torchtune.modules.RMSNorm": "PlainRMSNorm",
    "torchtune.modules.RotaryPositionalEmbeddings": "InterleavedRotary",
}
_BLOCK = '''class Block(nn.Module):
    """The design: X [batch, length, dim] -> the same shape, with side values Z."""

    def __init__(
        self,
        dim: int,
        heads: int,
        layer_idx: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        settings = {{"{heads}": heads}}
        self.root = {root}(
            embed_dim=dim,
            block_loc=(layer_idx, layer_idx + 1),
            kwarg_all=settings,
            device=device,
            dtype=dtype,
            **settings,
        )

    def forward(self, X: Tensor, **Z: Any) -> tuple[Tensor, dict[str, Any]]:
        Y, Z = self.root(X, **Z)
        return Y.to(X.dtype), Z
'''
_PLACEHOLDER = '''class {name}(GAUBase):
    """Stands for a unit that is not written yet: the sequence unchanged."""

    def __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, **kwargs):
        self.factory_kwargs = {{"device": device, "dtype": dtype}}
        super().__init__(embed_dim, block_loc, kwarg_all)

    def _forward(self, X):
        return X, {{{outputs}}}
'''


def compose_template(tree: TemplateTree, *, placeholders: bool = False) -> str:
    """The source of a design's block.

    The file holds `class Block(nn.Module)`: `Block(dim, heads, layer_idx=0, device=None, dtype=None)` with
    `forward(X, **Z) -> (X, Z)`, the units below the root, GAUBase, and stand-ins for what units import of other
    packages. Declarations and tests are left out (see `compose_tests`). The text depends on the tree alone.

    Args:
        placeholders: put an identity in the place of a child that is not in the tree; else that is an error.

    Raises:
        DesignError: a unit cannot be read, a child is missing, a unit is its own ancestor, or two units give one name
            two meanings and it cannot be told apart.
    """
    names = _reached(tree, placeholders)
    renamed = {name: f"{name}Unit" for name in names if name in _RESERVED or name in _BASE_IMPORTS}
    file = _File()
    for line in imported_names(_base().module):
        if line.name in _BASE_IMPORTS:
            file.bind(line.name, line.target, line.text)
    for name in names:
        file.names[renamed.get(name, name)] = f"unit {name}"
    for name in names:
        if name in tree.units:
            _add_unit(file, name, tree.units[name], renamed)
        else:
            outputs = ", ".join(f'"{key}": None' for key in _outputs(tree, name) if key != "Y")
            file.parts.append(_PLACEHOLDER.format(name=renamed.get(name, name), outputs=outputs).rstrip())
            file.side_inputs[renamed.get(name, name)] = ()
    return _written(tree.name, file, renamed.get(tree.root, tree.root))


def compose_tests(tree: TemplateTree) -> str:
    """The unit tests of the units below the root as one text, to be run in the namespace of the composed file.

    "" where there are none. Units that cannot be read have none.
    """
    parts: dict[str, None] = {}
    for name in _reached(tree, True):
        try:
            parts |= dict.fromkeys(test_parts(tree.units[name].code) if name in tree.units else ())
        except DesignError:
            continue
    return "\n\n\n".join(parts)


@dataclass
class _File:
    """A composed file in the making. `names` maps each name at its top level to what it stands for."""

    names: dict[str, str] = field(default_factory=dict)
    imports: dict[str, None] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    stand_ins: dict[str, None] = field(default_factory=dict)
    side_inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def bind(self, name: str, target: str, line: str) -> None:
        self.names[name] = target
        self.imports[line] = None

    def free(self, name: str, target: str) -> bool:
        """Whether `name` can stand for `target` in this file."""
        return name not in _RESERVED and self.names.get(name, target) == target


def _reached(tree: TemplateTree, placeholders: bool) -> list[str]:
    """Names of the units below the root, parents first, each once."""
    names: dict[str, None] = {}
    known = frozenset(tree.units)

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise DesignError(f"unit {name} is its own ancestor: {' -> '.join((*above, name))}; break the circle")
        if name in names:
            return
        if name not in tree.units and not placeholders:
            parent = above[-1] if above else "the tree"
            raise DesignError(f"unit {name}: {parent} uses it, and it is not among the tree's units {sorted(known)}")
        names[name] = None
        for child in children_of(tree.units[name].code, known) if name in tree.units else ():
            visit(child, (*above, name))

    visit(tree.root, ())
    return list(names)


def _outputs(tree: TemplateTree, name: str) -> tuple[str, ...]:
    """Side values that some unit's declaration promises of a missing unit."""
    for unit in tree.units.values():
        try:
            declared = declared_children(parse(unit.code)) or []
        except DesignError:
            continue
        for child in declared:
            if child.name == name:
                return child.outputs
    return ()


def _add_unit(file: _File, name: str, unit: Unit, renamed: Mapping[str, str]) -> None:
    source = with_fitting_heads(with_defaults(without_optional(unit.code), name, unit.args))
    text = read_unit(source, where=f"unit {name}")
    if text.cls.name != name:
        raise DesignError(f"unit {name}: its class is called {text.cls.name}; class and unit must have one name")
    kept, read = kept_statements(text.module)
    changes = dict(renamed)
    for line in imported_names(text.module):
        if line.name in read and line.name not in TEMPLATE_NAMES:
            changes |= _add_import(file, name, line)
    for bound, meaning in meanings(text.module, kept).items():
        if bound != name:
            if not file.free(bound, meaning):
                changes[bound] = f"{bound}_{name}"
            file.names[changes.get(bound, bound)] = meaning
    final = read_unit(with_other_names(text.source, changes, name), where=f"unit {name}")
    edits = Edits(final.source)
    for node in kept_statements(final.module)[0]:
        if edits.lines(node) not in file.parts:
            file.parts.append(edits.lines(node))
    forward = final.method("_forward")
    if forward is not None:
        file.side_inputs[final.cls.name] = tuple(argument_names(forward)[1:])


def _add_import(file: _File, unit: str, line: Import) -> dict[str, str]:
    """Adds an import to the file; what it is called there, where that is not its name in the unit."""
    stand_in = STAND_INS.get(line.target)
    if stand_in is not None:
        file.stand_ins[stand_in] = None
        file.names[stand_in] = stand_in
        return {line.name: stand_in}
    if file.free(line.name, line.target):
        if file.names.get(line.name) != line.target or line.is_submodule:
            file.bind(line.name, line.target, line.text)
        return {}
    other = f"{line.name}_{unit}"
    module, _, attribute = line.target.rpartition(".")
    renamed = f"from {module} import {attribute}" if module else f"import {line.target}"
    file.bind(other, line.target, f"{renamed} as {other}")
    return {line.name: other}


@dataclass(frozen=True)
class _Source:
    text: str
    module: ast.Module


@cache
def _base() -> _Source:
    return _read("genesys_base.py")


@cache
def _stand_ins() -> Mapping[str, str]:
    source = _read("genesys_names.py")
    edits = Edits(source.text)
    return {name: edits.lines(node) for node in source.module.body for name in bound_names(node)}


def _read(name: str) -> _Source:
    text = (_FOLDER / name).read_text(encoding="utf-8")
    return _Source(text, ast.parse(text))


def _written(name: str, file: _File, root: str) -> str:
    edits = Edits(_base().text)
    base = {name: edits.lines(node) for node in _base().module.body for name in bound_names(node)}
    head = "".join(letter for letter in name if letter.isprintable() and letter not in '"\\')
    parts = [
        f'"""{head}: composed from units written as code."""\n\n{_sorted(file.imports)}',
        f"# Side values that each unit takes.\nSIDE_INPUTS = {file.side_inputs!r}",
        base["fitting_heads"],
        base[BASE_CLASS],
        *(_stand_ins()[name] for name in file.stand_ins),
        *file.parts,
        _BLOCK.format(root=root, heads=_HEADS),
    ]
    return "\n\n\n".join(parts)


def _sorted(lines: Iterable[str]) -> str:
    """Import lines: `from __future__` first, then modules, then names."""
    return "\n".join(sorted(lines, key=lambda line: ("__future__" not in line, line.startswith("from "), line)))
