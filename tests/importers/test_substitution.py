"""A program's own recurrence is recognised by what it computes, and replaced without touching anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from asiarch_hpc.designs.contract import build_block
from asiarch_hpc.errors import DesignError
from asiarch_hpc.gate.sandbox import run_isolated
from asiarch_hpc.gate.static import examine
from asiarch_hpc.importers.substitution import Agreement, Candidate, candidates, measure, rewrite, statements
from asiarch_hpc.records import from_json, to_json

TOLERANCE = 1e-4

DELTA = '''
@torch.compile
def memory(q, k, v, beta, *, chunk_size: int = 32):
    """Reads and replaces, a chunk at a time: é."""
    length = q.shape[2]
    missing = -length % chunk_size
    q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
    beta = F.pad(beta, (0, missing))[..., None]
    q, k = l2norm(q), l2norm(k)
    state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for start in range(0, length + missing, chunk_size):
        here = slice(start, start + chunk_size)
        query, key, value, strength = q[:, :, here], k[:, :, here], v[:, :, here], beta[:, :, here]
        overlap = torch.tril(strength * (key @ key.mT), -1)
        new = strength * (value - key @ state)
        new = torch.linalg.solve_triangular(overlap, new, upper=False, unitriangular=True)
        outputs.append(query @ state + torch.tril(query @ key.mT) @ new)
        state = state + key.mT @ new
    return torch.cat(outputs, 2)[:, :, :length], state
'''

GATED = '''
def memory(q, k, v, beta, g):
    """Token by token."""
    state, outputs = 0 * k[:, 0, :, :, None] * v[:, 0, :, None], []
    for t in range(q.shape[1]):
        state = state * g[:, t, :, None, None].exp()
        stored = (state * k[:, t, :, :, None]).sum(-2)
        state = state + k[:, t, :, :, None] * (beta[:, t, :, None] * (v[:, t] - stored))[:, :, None]
        outputs.append((q[:, t, :, :, None] * state).sum(-2) * q.shape[-1] ** -0.5)
    return torch.stack(outputs, 1)
'''

LINEAR = """
class Memory:
    @staticmethod
    def attend(values, keys, queries):
        keys = F.normalize(keys, dim=-1)
        sums, outputs = 0.0, []
        for q, k, v in zip(queries.unbind(2), keys.unbind(2), values.unbind(2)):
            sums = sums + k.unsqueeze(-1) * v.unsqueeze(-2)
            outputs.append(torch.einsum("bhk,bhkv->bhv", q, sums))
        return torch.stack(outputs, 2), sums.detach()
"""

DECAYED = """
def retain(a, b, c, d, S=None):
    S = torch.zeros(*a.shape[:2], a.shape[-1], c.shape[-1], dtype=a.dtype) if S is None else S
    t, seen = 0, []
    while t < a.shape[2]:
        S = S * d[:, :, t, None, None] + b[:, :, t, :, None] * c[:, :, t, None, :]
        seen += [(a[:, :, t, :, None] * S).sum(-2)]
        t += 1
    return torch.stack(seen, 2), S
"""

AVERAGE = """
def smooth(x, rate, before=None):
    level, levels = torch.zeros_like(x[:, :, 0]) if before is None else before, []
    for t in range(x.shape[2]):
        keep = rate[:, :, t].unsqueeze(-1)
        level = keep * level + (1 - keep) * x[:, :, t]
        levels.append(level)
    return torch.stack(levels, 2), level
