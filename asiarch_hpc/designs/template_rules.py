"""The rules of the Genesys template, checked on the syntax tree: nothing of a unit runs.

`HINTS` has every rule's code and what an author does about it. A unit that `template_repair.repair` has repaired
meets the rules that the repair is for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from asiarch_hpc.designs.hashing import parse
from asiarch_hpc.designs.template import (
    BASE_CLASS,
    CHILD_ARGUMENTS,
    DECLARATIONS,
    FIXED_ARGUMENTS,
    Function,
    TemplateTree,
    UnitText,
    argument_names,
    base_names,
    is_main_guard,
    is_marked,
    required_arguments,
    test_functions,
    unit_classes,
)
from asiarch_hpc.designs.template_children import Found, children_of, examine_child_calls, examine_children
from asiarch_hpc.errors import DesignError
from asiarch_hpc.records import Finding, Severity

HINTS = {
    "unit.syntax": "Give one complete Python file, without Markdown around it.",
    "unit.class": f"Write one class derived from {BASE_CLASS} in a file; children go into files of their own.",
    "unit.base": f"Derive the unit from {BASE_CLASS} alone.",
    "unit.module": "Declare a child unit instead of a module class of your own.",
    "unit.name": "Give the class the name under which the tree holds the unit.",
    "unit.signature": "Define __init__(self, embed_dim, block_loc, kwarg_all, device=None, dtype=None, **kwargs).",
    "unit.init": "Begin __init__ with self.factory_kwargs = {'device': device, 'dtype': dtype} and "
    "super().__init__(embed_dim, block_loc, kwarg_all).",
    "unit.arguments": "Make it an argument of __init__ with a default, so that the search sees and can change it.",
    "unit.argument_default": "Give it a default, or see that every parent writes it into kwarg_all.",
    "unit.forward": "Define _forward(self, X, **Z) and return (Y, Z).",
    "unit.forward_override": "Put the computation into _forward(self, X, **Z); GAUBase calls it and checks the result.",
    "unit.returns": "Return (Y, Z): Y of X's shape, Z a dictionary of side values for the units that follow.",
    "unit.declarations": f"Write {DECLARATIONS} = [UnitDecl(unitname=..., requirements=..., inputs=[...], "
    "outputs=[...])] with literal values; [] where there are no children.",
    "unit.children_undeclared": f"Add a UnitDecl for it to {DECLARATIONS}.",
    "unit.children_unused": "Make the child in __init__ and call it in _forward, or take its declaration out.",
    "unit.children_missing": "Add the child's unit to the tree, or use one that is there.",
    "unit.child_in_sequential": "Keep children in attributes, an nn.ModuleList or nn.ModuleDict and call each as "
    "Y, Z = child(X, **Z): nn.Sequential passes no Z.",
    "unit.child_in_forward": "Make children in __init__: what is made in _forward is never trained.",
    "unit.child_arguments": "Call Child(embed_dim=self.embed_dim, block_loc=self.block_loc, kwarg_all=self.kwarg_all, "
    "**self.factory_kwargs, **self.kwarg_all); settings for the child go into kwarg_all before.",
    "unit.child_call": "Call Y, Z = self.child(X, **Z); everything but the sequence goes through Z.",
    "unit.child_result": "Unpack the result: Y, Z = self.child(X, **Z).",
    "unit.tests": "Write def test_<Unit>_<what>(device=None, dtype=None), marked @gau_test, that asserts something.",
    "unit.main": "Leave out what runs the file as a program.",
    "unit.unreachable": "Take the unit out, or declare and use it in another one.",
    "unit.cycle": "Let no unit be its own ancestor.",
    "unit.compose": "Rename what two units call the same, or see the message.",
}


def finding(code: str, message: str, severity: Severity = "reject") -> Finding:
    """A finding of this module, with its rule's hint."""
    return Finding(code=code, severity=severity, message=message, hint=HINTS[code])


