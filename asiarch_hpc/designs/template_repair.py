"""Safe repairs of units: small slips of form that every author makes, set right where they stand in the text.

Each repair changes only what breaks its rule and leaves the rest byte for byte as it was; a unit that breaks no rule
is returned unchanged, and so is a repaired one. What could change the meaning of working code is not repaired but
left to the rules (`template_rules`). Genesys rewrites all of a unit instead (arXiv 2506.20249, appendix B.1.2), which
loses settings that a parent gives to a child by keyword.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping

from asiarch_hpc.designs.edits import Edits
from asiarch_hpc.designs.template import (
    CHILD_ARGUMENTS,
    DECLARATIONS,
    FIXED_ARGUMENTS,
    TEST_MARK,
    Function,
    TemplateTree,
    Unit,
    UnitText,
    argument_names,
    constructions,
    declared_children,
    is_main_guard,
    is_marked,
    read_unit,
    required_arguments,
    test_functions,
)
from asiarch_hpc.designs.template_children import argument_faults, child_attributes, declared_names, dropped_results
from asiarch_hpc.designs.template_rules import finding, hoistable, init_faults
from asiarch_hpc.errors import DesignError
from asiarch_hpc.records import Finding

# What a repair did: the rule's code, and words for the author.
Change = tuple[str, str]
Repair = Callable[[UnitText, Edits, frozenset[str]], Iterator[Change]]


def repair(source: str, *, known: frozenset[str] = frozenset()) -> tuple[str, list[Finding]]:
    """The repaired text of a unit's file and a warning for each change; unchanged where the file cannot be read.

    Args:
        known: names of all units of the tree, so that calls of them are recognised as children.
    """
    findings: list[Finding] = []
    for step in _REPAIRS:
        try:
            unit = read_unit(source)
        except DesignError:
            return source, findings
        edits = Edits(source)
        changes = list(step(unit, edits, known))
        if not changes:
            continue
        repaired = edits.apply()
        try:
            read_unit(repaired)
        except DesignError:  # such as an __init__ in one line: what cannot be changed in place is not changed
            continue
        source = repaired
        for code, text in changes:
            findings.append(finding(code, f"unit {unit.cls.name}: repaired: {text}", "warn"))
    return source, findings


def repair_tree(tree: TemplateTree) -> tuple[TemplateTree, list[Finding]]:
    """The tree with all of its units repaired, and a warning for each change."""
    units, findings = {}, []
    for name, unit in tree.units.items():
        code, found = repair(unit.code, known=frozenset(tree.units))
        units[name] = unit if code == unit.code else Unit(code, unit.args)
        findings += found
    return TemplateTree(tree.name, tree.root, units), findings


def _remove_main(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    for statement in unit.module.body:
        if is_main_guard(statement) and edits.put(edits.line(statement), edits.next_line(statement), ""):
            yield "unit.main", "the block for __main__ is taken out"


def _complete_signature(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    init = unit.init
    if init is None or not init.args.args or init.args.posonlyargs or init.args.kwonlyargs or init.args.vararg:
        return
    names, required = argument_names(init), required_arguments(init)
    missing = [name for name in FIXED_ARGUMENTS if name not in names and name != _kwarg(init)]
    for name in ("device", "dtype"):
        argument = next((arg for arg in init.args.args if arg.arg == name), None)
        if argument is not None and name in required and not _followed_by_required(init, name):
            edits.insert(edits.end(argument), "=None" if argument.annotation is None else " = None")
            yield "unit.signature", f"{name} of __init__ has the default None"
    for name in (name for name in missing if name in CHILD_ARGUMENTS):
        before = CHILD_ARGUMENTS[: CHILD_ARGUMENTS.index(name)]
        neighbour = [arg for arg in init.args.args if arg.arg in before] or init.args.args[:1]
        edits.insert(edits.end(neighbour[-1]), f", {name}")
    options = [f"{name}=None" for name in missing if name not in CHILD_ARGUMENTS]
    if init.args.kwarg is None:
        options.append("**kwargs")
    if options:
        edits.insert(_behind_arguments(init, edits), "".join(f", {text}" for text in options))
    for name in missing:
        yield "unit.signature", f"__init__ takes {name}"
    if init.args.kwarg is None:
        yield "unit.signature", "__init__ takes **kwargs"


def _kwarg(function: Function) -> str | None:
    return function.args.kwarg.arg if function.args.kwarg else None


def _followed_by_required(function: Function, name: str) -> bool:
    """Whether an argument without a default stands behind: a default before it would be no valid Python."""
    names = [arg.arg for arg in function.args.args]
    behind = names[names.index(name) + 1 :]
    return any(other in behind and other not in ("device", "dtype") for other in required_arguments(function))


def _behind_arguments(function: Function, edits: Edits) -> int:
    """Where an argument with a default can be added: behind the last argument and its default, before **kwargs."""
    return max([edits.end(node) for node in function.args.args] + [edits.end(node) for node in function.args.defaults])


def _complete_init(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    init = unit.init
    if init is None or any(name not in argument_names(init) for name in FIXED_ARGUMENTS):
        return
    faults = init_faults(unit, init)
    statements = [s for s in init.body if not (s is init.body[0] and _is_text(s))]
    if not faults or not statements or not edits.begins_line(statements[0]):
        return
    lines = []
    if any("factory_kwargs" in fault for fault in faults):
        lines.append('self.factory_kwargs = {"device": device, "dtype": dtype}')
    base = "super().__init__(embed_dim, block_loc, kwarg_all)"
    if any("super()" in fault for fault in faults):
        old = [node for node in ast.walk(init) if isinstance(node, ast.Call) and unit.is_super_init(node)]
        if old:
            edits.replace(old[0], base)
        else:
            lines.append(base)
        yield "unit.init", f"__init__ calls {base}"
    if lines:
        indent = edits.indent(statements[0])
        edits.insert(edits.start(statements[0]), "".join(f"{line}\n{indent}" for line in lines))
    if any("factory_kwargs" in fault for fault in faults):
        yield "unit.init", "__init__ sets self.factory_kwargs"


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _hoist_arguments(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    init = unit.init
    if init is None or not init.args.args or init.args.kwonlyargs or init.args.vararg:
        return
    added: dict[str, str] = {}
    for call, name in hoistable(unit, init):
        default = edits.text(call.args[1])
        if added.setdefault(name, default) == default and edits.replace(call, name):
            yield "unit.arguments", f"{name} is an argument of __init__, no longer read out of kwarg_all"
    if added:
        edits.insert(_behind_arguments(init, edits), "".join(f", {name}={text}" for name, text in added.items()))


def _fix_constructions(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    names = known | declared_names(unit.module)
    for call in constructions(unit, names):
        faults = argument_faults(call)
        if not faults or len(call.args) > len(CHILD_ARGUMENTS) or any(isinstance(a, ast.Starred) for a in call.args):
            continue
        values = dict(zip(CHILD_ARGUMENTS, map(edits.text, call.args), strict=False))
        words = {word.arg: edits.text(word.value) for word in call.keywords if word.arg is not None}
        if set(values) & set(words):
            continue
        values |= {name: words.pop(name) for name in CHILD_ARGUMENTS if name in words}
        spread = [edits.text(word.value) for word in call.keywords if word.arg is None]
        if any("kwarg" not in text for text in spread) or sum("factory" not in text for text in spread) > 1:
            continue
        parts = [f"{name}={values.get(name, f'self.{name}')}" for name in CHILD_ARGUMENTS]
        placed: dict[str, str] = {name: words.pop(name) for name in ("device", "dtype") if name in words}
        factory = next((text for text in spread if "factory" in text), "self.factory_kwargs")
        settings = next((text for text in spread if "factory" not in text), "self.kwarg_all")
        parts += [_spread(factory, placed), _spread(settings, words)]
        if edits.replace(call, f"{ast.unparse(call.func)}({', '.join(parts)})"):
            yield "unit.child_arguments", f"child {ast.unparse(call.func)} is made with the fixed keywords"


def _spread(mapping: str, own: Mapping[str, str]) -> str:
    """`**mapping` with entries of its own in the place of the mapping's."""
    entries = ", ".join(f'"{name}": {text}' for name, text in own.items())
    return f"**{{**{mapping}, {entries}}}" if entries else f"**{mapping}"