"""

CALLS = {
    DELTA: "memory(q, k, v, beta, chunk_size=8)[0]",
    GATED: "memory(*(x.transpose(1, 2) for x in (l2norm(q), l2norm(k), v, beta, -beta))).transpose(1, 2)",
    LINEAR: "Memory.attend(v, k, q)[0]",
    DECAYED: "retain(q, k, v, 1 - beta, S=self.before)[0]",
    AVERAGE: "smooth(v, beta, self.before)[0]",
}

PROGRAM = '''"""A layer with a recurrence of its own."""
from __future__ import annotations

import torch
from torch import Tensor
import torch.nn.functional as F
from torch import nn
from fla.modules.l2norm import l2norm  # fla's eps


def halve(x, times: int = 3):
    for _ in range(times):
        x = x * 0.5
    return x
{function}

class DeltaNet(nn.Module):
    def __init__(self, hidden_size=16, num_heads=2, layer_idx=None, **kwargs):
        super().__init__()
        self.heads, self.before = num_heads, None
        self.into = nn.Linear(hidden_size, 3 * hidden_size + num_heads)
        self.out = nn.Linear(hidden_size, hidden_size)

    def accumulate(self, x):
        for t in range(x.shape[1]):
            self.total = x[:, t] * self.total
        return self.total

    def forward(self, hidden_states, **kwargs):
        *parts, beta = self.into(hidden_states).split([*[hidden_states.shape[-1]] * 3, self.heads], -1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in parts)
        beta = beta.sigmoid().transpose(1, 2)
        o = {call}  # the only use
        return self.out(o.transpose(1, 2).flatten(2)), None, None
'''


def program(function: str, call: str = "") -> str:
    return PROGRAM.format(function=function, call=call or CALLS[function])


def only(source: str) -> Candidate:
    (candidate,) = candidates(source)
    return candidate


def agreement(source: str) -> Agreement:
    return measure(source, only(source), seed=0)


def test_candidates_are_found_by_what_they_do() -> None:
    assert only(program(DELTA)) == Candidate(name="memory", tensors=("q", "k", "v", "beta"), sizes=("chunk_size",))
    assert only(program(GATED)).tensors == ("q", "k", "v", "beta", "g")
    assert only(program(LINEAR)) == Candidate(name="Memory.attend", tensors=("values", "keys", "queries"))
    assert only(program(DECAYED)) == Candidate(name="retain", tensors=("a", "b", "c", "d"), optional=("S",))
    # Never given, always None: it is no operand.
    assert only(program(AVERAGE, "smooth(v, beta)[0]")) == Candidate(name="smooth", tensors=("x", "rate"))
    assert candidates(program("", "v")) == ()
    with pytest.raises(DesignError, match="valid Python"):
        candidates("def f(:")


@pytest.mark.parametrize(
    ("call", "optional", "unclear"),
    [
        ("memory(q, k, v, beta)", (), ()),
        ("memory(q, k, v, beta, extra=beta, mode='x')", ("extra",), ("mode",)),
        ("memory(*(q, k, v, beta))", ("extra",), ("mode",)),
        ("halve(v, memory)", ("extra",), ("mode",)),
    ],
)
def test_what_no_call_gives_is_no_operand(call: str, optional: tuple[str, ...], unclear: tuple[str, ...]) -> None:
    found = only(program(DELTA.replace("*, chunk", "*, extra=None, mode: str = 'a', chunk"), call))
    assert (found.optional, found.unclear) == (optional, unclear)


@pytest.mark.parametrize(
    ("function", "operation", "norms", "facts"),
    [
        (DELTA, "delta_rule", {"q": "l2", "k": "l2"}, {"heads_first": True, "scaled": False, "state": "kept"}),
        (GATED, "gated_delta_rule", {}, {"heads_first": False, "scaled": True, "logarithmic": True, "state": "none"}),
        (LINEAR, "linear_attention", {"k": "unit"}, {"heads_first": True, "state": "detached"}),
        (DECAYED, "decayed_linear_attention", {}, {"logarithmic": False, "optional": ("S",)}),
        (AVERAGE, "moving_average", {}, {"optional": ("before",)}),
    ],
)
def test_equal_functions_are_recognised_and_replaced(
    function: str, operation: str, norms: dict[str, str], facts: dict[str, object]
) -> None:
    source = program(function)
    found = agreement(source)
    assert found.agrees(TOLERANCE), found
    assert found.operation is not None
    assert (found.operation.name, found.operation.norms) == (operation, norms)
    assert {name: getattr(found.operation, name) for name in facts} == facts
    assert {1, 31, 32, 33, 64, 65} <= set(found.lengths)
    assert found.as_written is not None
    assert found.precision == "float32"
    assert {f"gradient of {name}" for name in found.operation.roles.values()} <= set(found.errors)
    rewritten = rewrite(source, only(source), found.operation)
    assert candidates(rewritten) == ()
    assert examine(rewritten) == []
    torch.manual_seed(0)
    blocks = [build_block(text, dim=16, heads=2, layer_idx=0, ffn_multiple=2) for text in (source, rewritten)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    x = torch.randn(2, 45, 16)
    torch.testing.assert_close(blocks[1](x)[0], blocks[0](x)[0], rtol=1e-5, atol=1e-5)


def test_products_stay_in_the_precision_of_the_operands() -> None:
    """A norm that widened them would send bfloat16 to the kernels of float32, which take twenty times as long."""
    for function in (DELTA, LINEAR):
        source = program(function)
        operation = agreement(source).operation
        assert operation is not None
        given: list[torch.dtype] = []

        def kernel(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, given: Any = given, **options: Any) -> Any:
            given += [q.dtype, k.dtype, v.dtype]
            return v, v.new_zeros(1, 2, 4, 4)

        scope: dict[str, Any] = {"torch": torch, "kernel": kernel}
        roles = operation.roles.values()
        lines = "".join(f"    {line}\n" for line in statements(operation, "kernel"))
        exec(f"def replacement({', '.join(roles)}):\n{lines}", scope)
        tensors = [torch.randn(1, 2, 8, 4, dtype=torch.bfloat16) for _ in roles]
        scope["replacement"](*(x[..., 0] if role == "beta" else x for role, x in zip(roles, tensors, strict=True)))
        assert given == 3 * [torch.bfloat16]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state = state + key.mT @ new", "state = 0.999 * state + key.mT @ new"),  # forgets, once a chunk
        ("state = state + key.mT @ new", "state = (state + key.mT @ new) * (start < 192)"),  # ends after some chunks
        ("torch.tril(query @ key.mT)", "torch.tril(query @ key.mT, -1)"),  # reads before it writes
        ("torch.tril(query @ key.mT)", "query @ key.mT"),  # sees the rest of its chunk
        ("q, k = l2norm(q), l2norm(k)", "q, k = l2norm(q), l2norm(k.detach())"),  # right but for a gradient
        ("state = state + key.mT @ new", "state = (state + key.mT @ new).detach()"),  # likewise, between chunks
        ("length], state", "length], 2 * state"),  # right but for the state
        ("    q, k = l2norm(q)", "    v = v - 1e-3 * v.mean(0, keepdim=True)\n    q, k = l2norm(q)"),  # mixes rows
        ("(value - key @ state)", "(value - key @ state) * (chunk_size / 32)"),  # right at one size of its chunks
    ],
)
def test_unequal_functions_are_kept(old: str, new: str) -> None:
    assert old in DELTA
    found = agreement(program(DELTA.replace(old, new), CALLS[DELTA]))
    assert not found.agrees(TOLERANCE), found


def test_what_cannot_be_measured_says_why() -> None:
    extra = DELTA.replace("beta, *", "beta, one, two, three, *").replace("l2norm(q)", "l2norm(q + one * two * three)")
    found = agreement(program(extra, CALLS[DELTA]))
    assert found.operation is None
    assert "no operation takes q, k, v, beta, one, two, three" in found.reason
    unclear = agreement(program(DELTA.replace("*, ", "mode: str, *, "), CALLS[DELTA]))
    assert "mode" in unclear.reason
    assert not unclear.agrees(TOLERANCE)
    broken = agreement(program(DELTA.replace("missing = ", "assert length < 50\n    missing = "), CALLS[DELTA]))
    assert broken.error is None
    assert "fails" in broken.reason


def test_a_cast_is_rounding_and_not_another_operation() -> None:
    rounded = agreement(program(DELTA.replace("@ new)", "@ new.to(torch.bfloat16).to(new.dtype))"), CALLS[DELTA]))
    assert rounded.agrees(TOLERANCE)
    assert rounded.precision == "float32"
    assert rounded.as_written is not None
    assert rounded.as_written > 10 * TOLERANCE
    hard = program(LINEAR.replace("q, sums", "q, sums.bfloat16()"), CALLS[LINEAR])
    found = agreement(hard)
    assert found.agrees(TOLERANCE)
    assert found.precision == "bfloat16"
    assert found.operation is not None
    x = torch.randn(1, 9, 16)
    with pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        build_block(hard, dim=16, heads=2, layer_idx=0, ffn_multiple=2)(x)
    block = build_block(rewrite(hard, only(hard), found.operation), dim=16, heads=2, layer_idx=0, ffn_multiple=2)
    assert block(x)[0].isfinite().all()  # the cast went with the function


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_all_else_stays_byte_for_byte(newline: str) -> None:
    source = program(DELTA).replace("\n", newline)
    found = agreement(program(DELTA))
    assert found.operation is not None
    rewritten = rewrite(source, only(source), found.operation)
    assert rewritten == rewrite(source, only(source), found.operation)
    assert rewritten.count(newline) == rewritten.count("\n")
    body = '    """Reads and replaces, a chunk at a time: é."""'
    before, after = source.split(body)
    end = after.index("state" + newline + newline) + len("state" + newline)
    added = f"from kernels.delta_rule import delta_rule{newline}"
    assert rewritten.replace(added, "", 1).startswith(before)
    assert rewritten.endswith(after[end:])
    assert rewritten.index(added) == source.index("l2norm  # fla's eps") + len("l2norm  # fla's eps" + newline)


def test_two_functions_of_one_program_and_names_that_are_taken() -> None:
    delta = DELTA.replace("def memory", "def delta_rule").replace("import F", "")
    source = program(delta + AVERAGE, "smooth(delta_rule(q, k, v, beta)[0], beta, self.before)[0]")
    text = source
    for candidate in candidates(source):
        found = measure(source, candidate, seed=0)
        assert found.operation is not None
        assert found.agrees(TOLERANCE)
        text = rewrite(text, candidate, found.operation)
    assert "from kernels.delta_rule import delta_rule as kernel_delta_rule\n" in text
    torch.manual_seed(0)
    blocks = [build_block(each, dim=16, heads=2, layer_idx=0, ffn_multiple=2) for each in (source, text)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    x = torch.randn(1, 40, 16)
    torch.testing.assert_close(blocks[1](x)[0], blocks[0](x)[0], rtol=1e-5, atol=1e-5)


def test_the_measurement_crosses_the_sandbox(tmp_path: Path) -> None:
    source = program(AVERAGE)
    outcome = run_isolated(
        lambda: to_json(agreement(source)), timeout_s=60, memory_gb=2, writable=[tmp_path], rung="limits"
    )
    assert outcome.ok, outcome
    found = from_json(Agreement, json.loads(json.dumps(outcome.result)))
    assert found.operation is not None
    assert found.agrees(TOLERANCE)
    assert found == agreement(source)
    assert "linear_attention" in rewrite(source, only(source), found.operation)
    for change in ({"name": "other"}, {"norms": {"v": "l2"}}, {"roles": {"v": "x", "decay": "exec('')"}}):
        with pytest.raises(DesignError, match="expected an operation"):
            rewrite(source, only(source), from_json(type(found.operation), to_json(found.operation) | change))


def test_only_measuring_needs_torch() -> None:
    code = "import sys, asiarch_hpc.importers.substitution; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