def examine_unit(source: str, *, name: str | None = None, known: frozenset[str] = frozenset()) -> list[Finding]:
    """Findings on one unit's file; [] for a unit that meets all rules that can be checked without its tree.

    Args:
        name: under which its tree holds it; the class must be called so.
        known: names of all units of the tree, so that calls of them are recognised as children.
    """
    label = f"unit {name or '?'}"
    try:
        module = parse(source, where=label)
    except DesignError as error:
        return [finding("unit.syntax", str(error))]
    classes = unit_classes(module)
    if len(classes) != 1:
        names = ", ".join(node.name for node in classes) or "none"
        return [finding("unit.class", f"{label}: found the unit classes {names}, expected one")]
    unit = UnitText(source, module, classes[0])
    label = f"unit {name or unit.cls.name}"
    found = [
        *_class(unit, name),
        *_init(unit),
        *_forward(unit),
        *examine_children(unit, known),
        *examine_child_calls(unit, known),
        *_tests(unit),
    ]
    findings = [finding(code, f"{label}{message}", "warn" if code == "unit.argument_default" else "reject")
                for code, message in found]  # fmt: skip
    return list(dict.fromkeys(findings))


def examine_tree(tree: TemplateTree) -> list[Finding]:
    """Findings on the units below a tree's root and on how they hang together; others are only named."""
    known = frozenset(tree.units)
    children = {name: children_of(unit.code, known) for name, unit in tree.units.items()}
    reached: dict[str, None] = {}
    findings = _cycles(tree.root, children, (), reached)
    for name, unit in tree.units.items():
        if name not in reached:
            text = f"unit {name}: no unit below the root {tree.root} uses it; it is left out"
            findings.append(finding("unit.unreachable", text, "warn"))
            continue
        findings += examine_unit(unit.code, name=name, known=known)
        for child in children[name]:
            if child not in tree.units:
                findings.append(finding("unit.children_missing", f"unit {name}: child {child} is not in the tree"))
    return list(dict.fromkeys(findings))


def _cycles(
    name: str, children: dict[str, tuple[str, ...]], above: tuple[str, ...], reached: dict[str, None]
) -> list[Finding]:
    if name in above:
        line = " -> ".join((*above[above.index(name) :], name))
        return [finding("unit.cycle", f"unit {name} is its own ancestor: {line}")]
    if name in reached or name not in children:
        return []
    reached[name] = None
    return [item for child in children[name] for item in _cycles(child, children, (*above, name), reached)]


def _class(unit: UnitText, name: str | None) -> Found:
    bases = base_names(unit.cls)
    if bases != [BASE_CLASS]:
        yield "unit.base", f", line {unit.cls.lineno}: class {unit.cls.name} derives from {', '.join(bases)}"
    if name is not None and unit.cls.name != name:
        yield "unit.name", f", line {unit.cls.lineno}: its class is called {unit.cls.name}"
    for statement in unit.module.body:
        if isinstance(statement, Function) and is_marked(statement):
            continue  # a test may have stand-ins of its own
        for node in ast.walk(statement):
            if isinstance(node, ast.ClassDef) and "Module" in base_names(node):
                yield "unit.module", f", line {node.lineno}: class {node.name} is a plain nn.Module"
        if is_main_guard(statement):
            yield "unit.main", f", line {statement.lineno}: a block for __main__"


def _init(unit: UnitText) -> Found:
    init = unit.init
    if init is None:
        yield "unit.signature", ": no __init__"
        return
    names = argument_names(init)
    missing = [name for name in FIXED_ARGUMENTS if name not in names]
    required = required_arguments(init)
    undefaulted = [name for name in ("device", "dtype") if name in required]
    if missing or undefaulted or init.args.kwarg is None:
        faults = [f"no argument {name}" for name in missing] + [f"no default for {name}" for name in undefaulted]
        faults += [] if init.args.kwarg else ["no **kwargs"]
        yield "unit.signature", f", line {init.lineno}: __init__ has {', '.join(faults)}"
    for name in required:
        if name not in FIXED_ARGUMENTS:
            yield "unit.argument_default", f", line {init.lineno}: argument {name} has no default"
    faults = init_faults(unit, init)
    if faults:
        yield "unit.init", f", line {init.lineno}: __init__ {' and '.join(faults)}"
    for call, key in hoistable(unit, init):
        yield "unit.arguments", f", line {call.lineno}: {key} is read out of kwarg_all"


def init_faults(unit: UnitText, init: Function) -> list[str]:
    """What __init__ lacks: the call of the base class with the three places, factory_kwargs."""
    calls = [node for node in ast.walk(init) if unit.is_super_init(node)]
    faults = []
    if not any(isinstance(call, ast.Call) and _passes_on(call, CHILD_ARGUMENTS) for call in calls):
        faults.append("does not call super().__init__(embed_dim, block_loc, kwarg_all)")
    stored = [node for node in ast.walk(init) if isinstance(node, ast.Attribute) and node.attr == "factory_kwargs"]
    if not any(isinstance(node.ctx, ast.Store) for node in stored):
        faults.append("does not set self.factory_kwargs")
    return faults


