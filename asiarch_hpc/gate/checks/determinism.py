"""Whether a model in evaluation mode answers the same whenever it is asked.

Two kinds of faults: random numbers (dropout that stays on, a generator of the design's own), and state that moves
with every call. State may lie outside the model, in attributes of the design's classes and globals of its file, which
equal models share; so what lies there is compared before and after, and named.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from asiarch_hpc.gate.checks.subject import Specimen, Step, change_per_position, largest, reject, shown
from asiarch_hpc.records import Finding

_ROWS = 2
_NOISE = 4  # times what two equal passes differ by, more is a change
_DEPTH, _ITEMS = 4, 64  # of nested values, how far state is looked into
_NO_STATE = ("torch", "builtins", "fla", "asiarch_hpc", "transformers")  # packages whose classes hold none of it


def examine_determinism(specimen: Specimen) -> Iterator[Step]:
    """At most one finding of each code: determinism.eval, determinism.drift."""
    yield "equal passes in eval mode"
    ids = specimen.ids(_ROWS, specimen.config.causality_length, specimen.generator())
    first = specimen.fresh()
    shared = shared_state(first)
    base = specimen.answer(first, ids, "eval")
    if base is None:
        return
    scale = float(base.std())

    def change(model: nn.Module, seed: int = 0) -> float:
        logits = specimen.answer(model, ids, "eval", seed=seed)
        return math.inf if logits is None else largest(change_per_position(base, logits, scale))

    again, reseeded = change(specimen.fresh()), change(specimen.fresh(), seed=1)
    outside = _changed(shared, shared_state(first))
    limit = max(specimen.config.drift_tolerance, _NOISE * again)  # some kernels add in any order
    if not again <= specimen.tolerance:  # what more calls do can't be told from that
        yield _drift(again, specimen.tolerance, 2, outside) if outside else _unequal(again, True, specimen.tolerance)
        return
    if not reseeded <= limit:
        yield _unequal(reseeded, False, limit)
    yield "many passes in eval mode"
    used, calls = specimen.fresh(), specimen.config.drift_calls
    inside, shared = state(used), shared_state(used)
    worst, at = 0.0, 0
    for call in range(1, calls + 1):
        if not _asks(call, calls):
            specimen.answer(used, specimen.ids(_ROWS, 1 + 8 * (call % 4), specimen.generator(call)), "eval")
        elif (now := change(used)) > worst:
            worst, at = now, call
    if not worst <= limit:
        moved = [*_changed(inside, state(used)), *_changed(shared, shared_state(used))]
        yield _drift(worst, limit, at, moved)


def _asks(call: int, calls: int) -> bool:
    """Whether a call gives the ids that are compared, or others: the former at even and odd counts, in a row, after
    other inputs, and at the very end."""
    return call in (1, 3, 4, calls) or call % 5 == 0


def state(model: nn.Module) -> dict[str, str]:
    """What the modules of a model hold besides parameters and children: dotted name -> a text of its value."""
    found: dict[str, str] = {}
    every = vars(nn.Module()).keys()  # what any module has
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in every} | module._buffers
        found |= {f"{name}.{key}".lstrip("."): _text(value, _DEPTH) for key, value in own.items()}
    return found


def shared_state(model: nn.Module) -> dict[str, str]:
    """What the design's classes and the globals of their methods hold: name -> a text of its value."""
    found: dict[str, str] = {}
    for kind in {type(module) for module in model.modules()}:
        if kind.__module__.partition(".")[0] in _NO_STATE:
            continue
        for where, values in (
            (f"{kind.__name__}.", vars(kind)),
            ("global ", getattr(kind.forward, "__globals__", {})),
        ):
            own = {key: value for key, value in values.items() if not key.startswith("__")}
            found |= {f"{where}{key}": _text(value, _DEPTH) for key, value in own.items()}
    return found


def _text(value: Any, depth: int) -> str:
    """Equal for equal values of the kinds that state is kept in; what else there is counts as equal."""
    if isinstance(value, Tensor):
        wide = value.detach().double()
        return f"{tuple(value.shape)} {float(wide.sum())} {float(wide.norm())}" if not value.is_complex() else ""
    if isinstance(value, str | int | float | complex | bytes | itertools.count) or value is None:
        return repr(value)
    if isinstance(value, torch.Generator):
        return str(hash(value.get_state().numpy().tobytes()))
    if isinstance(value, random.Random):
        return str(hash(value.getstate()))
    if depth == 0 or isinstance(value, type | ModuleType | nn.Module):
        return ""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        value = [value.__defaults__, value.__kwdefaults__, *cells]
    if isinstance(value, Mapping):
        return str([(str(key), _text(item, depth - 1)) for key, item in itertools.islice(value.items(), _ITEMS)])
    if isinstance(value, Sequence | Set | deque):
        return f"{len(value)} {[_text(item, depth - 1) for item in itertools.islice(value, _ITEMS)]}"
    return _text(vars(value), depth - 1) if hasattr(value, "__dict__") else ""


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _unequal(change: float, own: bool, tolerance: float) -> Finding:
    return reject(
        "determinism.eval",
        f"two equal models give unequal outputs for equal inputs in eval mode, {'also' if own else 'but not'} from "
        "the same random seed",
        "Keep no state outside the module and draw no random numbers of a source of your own."
        if own
        else "Draw random numbers in training mode alone: pass self.training to dropout; draw fixed ones once, in the "
        "constructor.",
        measured=change,
        limit=tolerance,
    )


def _drift(change: float, tolerance: float, calls: int, moved: list[str]) -> Finding:
    what = f"; what changes with the calls: {shown(moved)}" if moved else ""
    return reject(
        "determinism.drift",
        f"in eval mode the outputs for equal inputs change with the number of calls, here by call {calls}{what}",
        "Change counters, buffers and caches in training mode alone (if self.training), or not at all.",
        measured=change,
        limit=tolerance,
    )
