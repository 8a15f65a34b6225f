"""From a unit tree to one self-contained source file with `class Block`.

The text depends on the tree alone: base classes, each used unit once in library order, and a Block that builds
the tree with all of its arguments written out, so that a later change of a default changes no stored design.
"""

from __future__ import annotations

from collections.abc import Iterable

from asiarch_hpc.designs.library import UnitSpec, foundation, library
from asiarch_hpc.designs.tree import UnitNode, UnitTree, validate, walk

_INDENT = "    "
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
        self.root = {recipe}(dim, heads, layer_idx, device, dtype)

    def forward(self, X: Tensor, **Z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        X, Z = self.root(X, **Z)
        return X, Z
'''


def compose(tree: UnitTree) -> str:
    """The source of a design's block.

    The file holds `class Block(nn.Module)`: `Block(dim, heads, layer_idx=0, device=None, dtype=None)` with
    `forward(X, **Z) -> (X, Z)`. `dim` must be a multiple of `2 * heads`.

    Raises:
        DesignError: the tree does not fit the library (see `tree.validate`).
    """
    units = library()
    validate(tree, units)
    used = {node.unit for _, node in walk(tree.root)}
    specs = [spec for spec in units.values() if spec.name in used]
    base = foundation()
    imports = _sorted_imports({*base.imports, *(line for spec in specs for line in spec.imports)})
    parts = [
        f'"""{tree.name}: composed from a unit tree."""\n\n{imports}',
        base.code,
        *(spec.code for spec in specs),
        _BLOCK.format(recipe=_recipe(tree.root, units[tree.root.unit], _INDENT * 2)),
    ]
    return "\n\n\n".join(parts)


def _recipe(node: UnitNode, spec: UnitSpec, indent: str) -> str:
    units = library()
    inner = indent + _INDENT
    lines = [
        f"{inner}{slot}={_recipe(node.children[slot], units[node.children[slot].unit], inner)},\n"
        for slot in spec.children
    ]
    lines += [f"{inner}{name}={_literal(arg.resolve(node.args.get(name)))},\n" for name, arg in spec.args.items()]
    return f"{node.unit}.of(\n{''.join(lines)}{indent})" if lines else f"{node.unit}.of()"


def _literal(value: bool | int | float | str) -> str:
    return '"' + value + '"' if isinstance(value, str) else repr(value)


def _sorted_imports(lines: Iterable[str]) -> str:
    """Import lines by section (standard library, packages, kernels), names of one module on one line."""
    plain = {line for line in lines if line.startswith("import ")}
    named: dict[str, set[str]] = {}
    for line in sorted(set(lines) - plain):
        module, _, name = line.removeprefix("from ").partition(" import ")
        named.setdefault(module, set()).add(name)
    ordered = sorted(plain) + [f"from {module} import {', '.join(sorted(named[module]))}" for module in sorted(named)]
    sections: dict[int, list[str]] = {}
    for line in ordered:
        module = line.split()[1].split(".")[0]
        section = 0 if module in ("math", "typing") else 2 if module == "kernels" else 1
        sections.setdefault(section, []).append(line)
    return "\n\n".join("\n".join(sections[section]) for section in sorted(sections))