def hoistable(unit: UnitText, init: Function) -> Iterator[tuple[ast.Call, str]]:
    """`self.x = kwarg_all.get("x", literal)` at the top level of __init__, where nothing else is called so or
    writes that entry: the call, and the entry's name."""
    written = {
        node.slice.value
        for node in ast.walk(unit.cls)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant)
    }
    locals_ = {node.id for node in ast.walk(init) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for statement in init.body:
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if not (isinstance(value, ast.Call) and ast.unparse(value.func) in ("kwarg_all.get", "self.kwarg_all.get")):
            continue
        key = value.args[0].value if value.args and isinstance(value.args[0], ast.Constant) else None
        if not (isinstance(key, str) and key.isidentifier() and len(value.args) == 2 and not value.keywords):
            continue
        if key not in written | locals_ | set(argument_names(init)) and _is_fixed(value.args[1]):
            yield value, key


def _is_fixed(node: ast.expr) -> bool:
    """Whether an expression may stand as a default: a constant that cannot be changed."""
    if isinstance(node, ast.Tuple):
        return all(map(_is_fixed, node.elts))
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def _passes_on(call: ast.Call, names: tuple[str, ...]) -> bool:
    """Whether a call passes on the arguments of these names, in this order or as keywords of the same name."""
    words = {word.arg: word.value for word in call.keywords}
    given = [*call.args, *(words[name] for name in names[len(call.args) :] if name in words)]
    return len(given) == len(names) and all(ast.unparse(v) in (n, f"self.{n}") for v, n in zip(given, names))  # noqa: B905


def _forward(unit: UnitText) -> Found:
    overrides = [method for name in ("forward", "__call__") if (method := unit.method(name)) is not None]
    for method in overrides:
        yield "unit.forward_override", f", line {method.lineno}: defines {method.name}"
    forward = unit.method("_forward")
    if forward is None:
        if not overrides:
            yield "unit.forward", ": no _forward"
        return
    if not argument_names(forward):
        yield "unit.forward", f", line {forward.lineno}: _forward takes no sequence X"
    returns = list(_returns(forward))
    if not returns:
        yield "unit.returns", f", line {forward.lineno}: _forward returns nothing"
    for node in returns:
        fault = _return_fault(node.value)
        if fault:
            yield "unit.returns", f", line {node.lineno}: _forward returns {fault}"


def _returns(function: Function) -> Iterator[ast.Return]:
    """The returns of a function itself, not of functions in it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.Return):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(node)


def _return_fault(value: ast.expr | None) -> str | None:
    """What is visibly no (Y, Z); a value that is no literal may be one, and a sequence alone stands for (Y, {})."""
    if value is None or isinstance(value, ast.Constant):
        return "no sequence"
    if isinstance(value, ast.Tuple) and not any(isinstance(item, ast.Starred) for item in value.elts):
        if len(value.elts) != 2:
            return f"{len(value.elts)} values"
        if isinstance(value.elts[1], ast.Constant | ast.List | ast.Tuple | ast.Set | ast.BinOp):
            return "a second value that is no dictionary"
    return "a collection that is no tuple" if isinstance(value, ast.List | ast.Dict | ast.Set) else None


def _tests(unit: UnitText) -> Found:
    marked = test_functions(unit.module)
    if not marked:
        yield "unit.tests", ": no unit test"
    for test in marked:
        place = f", line {test.lineno}: test {test.name}"
        if required := required_arguments(test):
            yield "unit.tests", f"{place} needs {', '.join(required)}, so nothing can run it"
        if missing := [name for name in ("device", "dtype") if name not in argument_names(test)]:
            yield "unit.tests", f"{place} does not take {' and '.join(missing)}"
        if not test.name.startswith(f"test_{unit.cls.name}"):
            yield "unit.tests", f"{place} does not bear its unit's name, which tells it from those of other units"
    for node in unit.module.body:
        if isinstance(node, Function) and node.name.startswith("test") and not is_marked(node):
            yield "unit.tests", f", line {node.lineno}: test {node.name} is not marked"
