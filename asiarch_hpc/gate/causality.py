"""Whether a model's outputs depend on later tokens.

For many positions t, all tokens after t are replaced by others, and the outputs up to t must stay as they were, in
training and in evaluation mode. Every forward pass runs on its own equal model and from the same random state, so
that counters, buffers and dropout are equal in all of them; models run one by one, so that a leak through
statistics of the batch is seen as well. The tolerance is relative to the outputs' scale: a transform over the whole
length (an FFT convolution) may round differently.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asiarch_hpc.config import GateConfig
from asiarch_hpc.gate.family import is_out_of_memory
from asiarch_hpc.records import Finding

_ROWS = 2
_FIRST_BORDER = 16  # the smallest chunk in use


@dataclass(frozen=True, slots=True)
class _Leak:
    mode: str
    after: int  # the last position whose token was kept
    position: int  # the first whose output changed
    change: float  # largest, relative to the outputs' scale


def examine_causality(
    fresh: Callable[[], nn.Module],
    *,
    vocab: int,
    config: GateConfig,
    seed: int,
    on_failure: Callable[[str, str, str], None],
    describe: Callable[[BaseException], str],
) -> Iterator[Finding | str]:
    """Yields the name of each step before it, and at most one finding of each code.

    Codes: causality.leak; causality.random where equal inputs give unequal outputs, so that nothing can be said.

    Args:
        fresh: gives equal models, `forward(ids [batch, length]) -> (logits [batch, length, vocab], ...)`.
        vocab: ids are drawn below it; at least 2.
        seed: of tokens, of the positions beside chunk borders, and of each forward pass.
        on_failure: told (code, case, message) when a forward pass fails.
        describe: message of what a forward pass raised.
    """
    generator = torch.Generator().manual_seed(seed)
    length = config.causality_length
    ids = torch.randint(vocab, (_ROWS, length), generator=generator)
    positions = probe_positions(length, config.causality_positions, random.Random(seed))
    leaks: list[_Leak] = []
    noise = {"eval": 0.0, "train": 0.0}
    for mode in noise:
        yield f"causality in {mode} mode"
        case = f"batch {_ROWS}, length {length}, {mode} mode"
        try:
            base = _outputs(fresh(), ids, mode, seed)
            if tuple(base.shape) != (_ROWS, length, vocab):
                on_failure("forward.shape", case, f"logits {list(base.shape)}, expected {[_ROWS, length, vocab]}")
                continue
            if not bool(base.isfinite().all()):
                share = 1 - float(base.isfinite().float().mean())
                on_failure("forward.nonfinite", case, f"{share:.1%} of the outputs are not finite")
                continue
            scale = float(base.std())
            noise[mode] = _largest(_change(base, _outputs(fresh(), ids, mode, seed), scale))
            for after in positions:
                changed = ids.clone()
                later = changed[:, after + 1 :]
                later += torch.randint(1, vocab, later.shape, generator=generator)
                outputs = _outputs(fresh(), changed % vocab, mode, seed)
                change = _change(base[:, : after + 1], outputs[:, : after + 1], scale)
                beyond = ~(change <= config.causality_tolerance)
                if bool(beyond.any()):
                    leaks.append(_Leak(mode, after, int(beyond.nonzero()[0]), _largest(change)))
        except BaseException as error:  # whatever the design raises
            if is_out_of_memory(error):
                raise
            on_failure("forward.failed", case, describe(error))
    random_modes = [mode for mode, largest in noise.items() if not largest <= config.causality_tolerance]
    if random_modes:
        yield _random_finding(random_modes, max(noise.values()), config.causality_tolerance)
    leaks = [leak for leak in leaks if leak.mode not in random_modes]
    if leaks:
        yield _leak_finding(leaks, positions, config.causality_tolerance)


def probe_positions(length: int, count: int, rng: random.Random) -> list[int]:
    """`count` last-kept positions: those just before and just after chunk borders 16, 32, 64 …, and random ones.

    Half are the last positions of chunks, from the largest border below `length` down; a border's own position
    and random positions alternate in the rest.
    """
    borders: list[int] = []
    border = _FIRST_BORDER
    while border < length:
        borders.insert(0, border)
        border *= 2
    chosen = [border - 1 for border in borders[: (count + 1) // 2]]
    spare = [border for border in borders if border < length - 1]
    others = [position for position in range(length - 1) if position not in chosen]
    rng.shuffle(others)
    while len(chosen) < count and others:
        position = spare.pop(0) if spare and len(chosen) % 2 else others.pop()
        if position not in chosen:
            chosen.append(position)
    return sorted(chosen)


def _outputs(model: nn.Module, ids: Tensor, mode: str, seed: int) -> Tensor:
    """Logits of a model that has not run yet; with gradients recorded in training mode, as in training."""
    model.train(mode == "train")
    torch.manual_seed(seed)
    random.seed(seed)
    with torch.set_grad_enabled(mode == "train"):
        logits = model(ids)[0]
    return torch.as_tensor(logits).detach().float()


def _change(base: Tensor, other: Tensor, scale: float) -> Tensor:
    """Largest change at each position, over rows and outputs, relative to `scale`; [length]."""
    return (other - base).abs().amax(dim=(0, 2)) / max(scale, torch.finfo(torch.float32).tiny)


def _largest(change: Tensor) -> float:
    """The maximum; infinity when anything is not a number."""
    return float(change.nan_to_num(nan=float("inf"), posinf=float("inf")).max())


def _leak_finding(leaks: list[_Leak], positions: list[int], tolerance: float) -> Finding:
    worst = max(leaks, key=lambda leak: leak.change)
    afters = sorted({leak.after for leak in leaks})
    modes = sorted({leak.mode for leak in leaks})
    where = "every probed t" if len(afters) == len(positions) else f"t = {afters} of the probed {positions}"
    hint = (
        "Look for a mean, norm, softmax, sort or top-k over the length without a causal mask, right-sided padding of "
        "a convolution, roll or flip, an FFT without padding to twice the length."
    )
    if len(afters) < len(positions):
        hint = "The leak depends on the position: look at masks inside chunks and at what passes their borders. " + hint
    if len(modes) == 1:
        hint += f" Only {modes[0]} mode leaks."
    return Finding(
        code="causality.leak",
        severity="reject",
        message=f"outputs up to t change when only tokens after t change, in {' and '.join(modes)} mode, for {where}; "
        f"with t = {worst.after} the first changed output is at {worst.position}",
        measured=worst.change if worst.change < float("inf") else None,
        limit=tolerance,
        hint=hint,
    )


def _random_finding(modes: list[str], largest: float, tolerance: float) -> Finding:
    return Finding(
        code="causality.random",
        severity="reject",
        message=f"equal inputs, weights and random seed give unequal outputs in {' and '.join(modes)} mode, "
        "so that causality cannot be examined",
        measured=largest if largest < float("inf") else None,
        limit=tolerance,
        hint="Draw random numbers from torch's global generator only, and keep no state outside the module.",
    )
