"""The import table of the design, read from the code with `ast`, and what importing the controller loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("asiarch_hpc", "jobs", "kernels")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Layer of each place; imports go to a lower layer, or stay inside the package.
LAYERS = {
    "kernels": 0,
    "asiarch_hpc": 0,
    "asiarch_hpc.errors": 0,
    "asiarch_hpc.records": 0,
    "asiarch_hpc.config": 0,
    "asiarch_hpc.store": 1,
    "asiarch_hpc.designs": 1,
    "asiarch_hpc.search": 2,
    "asiarch_hpc.gate": 2,
    "asiarch_hpc.agents": 2,
    "asiarch_hpc.knowledge": 1,
    "asiarch_hpc.training": 2,
    "asiarch_hpc.evaluation": 2,
    "asiarch_hpc.importers": 2,
    "asiarch_hpc.report": 2,
    "jobs": 3,
    "asiarch_hpc.controller": 4,
    "asiarch_hpc.cli": 5,
}
STORE_USERS = {"asiarch_hpc.store", "jobs", "asiarch_hpc.controller", "asiarch_hpc.cli"}
# Third-party packages that only some places may import, by prefix of the importing module.
SOLE_USERS = {
    "submitit": ("asiarch_hpc.controller.local", "asiarch_hpc.controller.slurm", "jobs.entry"),
    "deepspeed": ("asiarch_hpc.training.deepspeed_engine",),
    "lm_eval": ("asiarch_hpc.evaluation",),
    "zarr": ("asiarch_hpc.store.curves",),
    "h5py": ("asiarch_hpc.training",),
    "rich": ("asiarch_hpc.controller",),
}
# Importers read what strangers wrote: beside words and designs they need nothing, and kernels only where one replaces
# a program's own function.
IMPORTERS_USE = (
    "asiarch_hpc.importers", "asiarch_hpc.designs", "asiarch_hpc.errors", "asiarch_hpc.records", "asiarch_hpc.config",
)  # fmt: skip
TORCH_FREE = (
    "asiarch_hpc.errors", "asiarch_hpc.records", "asiarch_hpc.config", "asiarch_hpc.store", "asiarch_hpc.search",
    "asiarch_hpc.controller", "asiarch_hpc.cli", "asiarch_hpc.agents.recombine", "asiarch_hpc.agents.variation",
    "asiarch_hpc.designs.hashing",
    "asiarch_hpc.designs.tree", "asiarch_hpc.designs.library", "asiarch_hpc.designs.compose",
    "asiarch_hpc.designs.seeds", "asiarch_hpc.importers.published", "asiarch_hpc.importers.asi_arch",
    "asiarch_hpc.designs.edits", "asiarch_hpc.designs.template", "asiarch_hpc.designs.template_rules",
    "asiarch_hpc.designs.template_children", "asiarch_hpc.designs.template_repair",
    "asiarch_hpc.designs.template_compose", "asiarch_hpc.designs.template_text",
    "asiarch_hpc.importers.genesys", "asiarch_hpc.importers.genesys_units", "asiarch_hpc.importers.untrained",
    "asiarch_hpc.importers.substitution", "asiarch_hpc.evaluation.sources", "jobs.entry",
    "jobs.import_run", "jobs.serve",
)  # fmt: skip


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place_of(module: str) -> str:
    """The row of the table that a module belongs to."""
    return next(name for name in sorted(LAYERS, key=len, reverse=True) if f"{module}.".startswith(f"{name}."))


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Imported modules, and whether the import runs when the module is loaded."""
    tree = ast.parse(path.read_text())
    inner = {id(node) for scope in ast.walk(tree) if _deferred(scope) for node in ast.walk(scope)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, id(node) not in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                is_module = (ROOT / full.replace(".", "/")).with_suffix(".py").exists()
                yield (full if is_module else str(node.module)), id(node) not in inner


def _deferred(node: ast.AST) -> bool:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
        return node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_follow_the_table(path: Path) -> None:
    module = module_of(path)
    place = place_of(module)
    for target, at_load in imports_of(path):
        root = target.partition(".")[0]
        if root in PACKAGES:
            other = place_of(target)
            same = other == place
            words = LAYERS[place] == 0 and place != "kernels" and other != "kernels"
            assert same or words or LAYERS[other] < LAYERS[place], f"{module} imports {target}: not downward"
            assert other != "asiarch_hpc.store" or place in STORE_USERS, f"{module} touches the store"
            assert place != "kernels" or same, f"{module}: kernels never import {target}"
        elif place == "kernels":
            allowed = root in ("torch", "triton") or root in sys.stdlib_module_names
            assert allowed, f"{module} imports {target}: kernels import torch and triton only"
        users = SOLE_USERS.get(root)
        assert users is None or any(f"{module}.".startswith(f"{user}.") for user in users), f"{module} imports {root}"
        if root == "torch" and at_load:
            free = any(f"{module}.".startswith(f"{name}.") for name in TORCH_FREE)
            assert not free, f"{module} must not import torch"


def test_importers_use_words_and_designs_alone() -> None:
    for path in (ROOT / "asiarch_hpc/importers").rglob("*.py"):
        kernels = ("kernels",) if path.stem in ("substitution", "agreement") else ()
        for target, _ in imports_of(path):
            if target.partition(".")[0] in PACKAGES:
                assert any(f"{target}.".startswith(f"{name}.") for name in (*IMPORTERS_USE, *kernels)), path


def test_search_is_pure() -> None:
    forbidden = {"time", "datetime", "os", "pathlib", "subprocess", "socket", "shutil", "tempfile", "secrets", "uuid"}
    for path in (ROOT / "asiarch_hpc/search").rglob("*.py"):
        found = {target.partition(".")[0] for target, _ in imports_of(path)} & forbidden
        assert not found, f"{path} imports {found}"
        assert "open(" not in path.read_text(), path


def test_the_controller_loads_no_torch() -> None:
    code = (
        "import sys; import asiarch_hpc.cli, asiarch_hpc.controller.local, asiarch_hpc.controller.slurm; "
        "heavy = {'torch', 'deepspeed', 'lm_eval', 'zarr', 'h5py', 'numpy', 'pandas'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_training_of_one_process_loads_no_deepspeed() -> None:
    code = "import sys; import jobs.train; sys.exit('deepspeed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_top_level_holds_what_the_design_names() -> None:
    named = {
        "jobs", "slurm", "asiarch_hpc", "kernels", "configs", "results", "tests", "Makefile", "README.md",
        "pyproject.toml", ".ci", ".gitignore",
    }  # fmt: skip
    listing = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    assert {line.partition("/")[0] for line in listing.stdout.splitlines()} <= named