def _unpack_results(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    attributes = child_attributes(unit, constructions(unit, known | declared_names(unit.module)))
    for statement, name in dropped_results(unit, attributes):
        target = statement.targets[0]
        if edits.insert(edits.end(target), ", _"):
            yield "unit.child_result", f"the result of self.{name} is unpacked into {edits.text(target)} and _"


def _mark_tests(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    for node in unit.module.body:
        if isinstance(node, Function) and node.name.startswith("test") and not is_marked(node):
            indent = edits.indent(node)
            if edits.insert(edits.line(node), f"{indent}@{TEST_MARK}\n"):
                yield "unit.tests", f"{node.name} is marked @{TEST_MARK}"


def _complete_tests(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    for node in test_functions(unit.module):
        if node.args.posonlyargs or node.args.kwonlyargs or node.args.vararg or node.args.kwarg:
            continue
        missing = [name for name in ("device", "dtype") if name not in argument_names(node)]
        bare = [arg for arg in node.args.args if arg.arg in ("device", "dtype") and arg.arg in required_arguments(node)]
        if not (missing or bare) or set(required_arguments(node)) - {"device", "dtype"}:
            continue
        for argument in bare:
            edits.insert(edits.end(argument), "=None" if argument.annotation is None else " = None")
        if missing:
            text = ", ".join(f"{name}=None" for name in missing)
            opening = _opening(node, edits)
            edits.insert(*((_behind_arguments(node, edits), f", {text}") if node.args.args else (opening, text)))
        yield "unit.tests", f"{node.name} takes device and dtype, None where nothing is given"


def _opening(node: Function, edits: Edits) -> int:
    """Byte offset behind the opening parenthesis of a definition without arguments."""
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    head = edits.text(node)
    name = head.index(node.name, len(keyword))
    return edits.start(node) + len(head[: head.index("(", name) + 1].encode())


def _prefix_tests(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    """Tests of several units come to stand in one file, so each bears its unit's name."""
    taken = {node.name for node in unit.module.body if isinstance(node, ast.ClassDef | Function)}
    uses = [node.id for node in ast.walk(unit.module) if isinstance(node, ast.Name)]
    for node in test_functions(unit.module):
        name = f"test_{unit.cls.name}_{node.name}"
        if node.name.startswith(f"test_{unit.cls.name}") or name in taken or node.name in uses:
            continue
        head = edits.text(node)
        start = edits.start(node) + len(head[: head.index(node.name, len("def"))].encode())
        if edits.put(start, start + len(node.name.encode()), name):
            yield "unit.tests", f"{node.name} is called {name}"


def _declare_nothing(unit: UnitText, edits: Edits, known: frozenset[str]) -> Iterator[Change]:
    try:
        missing = declared_children(unit.module) is None
    except DesignError:
        return
    if missing and not constructions(unit, known):
        edits.insert(edits.next_line(unit.cls), f"\n\n{DECLARATIONS} = []\n")
        yield "unit.declarations", f"{DECLARATIONS} says that there are no children"


_REPAIRS: tuple[Repair, ...] = (
    _remove_main,
    _complete_signature,
    _complete_init,
    _hoist_arguments,
    _fix_constructions,
    _unpack_results,
    _mark_tests,
    _complete_tests,
    _prefix_tests,
    _declare_nothing,
)
