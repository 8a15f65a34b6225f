"""The operations of `kernels/` as a prompt lists them: signatures and first lines, read without importing torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
OF_THE_BACKBONE = ("linear_cross_entropy",)  # no part of a design


@cache
def operations() -> str:
    """One entry for each public function of `kernels/<operation>/`."""
    folders = sorted(folder for folder in KERNELS.iterdir() if (folder / "__init__.py").is_file())
    return "\n".join(_entry(folder) for folder in folders if folder.name not in OF_THE_BACKBONE)


def _entry(folder: Path) -> str:
    package = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    source = next(node for node in package.body if isinstance(node, ast.ImportFrom) and node.module)
    path = KERNELS.parent.joinpath(*str(source.module).split(".")).with_suffix(".py")
    name = source.names[0].name
    module = ast.parse(path.read_text(encoding="utf-8"))
    function = next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name)
    text = ast.get_docstring(function) or ""
    shapes = [line.strip() for line in text.partition("Args:")[2].partition("Raises:")[0].splitlines() if line.strip()]
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    signature = f"kernels.{folder.name}.{name}({ast.unparse(function.args)}){returns}"
    return "\n".join([f"- `{signature}`", f"  {text.splitlines()[0]}", *(f"  {line}" for line in shapes)])
