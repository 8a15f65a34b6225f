"""From hidden states to log-probabilities, in the process that the candidate's code never enters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from asiarch_hpc.errors import EvaluationError


class States(Protocol):
    """A model's blocks behind a process border: ids in, hidden states before the final norm out, in fp32 or bf16."""

    def submit(self, ids: Tensor) -> None: ...

    def collect(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One input of the blocks, and the places of it that are looked at.

    Attributes:
        ids: `[batch, length]` int64.
        places: `[count]` int64, indices into the flattened `batch * length` positions.
        wanted: what the caller knows the places by.
    """

    ids: Tensor
    places: Tensor
    wanted: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model in two halves.

    Attributes:
        states: the blocks, in one process for each device.
        logits: the final norm and the head, from the hashed weights: `[count, dim]` fp32 states on the CPU to
            `[count, vocab]` fp32 logits on any device.
        rows: most states of one call of `logits`, so that the logits of a batch never exist all at once.
        pad_multiple: lengths of which the blocks want a multiple, because kernels compile or tune for each length.
    """

    states: Sequence[States]
    logits: Callable[[Tensor], Tensor]
    rows: int
    pad_multiple: int = 1

    def run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Tensor]]:
        """The fp32 states `[count, dim]` at the places of each call, in order.

        While the caller works on an answer, the model computes the next.
        """
        waiting: deque[tuple[States, Call]] = deque()
        coming = iter(calls)
        for states in self.states:
            _submit_next(states, coming, waiting)
        while waiting:
            states, call = waiting.popleft()
            # The selection is a copy: nobody else can change the numbers between the check and the sum.
            chosen = states.collect().flatten(0, 1)[call.places].float()
            _submit_next(states, coming, waiting)
            yield call, chosen

    def score(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Natural-log probability of each target, and whether it is the likeliest token.

        Args:
            states: `[count, dim]`.
            targets: `[count]` int64.

        Returns:
            `[count]` float64 and `[count]` bool, on the CPU.

        Raises:
            EvaluationError: a log-probability is not a finite number.
        """
        values: list[Tensor] = []
        likeliest: list[Tensor] = []
        for part, wanted in zip(torch.split(states, self.rows), torch.split(targets, self.rows), strict=True):
            logits = self.logits(part)
            wanted = wanted.to(logits.device)
            values.append(-torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
            likeliest.append(logits.argmax(-1) == wanted)
        found = torch.cat(values).double().cpu()
        if not bool(torch.isfinite(found).all()):
            raise EvaluationError("the model gave log-likelihoods that are not finite numbers; it cannot be scored")
        return found, torch.cat(likeliest).cpu()

    def likeliest(self, states: Tensor) -> list[int]:
        """The likeliest token after each of the states `[count, dim]`."""
        found: list[int] = []
        for part in torch.split(states, self.rows):
            found += self.logits(part).argmax(-1).tolist()
        return found


def _submit_next(states: States, coming: Iterator[Call], waiting: deque[tuple[States, Call]]) -> None:
    call = next(coming, None)
    if call is not None:
        states.submit(call.ids)
        waiting.append((states, call))
